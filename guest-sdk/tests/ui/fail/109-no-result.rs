#![allow(unused)]

use cell_guest::{Context, Reject, receptor, signal_receptor};

signal_receptor! { name: worker, input: Work { id: u32 }, output: Done { id: u32 } }

#[receptor]
fn worker(job: &ArchivedWork) -> Done {
    Done { id: 1 }
}

fn main() {}
