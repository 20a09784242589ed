//! The sandbox against modules written by hand: what is billed, what is refused, what survives.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a test fails, also in the functions that tests share"
)]

mod calls;
mod elsewhere;
mod fuel;
mod gate;
mod jobs;
mod limits;
mod rates;
mod replay;
mod state;
mod support;
