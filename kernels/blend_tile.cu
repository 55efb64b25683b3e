// Merges that need all task vectors of an element at once: elections of a sign, and stages whose scores look at other tasks.
//
// τ_t = prune(θ_t − θ₀), dropped outside of cuts or at random and rescaled, or weighed line by line (θ_t itself where no base is given). elect: a sign s = sign(Σ w_t τ_t), then θ₀ + λ·(the sum, or the
// weighted mean, of the w_t τ_t that have it). sum, magmax: as in blend_plain.cu.
//
// Shapes   T ≤ 64 models and θ₀ of `len` elements each; out: `len` elements. One thread takes 8.
// Types    as in blend_plain.cu.
// Bytes    every source once, out once; T·8 values a thread pass through shared memory. 16-byte accesses where the run begins
//          at a multiple of 16 bytes; else, and at its end, by the element.
// Work     elect: 8 T + 4 operations an element; random words and scores as in blend_pruned.cu.
// Launch   32 to 128 threads, as shared memory allows: 8·T·(threads + 1) values; ⌈len / (8·threads)⌉ blocks.
// Source   arXiv 2306.01708 (elect), 2311.03099 (random words), 2506.09093 (stages, as docs define them).
// CPU twin src/backend/cpu/blend.rs, merge_block; vector.rs, elect.
#include "blend.cuh"
#include "tile.cuh"

template <typename R, int D, typename C> DEV void blend_tile(const Blend& p, u32* kept) {
  extern __shared__ double blend_tile_slots[];
  const Load& l = p.load;
  const u32 models = l.sources.count;
  const u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
  // A thread past the end goes along, for the counts of its warp.
  const int n = vector_of(e, l.sources.len);
  const Slots<C> tau = {reinterpret_cast<C*>(blend_tile_slots)};
  for (u32 t = threadIdx.x; t < MAX_MODELS; t += blockDim.x) kept[t] = 0;
  __syncthreads();
  C base[V];
  load_tile<D>(l, e, n, tau, base);
  if (p.sparsify != NOTHING) {
#pragma unroll 1
    for (u32 t = 0; t < models; ++t) {
      C x[V];
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = tau(t, v);
      u32 count = 0;
      if (p.sparsify == BY_LINE) {
        weigh(p, t, e, x);
      } else {
        count = sparsify(p, t, e, n, x);
      }
      if (p.sparsify == AT_RANDOM) add_of_warp(&kept[t], count);
#pragma unroll
      for (int v = 0; v < V; ++v) tau(t, v) = x[v];
    }
  }
  typename R::template Acc<C> accs[V];
  start<R>(p, base, accs);
#pragma unroll 1
  for (u32 t = 0; t < models; ++t) {
    C x[V];
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = tau(t, v);
    take<R>(p, t, x, accs);
  }
  if constexpr (R::TWICE) {
#pragma unroll 1
    for (u32 t = 0; t < models; ++t) {
      const C w = (C)p.weights[t];
#pragma unroll
      for (int v = 0; v < V; ++v) R::take_again(accs[v], R::WEIGHTED ? w * tau(t, v) : tau(t, v), w);
    }
  }
  if (n > 0) finish<R>(p, e, n, base, accs);
  if (p.sparsify != AT_RANDOM) return;
  __syncthreads();
  for (u32 t = threadIdx.x; t < models; t += blockDim.x)
    if (kept[t]) atomicAdd(&p.facts[2 + t], (u64)kept[t]);
}
