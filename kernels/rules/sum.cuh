// θ₀ + λ (Σ w τ) / divisor. Twin: src/ops/rules/sum.rs.
struct Sum {
  static constexpr bool READS_BASE = true, TASK_VECTORS = true, WEIGHTED = true, TWICE = false;
  template <typename C> struct Acc {
    C sum;
  };
  template <typename C> static DEV void start(const Numbers&, C, Acc<C>& acc) { acc.sum = (C)0; }
  template <typename C> static DEV void take(Acc<C>& acc, C x) { acc.sum = acc.sum + x; }
  template <typename C> static DEV C sum(const Numbers&, const Acc<C>& acc) { return acc.sum; }
  template <typename C> static DEV C finish(const Numbers& by, C sum, C base) { return changed(base, sum, (C)by.lambda); }
};
