// Merges of task vectors in turn that stages, cuts or random words have thinned out: a kernel a rule that has a sparse or staged form.
//
// τ_t = prune(θ_t − θ₀), dropped outside of cuts or at random and rescaled; out = rule(θ₀, τ_1 … τ_T). Stages whose scores look at other tasks, and elections, need all models at once: blend_tile.cu.
//
// Shapes   T ≤ 64 models and θ₀ of `len` elements each; out: `len` elements. One thread takes 8.
// Types    as in blend_plain.cu; `staged` kernels ask each source.
// Bytes    every source once, out once. Masks of rows and columns: a byte each, from the cache. 16-byte accesses where the
//          run begins at a multiple of 16 bytes; else, and at its end, by the element.
// Work     3 T + 3 operations an element; a cut adds T comparisons; random words add about 20 T integer operations (a Philox
//          counter is 100, for 4 elements); a score 1 to 4 T.
// Launch   256 threads; ⌈len / 2048⌉ blocks; 256 bytes of shared memory.
// Source   arXiv 2212.04089, 2311.03099 (random words), 2407.06322, 2506.09093 (stages, as docs define them).
// CPU twin src/backend/cpu/blend.rs, merge_block; portable.rs.
#include "blend.cuh"

template <typename R, bool STAGED, int D, typename C> DEV void blend_pruned(const Blend& p, u32* kept) {
  static_assert(R::TASK_VECTORS && R::READS_BASE && !R::TWICE, "a rule that takes task vectors in turn");
  const Load& l = p.load;
  const u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
  // A thread past the end goes along, for the counts of its warp.
  const int n = vector_of(e, l.sources.len);
  if (threadIdx.x < MAX_MODELS) kept[threadIdx.x] = 0;
  __syncthreads();
  Units units;
  if constexpr (STAGED) units = units_of(l, e);
  C base[V];
  load<D>(l.sources.base, l.sources.base_dtype, e, n, base);
  typename R::template Acc<C> accs[V];
  start<R>(p, base, accs);
  const double none[V] = {};
  each_model<D, 2, C>(p.load, e, n, [&](u32 t, C(&x)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = x[v] - base[v];
    if constexpr (STAGED) {
#pragma unroll 1
      for (u32 i = 0; i < l.stages; ++i)
        prune(l, reinterpret_cast<const Stage*>(l.blob)[i * l.sources.count + t], units, n, base, none, none, x);
    }
    const u32 count = sparsify(p, t, e, n, x);
    if (p.sparsify == AT_RANDOM) add_of_warp(&kept[t], count);
    take<R>(p, t, x, accs);
  });
  if (n > 0) finish<R>(p, e, n, base, accs);
  if (p.sparsify != AT_RANDOM) return;
  __syncthreads();
  if (threadIdx.x < l.sources.count && kept[threadIdx.x]) atomicAdd(&p.facts[2 + threadIdx.x], (u64)kept[threadIdx.x]);
}
