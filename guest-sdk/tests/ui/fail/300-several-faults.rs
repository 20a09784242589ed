#![allow(unused)]

use cell_guest::signal;

#[signal]
pub struct Node<T> {
    #[rkyv(niche)]
    next: Option<Box<Node<T>>>,
    name: &str,
    bytes: Box<[u8]>,
    size: usize,
}

fn main() {}
