//! Element-wise rules: how parameters or task vectors become one. Each is written once, for every vector and processor.
//!
//! A rule is one file here, one line in the table below, and its twin for CUDA, `kernels/rules/NAME.cuh`. `build.rs` compiles
//! this folder too and makes the entry points of the kernels from the table: so nothing here imports anything else of the crate.

mod affine;
mod average;
mod elect;
mod magmax;
mod mix;
mod nearswap;
mod ram;
mod sum;

pub use affine::Affine;
pub use average::Average;
pub use elect::Elect;
pub use magmax::MaxMagnitude;
pub use mix::Mix;
pub use nearswap::Near;
pub use ram::Reinforced;
pub use sum::Sum;

/// What a rule needs of vectors of numbers. A scalar is a vector of one; a value of the type is proof that the processor has
/// what it takes.
pub trait Arith: Copy {
    /// Numbers of the computing type.
    type F: Copy;
    /// A flag for each of them.
    type M: Copy;

    /// The number, rounded to the computing type, in every place.
    fn number(self, x: f64) -> Self::F;
    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a < b
    fn less(self, a: Self::F, b: Self::F) -> Self::M;
    /// a = b
    fn equal(self, a: Self::F, b: Self::F) -> Self::M;
    /// Whether a number is NaN.
    fn is_nan(self, x: Self::F) -> Self::M;
    /// Whether |x| ≥ |y| by their bits, where a NaN is larger than infinity.
    fn larger(self, x: Self::F, y: Self::F) -> Self::M;
    /// A negative zero where flagged, else a positive one.
    fn signs(self, m: Self::M) -> Self::F;
    /// Exclusive or of the bits: with [`Arith::signs`], turns the sign where flagged.
    fn xor(self, a: Self::F, b: Self::F) -> Self::F;
    /// Where flagged `a`, else `b`.
    fn select(self, m: Self::M, a: Self::F, b: Self::F) -> Self::F;
}

/// The numbers of a rule that are the same for every element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numbers {
    /// What the sum is divided by (1: nothing).
    pub divisor: f64,
    /// λ, the scale of the change.
    pub lambda: f64,
    /// The coefficient of θ₀, where it is one of those that are mixed.
    pub base: f64,
    /// A size of changes: what `nearswap` cuts them to; up to which `ram` takes them for none.
    pub threshold: f64,
    /// Whether to divide by the weights that agree.
    pub normalize: bool,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { divisor: 1.0, lambda: 1.0, base: 0.0, threshold: 0.0, normalize: false }
    }
}

/// How the models' values of an element become one. Models come in their order, each once a round.
pub trait Rule: Copy {
    /// What a plan calls it.
    const WORDS: &'static str;
    /// Whether θ₀ is read.
    const READS_BASE: bool;
    /// Whether models enter as task vectors, θ_t − θ₀, and not as θ_t.
    const TASK_VECTORS: bool;
    /// Whether what enters has been multiplied by the model's weight.
    const WEIGHTED: bool;
    /// Whether every model comes a second time, after all have come once.
    const TWICE: bool = false;
    /// What is kept of the models that have come.
    type Acc<F: Copy>: Copy;

    /// The rule with its numbers.
    fn of(numbers: &Numbers) -> Self;
    /// Before the first model.
    fn start<L: Arith>(self, l: L, base: L::F) -> Self::Acc<L::F>;
    /// Takes a model's value, times its weight where [`Rule::WEIGHTED`].
    fn take<L: Arith>(self, l: L, acc: &mut Self::Acc<L::F>, x: L::F);
    /// Between the two rounds.
    fn turn<L: Arith>(self, _l: L, _acc: &mut Self::Acc<L::F>) {}
    /// Takes a model's value in the second round, and its weight.
    fn take_again<L: Arith>(self, _l: L, _acc: &mut Self::Acc<L::F>, _x: L::F, _weight: L::F) {}
    /// What all models come to, before it is divided by [`Numbers::divisor`].
    fn sum<L: Arith>(self, l: L, acc: Self::Acc<L::F>) -> L::F;
    /// The merged element.
    fn finish<L: Arith>(self, l: L, sum: L::F, base: L::F) -> L::F;
}

