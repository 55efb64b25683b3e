// θ₀ + λ · (the τ of largest magnitude; on a tie the later; a NaN counts as the largest). Twin: src/ops/rules/magmax.rs.
struct MaxMagnitude {
  static constexpr bool READS_BASE = true, TASK_VECTORS = true, WEIGHTED = false, TWICE = false;
  template <typename C> struct Acc {
    C best;
  };
  template <typename C> static DEV void start(const Numbers&, C, Acc<C>& acc) { acc.best = (C)0; }
  template <typename C> static DEV void take(Acc<C>& acc, C x) { acc.best = key_of(x) >= key_of(acc.best) ? x : acc.best; }
  template <typename C> static DEV C sum(const Numbers&, const Acc<C>& acc) { return acc.best; }
  template <typename C> static DEV C finish(const Numbers& by, C best, C base) { return changed(base, best, (C)by.lambda); }
};
