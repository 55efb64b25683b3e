// The exact k-th largest or smallest key of |τ| or of a score, for several models at once, without sorting.
//
// A radix search from the highest bits down: a pass counts the keys that agree with what is known of the cut into 2048 bins of
// their next bits; `select_advance` finds the bin of the cut, for the next pass. Keys of 31 bits (f32) take 3 passes, of 63
// bits (f64) 6. Counting commutes, so a tensor may come in any pieces, and the result is exact: the key, and how many lie at
// or beyond it.
//
// Shapes   T ≤ 64 models and θ₀ of `len` elements each; bins: T×2048 counters of 8 bytes; states: T.
// Types    as in blend_plain.cu. Computed, and keys taken, in f32, or f64 in `_f64`.
// Bytes    count: every source once a pass and θ₀ once for 4 models (`plain`), or all sources once for 4 models, from the cache
//          after the first (`tile`). 16-byte accesses where the run begins at a multiple of 16 bytes; else by the element.
// Work     plain: 6 T operations an element and T atomic additions in shared memory in the first pass, few in the others.
// Launch   plain: 256 threads, 32 KiB of shared memory. tile: 32 to 128 threads; 8·T·(threads + 1) values and 8 KiB for each
//          model counted at once. Blocks walk over the run. Grid y: models in groups. advance: 256 threads, a block a model.
// Source   radix select; the definition of the cut is that of arXiv 2306.01708, ties kept.
// CPU twin src/backend/cpu/select.rs, which brackets the cut from a sample first; the result is the same.
#include "sparsify.cuh"

constexpr u32 BINS = 2048;
// Models that `select_plain` counts at once.
constexpr u32 GROUP = 4;
// What a search is doing; 0: nothing.
[[maybe_unused]] constexpr u32 SEARCHING = 1, FOUND = 2;

// Mirrored in ops/select.rs.
struct SelectState {
  u64 lo;      // the bits of the cut that are known, from above
  u64 rank;    // of the cut among the keys that agree with them, from 1
  u64 beyond;  // keys beyond those
  u64 key;     // the cut
  u64 kept;    // keys at or beyond it
  u32 shift;   // bits below this pass's
  u32 bits;    // of this pass
  u32 lowest;
  u32 status;
  u64 zeros;     // keys that are 0, as the first pass counts them where the rank hangs on it
  double share;  // the rank as a share of the keys that are not 0; negative where the rank is known
  u64 elems;     // of which that is a share
};
static_assert(sizeof(SelectState) == 80, "as in select.rs");

struct Select {
  Load load;
  SelectState* states;
  u64* bins;
  u32 score;  // MAGNITUDE where |τ| is ranked
  u32 group;  // models counted at once
  u32 narrow; // whether keys are those of f32, whatever is computed
  u32 pad;
  const double* rows;  // what magnitudes are multiplied by where importance is ranked
  u64 row_elems;       // elements of such a row
};
static_assert(sizeof(Select) == 704, "as in select.rs");

// What a block needs to know of a search.
struct Range {
  u64 prefix;
  u32 shift, bits;
  bool searching, counts_zeros;
};

DEV Range range_of(const SelectState& s) {
  return {s.lo >> (s.shift + s.bits), s.shift, s.bits, s.status == SEARCHING, s.share >= 0.0};
}

// Counts n keys.
template <typename C> DEV void tally(const Range& range, u32* bins, const C (&x)[V], int n) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const u64 key = key_of(x[v]);
    if (v < n && key >> (range.shift + range.bits) == range.prefix)
      atomicAdd(&bins[(u32)(key >> range.shift) & ((1u << range.bits) - 1)], 1u);
  }
}

// Adds a block's counters of `count` models from `first` to the global ones.
DEV void add_bins(const Select& p, u32 first, u32 count, const u32* bins) {
  for (u32 i = threadIdx.x; i < count * BINS; i += blockDim.x)
    if (bins[i]) atomicAdd(&p.bins[(u64)first * BINS + i], (u64)bins[i]);
}

template <int D, typename C> DEV void select_plain(const Select& p, u32* bins) {
  const Sources& s = p.load.sources;
  const u32 first = blockIdx.y * GROUP, count = min(GROUP, s.count - first);
  for (u32 i = threadIdx.x; i < GROUP * BINS; i += blockDim.x) bins[i] = 0;
  __syncthreads();
#pragma unroll 1
  for (u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V; e < s.len; e += (u64)gridDim.x * blockDim.x * V) {
    const int n = vector_of(e, s.len);
    C base[V];
    load<D>(s.base, s.base_dtype, e, n, base);
#pragma unroll 1
    for (u32 t = 0; t < count; ++t) {
      const Range range = range_of(p.states[first + t]);
      if (!range.searching) continue;
      C x[V];
      load<D>(s.models[first + t], s.dtypes[first + t], e, n, x);
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = x[v] - base[v];
      tally(range, bins + t * BINS, x, n);
    }
  }
  __syncthreads();
  add_bins(p, first, count, bins);
}

