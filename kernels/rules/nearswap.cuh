// θ₀ + Σ τ · clamp(t / max(|τ|, 1e-6), 0, 1). Twin: src/ops/rules/nearswap.rs.
struct Near {
  static constexpr bool READS_BASE = true, TASK_VECTORS = true, WEIGHTED = false, TWICE = false;
  template <typename C> struct Acc {
    C sum, t;
  };
  template <typename C> static DEV void start(const Numbers& by, C, Acc<C>& acc) { acc.sum = (C)0, acc.t = (C)by.threshold; }
  template <typename C> static DEV void take(Acc<C>& acc, C x) {
    C size = x < (C)0 ? -x : x;
    size = size < (C)1e-6 ? (C)1e-6 : size;
    C share = acc.t / size;
    share = (C)1 < share ? (C)1 : share;
    share = share < (C)0 ? (C)0 : share;
    acc.sum = acc.sum + share * x;
  }
  template <typename C> static DEV C sum(const Numbers&, const Acc<C>& acc) { return acc.sum; }
  template <typename C> static DEV C finish(const Numbers&, C sum, C base) { return changed(base, sum, (C)1); }
};
