//! crates/calotype
fn main() {}
