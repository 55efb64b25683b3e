//! Recipes: what is understood, what is refused and how, and what strangers may send.

mod errors;
mod hostile;
mod values;
