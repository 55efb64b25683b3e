// θ₀ + λ · (sum or weighted mean of the w τ that have the sign of Σ w τ); NaN where no sign can be elected. What agrees with nothing
// is divided by nothing. Twin: src/ops/rules/elect.rs.
struct Elect {
  static constexpr bool READS_BASE = true, TASK_VECTORS = true, WEIGHTED = true, TWICE = true;
  template <typename C> struct Acc {
    C elected, sum, weights;
  };
  template <typename C> static DEV void start(const Numbers&, C, Acc<C>& acc) { acc.elected = acc.sum = acc.weights = (C)0; }
  template <typename C> static DEV void take(Acc<C>& acc, C x) { acc.elected = acc.elected + x; }
  template <typename C> static DEV void take_again(Acc<C>& acc, C x, C weight) {
    const bool agrees = acc.elected >= (C)0 ? x > (C)0 : x < (C)0;
    acc.sum = acc.sum + (agrees ? x : (C)0);
    acc.weights = acc.weights + (agrees ? weight : (C)0);
  }
  template <typename C> static DEV C sum(const Numbers& by, const Acc<C>& acc) {
    const C mean = by.normalize && acc.weights != (C)0 ? acc.sum / acc.weights : acc.sum;
    return is_nan(acc.elected) ? acc.elected : mean;
  }
  template <typename C> static DEV C finish(const Numbers& by, C sum, C base) { return changed(base, sum, (C)by.lambda); }
};
