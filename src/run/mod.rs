//! What every run shares, whatever it does: threads that take units, the wish to stop, and how far it is.

mod pool;
mod progress;
mod stop;

pub(crate) use pool::together;
pub use progress::Progress;
pub use stop::Stop;
