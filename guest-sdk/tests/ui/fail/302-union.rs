#![allow(unused)]

use cell_guest::signal;

#[signal]
pub union Number {
    int: u32,
    float: f32,
}

fn main() {}
