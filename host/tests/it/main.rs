//! The sandbox against modules written by hand: what is billed, what is refused, what survives.

mod calls;
mod fuel;
mod jobs;
mod limits;
mod state;
mod support;
