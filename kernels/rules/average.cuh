// Σ w θ / divisor, over all models. Twin: src/ops/rules/average.rs.
struct Average {
  static constexpr bool READS_BASE = false, TASK_VECTORS = false, WEIGHTED = true, TWICE = false;
  template <typename C> struct Acc {
    C sum;
  };
  // What is added to a negative zero stays what it is, a negative zero too.
  template <typename C> static DEV void start(const Numbers&, C, Acc<C>& acc) { acc.sum = -(C)0; }
  template <typename C> static DEV void take(Acc<C>& acc, C x) { acc.sum = acc.sum + x; }
  template <typename C> static DEV C sum(const Numbers&, const Acc<C>& acc) { return acc.sum; }
  template <typename C> static DEV C finish(const Numbers&, C sum, C) { return sum; }
};
