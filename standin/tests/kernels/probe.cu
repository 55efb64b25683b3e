// Kernels of the stand-in's own tests: each right once, and wrong in one way.

typedef unsigned u32;

// out[i] = 2 in[i], elements past n untouched.
extern "C" __global__ void twice(const float* in, float* out, u32 n) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = 2.0f * in[i];
}

// As `twice`, but for the last element it reads one more than there is.
extern "C" __global__ void twice_too_far(const float* in, float* out, u32 n) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = 2.0f * in[i] + (in[i + 1] == 12345.0f ? 1.0f : 0.0f);
}

// out[block] = sum of the block's 256 elements, through shared memory.
template <bool WAITS> __device__ void sum_of_block(const float* in, float* out) {
  __shared__ float part[256];
  part[threadIdx.x] = in[blockIdx.x * 256 + threadIdx.x];
  for (u32 half = 128; half > 0; half /= 2) {
    if (WAITS) __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}
extern "C" __launch_bounds__(256) __global__ void sums(const float* in, float* out) { sum_of_block<true>(in, out); }
extern "C" __launch_bounds__(256) __global__ void sums_no_barrier(const float* in, float* out) { sum_of_block<false>(in, out); }

// out[warp] = sum of the warp's 32 elements.
extern "C" __global__ void sums_of_warps(const float* in, float* out) {
  float sum = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lane);
  if (threadIdx.x % 32 == 0) out[(blockIdx.x * blockDim.x + threadIdx.x) / 32] = sum;
}

// Half of the threads stand at a barrier that the others never reach.
extern "C" __global__ void divergent(float* out) {
  if (threadIdx.x % 2) __syncthreads();
  out[threadIdx.x] = 1.0f;
}

// Declared where no function is, as kernels that share helpers do.
extern __shared__ float shared_row[];

// Reverses a block's elements through dynamic shared memory, of which it needs 4 bytes a thread.
extern "C" __global__ void reversed(const float* in, float* out) {
  shared_row[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared_row[blockDim.x - 1 - threadIdx.x];
}

// out[i] = 2 in[i] through 2048 bytes of shared memory of its own and as much again that the launch gives: static and dynamic
// count together.
extern "C" __launch_bounds__(256) __global__ void counted(const float* in, float* out) {
  __shared__ double kept[256];
  kept[threadIdx.x] = in[blockIdx.x * 256 + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * 256 + threadIdx.x] = 2.0f * (float)kept[threadIdx.x];
}

// As `twice` of a whole block, in so many registers (compiled.md) that a block has 256 threads at most.
extern "C" __global__ void heavy(const float* in, float* out) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = 2.0f * in[i];
}

// 16 bytes at once, wherever `in` points.
extern "C" __global__ void wide_copy(const float* in, float* out) {
  reinterpret_cast<uint4*>(out)[threadIdx.x] = reinterpret_cast<const uint4*>(in)[threadIdx.x];
}
