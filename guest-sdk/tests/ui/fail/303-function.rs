#![allow(unused)]

use cell_guest::signal;

#[signal]
fn work() {}

fn main() {}
