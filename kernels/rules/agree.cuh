// θ₀ + (Σ w τ) / (Σ w) of the τ that have the sign of Σ τ; NaN where no sign can be elected. Weights that sum to less than 1e-6
// count as that. Twin: src/ops/rules/agree.rs.
struct Agree {
  static constexpr bool READS_BASE = true, TASK_VECTORS = true, WEIGHTED = false, TWICE = true;
  template <typename C> struct Acc {
    C elected, sum, weights;
  };
  template <typename C> static DEV void start(const Numbers&, C, Acc<C>& acc) { acc.elected = acc.sum = acc.weights = (C)0; }
  template <typename C> static DEV void take(Acc<C>& acc, C x) { acc.elected = acc.elected + x; }
  template <typename C> static DEV void take_again(Acc<C>& acc, C x, C weight) {
    const bool agrees = acc.elected >= (C)0 ? x > (C)0 : x < (C)0;
    acc.sum = acc.sum + (agrees ? weight * x : (C)0);
    acc.weights = acc.weights + (agrees ? weight : (C)0);
  }
  template <typename C> static DEV C sum(const Numbers&, const Acc<C>& acc) {
    const C weights = acc.weights < (C)1e-6 ? (C)1e-6 : acc.weights;
    return is_nan(acc.elected) ? acc.elected : acc.sum / weights;
  }
  template <typename C> static DEV C finish(const Numbers&, C sum, C base) { return changed(base, sum, (C)1); }
};
