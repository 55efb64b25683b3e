// What all kernels share: element types, widening and rounding, sources, random words.
//
// Arithmetic: the kernels give the bits that the CPU backend gives, so nothing here may be compiled with contraction
// (--fmad=false), with approximate division, or with subnormals flushed to zero. A NaN's payload is not kept: NVIDIA's
// arithmetic makes one NaN of all.
//
// CPU twins: src/backend/cpu/stored.rs, real.rs; src/backend/philox.rs.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEV __device__ __forceinline__

// Elements of a vector: what a thread works on at once. 8 bf16 or f16 elements are one access of 16 bytes.
constexpr int V = 8;
// Models that a launch can take.
constexpr u32 MAX_MODELS = 64;

// Stored element types, as the host numbers them (src/backend/cuda/ops/params.rs).
[[maybe_unused]] constexpr int F64 = 0, F32 = 1, BF16 = 2, F16 = 3, E4M3 = 4, E5M2 = 5;
// Of a kernel that asks each source for its type.
constexpr int ANY = 15;

// ---- Parameters, mirrored in src/backend/cuda/ops/params.rs

// The sources of a run of elements; pointers are to its first element.
struct Sources {
  const u8* base;  // null where θ₀ is not read
  const u8* models[MAX_MODELS];
  u64 start;  // index in the tensor of the run's first element
  u64 len;
  u32 count;  // models
  u8 base_dtype;
  u8 dtypes[MAX_MODELS];
  u8 pad[3];
};
static_assert(sizeof(Sources) == 608, "as in params.rs");

// ---- Bits

DEV float as_f32(u32 bits) { return __uint_as_float(bits); }
DEV u32 as_bits(float x) { return __float_as_uint(x); }
DEV double as_f64(u64 bits) { return __longlong_as_double((long long)bits); }
DEV u64 as_bits(double x) { return (u64)__double_as_longlong(x); }

// The bits of |x| as a number: ordered as magnitudes are, NaN above infinity.
DEV u64 key_of(float x) { return as_bits(x) & 0x7FFFFFFFu; }
DEV u64 key_of(double x) { return as_bits(x) & 0x7FFFFFFFFFFFFFFFull; }
DEV float magnitude(float x) { return as_f32(as_bits(x) & 0x7FFFFFFFu); }
DEV double magnitude(double x) { return as_f64(as_bits(x) & 0x7FFFFFFFFFFFFFFFull); }
DEV bool is_finite(float x) { return (as_bits(x) & 0x7F800000u) != 0x7F800000u; }
DEV bool is_finite(double x) { return (as_bits(x) & 0x7FF0000000000000ull) != 0x7FF0000000000000ull; }
DEV bool is_nan(float x) { return (as_bits(x) & 0x7FFFFFFFu) > 0x7F800000u; }
DEV bool is_nan(double x) { return (as_bits(x) & 0x7FFFFFFFFFFFFFFFull) > 0x7FF0000000000000ull; }

// Bytes of an element.
DEV u32 bytes_of(int dtype) { return dtype == F64 ? 8 : dtype == F32 ? 4 : dtype <= F16 ? 2 : 1; }

// ---- Widening one element: exact

DEV float widen_bf16(u16 h) { return as_f32((u32)h << 16); }

DEV float widen_f16(u16 h) {
#ifdef __CUDA_ARCH__
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
#else
  // The exponent's bias is set right by a multiplication, which is exact for subnormals too.
  const u32 sign = (u32)(h & 0x8000) << 16;
  if ((h & 0x7C00) == 0x7C00) return as_f32(sign | 0x7F800000u | (u32)(h & 0x3FF) << 13);
  return as_f32(sign | as_bits(as_f32((u32)(h & 0x7FFF) << 13) * as_f32((127u + 112u) << 23)));
#endif
}

DEV float widen_e4m3(u8 c) {
  const u32 sign = (u32)(c & 0x80) << 24;
  if ((c & 0x7F) == 0x7F) return as_f32(sign | 0x7FC00000u);
  return as_f32(sign | as_bits(as_f32((u32)(c & 0x7F) << 20) * as_f32((127u + 120u) << 23)));
}

DEV float widen_e5m2(u8 c) { return widen_f16((u16)(c << 8)); }

// ---- Rounding one element: once, to nearest even

// The code of the nearest value on an unbounded grid of this exponent bias and mantissa width.
DEV u32 round_small(float x, u32 exponent_bits, u32 mantissa_bits) {
  const u32 bias = (1u << (exponent_bits - 1)) - 1;
  const u32 bits = as_bits(x) & 0x7FFFFFFFu;
  if (bits < (128 - bias) << 23) {
    // Subnormal grid: the sum with a magic number rounds at its last place.
    const float magic = as_f32((128 - bias - mantissa_bits + 23) << 23);
    return as_bits(as_f32(bits) + magic) - as_bits(magic);
  }
  const u32 drop = 23 - mantissa_bits;
  const u32 rounded = (bits + ((1u << (drop - 1)) - 1) + ((bits >> drop) & 1)) >> drop;
  return rounded - ((127 - bias) << mantissa_bits);
}

