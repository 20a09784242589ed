//! Walls that the compiler does not keep: who may name what, and who may print.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cell_tests::workspace;

/// Every Rust file below a path of the workspace, or the file itself.
fn sources(path: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut left = vec![workspace().join(path)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    assert!(!files.is_empty(), "{path} holds no source");
    files
}

/// The code of a file: without comments, and without what is only built for tests.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).unwrap();
    let mut lines = Vec::new();
    let mut in_tests = None;
    for (number, line) in text.lines().enumerate() {
        let depth = line.len() - line.trim_start().len();
        if line.trim_start().starts_with("#[cfg(test)]") {
            in_tests = Some(depth);
        } else if in_tests == Some(depth) && (line.trim() == "}" || line.trim_end().ends_with(';'))
        {
            in_tests = None;
        } else if in_tests.is_none() {
            let code = line.split("//").next().unwrap_or_default();
            lines.push((number + 1, code.to_owned()));
        }
    }
    lines
}

#[track_caller]
fn check_absent(paths: &[&str], words: &[&str], allowed: impl Fn(&str) -> bool) {
    let mut found = Vec::new();
    let mut looked_at = 0;
    for file in paths.iter().flat_map(|path| sources(path)) {
        let name = file.strip_prefix(workspace()).unwrap().to_str().unwrap().to_owned();
        if allowed(&name) {
            continue;
        }
        for (number, line) in code(&file) {
            looked_at += 1;
            for word in words {
                if line.contains(word) {
                    found.push(format!("{name}:{number}: {}", line.trim()));
                }
            }
        }
    }
    assert!(looked_at > 10, "{paths:?} hold no code");
    assert!(found.is_empty(), "{words:?} must not stand here:\n{}", found.join("\n"));
}

/// An escape from the engine lands in a process whose code cannot even name what it would steal.
#[test]
fn the_worker_cannot_name_ledger_and_identity() {
    let worker = ["nucleus/src/worker", "nucleus/src/job_worker.rs"];
    check_absent(
        &worker,
        &["cell_ledger", "ed25519", "bank", "Bank", "identity", "SigningKey"],
        |_| false,
    );
}

#[test]
fn only_the_command_line_prints() {
    let crates = ["abi", "client", "guest-sdk", "host", "ledger", "nucleus"];
    let may_print = |name: &str| {
        name.starts_with("nucleus/src/cli/")
            || ["/examples/", "/tests/", "/benches/"].iter().any(|part| name.contains(part))
            // Compiled for tests alone; what is skipped is told by name.
            || ["_tests.rs", "/private_server.rs"].iter().any(|end| name.ends_with(end))
    };
    let spared =
        |name: &str| may_print(name) || name.ends_with("/build.rs") || name.contains("/template/");
    // A build script speaks to Cargo that way.
    check_absent(&crates, &["println!", "print!(", "dbg!"], spared);
    // Nor does the command line anywhere but in its one place.
    check_absent(&["nucleus/src/cli"], &["println!", "print!(", "dbg!"], |name| {
        name.ends_with("cli/output.rs")
    });
}

#[test]
fn the_abi_does_no_input_or_output() {
    check_absent(&["abi/src"], &["std::"], |_| false);
    let root = fs::read_to_string(workspace().join("abi/src/lib.rs")).unwrap();
    assert!(root.contains("#![no_std]") || root.contains("no_std)]"), "abi is no_std");
}

#[test]
fn the_libraries_do_not_know_one_another() {
    let check = |manifest: &str, words: &[&str]| {
        let text = fs::read_to_string(workspace().join(manifest)).unwrap();
        let dependencies =
            text.split("[dependencies]").nth(1).expect("a manifest has dependencies");
        for line in dependencies.lines() {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            assert!(!words.contains(&name), "{manifest} depends on {name}");
        }
    };
    check("host/Cargo.toml", &["cell-ledger", "cell-client", "cell-nucleus", "clap", "mio"]);
    check(
        "ledger/Cargo.toml",
        &["cell-host", "cell-client", "cell-nucleus", "clap", "wasmtime", "wasmparser"],
    );
    check("client/Cargo.toml", &["cell-host", "cell-ledger", "cell-nucleus", "clap", "wasmtime"]);
    check("abi/Cargo.toml", &["cell-host", "cell-ledger", "cell-client", "tokio", "rustix"]);
}

/// A limit that stands in no table is one that nobody finds before passing it.
#[test]
fn every_limit_is_in_the_table() {
    let output = std::process::Command::new(cell_tests::binary())
        .args(["inspect", "--limits", "--json"])
        .output()
        .unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    let told: BTreeSet<(String, String)> =
        rows.iter().map(|row| (text(row, "module"), text(row, "name"))).collect();
    assert_eq!(told.len(), rows.len(), "no limit stands there twice");
    let mut missing = Vec::new();
    let mut found = 0;
    let rooms = [("abi", "cell_abi"), ("host", "cell_host"), ("client", "cell_client")];
    for (room, name) in rooms.into_iter().chain([("nucleus", "cell_nucleus")]) {
        for file in sources(&format!("{room}/src")) {
            let module = module_of(&file, room, name);
            for (number, line) in code(&file) {
                let Some(constant) = limit_in(&line) else { continue };
                found += 1;
                // The async client is built for those who ask for it, and the binary does not.
                let spared = module == "cell_client::tokio";
                if !spared && !told.contains(&(module.clone(), constant.to_owned())) {
                    missing.push(format!("{}:{number}: {constant} of {module}", file.display()));
                }
            }
        }
    }
    assert!(found > 90, "only {found} limits are found in the sources");
    assert!(missing.is_empty(), "missing in `cell inspect --limits`:\n{}", missing.join("\n"));
}

/// The name of a constant that a line declares, if it is a limit's.
fn limit_in(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once("const ")?;
    let (name, _) = rest.split_once(':')?;
    let declared = before.trim().is_empty() || before.trim_start().starts_with("pub");
    (declared && name.ends_with("_MAX")).then_some(name)
}

/// `nucleus/src/worker/mod.rs` holds `cell::worker`.
fn module_of(file: &Path, room: &str, name: &str) -> String {
    let within = file.strip_prefix(workspace().join(room).join("src")).unwrap().with_extension("");
    let parts = within.iter().map(|part| part.to_str().unwrap());
    let parts = parts.filter(|part| !["mod", "lib", "main"].contains(part));
    std::iter::once(name).chain(parts).collect::<Vec<_>>().join("::")
}

#[test]
fn limits_are_found_where_they_are_declared() {
    assert_eq!(limit_in("const A_MAX: u32 = 1;"), Some("A_MAX"));
    assert_eq!(limit_in("    pub(super) const A_BYTES_MAX: usize = 1;"), Some("A_BYTES_MAX"));
    for line in ["const A_MIN: u32 = 1;", "let a = A_MAX;", "check(const A_MAX: u32);"] {
        assert_eq!(limit_in(line), None, "{line}");
    }
    let file = workspace().join("nucleus/src/worker/mod.rs");
    assert_eq!(module_of(&file, "nucleus", "cell"), "cell::worker");
}
