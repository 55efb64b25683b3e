// Sums over elements in the CPU's order, so that they have its bits: norms of task vectors, norms before and after trimming,
// products of every two vectors, mean scores of rows.
//
// The CPU adds a block of 2048 elements in eight lanes (element i to lane i mod 8) in f64, then the lanes, then the blocks of a
// segment of 65 536 elements (or of a row) in order. Here eight threads take a block, one a lane: they read its vectors side by
// side, exchange elements through shared memory, and each adds its own lane. `sums_fold` adds blocks in order.
//
// Shapes   T ≤ 64 models and θ₀ of `len` elements each. blocks: f64[⌈len/2048⌉ (or the blocks of all rows)][T][K], K = 6 (norms),
//          2 (trim), 1 (rows); products: f64[…][T (T + 1) / 2], by pairs, θ₀ perhaps one of T. Folded: f64[segments][T][K]; rows: f64[T][rows].
// Types    each source its own; task vectors and scores in f32, or f64 in `_f64`; sums in f64.
// Bytes    every source once for 4 models (norms, trim, rows: all models are needed for sums over tasks and stages), from the
//          cache after the first. 16-byte accesses where a block begins at a multiple of 16 bytes, else by the element.
// Work     norms: 13 T operations in f64 an element; trim: 4 T; products: T (T + 1); rows: 2 T and the score.
// Launch   32 to 128 threads; 8·(T + 1)·(threads + 1) values and 8·(threads + 1) of 8 bytes of shared memory. Grid y: models in
//          groups of 4, or pairs in groups of 4. fold: 256 threads, one sum a thread.
// CPU twin src/backend/cpu/stats.rs; vector.rs, lane_sum and task_sums.
#include "elementary.cuh"
#include "sparsify.cuh"

constexpr u32 BLOCK = 2048;
constexpr u32 GROUP = 4;
[[maybe_unused]] constexpr int NORMS = 0, TRIM = 1, GRAM = 2, ROWS = 3, MAXIMA = 4, EXPONENTIALS = 5, DIVERGENCE = 6;
// Added to every probability of a divergence.
constexpr double LEAST = 1e-8;

// Mirrored in ops/sums.rs.
struct Sums {
  Load load;
  Sparse sparse;  // what is dropped, of `trim` and of products
  double* blocks;
  u64 run_elems;   // elements of a row; of the whole run where it is no matrix
  u64 run_blocks;  // blocks of that
  u64 items;       // blocks in all
  u32 score;
  u32 with_base;  // whether θ₀ is the first of the vectors whose products are taken
  const double* maxima;        // by row: of θ₀, of θ
  const double* exponentials;  // by row: the sums of e^(x − the largest), of θ₀, of θ
};
static_assert(sizeof(Sums) == 2288, "as in sums.rs");

// The largest of eight lanes.
DEV double max_lanes(double lane) {
#pragma unroll
  for (int with = 4; with > 0; with /= 2) {
    const double other = __shfl_xor_sync(0xFFFFFFFFu, lane, with);
    lane = other > lane ? other : lane;
  }
  return lane;
}

// The sum of eight lanes, in the CPU's order; every lane gets it.
DEV double add_lanes(double lane) {
  lane = lane + __shfl_xor_sync(0xFFFFFFFFu, lane, 4);
  lane = lane + __shfl_xor_sync(0xFFFFFFFFu, lane, 2);
  return lane + __shfl_xor_sync(0xFFFFFFFFu, lane, 1);
}

