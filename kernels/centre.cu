// Task vectors of a matrix, around the average of the models or around θ₀, packed for matrix products.
//
// mean = Σ w_t θ_t / Σ w_t in f64 (around θ₀: 0); A_t = θ_t − mean, rounded once to what the products take. With stages, pruned task
// vectors stand for θ_t, computed in f32 (`staged_any`) or f64 (`staged_f64`).
//
// Shapes   T ≤ 64 models and θ₀ of `len` elements each. parts: A_t of tasks first..last, each `len` elements, `stride` apart; or
//          sum: Σ scale_t A_t, f64[len]. origin: f64[len], what A_t are measured from; null where it is not wanted.
// Types    each source its own; parts in f32 or f64.
// Bytes    every source once, again from the cache; parts, and origin, once. 16-byte accesses where the run begins at a multiple of
//          16 bytes, else by the element.
// Work     2 T + 1 operations in f64 an element for the mean, one a part.
// Launch   plain: 256 threads, ⌈len / 2048⌉ blocks. staged: 32 to 128 threads; 8·T·(threads + 1) values of shared memory.
// Source   arXiv 2412.12153.
// CPU twin src/backend/cpu/low_rank/task_vectors.rs, load_block; elementwise.rs, centre.
#include "tile.cuh"

// Mirrored in ops/low_rank.rs.
struct Centre {
  Load load;
  double weights[MAX_MODELS];
  double scale[MAX_MODELS];
  u8* parts;
  double* sum;     // null: parts
  double* origin;  // null: none
  u64 stride;
  double whole;  // Σ w_t; 0 where task vectors are measured from θ₀
  u32 first, last;
  u32 part_dtype;
  u32 pad;
};
static_assert(sizeof(Centre) == 1736, "as in low_rank.rs");

// Ends a vector: `get(t, x)` gives what A_t is made of, in f64; base is what is added to the mean to get the origin.
template <typename G> DEV void centre(const Centre& p, u64 e, int n, const double (&base)[V], G get) {
  const u32 models = p.load.sources.count;
  double mean[V] = {};
  if (p.whole != 0.0) {
#pragma unroll 1
    for (u32 t = 0; t < models; ++t) {
      double x[V];
      get(t, x);
#pragma unroll
      for (int v = 0; v < V; ++v) mean[v] = mean[v] + p.weights[t] * x[v];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) mean[v] = mean[v] / p.whole;
  }
  double sum[V] = {};
#pragma unroll 1
  for (u32 t = p.first; t < p.last; ++t) {
    double x[V];
    get(t, x);
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = x[v] - mean[v];
    if (!p.sum) {
      const u32 size = bytes_of((int)p.part_dtype);
      u8* part = p.parts + (t - p.first) * p.stride * size;
      if (p.part_dtype == F32) store(part, F32, e, n, x);
      else store(part, F64, e, n, x);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = sum[v] + x[v] * p.scale[t];
    }
  }
  if (p.sum) store(reinterpret_cast<u8*>(p.sum), F64, e, n, sum);
  if (p.origin) {
#pragma unroll
    // A negative zero of θ₀ stays one where the mean is zero.
    for (int v = 0; v < V; ++v) mean[v] = mean[v] == 0.0 ? base[v] : base[v] + mean[v];
    store(reinterpret_cast<u8*>(p.origin), F64, e, n, mean);
  }
}

extern "C" __launch_bounds__(256) __global__ void centre_plain(const __grid_constant__ Centre p) {
  const Sources& s = p.load.sources;
  const u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
  const int n = vector_of(e, s.len);
  if (n == 0) return;
  double base[V] = {};
  // Around the average θ₀ drops out.
  if (p.whole == 0.0) load<ANY>(s.base, s.base_dtype, e, n, base);
  centre(p, e, n, base, [&](u32 t, double(&x)[V]) {
    load<ANY>(s.models[t], s.dtypes[t], e, n, x);
    if (p.whole != 0.0) return;
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = x[v] - base[v];
  });
}

template <typename C> DEV void centre_staged(const Centre& p) {
  extern __shared__ double centre_slots[];
  const Sources& s = p.load.sources;
  const u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
  const int n = vector_of(e, s.len);
  if (n == 0) return;
  const Slots<C> tau = {reinterpret_cast<C*>(centre_slots)};
  double wide[V];
  {
    C base[V];
    load_tile<ANY>(p.load, e, n, tau, base);
#pragma unroll
    for (int v = 0; v < V; ++v) wide[v] = (double)base[v];
  }
  centre(p, e, n, wide, [&](u32 t, double(&x)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = (double)tau(t, v);
  });
}

extern "C" __launch_bounds__(128) __global__ void centre_staged_any(const __grid_constant__ Centre p) { centre_staged<float>(p); }
extern "C" __launch_bounds__(128) __global__ void centre_staged_f64(const __grid_constant__ Centre p) { centre_staged<double>(p); }
