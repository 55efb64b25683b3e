// Scores of columns of a matrix, and products of vectors by column, summed in f64 from the first row to the last, as the CPU sums them.
//
// totals[t][c] += score(t, r, c) for every row r of the run in order; `columns_finish` divides by the elements of a column.
//
// products: totals[c][pair] += x_a(r, c)·x_b(r, c), c an element of a row (all dimensions but the first); pairs (0, 0), (0, 1) …, (1, 1) …
//
// Shapes   T ≤ 64 models and θ₀ of whole rows each, a row `columns`·`inner` elements; totals: f64[T][columns].
// Types    each source its own; scores in f32, or f64 in `_f64`.
// Bytes    every source once; totals once for each 4 to 16 rows, from the cache. 16-byte accesses where a row begins at a
//          multiple of 16 bytes, else by the element.
//          products: f64[elements of a row][T (T + 1) / 2], read and written once a row, from the cache.
// Work     T operations in f64 and T scores an element; products: T (T + 1) operations.
// Launch   rows: a block takes 64 columns, eight threads a row of them, threads / 8 rows at a time; 32 to 128 threads;
//          8·T·(threads + 1) values of shared memory. inner (columns of several elements): one thread a column; products: eight columns a thread. finish: 256
//          threads, one total a thread.
// CPU twin src/backend/cpu/stats.rs, add_column_scores; lines.rs, add_products.
#include "tile.cuh"

// Mirrored in ops/columns.rs.
struct Columns {
  Load load;
  double* totals;
  u32 score;
  u32 pad;
};
static_assert(sizeof(Columns) == 672, "as in columns.rs");

template <typename C> DEV void add_rows(const Columns& p) {
  extern __shared__ double columns_slots[];
  const Load& l = p.load;
  const u32 models = l.sources.count;
  const u64 width = l.columns, rows = l.sources.len / width;
  const Slots<C> tau = {reinterpret_cast<C*>(columns_slots)};
  const u32 rows_here = blockDim.x / 8;
  const u64 first = (u64)blockIdx.x * 64, column = first + threadIdx.x % 8 * V;
#pragma unroll 1
  for (u64 top = 0; top < rows; top += rows_here) {
    const u64 row = top + threadIdx.x / 8;
    const int n = row < rows ? vector_of(column, width) : 0;
    C base[V];
    load_tile<ANY>(l, row * width + column, n, tau, base);
    score_tile(p.score, models, tau, base);
    __syncthreads();
    const u32 count = (u32)min((u64)rows_here, rows - top);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < models * 64; i += blockDim.x) {
      const u32 t = i / 64, c = i % 64;
      if (first + c >= width) continue;
      double* total = &p.totals[t * width + first + c];
      double sum = *total;
#pragma unroll 4
      for (u32 r = 0; r < count; ++r) sum = sum + (double)tau(t, c % 8, r * 8 + c / 8);
      *total = sum;
    }
    __syncthreads();
  }
}

template <typename C> DEV void add_inner(const Columns& p) {
  extern __shared__ double columns_slots[];
  const Load& l = p.load;
  const u32 models = l.sources.count;
  const u64 width = l.columns * l.inner, rows = l.sources.len / width;
  const Slots<C> tau = {reinterpret_cast<C*>(columns_slots)};
  const u64 column = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= l.columns) return;
#pragma unroll 1
  for (u64 row = 0; row < rows; ++row) {
#pragma unroll 1
    for (u64 i = 0; i < l.inner; i += V) {
      const int n = vector_of(i, l.inner);
      C base[V];
      load_tile<ANY>(l, row * width + column * l.inner + i, n, tau, base);
      score_tile(p.score, models, tau, base);
#pragma unroll 1
      for (u32 t = 0; t < models; ++t) {
        double* total = &p.totals[t * l.columns + column];
        double sum = *total;
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (v < n) sum = sum + (double)tau(t, v);
        *total = sum;
      }
    }
  }
}

// totals[c][pair] += x_a(r, c)·x_b(r, c) for every row r of the run in order, c an element of a row.
template <typename C> DEV void add_products(const Columns& p) {
  extern __shared__ double columns_slots[];
  const Load& l = p.load;
  const u32 models = l.sources.count, pairs = models * (models + 1) / 2;
  const u64 width = l.row_elems, rows = l.sources.len / width;
  const Slots<C> tau = {reinterpret_cast<C*>(columns_slots)};
  const u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
  const int n = vector_of(first, width);
  if (n == 0) return;
#pragma unroll 1
  for (u64 row = 0; row < rows; ++row) {
    C base[V];
    load_tile<ANY>(l, row * width + first, n, tau, base);
    double* total = &p.totals[first * pairs];
#pragma unroll 1
    for (u32 a = 0; a < models; ++a) {
#pragma unroll 1
      for (u32 b = a; b < models; ++b, ++total) {
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (v < n) total[v * pairs] = total[v * pairs] + (double)tau(a, v) * (double)tau(b, v);
      }
    }
  }
}

extern "C" __launch_bounds__(128) __global__ void columns_rows_any(const __grid_constant__ Columns p) { add_rows<float>(p); }
extern "C" __launch_bounds__(128) __global__ void columns_rows_f64(const __grid_constant__ Columns p) { add_rows<double>(p); }
extern "C" __launch_bounds__(128) __global__ void columns_inner_any(const __grid_constant__ Columns p) { add_inner<float>(p); }
extern "C" __launch_bounds__(128) __global__ void columns_inner_f64(const __grid_constant__ Columns p) { add_inner<double>(p); }
extern "C" __launch_bounds__(128) __global__ void columns_products_any(const __grid_constant__ Columns p) { add_products<float>(p); }
extern "C" __launch_bounds__(128) __global__ void columns_products_f64(const __grid_constant__ Columns p) { add_products<double>(p); }

extern "C" __launch_bounds__(256) __global__ void columns_finish(double* totals, u64 count, double elems) {
  const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) totals[i] = totals[i] / elems;
}
