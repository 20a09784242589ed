//! Glue between libFuzzer and one target, named by `CELL_FUZZ_TARGET`. `cargo xtask fuzz` runs it.
#![no_main]
#![allow(missing_docs, unsafe_code, reason = "the macro defines what libFuzzer calls")]
#![allow(clippy::expect_used, reason = "without a target there is nothing to do")]

use std::sync::LazyLock;

use cell_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("CELL_FUZZ_TARGET").expect("CELL_FUZZ_TARGET names a target");
    cell_fuzz::target(&name).expect("there is a target of this name")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
