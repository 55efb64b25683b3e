//! The `merganser` command.
fn main() {}
