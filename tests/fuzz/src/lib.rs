//! What strangers' bytes can do to Cell: one function for each place that takes them.
//!
//! Each target takes any bytes, hands them to the product, and panics if a promise is broken. It
//! does not generate its inputs: `cargo xtask fuzz` lets libFuzzer do that, guided by coverage, and
//! the tests of this crate replay the seeds and some thousand inputs that follow from them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a broken promise is a panic: that is how a fuzzer finds it"
)]

mod bytes;
mod channel;
mod client;
mod differential;
mod frames;
mod gate;
mod guest;
mod interface;
mod manifest;
mod mutate;
mod peer;
mod ring;
mod smith;
mod world;

pub use channel::channel;
pub use client::client;
pub use differential::differential;
pub use frames::frames;
pub use gate::gate;
pub use guest::guest;
pub use interface::interface;
pub use manifest::{config, manifest};
pub use mutate::Mutator;
pub use peer::peer;
pub use ring::ring;

/// One place that takes strangers' bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line, and of its folder in `seeds/`.
    pub name: &'static str,
    /// Takes any bytes; panics if the product broke a promise.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "channel", run: channel },
    Target { name: "client", run: client },
    Target { name: "config", run: config },
    Target { name: "differential", run: differential },
    Target { name: "frames", run: frames },
    Target { name: "gate", run: gate },
    Target { name: "guest", run: guest },
    Target { name: "interface", run: interface },
    Target { name: "manifest", run: manifest },
    Target { name: "peer", run: peer },
    Target { name: "ring", run: ring },
];

/// The target with this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}