DEV u16 round_bf16(float x) {
  const u32 bits = as_bits(x);
  // A NaN must stay one, also where its payload sits in the bits that go.
  return (u16)(is_nan(x) ? (bits >> 16) | 0x40 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

DEV u16 round_f16(float x) {
#ifdef __CUDA_ARCH__
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
#else
  const u16 sign = (u16)((as_bits(x) >> 16) & 0x8000);
  if (is_nan(x)) return sign | 0x7E00;
  const u32 code = round_small(x, 5, 10);
  return sign | (u16)(code < 0x7C00 ? code : 0x7C00);
#endif
}

DEV u8 round_e4m3(float x) {
  const u8 sign = (u8)((as_bits(x) >> 24) & 0x80);
  const u32 code = round_small(x, 4, 3);
  return sign | (u8)(is_nan(x) || code >= 0x7F ? 0x7F : code);
}

DEV u8 round_e5m2(float x) {
  const u8 sign = (u8)((as_bits(x) >> 24) & 0x80);
  const u32 code = round_small(x, 5, 2);
  return sign | (u8)(is_nan(x) ? 0x7F : code < 0x7C ? code : 0x7C);
}

// f64 → f32, inexact results to the neighbour with an odd significand, so that a later rounding to fewer bits is exact.
DEV float round_to_odd(double value) {
  const float near = (float)value;
  const double back = (double)near;
  const u32 bits = as_bits(near);
  if (back == value || is_nan(near) || (bits & 1)) return near;
  if (!is_finite(near)) return is_finite(value) ? as_f32((bits & 0x80000000u) | 0x7F7FFFFFu) : near;
  return as_f32(magnitude(value) > magnitude(back) ? bits + 1 : bits - 1);
}

// What is rounded to types of 16 bits and fewer.
DEV float narrow_from(float x) { return x; }
DEV float narrow_from(double x) { return round_to_odd(x); }

// ---- Vectors of 8 elements

// The stored bytes of a vector, as they were read.
template <int D> struct Raw {
  uint4 w[D == F64 ? 4 : D == F32 ? 2 : 1];
};

template <int D> DEV Raw<D> read(const u8* at) {
  Raw<D> raw;
  if constexpr (D == E4M3 || D == E5M2) {
    const uint2 w = *reinterpret_cast<const uint2*>(at);
    raw.w[0] = make_uint4(w.x, w.y, 0, 0);
  } else {
#pragma unroll
    for (int i = 0; i < (int)(sizeof(raw.w) / 16); ++i) raw.w[i] = reinterpret_cast<const uint4*>(at)[i];
  }
  return raw;
}

DEV u32 word(const uint4& w, int i) { return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w; }

template <int D, typename C> DEV void widen(const Raw<D>& raw, C (&x)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if constexpr (D == F64) {
      x[v] = (C)as_f64((u64)word(raw.w[v / 2], v % 2 * 2 + 1) << 32 | word(raw.w[v / 2], v % 2 * 2));
    } else if constexpr (D == F32) {
      x[v] = (C)as_f32(word(raw.w[v / 4], v % 4));
    } else if constexpr (D == BF16) {
      const u32 two = word(raw.w[0], v / 2);
      x[v] = (C)as_f32(v % 2 ? two & 0xFFFF0000u : two << 16);
    } else if constexpr (D == F16) {
      x[v] = (C)widen_f16((u16)(word(raw.w[0], v / 2) >> (v % 2 * 16)));
    } else {
      const u8 c = (u8)(word(raw.w[0], v / 4) >> (v % 4 * 8));
      x[v] = (C)(D == E4M3 ? widen_e4m3(c) : widen_e5m2(c));
    }
  }
}

// One element of any type.
template <typename C> DEV C widen_one(const u8* at, int dtype) {
  switch (dtype) {
    case F64: return (C)*reinterpret_cast<const double*>(at);
    case F32: return (C)*reinterpret_cast<const float*>(at);
    case BF16: return (C)widen_bf16(*reinterpret_cast<const u16*>(at));
    case F16: return (C)widen_f16(*reinterpret_cast<const u16*>(at));
    case E4M3: return (C)widen_e4m3(*at);
    default: return (C)widen_e5m2(*at);
  }
}

// Whether a vector of this type can be read or written at once here.
DEV bool is_aligned(const u8* at, int dtype) { return ((u64)at & (dtype >= E4M3 ? 7 : 15)) == 0; }

// The first n elements at element e of a run; the others become 0.
template <int D, typename C> DEV void load(const u8* run, int dtype, u64 e, int n, C (&x)[V]) {
  if constexpr (D == ANY) {
    switch (dtype) {
      case F64: return load<F64>(run, F64, e, n, x);
      case F32: return load<F32>(run, F32, e, n, x);
      case BF16: return load<BF16>(run, BF16, e, n, x);
      case F16: return load<F16>(run, F16, e, n, x);
      case E4M3: return load<E4M3>(run, E4M3, e, n, x);
      default: return load<E5M2>(run, E5M2, e, n, x);
    }
  } else {
    const u8* at = run + e * bytes_of(D);
    if (n == V && is_aligned(at, D)) return widen<D>(read<D>(at), x);
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = v < n ? widen_one<C>(at + v * bytes_of(D), D) : (C)0;
  }
}

// Rounds the first n elements once and stores them at element e; returns a bit for each that is NaN or infinite.
template <typename C> DEV u32 store(u8* run, int dtype, u64 e, int n, const C (&x)[V]) {
  u8* at = run + e * bytes_of(dtype);
  const bool whole = n == V && is_aligned(at, dtype);
  u32 bad = 0;
  if (dtype == F64) {
#pragma unroll
    for (int v = 0; v < V; ++v) bad |= is_finite((double)x[v]) ? 0u : 1u << v;
    if (whole) {
#pragma unroll
      for (int v = 0; v < V; v += 2) {
        const u64 a = as_bits((double)x[v]), b = as_bits((double)x[v + 1]);
        reinterpret_cast<uint4*>(at)[v / 2] = make_uint4((u32)a, (u32)(a >> 32), (u32)b, (u32)(b >> 32));
      }
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (v < n) reinterpret_cast<double*>(at)[v] = (double)x[v];
    }
  } else if (dtype == F32) {
    float r[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      r[v] = (float)x[v];
      bad |= is_finite(r[v]) ? 0u : 1u << v;
    }
    if (whole) {
#pragma unroll
      for (int v = 0; v < V; v += 4)
        reinterpret_cast<uint4*>(at)[v / 4] =
            make_uint4(as_bits(r[v]), as_bits(r[v + 1]), as_bits(r[v + 2]), as_bits(r[v + 3]));
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (v < n) reinterpret_cast<float*>(at)[v] = r[v];
    }
  } else if (dtype <= F16) {
    u32 w[V / 2] = {0, 0, 0, 0};
    const u32 infinity = dtype == BF16 ? 0x7F80 : 0x7C00;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float f = narrow_from(x[v]);
      const u32 r = dtype == BF16 ? round_bf16(f) : round_f16(f);
      bad |= (r & infinity) == infinity ? 1u << v : 0u;
      w[v / 2] |= r << (v % 2 * 16);
    }
    if (whole) {
      *reinterpret_cast<uint4*>(at) = make_uint4(w[0], w[1], w[2], w[3]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (v < n) reinterpret_cast<u16*>(at)[v] = (u16)(w[v / 2] >> (v % 2 * 16));
    }
  } else {
    u32 w[V / 4] = {0, 0};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float f = narrow_from(x[v]);
      const u32 r = dtype == E4M3 ? round_e4m3(f) : round_e5m2(f);
      bad |= (dtype == E4M3 ? (r & 0x7F) == 0x7F : (r & 0x7C) == 0x7C) ? 1u << v : 0u;
      w[v / 4] |= r << (v % 4 * 8);
    }
    if (whole) {
      *reinterpret_cast<uint2*>(at) = make_uint2(w[0], w[1]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (v < n) at[v] = (u8)(w[v / 4] >> (v % 4 * 8));
    }
  }
  return n < V ? bad & ((1u << n) - 1) : bad;
}

// Elements of the vector at e, of a run of `len`.
DEV int vector_of(u64 e, u64 len) { return e >= len ? 0 : len - e < V ? (int)(len - e) : V; }

// ---- Random words

// Philox4x32-10 (Salmon et al., SC 2011) of one counter.
DEV void philox(u64 counter, u32 k0, u32 k1, u32 (&out)[4]) {
  u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = 0, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
    c0 = (u32)(b >> 32) ^ c1 ^ k0;
    c1 = (u32)b;
    c2 = (u32)(a >> 32) ^ c3 ^ k1;
    c3 = (u32)a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// A bit for each of 8 elements from element `first` of the tensor: whether its word lies below the threshold.
DEV u32 kept_at_random(u64 first, u32 k0, u32 k1, u64 threshold) {
  const u32 skip = (u32)(first & 3);
  u32 kept = 0;
  // Four elements a counter: two counters, or three where the vector does not begin with one.
#pragma unroll 1
  for (u32 i = 0; i < (skip ? 3u : 2u); ++i) {
    u32 words[4];
    philox(first / 4 + i, k0, k1, words);
#pragma unroll
    for (int j = 0; j < 4; ++j) kept |= (u64)words[j] < threshold ? 1u << (4 * i + j) : 0u;
  }
  return kept >> skip & 0xFF;
}
