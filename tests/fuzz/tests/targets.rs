//! Every target on its seeds, and on a fixed number of inputs that follow from them: the same ones
//! on every machine. `cargo xtask fuzz` looks further.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use cell_fuzz::{Mutator, TARGETS};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name)
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{name} has no seeds");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Runs a target on its seeds and on this many more inputs.
#[track_caller]
fn check(name: &str, inputs: usize) {
    let target = cell_fuzz::target(name).expect("there is this target");
    let seeds = seeds(name);
    let mut mutator = Mutator::new(1);
    let more = (0..inputs).map(|_| mutator.input(&seeds));
    for input in seeds.iter().cloned().chain(more.collect::<Vec<_>>()) {
        if catch_unwind(|| (target.run)(&input)).is_err() {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-finding"));
            fs::write(&file, &input).unwrap();
            let file = file.display();
            panic!(
                "what is wrong is said above; again: cargo xtask fuzz --target {name} --input {file}"
            );
        }
    }
}

#[test]
fn client() {
    check("client", 3000);
}

#[test]
fn config() {
    check("config", 20_000);
}

#[test]
fn differential() {
    check("differential", 150);
}

#[test]
fn frames() {
    check("frames", 100_000);
}

#[test]
fn gate() {
    check("gate", 400);
}

#[test]
fn guest() {
    check("guest", 3000);
}

#[test]
fn interface() {
    check("interface", 20_000);
}

#[test]
fn manifest() {
    check("manifest", 20_000);
}

#[test]
fn channel() {
    check("channel", 5000);
}

#[test]
fn peer() {
    check("peer", 3000);
}

#[test]
fn ring() {
    check("ring", 3000);
}

/// `cargo xtask fuzz` takes the folders for the list of targets.
#[test]
fn every_target_has_a_folder_of_seeds() {
    let mut folders: Vec<String> = fs::read_dir(folder(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert_eq!(folders, TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
}
