//! The harness of the end-to-end tests: homes, nuclei, cells and raw connections.
//!
//! It drives the built binary as a user would and knows nothing of its insides. Whatever it starts
//! it ends by its id, and every wait has a guard that is far longer than any healthy run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness that cannot go on fails its test"
)]
#![allow(clippy::indexing_slicing, reason = "a missing field of an answer is a failed test")]

mod home;
pub mod hostile;
mod nucleus;
pub mod process;
mod raw;
pub mod wat;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

pub use home::{FIRST_GRANT, Home, Ran};
pub use nucleus::{Background, Nucleus};
pub use raw::{Raw, frame, status};

/// No healthy step takes this long, however busy the machine is; one that does hangs.
pub const GUARD: Duration = Duration::from_secs(90);

/// The built binary: `$CELL_BIN`, or what `cargo build --release` made.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("CELL_BIN")
        .map_or_else(|| workspace().join("target/release/cell"), PathBuf::from);
    // Another build may be replacing it.
    eventually("the binary `cell` is built", || path.is_file().then_some(()));
    path
}

/// The root of the workspace that holds these tests.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in a workspace").to_owned()
}

/// A sample's module and its manifest, as `cargo xtask test` built them; a command has no manifest.
pub fn sample(name: &str) -> (Vec<u8>, String) {
    let built = std::env::var_os("CELL_SAMPLES")
        .map_or_else(|| workspace().join("target/samples"), PathBuf::from);
    let directory = built.join(name);
    let command = built.join(format!("{name}.wasm"));
    let wasm = if directory.is_dir() { directory.join("cell.wasm") } else { command };
    let bytes = std::fs::read(&wasm).unwrap_or_else(|e| {
        panic!("{}: {e}; `cargo xtask test` builds the samples", wasm.display())
    });
    (bytes, std::fs::read_to_string(directory.join("Cell.toml")).unwrap_or_default())
}

/// Looks again and again until there is something; past [`GUARD`] the test fails.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < GUARD, "waited {GUARD:?} in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A small seeded generator: the same seed gives the same test.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// A number below `bound`.
    pub const fn below(&mut self, bound: u64) -> u64 {
        // xorshift64*, with the constants of its author.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}
