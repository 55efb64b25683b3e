// Σ w θ / divisor, over all models. Twin: src/ops/rules/average.rs.
struct Average {
  static constexpr bool READS_BASE = false, TASK_VECTORS = false, WEIGHTED = true, TWICE = false;
  template <typename C> struct Acc {
    C sum;
  };
  template <typename C> static DEV void start(const Numbers&, C, Acc<C>& acc) { acc.sum = (C)0; }
  // The first is not added to 0, which would make a negative zero of all models a positive one.
  template <typename C> static DEV void take(Acc<C>& acc, C x, bool is_first) { acc.sum = is_first ? x : acc.sum + x; }
  template <typename C> static DEV C sum(const Numbers&, const Acc<C>& acc) { return acc.sum; }
  template <typename C> static DEV C finish(const Numbers&, C sum, C) { return sum; }
};
