//! Never answers: it burns fuel until the nucleus stops it.

use std::hint::black_box;

use cell_guest::{Reject, receptor, signal_receptor};

signal_receptor! {
    name: spin,
    input: (),
    output: (),
}

#[receptor]
fn spin(_: &()) -> Result<(), Reject> {
    let mut turns: u64 = 0;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}
