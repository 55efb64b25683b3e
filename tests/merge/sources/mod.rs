//! What published recipes name beyond plain models. Values are worked out from the sources.

mod adapters;
mod core;
mod cut;
mod experts;
mod fp8;
mod hub;
