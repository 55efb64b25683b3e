// What a kernel's source may use of CUDA, for the host's compiler. Every translated .cu begins with this (see translate.py).
//
// A kernel runs with one fiber per CUDA thread (runtime.cpp). Only what merganser's kernels use is here; whatever else one
// comes to use fails to compile and is added then.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }

// Set anew whenever another fiber goes on. One kernel runs at a time.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace shim {
enum Collective { SYNC, SHUFFLE, BALLOT };
// Where a barrier stands in kernels/ tells it apart: a test may take one out.
void barrier(const char* file, int line);
bool removed(const char* file, int line);
// Waits for the lanes of `mask`; gives the value of lane `source`, or the ballot of their lowest bits.
uint64_t collective(unsigned mask, Collective what, uint64_t value, int source);
int lane();
// Counts the blocks that have begun.
extern unsigned long long epoch;
// Dynamic shared memory of the block.
extern void* dynamic;
// Shared memory is poison at the beginning of every block: the first thread that comes to a declaration sees to it.
inline void declare(void* at, size_t size, unsigned long long& seen) {
  if (seen == epoch) return;
  seen = epoch;
  std::memset(at, 0xFF, size);
}
template <class T> T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = collective(mask, SHUFFLE, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <class To, class From> To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace shim

// ---- Together

// translate.py puts the place of each into its call.
namespace shim {
inline void sync_threads(const char* file, int line) { barrier(file, line); }
inline void sync_warp(const char* file, int line, unsigned mask = ~0u) {
  if (!removed(file, line)) collective(mask, SYNC, 0, 0);
}
}  // namespace shim
inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return shim::shuffle(mask, value, (shim::lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
  const int lane = shim::lane(), source = lane ^ with;
  return shim::shuffle(mask, value, source / width > lane / width ? lane : source);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = shim::lane(), source = lane + (int)by;
  return shim::shuffle(mask, value, source / width == lane / width ? source : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = shim::lane(), source = lane - (int)by;
  return shim::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return (unsigned)shim::collective(mask, shim::BALLOT, predicate != 0, 0);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// ---- Atomics: nothing else runs meanwhile, so plain reads and writes do

template <class T> T shim_exchange(T* at, T value) {
  const T old = *at;
  *at = value;
  return old;
}
template <class T> T atomicAdd(T* at, std::type_identity_t<T> value) { return shim_exchange(at, (T)(*at + value)); }
template <class T> T atomicMax(T* at, std::type_identity_t<T> value) { return shim_exchange(at, value > *at ? value : *at); }
template <class T> T atomicMin(T* at, std::type_identity_t<T> value) { return shim_exchange(at, value < *at ? value : *at); }
template <class T> T atomicOr(T* at, std::type_identity_t<T> value) { return shim_exchange(at, (T)(*at | value)); }
template <class T> T atomicAnd(T* at, std::type_identity_t<T> value) { return shim_exchange(at, (T)(*at & value)); }
template <class T> T atomicExch(T* at, std::type_identity_t<T> value) { return shim_exchange(at, value); }
template <class T> T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return *at == expected ? shim_exchange(at, value) : *at;
}

// ---- Bits and arithmetic

inline unsigned __float_as_uint(float x) { return shim::bits<unsigned>(x); }
inline int __float_as_int(float x) { return shim::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return shim::bits<float>(x); }
inline float __int_as_float(int x) { return shim::bits<float>(x); }
inline long long __double_as_longlong(double x) { return shim::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return shim::bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
template <class T> T __ldg(const T* at) { return *at; }
template <class T> T __ldcs(const T* at) { return *at; }
template <class T> void __stcs(T* at, std::type_identity_t<T> value) { *at = value; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
template <class T> constexpr std::enable_if_t<std::is_integral_v<T>, T> min(T a, T b) { return b < a ? b : a; }
template <class T> constexpr std::enable_if_t<std::is_integral_v<T>, T> max(T a, T b) { return a < b ? b : a; }
using std::fabs;
using std::sqrt;

// ---- Registration

namespace shim {
using Body = void (*)(void** parameters);
void add(const char* name, Body body, int parameters, const int* sizes, int max_threads);
template <auto F> struct Register;
template <class... A, void (*F)(A...)> struct Register<F> {
  template <size_t... I> static void call(void** at, std::index_sequence<I...>) { F(*static_cast<std::remove_const_t<A>*>(at[I])...); }
  static void body(void** at) { call(at, std::index_sequence_for<A...>{}); }
  Register(const char* name, int max_threads) {
    static const int sizes[] = {(int)sizeof(A)..., 0};
    add(name, body, sizeof...(A), sizes, max_threads);
  }
};
}  // namespace shim
