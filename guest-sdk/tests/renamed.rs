//! A package that depends on cell-guest under another name, and on neither rkyv nor serde.

use std::path::Path;
use std::process::Command;

/// The ancestor's macros named their crates by hand, so a user had to add `serde` (E0463).
#[test]
fn a_renamed_dependency_is_enough() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/renamed");
    // A copy, so that its lock file lies in the target directory.
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("renamed");
    std::fs::create_dir_all(copy.join("src")).expect("make the copy's directory");
    let manifest = std::fs::read_to_string(package.join("Cargo.toml")).expect("read the manifest");
    let manifest = manifest.replace("../..", env!("CARGO_MANIFEST_DIR"));
    std::fs::write(copy.join("Cargo.toml"), manifest).expect("write the manifest");
    std::fs::copy(package.join("src/lib.rs"), copy.join("src/lib.rs")).expect("copy the source");
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    std::fs::copy(lock, copy.join("Cargo.lock")).expect("copy the lock file");

    let status = Command::new(env!("CARGO"))
        .args(["test", "--offline", "--quiet", "--manifest-path"])
        .arg(copy.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(copy.join("target"))
        .status()
        .expect("run cargo");
    assert!(status.success(), "see the errors above");
}
