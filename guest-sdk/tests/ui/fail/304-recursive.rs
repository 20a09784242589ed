#![allow(unused)]

use cell_guest::signal;

#[signal]
pub enum Tree {
    Leaf,
    Node(Box<Tree>, Box<Tree>),
}

fn main() {}
