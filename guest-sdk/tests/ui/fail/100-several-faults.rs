#![allow(unused)]

use cell_guest::{Context, Reject, receptor, signal_receptor};

signal_receptor! { name: worker, input: Work { id: u32 }, output: Done { id: u32 } }

#[receptor]
async fn worker<T>(self, cx: &Context, more: T) -> Done {
    Done { id: 1 }
}

fn main() {}
