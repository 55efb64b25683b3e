// Merges that need one model at a time and drop nothing: average, sum of task vectors, largest magnitude, slerp, scale.
//
// out[i] = rule(θ₀[i], θ_1[i] … θ_T[i]), one pass, sums in model order in the computing type, rounded once.
//
// Shapes   T ≤ 64 models and θ₀ (sum, magmax, slerp) of `len` elements each; out: `len` elements. One thread takes 8.
// Types    `_bf16`, `_f16`, `_f32`: every source of that type. `_any`: each of its own. `_f64`: each of its own, computed in
//          f64 where the others compute in f32. Out: any of the six.
// Bytes    every source once, out once: len·(Σ source bytes + out bytes) of an element. 16-byte accesses where the run begins
//          at a multiple of 16 bytes; else, and at its end, by the element.
// Work     average: T multiplications and T − 1 additions an element; sum: T subtractions, multiplications and additions, and
//          3 more; magmax: T subtractions and comparisons. Bound by memory: 1 operation a byte of bf16.
// Launch   256 threads; ⌈len / 2048⌉ blocks; no shared memory.
// Source   arXiv 2203.05482 (average), 2212.04089 (sum), 2407.06322 (magmax); mergekit (slerp).
// CPU twin src/backend/cpu/blend.rs, merge_streamed.
#include "blend.cuh"

template <int RULE, int D, typename C> DEV void blend_plain(const Blend& p) {
  const Sources& s = p.load.sources;
  const u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
  const int n = vector_of(e, s.len);
  if (n == 0) return;
  C base[V], out[V];
  if constexpr (RULE == SUM || RULE == MAGMAX || RULE == SLERP) load<D>(s.base, s.base_dtype, e, n, base);
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = (C)0;

  if constexpr (RULE == AVERAGE) {
    each_model<D, 4, C>(p.load, e, n, [&](u32 t, const C(&x)[V]) {
      const C w = (C)p.weights[t];
#pragma unroll
      // The first is not added to 0, which would make a negative zero of all models a positive one.
      for (int v = 0; v < V; ++v) out[v] = t == 0 ? x[v] * w : out[v] + w * x[v];
    });
    const C divisor = (C)p.divisor;
    if (p.divisor != 1.0) {
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = out[v] / divisor;
    }
    finish(p, e, n, out);
  } else if constexpr (RULE == SUM) {
    each_model<D, 4, C>(p.load, e, n, [&](u32 t, const C(&x)[V]) {
      const C w = (C)p.weights[t];
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = out[v] + w * (x[v] - base[v]);
    });
    finish_sum(p, e, n, base, out);
  } else if constexpr (RULE == MAGMAX) {
    each_model<D, 4, C>(p.load, e, n, [&](u32, const C(&x)[V]) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const C tau = x[v] - base[v];
        out[v] = key_of(tau) >= key_of(out[v]) ? tau : out[v];
      }
    });
    const C lambda = (C)p.lambda;
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = changed(base[v], out[v], lambda);
    finish(p, e, n, out);
  } else {
    C x[V];
    load<D>(s.models[0], s.dtypes[0], e, n, x);
    const C a = (C)p.p, b = (C)p.q;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if constexpr (RULE == SLERP) out[v] = a * base[v] + b * x[v];
      else out[v] = p.p != 1.0 ? x[v] * a : x[v];
    }
    finish(p, e, n, out);
  }
}

extern "C" __launch_bounds__(256) __global__ void blend_average_bf16(const __grid_constant__ Blend p) { blend_plain<AVERAGE, BF16, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_average_f16(const __grid_constant__ Blend p) { blend_plain<AVERAGE, F16, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_average_f32(const __grid_constant__ Blend p) { blend_plain<AVERAGE, F32, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_average_any(const __grid_constant__ Blend p) { blend_plain<AVERAGE, ANY, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_average_f64(const __grid_constant__ Blend p) { blend_plain<AVERAGE, ANY, double>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_sum_bf16(const __grid_constant__ Blend p) { blend_plain<SUM, BF16, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_sum_f16(const __grid_constant__ Blend p) { blend_plain<SUM, F16, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_sum_f32(const __grid_constant__ Blend p) { blend_plain<SUM, F32, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_sum_any(const __grid_constant__ Blend p) { blend_plain<SUM, ANY, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_sum_f64(const __grid_constant__ Blend p) { blend_plain<SUM, ANY, double>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_magmax_bf16(const __grid_constant__ Blend p) { blend_plain<MAGMAX, BF16, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_magmax_f16(const __grid_constant__ Blend p) { blend_plain<MAGMAX, F16, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_magmax_f32(const __grid_constant__ Blend p) { blend_plain<MAGMAX, F32, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_magmax_any(const __grid_constant__ Blend p) { blend_plain<MAGMAX, ANY, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_magmax_f64(const __grid_constant__ Blend p) { blend_plain<MAGMAX, ANY, double>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_slerp_any(const __grid_constant__ Blend p) { blend_plain<SLERP, ANY, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_slerp_f64(const __grid_constant__ Blend p) { blend_plain<SLERP, ANY, double>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_scale_any(const __grid_constant__ Blend p) { blend_plain<SCALE, ANY, float>(p); }
extern "C" __launch_bounds__(256) __global__ void blend_scale_f64(const __grid_constant__ Blend p) { blend_plain<SCALE, ANY, double>(p); }
