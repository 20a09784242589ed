//! nucleus
fn main() {}
