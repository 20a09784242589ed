#![allow(unused)]

use cell_guest::signal;

#[signal]
pub struct Table {
    rows: std::collections::HashMap<u32, u32>,
}

fn main() {}
