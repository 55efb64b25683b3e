// The element-wise merge: parameters, what a method drops, and what ends it.
//
// CPU twin: src/backend/cpu/blend.rs.
#pragma once
#include "elementwise.cuh"

// What a method drops from each task vector, as the host numbers it.
[[maybe_unused]] constexpr u32 NOTHING = 0, OUTSIDE_CUTS = 1, AT_RANDOM = 2, BY_LINE = 3;
// The numbers of a rule that are the same for every element. Twin: Numbers in src/ops/rules/mod.rs; mirrored in ops/blend.rs.
struct Numbers {
  double divisor, lambda, base, threshold;
  u32 normalize;
  u32 pad;
};

// Every rule of kernels/rules, put together by build.rs, which also makes the entry points from the table of rules.
#include "rules.cuh"

// Mirrored in ops/blend.rs.
struct Blend {
  Load load;
  double weights[MAX_MODELS];
  u64 limits[MAX_MODELS];      // key of the cut, or threshold of random words
  u64 tops[MAX_MODELS];        // key of the largest magnitude that is kept
  double factors[MAX_MODELS];  // what is kept of a task vector is multiplied by this
  u32 keys[MAX_MODELS][2];     // of random words
  Numbers numbers;
  u8* out;
  u64* facts;  // NaN or infinite results; those with finite sources; elements kept at random, by model
  const double* lines;  // what each line of a model's vector is multiplied by, [T][line_count]
  u64 line_count;
  u64 line_elems;
  u64 line_stride;  // 1: lines of consecutive elements; else element i is in line i mod line_stride
  u32 out_dtype;
  u32 sparsify;
};
static_assert(sizeof(Blend) == 3312, "as in blend.rs");

// Of results that are NaN or infinite: how many, and how many of them no source accounts for.
DEV void count_nonfinite(const Sources& s, u64* facts, u64 e, u32 bad) {
  u64 introduced = 0;
#pragma unroll 1
  for (int v = 0; v < V; ++v) {
    if (!(bad >> v & 1)) continue;
    bool finite = !s.base || is_finite(widen_one<double>(s.base + (e + v) * bytes_of(s.base_dtype), s.base_dtype));
#pragma unroll 1
    for (u32 t = 0; t < s.count && finite; ++t)
      finite = is_finite(widen_one<double>(s.models[t] + (e + v) * bytes_of(s.dtypes[t]), s.dtypes[t]));
    introduced += finite;
  }
  atomicAdd(&facts[0], (u64)__popc(bad));
  if (introduced) atomicAdd(&facts[1], introduced);
}

// Begins the sums of a vector of elements.
template <typename R, typename C>
DEV void start(const Blend& p, const C (&base)[V], typename R::template Acc<C> (&accs)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) R::start(p.numbers, base[v], accs[v]);
}

// Takes the values of model t.
template <typename R, typename C>
DEV void take(const Blend& p, u32 t, const C (&x)[V], typename R::template Acc<C> (&accs)[V]) {
  const C w = (C)p.weights[t];
#pragma unroll
  for (int v = 0; v < V; ++v) R::take(accs[v], R::WEIGHTED ? w * x[v] : x[v]);
}

// Ends a vector of n elements: divides, finishes, rounds, stores and counts.
template <typename R, typename C>
DEV void finish(const Blend& p, u64 e, int n, const C (&base)[V], const typename R::template Acc<C> (&accs)[V]) {
  C out[V];
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = R::sum(p.numbers, accs[v]);
  const C divisor = (C)p.numbers.divisor;
  if (p.numbers.divisor != 1.0) {
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = out[v] / divisor;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = R::finish(p.numbers, out[v], base[v]);
  const u32 bad = store(p.out, (int)p.out_dtype, e, n, out);
  if (bad) count_nonfinite(p.load.sources, p.facts, e, bad);
}

// Multiplies a vector of elements by the weights of their lines.
template <typename C> DEV void weigh(const Blend& p, u32 t, u64 e, C (&x)[V]) {
  const double* weights = p.lines + t * p.line_count;
  const u64 at = p.load.sources.start + e;
  const bool is_contiguous = p.line_stride == 1;
  u64 line = is_contiguous ? at / p.line_elems : at % p.line_stride;
  u64 within = is_contiguous ? at - line * p.line_elems : 0;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    // Elements past the end of the tensor are nobody's.
    x[v] = x[v] * (C)weights[min(line, p.line_count - 1)];
    if (!is_contiguous) {
      if (++line == p.line_stride) line = 0;
    } else if (++within == p.line_elems) {
      within = 0, ++line;
    }
  }
}

// Drops what the method drops from one task vector; returns how many elements random words kept.
template <typename C> DEV u32 sparsify(const Blend& p, u32 t, u64 e, int n, C (&x)[V]) {
  if (p.sparsify == NOTHING) return 0;
  u32 kept = 0;
  if (p.sparsify == OUTSIDE_CUTS) {
#pragma unroll
    for (int v = 0; v < V; ++v) kept |= is_within(x[v], p.limits[t], p.tops[t]) ? 1u << v : 0u;
  } else {
    kept = kept_at_random(p.load.sources.start + e, p.keys[t][0], p.keys[t][1], p.limits[t]);
  }
  const C factor = (C)p.factors[t];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    x[v] = kept >> v & 1 ? x[v] : (C)0;
    if (p.factors[t] != 1.0) x[v] = x[v] * factor;
  }
  return p.sparsify == AT_RANDOM ? __popc(kept & ((1u << n) - 1)) : 0;
}
