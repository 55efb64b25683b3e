// Exponential and logarithm in f64, in operations that round alike everywhere. CPU twin: src/backend/cpu/divergence.rs.
#pragma once
#include "common.cuh"

// ln 2 in two parts, of which the first has zeros at its end.
constexpr double LN_2_HIGH = 6.931471803691238e-1, LN_2_LOW = 1.9082149292705877e-10;

// e^x of x <= 0, 0 below e^-708.
DEV double exp_of(double x) {
  if (x < -708.0) return 0.0;
  const long long n = x != x ? 0 : (long long)(x * 1.4426950408889634 - 0.5);
  const double r = (x - (double)n * LN_2_HIGH) - (double)n * LN_2_LOW;
  double sum = 1.0;
#pragma unroll 1
  for (double k = 14.0; k > 0.0; k -= 1.0) sum = 1.0 + r * sum / k;
  const long long exponent = n + 1023 < 1 ? 1 : n + 1023 > 1023 ? 1023 : n + 1023;
  return sum * as_f64((u64)exponent << 52);
}

// The natural logarithm of a positive number that is not subnormal.
DEV double ln_of(double x) {
  if (!(x > 0.0 && is_finite(x))) return as_f64(0x7FF8000000000000ull);
  const u64 bits = as_bits(x);
  const long long exponent = (long long)(bits >> 52) - 1023;
  const double mantissa = as_f64((bits & 0x000FFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
  const bool above = mantissa > 1.4142135623730951;
  const double m = above ? mantissa * 0.5 : mantissa, e = (double)(above ? exponent + 1 : exponent);
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double sum = 0.0;
#pragma unroll 1
  for (double k = 23.0; k > 0.0; k -= 2.0) sum = sum * square + 1.0 / k;
  return e * LN_2_HIGH + (2.0 * s * sum + e * LN_2_LOW);
}