/// θ₀ + λ·change, and θ₀ itself (also a negative zero) where nothing changed.
#[inline(always)]
pub fn changed<L: Arith>(l: L, change: L::F, base: L::F, lambda: f64) -> L::F {
    let change = l.mul(l.number(lambda), change);
    l.select(l.equal(change, l.number(0.0)), base, l.add(base, change))
}

/// The forms in which a rule has CUDA kernels, and for which sources each is compiled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kernels {
    /// Models in turn, nothing dropped.
    pub plain: Sources,
    /// Models in turn, thinned out by a cut or at random.
    pub sparse: Sources,
    /// Models in turn, behind stages that look at one task alone.
    pub staged: Sources,
    /// All models at once.
    pub tile: Sources,
}

/// Stored types for which a kernel is compiled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sources {
    /// There is no such kernel.
    #[default]
    None,
    /// One for each of bf16, f16 and f32, one for any mixture, one that computes in f64.
    Each,
    /// One for any mixture, one that computes in f64.
    Any,
}

/// Something that is done with the type of a rule.
pub trait WithRule {
    /// What comes of it.
    type Out;
    /// Does it.
    fn with<R: Rule>(self) -> Self::Out;
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident: $rule:ident { $($form:ident: $types:ident),* $(,)? })*) => {
        /// Every rule.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum RuleId {
            $($(#[$doc])* $rule,)*
        }

        impl RuleId {
            /// All of them.
            pub const ALL: &'static [RuleId] = &[$(RuleId::$rule),*];

            /// The stem of its file here and under `kernels/rules`.
            pub fn name(self) -> &'static str {
                match self { $(RuleId::$rule => stringify!($name)),* }
            }

            /// The name of its type here and there.
            pub fn type_name(self) -> &'static str {
                match self { $(RuleId::$rule => stringify!($rule)),* }
            }

            /// Its CUDA kernels.
            pub fn kernels(self) -> Kernels {
                let mut kernels = Kernels::default();
                match self { $(RuleId::$rule => { $(kernels.$form = Sources::$types;)* })* }
                kernels
            }

            /// What a plan calls it.
            pub fn words(self) -> &'static str {
                match self { $(RuleId::$rule => $rule::WORDS),* }
            }

            /// Whether θ₀ is read.
            pub fn reads_base(self) -> bool {
                match self { $(RuleId::$rule => $rule::READS_BASE),* }
            }

            /// Whether models enter as task vectors.
            pub fn takes_task_vectors(self) -> bool {
                match self { $(RuleId::$rule => $rule::TASK_VECTORS),* }
            }

            /// Does something with the rule's type.
            pub fn visit<V: WithRule>(self, visitor: V) -> V::Out {
                match self { $(RuleId::$rule => visitor.with::<$rule>()),* }
            }
        }
    };
}

rules! {
    /// Σ w θ / divisor, over all models.
    average: Average { plain: Each, tile: Any }
    /// θ₀ + λ (Σ w τ) / divisor.
    sum: Sum { plain: Each, sparse: Each, staged: Any, tile: Any }
    /// θ₀ + λ · (the τ of largest magnitude; on a tie the later).
    magmax: MaxMagnitude { plain: Each, staged: Any, tile: Any }
    /// θ₀ + λ · (sum or weighted mean of the w τ that have the elected sign).
    elect: Elect { tile: Each }
    /// (base · θ₀ + Σ w θ) / divisor.
    mix: Mix { plain: Any }
    /// θ₀ + ((base − 1) · θ₀ + Σ w τ) / divisor.
    affine: Affine { tile: Any }
    /// θ₀ + τ · clamp(t / |τ|, 0, 1).
    nearswap: Near { plain: Each, staged: Any, tile: Any }
    /// θ₀ + the mean of the τ that are changes, the only one times its weight.
    ram: Reinforced { tile: Each }
}
