//! `cell`: the nucleus, its worker and its command line, in one binary.

mod link;
mod manifest;
mod worker;

fn main() { let _ = worker::run(); let _ = manifest::Manifest::read; }
