//! Embeds the sources that a cell project needs, so that `cell new` works far from this workspace.
//!
//! It writes one table, `sdk_files.rs`: relative path and content. It decides nothing but which
//! files are in; `src/sdk.rs` makes a workspace of them.

#![allow(clippy::print_stdout, reason = "cargo listens on standard output")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

const FILES: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "abi/Cargo.toml",
    "client/Cargo.toml",
    "guest-sdk/Cargo.toml",
    "guest-sdk/macros/Cargo.toml",
];
const FOLDERS: &[&str] = &[
    "abi/src",
    "client/src",
    "guest-sdk/include",
    "guest-sdk/macros/src",
    "guest-sdk/src",
    "guest-sdk/template",
];
/// What only this workspace's tests read.
const LEFT_OUT: &[&str] = &["snapshots", "target", "tests", "tests.rs"];

fn main() -> io::Result<()> {
    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or(io::ErrorKind::NotFound)?).join("..");
    let root = root.canonicalize()?;
    let mut paths: Vec<String> = FILES.iter().map(|&file| file.to_owned()).collect();
    for folder in FOLDERS {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
        walk(&root, folder, &mut paths)?;
    }
    // One order on every machine: the version of the unpacked SDK is a hash over it.
    paths.sort_unstable();
    let mut table = String::from("&[\n");
    for path in &paths {
        let file = root.join(path);
        println!("cargo::rerun-if-changed={}", file.display());
        writeln!(table, "    ({path:?}, include_bytes!({:?})),", file.display().to_string())
            .map_err(io::Error::other)?;
    }
    table.push_str("]\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    fs::write(out.join("sdk_files.rs"), table)
}

fn walk(root: &Path, folder: &str, paths: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|_| io::ErrorKind::InvalidData)?;
        // An editor's backup is no part of the product.
        if LEFT_OUT.contains(&name.as_str()) || name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        let path = format!("{folder}/{name}");
        // Follows links: what is embedded is always a plain file.
        if fs::metadata(entry.path())?.is_dir() {
            walk(root, &path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}
