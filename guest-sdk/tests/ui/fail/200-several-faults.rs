#![allow(unused)]

use cell_guest::signal_receptor;

signal_receptor! {
    name: Worker,
    inputs: Work { id: u32 },
    input: Job { at: &str, next: Box<Job> },
    output: Done<T> { id: T },
    output: Done { id: usize },
}

fn main() {}
