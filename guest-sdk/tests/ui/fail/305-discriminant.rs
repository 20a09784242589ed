#![allow(unused)]

use cell_guest::signal;

#[signal]
pub enum Level {
    Low = 1,
    High = 7,
}

fn main() {}
