#![allow(unused)]

use cell_guest::signal_receptor;

signal_receptor! {
    name: worker
    input: Work { id: u32 },
    output: Done { id: u32 },
}

fn main() {}
