// Task vectors of one vector of elements: what stages of `lwptv` do to them, scores, and the last steps of a merge.
//
// CPU twins: src/backend/cpu/prune.rs, vector.rs.
#pragma once
#include "common.cuh"

// Saliency scores, as the host numbers them.
[[maybe_unused]] constexpr u32 MAGNITUDE = 0, RELATIVE = 1, DEVIATION = 2, AGREEMENT = 3, TALL = 4;
// What a search ranks beside scores: the standard deviation over the models, and magnitudes weighed by their rows.
[[maybe_unused]] constexpr u32 SPREAD = 5, IMPORTANCE = 6;
// Kinds of masks.
[[maybe_unused]] constexpr u32 KEEP_ALL = 0, KEEP_NONE = 1, KEEP_ROWS = 2, KEEP_COLUMNS = 3, KEEP_ELEMENTS = 4;

// What one stage keeps of one model: `models` entries a stage, in a blob of device memory. Mirrored in ops/stages.rs.
struct Stage {
  u64 keep;       // offset in the blob of one byte a row or column
  u64 cut;        // key of the score at the cut
  double factor;  // what is kept is multiplied by this
  u32 kind;
  u32 lowest;  // keep what lies below the cut
  u32 score;
  u32 sums;  // whether the stage's scores need sums over the models
};
static_assert(sizeof(Stage) == 40, "as in stages.rs");

// Flags of a load: some mask is of rows; of columns; every source begins at a multiple of 16 bytes.
[[maybe_unused]] constexpr u32 ROW_MASKS = 1, COLUMN_MASKS = 2, ALIGNED = 4;

// Where task vectors come from. Mirrored in ops/params.rs.
struct Load {
  Sources sources;
  const u8* blob;
  u32 stages;
  u32 flags;
  u64 rows, row_elems, columns, inner;
};
static_assert(sizeof(Load) == 656, "as in params.rs");

// The row and column of a vector's first element, and its place within them.
struct Units {
  u64 row, in_row, column, in_column;
};

DEV Units units_of(const Load& load, u64 e) {
  Units units = {0, 0, 0, 0};
  const u64 at = load.sources.start + e;
  if (load.flags & ROW_MASKS) {
    units.row = at / load.row_elems;
    units.in_row = at - units.row * load.row_elems;
  }
  if (load.flags & COLUMN_MASKS) {
    const u64 run = at / load.inner;
    units.in_column = at - run * load.inner;
    units.column = run % load.columns;
  }
  return units;
}

// A bit for each of n elements that lie in runs of `run` with one mask byte each, `units` bytes in all.
DEV u32 kept_units(const u8* keep, u64 unit, u64 within, u64 run, u64 units, int n) {
  u32 kept = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (v >= n) break;
    kept |= keep[unit] ? 1u << v : 0u;
    if (++within == run) {
      within = 0;
      if (++unit == units) unit = 0;
    }
  }
  return kept;
}

// The score of one element; `sum` and `sizes` are Σ τ and Σ |τ| over the models, `models` their number.
template <typename C> DEV C score_of(u32 score, C x, C base, double sum, double sizes, double models) {
  const double v = (double)x;
  switch (score) {
    case MAGNITUDE: return magnitude(x);
    case RELATIVE: return magnitude(x) / (magnitude(base) + (C)1e-6);
    case DEVIATION: return (C)magnitude(v - sum / models);
    case AGREEMENT: {
      const double r = sum - v, q = sizes - magnitude(v);
      const double sign = v > 0.0 ? r / q : -r / q;
      // NaN stays NaN: only a true zero means that nobody else has an opinion.
      return (C)(q == 0.0 || v == 0.0 ? 0.5 : (1.0 + sign) * 0.5);
    }
    default: {
      const double whole = magnitude(v) + magnitude(sum - v);
      return (C)(whole == 0.0 ? 0.0 : magnitude(v) / whole);
    }
  }
}

DEV bool is_relational(u32 score) { return score >= DEVIATION; }

// Applies one stage to one model's vector. `sums` and `sizes` are read by relational scores only.
template <typename C>
DEV void prune(const Load& load, const Stage& stage, const Units& units, int n, const C (&base)[V],
               const double (&sums)[V], const double (&sizes)[V], C (&x)[V]) {
  u32 kept = 0xFF;
  switch (stage.kind) {
    case KEEP_ALL: break;
    case KEEP_NONE: kept = 0; break;
    case KEEP_ROWS: kept = kept_units(load.blob + stage.keep, units.row, units.in_row, load.row_elems, load.rows, n); break;
    case KEEP_COLUMNS:
      kept = kept_units(load.blob + stage.keep, units.column, units.in_column, load.inner, load.columns, n);
      break;
    default:
      kept = 0;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const u64 key = key_of(score_of(stage.score, x[v], base[v], sums[v], sizes[v], (double)load.sources.count));
        kept |= (stage.lowest ? key <= stage.cut : key >= stage.cut) ? 1u << v : 0u;
      }
  }
  const C factor = (C)stage.factor;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    x[v] = kept >> v & 1 ? x[v] : (C)0;
    if (stage.factor != 1.0) x[v] = x[v] * factor;
  }
}

// Whether |x| lies neither below the cut nor above the top; a NaN counts as the largest magnitude.
template <typename C> DEV bool is_within(C x, u64 cut, u64 top) {
  const u64 key = key_of(x);
  return key >= cut && key <= top;
}

// θ₀ + λ·change, and θ₀ itself (also a negative zero) where nothing changed.
template <typename C> DEV C changed(C base, C change, C lambda) {
  const C c = lambda * change;
  return c == (C)0 ? base : base + c;
}

// Adds a count of every thread of the warp to a counter of the block.
DEV void add_of_warp(u32* counter, u32 count) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) count += __shfl_xor_sync(0xFFFFFFFFu, count, lane);
  if (threadIdx.x % 32 == 0 && count) atomicAdd(counter, count);
}

// Calls f(t, x) with n elements at e of every model in turn; x are parameters, not task vectors.
//
// Where all sources have the type D, BATCH models are read before the first is worked on, so that that many accesses are
// in flight.
template <int D, int BATCH, typename C, typename F> DEV void each_model(const Load& load, u64 e, int n, F f) {
  const Sources& s = load.sources;
  u32 t = 0;
  if constexpr (D != ANY) {
    if (n == V && (load.flags & ALIGNED)) {
      const u64 at = e * bytes_of(D);
#pragma unroll 1
      for (; t + BATCH <= s.count; t += BATCH) {
        Raw<D> raw[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) raw[i] = read<D>(s.models[t + i] + at);
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
          C x[V];
          widen<D>(raw[i], x);
          f(t + i, x);
        }
      }
    }
  }
#pragma unroll 1
  for (; t < s.count; ++t) {
    C x[V];
    ::load<D>(s.models[t], s.dtypes[t], e, n, x);
    f(t, x);
  }
}
