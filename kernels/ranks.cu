// Chooses elements of task vectors at random by their rank among the magnitudes of their row, along the last dimension.
//
// The element of rank r (from 0, equal magnitudes by position) of a row of n is kept where its random word lies below
// 2³²·(least + rise·r / (n − 1)). `ranks_keys` writes every key; `ranks_choose` sorts the places of a row's elements by radix, four bits a
// pass, each pass stable, and decides.
//
// Shapes   T ≤ 64 models and θ₀ of `len` elements each, whole rows of `row_elems`. keys: u32[T][len] (u64 in `_f64`); order:
//          u32[2][T][len]. Chosen: a bit for each element of the tensor and model, or f32 of what it is multiplied by; zeroed before.
// Types    each source its own; keys of f32, or of f64 in `_f64`.
// Bytes    every source once; then 8 passes (16 in `_f64`) over 12 bytes an element and model, from the cache where a row fits it.
// Work     48 operations an element and model, and a Philox counter.
// Launch   keys: as tile.cuh. choose: 256 threads a row and model, 17 KiB of shared memory.
// Source   arXiv 2406.11617, as mergekit has it; random words of arXiv 2311.03099.
// CPU twin src/backend/cpu/ranks.rs.
#include "tile.cuh"

constexpr u32 THREADS = 256, DIGITS = 16;

// Mirrored in ops/ranks.rs.
struct Ranks {
  Load load;
  double density[MAX_MODELS];  // 1 or more keeps all, 0 nothing
  double least[MAX_MODELS];
  double rise[MAX_MODELS];
  u32 random[MAX_MODELS][2];  // keys of random words
  u8* keys;
  u32* order;
  u8* chosen;
  u64 stride;  // bytes of what is chosen, by model
  u64 row_elems;
  u32 scales;  // whether factors are chosen, one over the probability, and not bits
  u32 pad;
};
static_assert(sizeof(Ranks) == 2752, "as in ranks.rs");

template <typename C, typename K> DEV void write_keys(const Ranks& p) {
  extern __shared__ double ranks_slots[];
  const Sources& s = p.load.sources;
  const u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
  const int n = vector_of(e, s.len);
  if (n == 0) return;
  const Slots<C> tau = {reinterpret_cast<C*>(ranks_slots)};
  C base[V];
  load_tile<ANY>(p.load, e, n, tau, base);
#pragma unroll 1
  for (u32 t = 0; t < s.count; ++t) {
    K* keys = reinterpret_cast<K*>(p.keys) + t * s.len + e;
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (v < n) keys[v] = (K)key_of(tau(t, v));
  }
}

DEV void keep(const Ranks& p, u32 t, u64 element, double probability) {
  u32 words[4];
  philox(element / 4, p.random[t][0], p.random[t][1], words);
  const u32 at = (u32)(element & 3);
  const u32 word = at == 0 ? words[0] : at == 1 ? words[1] : at == 2 ? words[2] : words[3];
  const double share = probability < 0.0 ? 0.0 : probability > 1.0 ? 1.0 : probability;
  if ((u64)word >= (u64)(share * 4294967296.0)) return;
  u8* chosen = p.chosen + t * p.stride;
  if (p.scales) {
    reinterpret_cast<float*>(chosen)[element] = probability < 1.0 ? (float)(1.0 / probability) : 1.0f;
  } else {
    atomicOr(reinterpret_cast<u32*>(chosen) + element / 32, 1u << (u32)(element & 31));
  }
}

template <typename K> DEV void choose(const Ranks& p, u32* counts, u32* sums) {
  const u64 len = p.load.sources.len, row = p.row_elems, first = blockIdx.x * row;
  const u32 t = blockIdx.y;
  const u64 start = p.load.sources.start + first;
  const double density = p.density[t];
  if (density <= 0.0 || density >= 1.0) {
    for (u64 i = threadIdx.x; i < row; i += THREADS) keep(p, t, start + i, density);
    return;
  }
  const K* keys = reinterpret_cast<const K*>(p.keys) + t * len + first;
  u32* from = p.order + t * len + first;
  u32* to = from + p.load.sources.count * len;
  const u64 each = (row + THREADS - 1) / THREADS;
  const u64 begin = min((u64)threadIdx.x * each, row), end = min(begin + each, row);
  for (u64 i = begin; i < end; ++i) from[i] = (u32)i;
#pragma unroll 1
  for (u32 shift = 0; shift < sizeof(K) * 8; shift += 4) {
    // Each thread counts the digits of its part; sums over digits, then threads, are the places of its first of each.
#pragma unroll
    for (u32 d = 0; d < DIGITS; ++d) counts[d * THREADS + threadIdx.x] = 0;
#pragma unroll 1
    for (u64 i = begin; i < end; ++i) ++counts[((u32)(keys[from[i]] >> shift) & 15) * THREADS + threadIdx.x];
    __syncthreads();
    u32 sum = 0;
#pragma unroll
    for (u32 k = 0; k < DIGITS; ++k) {
      const u32 here = counts[threadIdx.x * DIGITS + k];
      counts[threadIdx.x * DIGITS + k] = sum;
      sum += here;
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      u32 total = 0;
#pragma unroll 1
      for (u32 i = 0; i < THREADS; ++i) {
        const u32 here = sums[i];
        sums[i] = total;
        total += here;
      }
    }
    __syncthreads();
#pragma unroll
    for (u32 k = 0; k < DIGITS; ++k) counts[threadIdx.x * DIGITS + k] += sums[threadIdx.x];
    __syncthreads();
#pragma unroll 1
    for (u64 i = begin; i < end; ++i) {
      const u32 at = from[i];
      to[counts[((u32)(keys[at] >> shift) & 15) * THREADS + threadIdx.x]++] = at;
    }
    __syncthreads();
    u32* other = from;
    from = to;
    to = other;
  }
#pragma unroll 1
  for (u64 r = threadIdx.x; r < row; r += THREADS)
    keep(p, t, start + from[r], p.least[t] + p.rise[t] * (double)r / (double)(row > 1 ? row - 1 : 1));
}

extern "C" __launch_bounds__(128) __global__ void ranks_keys_any(const __grid_constant__ Ranks p) { write_keys<float, u32>(p); }
extern "C" __launch_bounds__(128) __global__ void ranks_keys_f64(const __grid_constant__ Ranks p) { write_keys<double, u64>(p); }
extern "C" __launch_bounds__(256) __global__ void ranks_choose_any(const __grid_constant__ Ranks p) {
  __shared__ u32 counts[DIGITS * THREADS], sums[THREADS];
  choose<u32>(p, counts, sums);
}
extern "C" __launch_bounds__(256) __global__ void ranks_choose_f64(const __grid_constant__ Ranks p) {
  __shared__ u32 counts[DIGITS * THREADS], sums[THREADS];
  choose<u64>(p, counts, sums);
}
