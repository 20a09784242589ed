#![allow(unused)]

use cell_guest::signal;

#[signal]
pub struct Point {
    x: f32,
    #[cfg(unix)]
    y: f32,
}

fn main() {}
