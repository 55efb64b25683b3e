// θ₀ + the mean of the τ with |τ| > ε, a NaN among them; the only one of them times its weight. Twin: src/ops/rules/ram.rs.
struct Reinforced {
  static constexpr bool READS_BASE = true, TASK_VECTORS = true, WEIGHTED = false, TWICE = true;
  template <typename C> struct Acc {
    C sum, count, epsilon;
  };
  template <typename C> static DEV void start(const Numbers& by, C, Acc<C>& acc) {
    acc.sum = acc.count = (C)0, acc.epsilon = (C)by.threshold;
  }
  template <typename C> static DEV void take(Acc<C>& acc, C x) {
    const bool is_change = key_of(x) > key_of(acc.epsilon);
    acc.sum = is_change ? acc.sum + x : acc.sum;
    acc.count = is_change ? acc.count + (C)1 : acc.count;
  }
  template <typename C> static DEV void take_again(Acc<C>& acc, C x, C weight) {
    if (key_of(x) > key_of(acc.epsilon) && acc.count == (C)1) acc.sum = weight * x;
  }
  template <typename C> static DEV C sum(const Numbers&, const Acc<C>& acc) {
    return acc.count > (C)1 ? acc.sum / acc.count : acc.sum;
  }
  template <typename C> static DEV C finish(const Numbers&, C sum, C base) { return changed(base, sum, (C)1); }
};
