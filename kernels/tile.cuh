// Task vectors of all models at once, in shared memory: 8 elements a thread and model, in slots that other threads can read
// too. It is what the CPU's blocks are, and scores that look at other tasks, elections and sums are made from it.
//
// CPU twin: src/backend/cpu/prune.rs, load and apply.
#pragma once
#include "elementwise.cuh"

// Element v of a thread's vector of array t lies at (t·8 + v)·(threads + 1) + thread: neither a warp that reads one element of
// all its threads nor one that reads all elements of a thread finds two of them in one bank.
template <typename C> struct Slots {
  C* at;
  DEV C& operator()(u32 t, int v, u32 thread) const { return at[(t * V + v) * (blockDim.x + 1) + thread]; }
  DEV C& operator()(u32 t, int v) const { return (*this)(t, v, threadIdx.x); }
};

// Values that `arrays` arrays of slots take.
DEV u32 slots_of(u32 arrays) { return arrays * V * (blockDim.x + 1); }

// Σ τ and Σ |τ| over the models of the thread's elements, in model order.
template <typename C>
DEV void sum_models(const Slots<C>& tau, u32 models, double (&sums)[V], double (&sizes)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) sums[v] = sizes[v] = 0.0;
#pragma unroll 1
  for (u32 t = 0; t < models; ++t) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const double x = (double)tau(t, v);
      sums[v] = sums[v] + x;
      sizes[v] = sizes[v] + magnitude(x);
    }
  }
}

// Loads n elements at e of θ₀ and of every task vector, and applies all stages. A thread fills its own slots.
template <int D, typename C> DEV void load_tile(const Load& l, u64 e, int n, const Slots<C>& tau, C (&base)[V]) {
  const u32 models = l.sources.count;
  if (l.sources.base) {
    load<D>(l.sources.base, l.sources.base_dtype, e, n, base);
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) base[v] = (C)0;
  }
  each_model<D, 4, C>(l, e, n, [&](u32 t, const C(&x)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) tau(t, v) = x[v] - base[v];
  });
  if (l.stages == 0) return;
  const Units units = units_of(l, e);
#pragma unroll 1
  for (u32 i = 0; i < l.stages; ++i) {
    const Stage* stages = reinterpret_cast<const Stage*>(l.blob) + (u64)i * models;
    double sums[V] = {}, sizes[V] = {};
    // Before any mask of this stage: the scores are of the task vectors that entered it.
    if (stages[0].sums) sum_models(tau, models, sums, sizes);
#pragma unroll 1
    for (u32 t = 0; t < models; ++t) {
      C x[V];
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = tau(t, v);
      prune(l, stages[t], units, n, base, sums, sizes, x);
#pragma unroll
      for (int v = 0; v < V; ++v) tau(t, v) = x[v];
    }
  }
}

// The spread over the models of element v of the thread's, measured from the first model, so that it is exactly 0 where all are equal.
// CPU twin: src/backend/cpu/sparsify.rs, spread.
template <typename C> DEV C spread_of(const Slots<C>& tau, u32 models, int v) {
  const double count = (double)models, first = (double)tau(0, v);
  double sum = 0.0, squares = 0.0;
#pragma unroll 1
  for (u32 t = 0; t < models; ++t) sum = sum + ((double)tau(t, v) - first);
#pragma unroll 1
  for (u32 t = 0; t < models; ++t) {
    const double off = ((double)tau(t, v) - first) - sum / count;
    squares = squares + off * off;
  }
  return (C)sqrt(squares / count);
}

// Drops the elements whose spread lies below the cut from every task vector.
template <typename C> DEV void drop_below_spread(const Slots<C>& tau, u32 models, u64 cut) {
#pragma unroll 1
  for (int v = 0; v < V; ++v) {
    if (key_of(spread_of(tau, models, v)) >= cut) continue;
#pragma unroll 1
    for (u32 t = 0; t < models; ++t) tau(t, v) = (C)0;
  }
}

// Puts scores in place of the task vectors; a spread in place of the first.
template <typename C> DEV void score_tile(u32 score, u32 models, const Slots<C>& tau, const C (&base)[V]) {
  if (score == SPREAD) {
#pragma unroll 1
    for (int v = 0; v < V; ++v) tau(0, v) = spread_of(tau, models, v);
    return;
  }
  double sums[V] = {}, sizes[V] = {};
  if (is_relational(score)) sum_models(tau, models, sums, sizes);
#pragma unroll 1
  for (u32 t = 0; t < models; ++t) {
#pragma unroll
    for (int v = 0; v < V; ++v) tau(t, v) = score_of(score, tau(t, v), base[v], sums[v], sizes[v], (double)models);
  }
}
