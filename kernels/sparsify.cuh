// What a method drops from each task vector before it combines them.
//
// CPU twin: src/backend/cpu/sparsify.rs.
#pragma once
#include "tile.cuh"

// As the host numbers them.
[[maybe_unused]] constexpr u32 NOTHING = 0, OUTSIDE_CUTS = 1, AT_RANDOM = 2, BELOW_SPREAD = 3, BY_BITS = 4, BELOW_IMPORTANCE = 5, BY_SCALES = 6;

// Mirrored in ops/sparse.rs.
struct Sparse {
  u64 limits[MAX_MODELS];   // key of the cut, or threshold of random words
  u64 tops[MAX_MODELS];     // key of the largest magnitude that is kept
  u32 keys[MAX_MODELS][2];  // of random words
  // By model, `stride` bytes each: a bit for each element of the tensor, from the lowest of a byte on, or f32 of what it is multiplied by.
  const u8* chosen;
  u64 stride;
  const double* rows;  // by row: what |τ| is multiplied by
  u64 row_elems;       // elements of such a row
  u32 kind;
  u32 pad;
};
static_assert(sizeof(Sparse) == 1576, "as in sparse.rs");

// Bits of 8 elements of the tensor from `first` on.
DEV u32 bits_at(const u8* bits, u64 first, int n) {
  const u32 skip = (u32)(first & 7);
  const u8* at = bits + first / 8;
  u32 kept = at[0];
  // The second byte may lie past the end where the first holds all.
  if (skip + n > 8) kept |= (u32)at[1] << 8;
  return kept >> skip & 0xFF;
}

// What an element of the tensor is multiplied by.
DEV float scale_at(const Sparse& s, u32 t, u64 element) {
  return reinterpret_cast<const float*>(s.chosen + t * s.stride)[element];
}

// |τ| of each of n elements from `first` of the tensor on, times the number of its row; rounded once.
template <typename C> DEV void importance(const double* rows, u64 row_elems, u64 first, int n, const C (&x)[V], C (&out)[V]) {
  u64 row = first / row_elems, within = first - row * row_elems;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    out[v] = v < n ? (C)((double)magnitude(x[v]) * rows[row]) : (C)0;
    if (++within == row_elems) within = 0, ++row;
  }
}

// A bit for each of n elements at e of model t that is kept; not for BELOW_SPREAD, which looks at all models. Without ALL only for cuts
// of magnitudes and random words, which take fewer registers.
template <bool ALL, typename C> DEV u32 kept_of(const Sparse& s, u64 start, u32 t, u64 e, int n, const C (&x)[V]) {
  u32 kept = 0;
  if constexpr (ALL) {
    if (s.kind == BY_BITS) return n > 0 ? bits_at(s.chosen + t * s.stride, start + e, n) : 0;
    if (s.kind == BY_SCALES) {
#pragma unroll
      for (int v = 0; v < V; ++v) kept |= v < n && scale_at(s, t, start + e + v) != 0.0f ? 1u << v : 0u;
      return kept;
    }
    if (s.kind == BELOW_IMPORTANCE) {
      C by[V];
      if (n == 0) return 0;
      importance(s.rows, s.row_elems, start + e, n, x, by);
#pragma unroll
      for (int v = 0; v < V; ++v) kept |= key_of(by[v]) >= s.limits[t] ? 1u << v : 0u;
      return kept;
    }
  }
  if (s.kind == OUTSIDE_CUTS) {
#pragma unroll
    for (int v = 0; v < V; ++v) kept |= is_within(x[v], s.limits[t], s.tops[t]) ? 1u << v : 0u;
    return kept;
  }
  return kept_at_random(start + e, s.keys[t][0], s.keys[t][1], s.limits[t]);
}

// Whether what is kept is counted as the merge goes.
DEV bool counts_kept(const Sparse& s) { return s.kind == AT_RANDOM || s.kind == BY_BITS || s.kind == BY_SCALES || s.kind == BELOW_IMPORTANCE; }

// Whether an element of the tensor is kept of model t, where that was chosen element by element or follows from its importance; `scale` is
// what it is then multiplied by.
template <typename C> DEV bool keeps(const Sparse& s, u32 t, u64 element, C x, C& scale) {
  if (s.kind == BY_BITS) return s.chosen[t * s.stride + element / 8] >> (u32)(element & 7) & 1;
  if (s.kind == BY_SCALES) {
    const float factor = scale_at(s, t, element);
    scale = (C)factor;
    return factor != 0.0f;
  }
  return key_of((C)((double)magnitude(x) * s.rows[element / s.row_elems])) >= s.limits[t];
}

// Drops so, of n elements at e of model t in slots, one by one, which takes few registers; returns how many are kept.
template <typename C> DEV u32 drop_one_by_one(const Sparse& s, u64 start, u32 t, u64 e, int n, C factor, const Slots<C>& tau) {
  u32 count = 0;
#pragma unroll 1
  for (int v = 0; v < n; ++v) {
    const C x = tau(t, v);
    C scale = (C)1;
    const bool kept = keeps(s, t, start + e + v, x, scale);
    C left = kept ? x : (C)0;
    if (factor != (C)1) left = left * factor;
    if (kept && scale != (C)1) left = left * scale;
    tau(t, v) = left;
    count += kept;
  }
  return count;
}

// Whether one element of the tensor is kept of model t.
template <typename C> DEV bool is_kept(const Sparse& s, u32 t, u64 element, C x) {
  if (s.kind == OUTSIDE_CUTS) return is_within(x, s.limits[t], s.tops[t]);
  if (s.kind == AT_RANDOM) return kept_at_random(element, s.keys[t][0], s.keys[t][1], s.limits[t]) & 1;
  C scale = (C)1;
  return keeps(s, t, element, x, scale);
}