template <typename C> DEV void select_tile(const Select& p) {
  extern __shared__ double select_tile_slots[];
  const Sources& s = p.load.sources;
  const u32 first = blockIdx.y * p.group, count = min(p.group, s.count - first);
  u32* bins = reinterpret_cast<u32*>(select_tile_slots);
  const Slots<C> tau = {reinterpret_cast<C*>(bins + p.group * BINS)};
  for (u32 i = threadIdx.x; i < count * BINS; i += blockDim.x) bins[i] = 0;
  __syncthreads();
#pragma unroll 1
  for (u64 e = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V; e < s.len; e += (u64)gridDim.x * blockDim.x * V) {
    const int n = vector_of(e, s.len);
    C base[V];
    load_tile<ANY>(p.load, e, n, tau, base);
    if (p.score == IMPORTANCE) {
      C x[V], by[V];
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = tau(0, v);
      importance(p.rows, p.row_elems, s.start + e, n, x, by);
#pragma unroll
      for (int v = 0; v < V; ++v) tau(0, v) = by[v];
    } else {
      score_tile(p.score, s.count, tau, base);
    }
#pragma unroll 1
    for (u32 t = 0; t < count; ++t) {
      const Range range = range_of(p.states[first + t]);
      if (!range.searching) continue;
      C x[V];
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = tau(first + t, v);
      if (p.narrow) {
        float narrow[V];
#pragma unroll
        for (int v = 0; v < V; ++v) narrow[v] = (float)x[v];
        tally(range, bins + t * BINS, narrow, n);
      } else {
        tally(range, bins + t * BINS, x, n);
      }
      if (range.counts_zeros) {
        u64 zeros = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) zeros += v < n && key_of(x[v]) == 0;
        if (zeros) atomicAdd(&p.states[first + t].zeros, zeros);
      }
    }
  }
  __syncthreads();
  add_bins(p, first, count, bins);
}

extern "C" __launch_bounds__(256) __global__ void select_plain_bf16(const __grid_constant__ Select p) {
  __shared__ u32 bins[GROUP * BINS];
  select_plain<BF16, float>(p, bins);
}
extern "C" __launch_bounds__(256) __global__ void select_plain_f16(const __grid_constant__ Select p) {
  __shared__ u32 bins[GROUP * BINS];
  select_plain<F16, float>(p, bins);
}
extern "C" __launch_bounds__(256) __global__ void select_plain_f32(const __grid_constant__ Select p) {
  __shared__ u32 bins[GROUP * BINS];
  select_plain<F32, float>(p, bins);
}
extern "C" __launch_bounds__(256) __global__ void select_plain_any(const __grid_constant__ Select p) {
  __shared__ u32 bins[GROUP * BINS];
  select_plain<ANY, float>(p, bins);
}
extern "C" __launch_bounds__(256) __global__ void select_plain_f64(const __grid_constant__ Select p) {
  __shared__ u32 bins[GROUP * BINS];
  select_plain<ANY, double>(p, bins);
}
extern "C" __launch_bounds__(128) __global__ void select_tile_any(const __grid_constant__ Select p) { select_tile<float>(p); }
extern "C" __launch_bounds__(128) __global__ void select_tile_f64(const __grid_constant__ Select p) { select_tile<double>(p); }

// Ends a pass: finds each search's bin, and clears the counters for the next.
extern "C" __launch_bounds__(256) __global__ void select_advance(SelectState* states, u64* bins) {
  constexpr u32 EACH = BINS / 256;
  __shared__ u64 before[256];
  SelectState s = states[blockIdx.x];
  u64* counts = bins + (u64)blockIdx.x * BINS;
  if (s.status == SEARCHING) {
    if (s.share >= 0.0) {
      s.rank = (u64)(s.share * (double)(s.elems - s.zeros));
      s.share = -1.0;
    }
    // Thread i looks at the EACH bins from i·EACH on, counted from the end where the cut is searched.
    u64 own[EACH], sum = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const u32 at = threadIdx.x * EACH + i;
      own[i] = counts[s.lowest ? at : BINS - 1 - at];
      sum += own[i];
    }
    before[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      u64 total = 0;
      for (u32 i = 0; i < 256; ++i) {
        const u64 here = before[i];
        before[i] = total;
        total += here;
      }
    }
    __syncthreads();
    u64 passed = before[threadIdx.x];
    if (s.rank == 0 && threadIdx.x == 0) {
      // A key beyond all: nothing is kept.
      s.key = ~0ull;
      s.status = FOUND;
      states[blockIdx.x] = s;
    }
    // Only one thread holds the bin.
    if (passed < s.rank && passed + sum >= s.rank) {
      u32 bin = 0;
      u64 here = 0;
      bool found = false;
#pragma unroll
      for (u32 i = 0; i < EACH; ++i) {
        if (found) continue;
        if (passed + own[i] >= s.rank) {
          const u32 at = threadIdx.x * EACH + i;
          bin = s.lowest ? at : BINS - 1 - at;
          here = own[i];
          found = true;
        } else {
          passed += own[i];
        }
      }
      s.rank -= passed;
      s.beyond += passed;
      s.lo |= (u64)bin << s.shift;
      if (s.shift == 0) {
        s.key = s.lo;
        s.kept = s.beyond + here;
        s.status = FOUND;
      } else {
        s.bits = min(s.shift, 11u);
        s.shift -= s.bits;
      }
      states[blockIdx.x] = s;
    }
  }
  // All have read their counters before the barriers above.
  for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) counts[i] = 0;
}
