#![allow(unused)]

use cell_guest::signal;

#[signal]
pub struct Node<T> {
    value: T,
}

fn main() {}
