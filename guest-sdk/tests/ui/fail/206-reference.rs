#![allow(unused)]

use cell_guest::signal_receptor;

signal_receptor! {
    name: worker,
    input: Work { name: Vec<&str> },
    output: Done { id: u32 },
}

fn main() {}
