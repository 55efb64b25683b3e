// Merges of models in turn, of which nothing is dropped: one kernel a rule that has a plain form.
//
// out[i] = rule(θ₀[i], θ_1[i] … θ_T[i]), one pass, models in their order in the computing type, rounded once.
//
// Shapes   T ≤ 64 models and θ₀ (where the rule reads it) of `len` elements each; out: `len` elements. One thread takes 8.
// Types    `_bf16`, `_f16`, `_f32`: every source of that type. `_any`: each of its own. `_f64`: each of its own, computed in
//          f64 where the others compute in f32. Out: any of the six.
// Bytes    every source once, out once: len·(Σ source bytes + out bytes) of an element. 16-byte accesses where the run begins
//          at a multiple of 16 bytes; else, and at its end, by the element.
// Work     average: T multiplications and T − 1 additions an element; sum: T subtractions, multiplications and additions, and
//          3 more; magmax: T subtractions and comparisons. Bound by memory: 1 operation a byte of bf16.
// Launch   256 threads; ⌈len / 2048⌉ blocks; no shared memory.
// Source   arXiv 2203.05482 (average), 2212.04089 (sum), 2407.06322 (magmax); mergekit (slerp, which is a mix).
// CPU twin src/backend/cpu/blend.rs, portable.rs.
#include "blend.cuh"

template <typename R, int D, typename C> DEV void blend_plain(const Blend& p) {
  const Sources& s = p.load.sources;
  const u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
  const int n = vector_of(e, s.len);
  if (n == 0) return;
  C base[V];
  if constexpr (R::READS_BASE) {
    load<D>(s.base, s.base_dtype, e, n, base);
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) base[v] = (C)0;
  }
  typename R::template Acc<C> accs[V];
  start<R>(p, base, accs);
  each_model<D, 4, C>(p.load, e, n, [&](u32 t, C(&x)[V]) {
    if constexpr (R::TASK_VECTORS) {
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = x[v] - base[v];
    }
    take<R>(p, t, x, accs);
  });
  finish<R>(p, e, n, base, accs);
}
