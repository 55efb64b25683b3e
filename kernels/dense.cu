// What low-rank merges do to dense matrices beside matrix products.
//
// dense_add       merged += c·low, where c·low is not 0; by tile Σ (a − low)² and Σ a² where a is given
// dense_squares   by tile Σ x²
// dense_fold      adds the pairs of all tiles, in an order that their number fixes
// dense_round     merged, f64, rounded once to a stored type; counts NaN and infinities
// dense_convert   f32 ↔ f64
// dense_residuals out[j] = ‖back_j − value_j·basis_j‖ of columns of `rows` elements
// dense_scale     column j of `rows` elements times scale[j]
// dense_nonfinite counts NaN and infinities
//
// Shapes   `len` elements, or columns of `rows`. A tile is 2048 elements: 256 threads of 8, added by a tree, whatever the grid.
// Types    f32 or f64, as a parameter says.
// Bytes    every operand once, every result once, 16-byte accesses where operands begin at multiples of 16 bytes; else, and at the
//          end, by the element. Tiles: 16 bytes a tile.
// Work     add: 2 operations an element, 5 more with norms; the others 1 to 3. Bound by memory.
// Launch   256 threads; ⌈len / 2048⌉ blocks; fold: one block; residuals: a block a column.
// CPU twin src/backend/cpu/low_rank/elementwise.rs (sums there run in another order); truncated.rs, certified.
#include "common.cuh"

// The sum over the block's 256 threads, by a fixed tree; thread 0 gets it.
DEV double block_sum(double x, double* warps) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x = x + __shfl_xor_sync(0xFFFFFFFFu, x, lane);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0.0;
  for (int w = 0; w < 8; ++w) sum = sum + warps[w];
  return sum;
}

DEV void load_either(const u8* at, u32 dtype, u64 e, int n, double (&x)[V]) {
  if (dtype == F32) load<F32>(at, F32, e, n, x);
  else load<F64>(at, F64, e, n, x);
}

DEV u64 vector_at() { return ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V; }

extern "C" __launch_bounds__(256) __global__ void dense_add(double* merged, const u8* low, const u8* a, u32 dtype, double c, u64 len, double* tiles) {
  __shared__ double warps[8];
  const u64 e = vector_at();
  const int n = vector_of(e, len);
  double l[V], m[V];
  load_either(low, dtype, e, n, l);
  load<F64>(reinterpret_cast<const u8*>(merged), F64, e, n, m);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const double change = c * l[v];
    m[v] = change == 0.0 ? m[v] : m[v] + change;
  }
  store(reinterpret_cast<u8*>(merged), F64, e, n, m);
  if (!a) return;
  double x[V], left = 0.0, whole = 0.0;
  load_either(a, dtype, e, n, x);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    left = left + (x[v] - l[v]) * (x[v] - l[v]);
    whole = whole + x[v] * x[v];
  }
  left = block_sum(left, warps);
  whole = block_sum(whole, warps);
  if (threadIdx.x == 0) {
    tiles[2 * blockIdx.x] = left;
    tiles[2 * blockIdx.x + 1] = whole;
  }
}

extern "C" __launch_bounds__(256) __global__ void dense_squares(const u8* values, u32 dtype, u64 len, double* tiles) {
  __shared__ double warps[8];
  const u64 e = vector_at();
  double x[V], sum = 0.0;
  load_either(values, dtype, e, vector_of(e, len), x);
#pragma unroll
  for (int v = 0; v < V; ++v) sum = sum + x[v] * x[v];
  sum = block_sum(sum, warps);
  if (threadIdx.x == 0) {
    tiles[2 * blockIdx.x] = sum;
    tiles[2 * blockIdx.x + 1] = 0.0;
  }
}

// out[0], out[1] (+)= the sums of the pairs. One block.
extern "C" __launch_bounds__(256) __global__ void dense_fold(const double* tiles, u64 count, double* out, u32 width, u32 add) {
  __shared__ double warps[8];
  double first = 0.0, second = 0.0;
  for (u64 i = threadIdx.x; i < count; i += 256) {
    first = first + tiles[2 * i];
    second = second + tiles[2 * i + 1];
  }
  first = block_sum(first, warps);
  second = block_sum(second, warps);
  if (threadIdx.x != 0) return;
  out[0] = add ? out[0] + first : first;
  if (width == 2) out[1] = add ? out[1] + second : second;
}

extern "C" __launch_bounds__(256) __global__ void dense_round(const u8* merged, u8* out, u32 dtype, u64 len, u64* facts) {
  const u64 e = vector_at();
  const int n = vector_of(e, len);
  if (n == 0) return;
  double x[V];
  load<F64>(merged, F64, e, n, x);
  const u32 bad = store(out, (int)dtype, e, n, x);
  if (bad) atomicAdd(&facts[0], (u64)__popc(bad));
}

extern "C" __launch_bounds__(256) __global__ void dense_convert(const u8* from, u32 from_dtype, u8* to, u32 to_dtype, u64 len) {
  const u64 e = vector_at();
  const int n = vector_of(e, len);
  if (n == 0) return;
  double x[V];
  load_either(from, from_dtype, e, n, x);
  if (to_dtype == F32) store(to, F32, e, n, x);
  else store(to, F64, e, n, x);
}

extern "C" __launch_bounds__(256) __global__ void dense_residuals(const u8* back, const u8* basis, u32 dtype, const double* values, u64 rows, double* out) {
  __shared__ double warps[8];
  const u64 column = blockIdx.x;
  double sum = 0.0;
  for (u64 i = threadIdx.x; i < rows; i += 256) {
    const u64 at = (column * rows + i) * bytes_of((int)dtype);
    const double left = widen_one<double>(back + at, (int)dtype) - values[column] * widen_one<double>(basis + at, (int)dtype);
    sum = sum + left * left;
  }
  sum = block_sum(sum, warps);
  if (threadIdx.x == 0) out[column] = sqrt(sum);
}

extern "C" __launch_bounds__(256) __global__ void dense_scale(u8* x, u32 dtype, const double* scale, u64 rows, u64 len) {
  const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= len) return;
  const double by = scale[i / rows];
  if (dtype == F32) {
    float* at = reinterpret_cast<float*>(x) + i;
    *at = (float)((double)*at * by);
  } else {
    double* at = reinterpret_cast<double*>(x) + i;
    *at = *at * by;
  }
}

extern "C" __launch_bounds__(256) __global__ void dense_nonfinite(const u8* values, u32 dtype, u64 len, u64* out) {
  const u64 e = vector_at();
  const int n = vector_of(e, len);
  double x[V];
  load_either(values, dtype, e, n, x);
  u32 bad = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) bad += !is_finite(x[v]);
  if (bad) atomicAdd(&out[0], (u64)bad);
}
