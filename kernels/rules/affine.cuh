// θ₀ + ((base − 1) · θ₀ + Σ w τ) / divisor, with coefficients that are usually measured. Twin: src/ops/rules/affine.rs.
struct Affine {
  static constexpr bool READS_BASE = true, TASK_VECTORS = true, WEIGHTED = true, TWICE = false;
  template <typename C> struct Acc {
    C sum;
  };
  template <typename C> static DEV void start(const Numbers& by, C base, Acc<C>& acc) { acc.sum = (C)(by.base - 1.0) * base; }
  template <typename C> static DEV void take(Acc<C>& acc, C x) { acc.sum = acc.sum + x; }
  template <typename C> static DEV C sum(const Numbers&, const Acc<C>& acc) { return acc.sum; }
  template <typename C> static DEV C finish(const Numbers&, C sum, C base) { return changed(base, sum, (C)1); }
};
