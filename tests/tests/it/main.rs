//! The built binary, driven from outside: what users and strangers see of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "these are tests"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests print what they measured and what they skipped"
)]

mod audit;
mod bandwidth;
mod boundaries;
mod channels;
mod cli;
mod compiler;
mod crash;
mod dev;
mod donate;
mod elsewhere;
mod ends;
mod finding;
mod frames;
mod fuel;
mod hangups;
mod idle;
mod jobs;
mod liar;
mod lifecycle;
mod load;
mod metrics;
mod neighbour;
mod peers;
mod postgres;
mod prices;
mod readiness;
mod receipts;
mod relay;
mod remote_jobs;
mod running;
mod schema;
mod shared;
mod top;
mod uploads;
mod users;
mod walls;
