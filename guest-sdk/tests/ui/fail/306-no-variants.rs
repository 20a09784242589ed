#![allow(unused)]

use cell_guest::signal;

#[signal]
pub enum Never {}

fn main() {}
