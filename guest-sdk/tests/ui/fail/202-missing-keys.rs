#![allow(unused)]

use cell_guest::signal_receptor;

signal_receptor! {
    name: worker,
}

fn main() {}