template <int STAT, typename C> DEV void sum_blocks(const Sums& p) {
  extern __shared__ double sums_slots[];
  constexpr int K = STAT == NORMS ? 6 : STAT == TRIM ? 2 : 1;
  const u32 models = p.load.sources.count;
  const Slots<double> totals = {sums_slots};
  const Slots<C> tau = {reinterpret_cast<C*>(sums_slots + slots_of(1))};
  // θ₀ takes the place of one more model.
  const u32 origin = models;
  const u32 lane = threadIdx.x % 8, eight = threadIdx.x - lane, first = blockIdx.y * GROUP;
  const u64 item = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / 8;
  const bool is_item = item < p.items;
  const u64 run = is_item ? item / p.run_blocks : 0, at = (is_item ? item - run * p.run_blocks : 0) * BLOCK;
  const u64 start = run * p.run_elems + at;
  const u32 len = !is_item ? 0 : (u32)min((u64)BLOCK, p.run_elems - at);
  const u32 steps = (u32)(min((u64)BLOCK, p.run_elems) + 63) / 64;
  const double mean = 1.0 / (double)models;

  const u32 vectors = STAT == GRAM ? models + p.with_base : models;
  // Of one model the rows are looked at beside the base's.
  const u32 width = STAT == GRAM ? vectors * (vectors + 1) / 2 : STAT == MAXIMA || STAT == EXPONENTIALS ? 2 : models;
  // The vectors whose products this group of pairs is: (0, 0), (0, 1) …, (1, 1) …, as everywhere.
  u32 left[GROUP] = {}, right[GROUP] = {};
  if constexpr (STAT == GRAM) {
    u32 a = 0, row = 0;
#pragma unroll
    for (u32 i = 0; i < GROUP; ++i) {
      const u32 pair = min(first + i, width - 1);
#pragma unroll 1
      while (pair - row >= vectors - a) row += vectors - a++;
      const u32 b = a + pair - row;
      left[i] = !p.with_base ? a : a == 0 ? origin : a - 1;
      right[i] = !p.with_base ? b : b == 0 ? origin : b - 1;
    }
  }

  double sums[GROUP][STAT == NORMS ? 5 : K] = {}, base_squares = 0.0;
  if constexpr (STAT == MAXIMA) sums[0][0] = sums[1][0] = -as_f64(0x7FF0000000000000ull);
#pragma unroll 1
  for (u32 step = 0; step < steps; ++step) {
    {
      const u32 offset = step * 64 + lane * V;
      const int n = vector_of(offset, len);
      C base[V];
      load_tile<ANY>(p.load, start + offset, n, tau, base);
      if constexpr (STAT == ROWS) score_tile(p.score, models, tau, base);
      if constexpr (STAT == GRAM) {
        if (p.sparse.kind == BELOW_SPREAD) drop_below_spread(tau, models, p.sparse.limits[0]);
        if (p.with_base) {
#pragma unroll
          for (int v = 0; v < V; ++v) tau(origin, v) = base[v];
        }
      }
      if constexpr (STAT >= MAXIMA) {
#pragma unroll
        for (int v = 0; v < V; ++v) tau(origin, v) = base[v];
      }
      if constexpr (STAT == TRIM) {
        // Which of the group's models keep each element.
#pragma unroll 1
        for (int v = 0; v < n; ++v) {
          u32 marks = 0;
#pragma unroll 1
          for (u32 i = 0; i < GROUP && first + i < models; ++i)
            marks |= (is_kept(p.sparse, first + i, p.load.sources.start + start + offset + v, tau(first + i, v)) ? 1u : 0u) << i;
          totals(0, v) = (double)marks;
        }
      }
      if constexpr (STAT == NORMS) {
        double all[V], sizes[V];
        sum_models(tau, models, all, sizes);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          totals(0, v) = all[v];
          tau(origin, v) = base[v];
        }
      }
    }
    __syncwarp();
#pragma unroll 1
    for (u32 k = 0; k < 8 && step * 64 + k * 8 + lane < len; ++k) {
      // Element k·8 + lane of these 64 is element `lane` of the vector of the k-th of the eight threads.
      const u32 from = eight + k;
      double sum = 0.0;
      u32 marks = 0;
      if constexpr (STAT == TRIM) marks = (u32)totals(0, lane, from);
      if constexpr (STAT == NORMS) {
        sum = totals(0, lane, from);
        const double b = (double)tau(origin, lane, from);
        base_squares = base_squares + b * b;
      }
      if constexpr (STAT >= MAXIMA) {
        const C b = tau(origin, lane, from);
        const double q = (double)b, x = (double)(b + tau(0, lane, from));
        if constexpr (STAT == MAXIMA) {
          sums[0][0] = q > sums[0][0] ? q : sums[0][0];
          sums[1][0] = x > sums[1][0] ? x : sums[1][0];
        } else {
          const double below = exp_of(q - p.maxima[2 * run]), above = exp_of(x - p.maxima[2 * run + 1]);
          if constexpr (STAT == EXPONENTIALS) {
            sums[0][0] = sums[0][0] + below;
            sums[1][0] = sums[1][0] + above;
          } else {
            const double least = below / p.exponentials[2 * run] + LEAST, most = above / p.exponentials[2 * run + 1] + LEAST;
            sums[0][0] = sums[0][0] + most * ln_of(most / least);
          }
        }
      } else if constexpr (STAT == GRAM) {
#pragma unroll
        for (u32 i = 0; i < GROUP; ++i) {
          const double a = (double)tau(left[i], lane, from), b = (double)tau(right[i], lane, from);
          sums[i][0] = sums[i][0] + a * b;
        }
      } else {
#pragma unroll
        for (u32 i = 0; i < GROUP; ++i) {
          if (first + i >= models) break;
          const double x = (double)tau(first + i, lane, from);
          if constexpr (STAT == NORMS) {
            const double own = x - sum * mean, rest = sum - x;
            sums[i][0] = sums[i][0] + magnitude(x);
            sums[i][1] = sums[i][1] + x * x;
            sums[i][2] = sums[i][2] + own * own;
            sums[i][3] = sums[i][3] + x * rest;
            sums[i][4] = sums[i][4] + rest * rest;
          } else if constexpr (STAT == TRIM) {
            sums[i][0] = sums[i][0] + magnitude(x);
            sums[i][1] = sums[i][1] + (marks >> i & 1 ? magnitude(x) : 0.0);
          } else {
            sums[i][0] = sums[i][0] + x;
          }
        }
      }
    }
    __syncwarp();
  }

  if constexpr (STAT == NORMS) base_squares = add_lanes(base_squares);
