// How many elements of each task vector no other changed, and how many others changed too.
//
// An element is changed where |τ| is above a threshold, or NaN.
//
// Shapes   T ≤ 64 models and θ₀ of `len` elements each; counts: u64[T][2] (alone, shared), added to.
// Types    each source its own; task vectors in f32, or f64 in `_f64`.
// Bytes    every source once; T·8 values a thread pass through shared memory. 16-byte accesses where the run begins at a multiple of
//          16 bytes; else, and at its end, by the element.
// Work     T subtractions and 3 T comparisons an element, and two sums over a warp a model. Counts commute: no order is kept.
// Launch   32 to 128 threads, as shared memory allows: 8·T·(threads + 1) values; ⌈len / (8·threads)⌉ blocks.
// Source   arXiv 2601.13572 (RAM).
// CPU twin src/backend/cpu/overlap.rs.
#include "tile.cuh"

// Mirrored in ops/overlap.rs.
struct Overlap {
  Load load;
  u64* counts;
  double threshold;
};
static_assert(sizeof(Overlap) == 672, "as in overlap.rs");

template <typename C> DEV void overlap(const Overlap& p, u32* found) {
  extern __shared__ double overlap_slots[];
  const u32 models = p.load.sources.count;
  const u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
  // A thread past the end goes along with zeros, for the counts of its warp.
  const int n = vector_of(e, p.load.sources.len);
  const Slots<C> tau = {reinterpret_cast<C*>(overlap_slots)};
  for (u32 i = threadIdx.x; i < 2 * MAX_MODELS; i += blockDim.x) found[i] = 0;
  __syncthreads();
  C base[V];
  load_tile<ANY>(p.load, e, n, tau, base);
  const u64 none = key_of((C)p.threshold);
  u32 changed_by[V] = {};
#pragma unroll 1
  for (u32 t = 0; t < models; ++t) {
#pragma unroll
    for (int v = 0; v < V; ++v) changed_by[v] += key_of(tau(t, v)) > none;
  }
#pragma unroll 1
  for (u32 t = 0; t < models; ++t) {
    u32 alone = 0, shared = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool is_change = key_of(tau(t, v)) > none;
      alone += is_change && changed_by[v] == 1;
      shared += is_change && changed_by[v] > 1;
    }
    add_of_warp(&found[2 * t], alone);
    add_of_warp(&found[2 * t + 1], shared);
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < 2 * models; i += blockDim.x)
    if (found[i]) atomicAdd(&p.counts[i], (u64)found[i]);
}

extern "C" __launch_bounds__(128) __global__ void overlap_any(const __grid_constant__ Overlap p) {
  __shared__ u32 found[2 * MAX_MODELS];
  overlap<float>(p, found);
}
extern "C" __launch_bounds__(128) __global__ void overlap_f64(const __grid_constant__ Overlap p) {
  __shared__ u32 found[2 * MAX_MODELS];
  overlap<double>(p, found);
}