#pragma unroll
  for (u32 i = 0; i < GROUP; ++i) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const double own = sums[i][STAT == NORMS && k == 5 ? 0 : k];
      const double sum = STAT == NORMS && k == 5 ? base_squares : STAT == MAXIMA ? max_lanes(own) : add_lanes(own);
      if (is_item && lane == 0 && first + i < width) p.blocks[(item * width + first + i) * K + k] = sum;
    }
  }
}

extern "C" __launch_bounds__(128) __global__ void sums_norms_any(const __grid_constant__ Sums p) { sum_blocks<NORMS, float>(p); }
extern "C" __launch_bounds__(128) __global__ void sums_norms_f64(const __grid_constant__ Sums p) { sum_blocks<NORMS, double>(p); }
extern "C" __launch_bounds__(128) __global__ void sums_trim_any(const __grid_constant__ Sums p) { sum_blocks<TRIM, float>(p); }
extern "C" __launch_bounds__(128, 2) __global__ void sums_trim_f64(const __grid_constant__ Sums p) { sum_blocks<TRIM, double>(p); }
extern "C" __launch_bounds__(128) __global__ void sums_gram_any(const __grid_constant__ Sums p) { sum_blocks<GRAM, float>(p); }
extern "C" __launch_bounds__(128, 2) __global__ void sums_gram_f64(const __grid_constant__ Sums p) { sum_blocks<GRAM, double>(p); }
extern "C" __launch_bounds__(128) __global__ void sums_rows_any(const __grid_constant__ Sums p) { sum_blocks<ROWS, float>(p); }
extern "C" __launch_bounds__(128, 2) __global__ void sums_rows_f64(const __grid_constant__ Sums p) { sum_blocks<ROWS, double>(p); }

extern "C" __launch_bounds__(128) __global__ void sums_maxima_any(const __grid_constant__ Sums p) { sum_blocks<MAXIMA, float>(p); }
extern "C" __launch_bounds__(128, 2) __global__ void sums_maxima_f64(const __grid_constant__ Sums p) { sum_blocks<MAXIMA, double>(p); }
extern "C" __launch_bounds__(128) __global__ void sums_exponentials_any(const __grid_constant__ Sums p) { sum_blocks<EXPONENTIALS, float>(p); }
extern "C" __launch_bounds__(128, 2) __global__ void sums_exponentials_f64(const __grid_constant__ Sums p) { sum_blocks<EXPONENTIALS, double>(p); }
extern "C" __launch_bounds__(128) __global__ void sums_divergence_any(const __grid_constant__ Sums p) { sum_blocks<DIVERGENCE, float>(p); }
extern "C" __launch_bounds__(128, 2) __global__ void sums_divergence_f64(const __grid_constant__ Sums p) { sum_blocks<DIVERGENCE, double>(p); }

[[maybe_unused]] constexpr u32 TOGETHER = 0, APART = 1, LARGEST = 2, NOT_BELOW_ZERO = 3;
// out = the sums of `each` consecutive blocks, in order, divided by `divisor`. Of `items` blocks of `width` numbers each. A group's
// numbers lie together in `out`, or, where `how` is APART, those of all groups at one place of a block do. LARGEST: the largest instead of
// the sum; NOT_BELOW_ZERO: 0 instead of a sum below it.
extern "C" __launch_bounds__(256) __global__ void sums_fold(const double* blocks, double* out, u64 items, u64 each, u64 width, double divisor, u32 how) {
  const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  const u64 groups = (items + each - 1) / each;
  if (i >= groups * width) return;
  const u64 group = i / width, place = i - group * width;
  const u64 end = min((group + 1) * each, items);
  double sum = 0.0;
  if (how == LARGEST) {
    sum = blocks[group * each * width + place];
#pragma unroll 4
    for (u64 item = group * each; item < end; ++item) sum = blocks[item * width + place] > sum ? blocks[item * width + place] : sum;
  } else {
#pragma unroll 4
    for (u64 item = group * each; item < end; ++item) sum = sum + blocks[item * width + place];
  }
  if (how == NOT_BELOW_ZERO && sum < 0.0) sum = 0.0;
  out[how == APART ? place * groups + group : i] = sum / divisor;
}
