//! `cell build`: makes a WebAssembly module of a project, and a directory that can be deployed.
//!
//! It runs cargo or make and takes what they made; whether the module is a good cell is the
//! gate's to say.

use std::fs;
use std::io::{BufRead, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Deserialize;

use super::{Exit, Failure, Output};
use crate::manifest::{self, Manifest};
use crate::toolchain::{self, Toolchain};

/// Longest `make`, in seconds; a C cell compiles in less than one.
pub(super) const MAKE_S_MAX: u64 = 120;
/// Largest module that is taken, in bytes; what can be deployed is the gate's to say.
pub(super) const WASM_BYTES_MAX: u64 = 256 << 20;

/// Options of `cell build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Builds with the Rust toolchain in use, and adds the target wasm32-wasip1 with rustup if it is missing.
Where rustup has no server, Debian's packages rustc-web, rust-web-src and wasi-libc do.
CELL_TOOLCHAIN=rustup or CELL_TOOLCHAIN=debian allows only one of the two.")]
pub(super) struct Arguments {
    /// The project's directory, with a Cargo.toml or a Makefile.
    #[arg(default_value = ".", value_name = "DIR")]
    directory: PathBuf,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Built {
    /// Holds nothing but what was built; for a cell it can be deployed as it is.
    pub(crate) directory: PathBuf,
    /// The module, in that directory.
    pub(crate) wasm: PathBuf,
    /// `None` for a program that is no cell.
    pub(crate) manifest: Option<Manifest>,
}

/// Builds, and says where the module is.
pub(super) fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<Exit> {
    let built = build(&arguments.directory, output)?;
    let bytes =
        fs::metadata(&built.wasm).with_context(|| format!("read {}", built.wasm.display()))?.len();
    let name = built.manifest.as_ref().map(|manifest| manifest.name.as_str());
    let next = match name {
        Some(_) => format!("cell deploy {}", built.directory.display()),
        None => format!("cell run {}", built.wasm.display()),
    };
    output.result(
        &serde_json::json!({ "name": name, "directory": built.directory, "wasm": built.wasm, "bytes": bytes }),
        &format!("built {} ({})", built.wasm.display(), size(bytes)),
    );
    output.note(&format!("next:  {next}"));
    Ok(Exit::Done)
}

/// Builds the project in `directory`: a cell into `target/cell/<name>/`, another program into
/// `target/cell/<name>.wasm` below it.
pub(crate) fn build(directory: &Path, output: &Output) -> anyhow::Result<Built> {
    let manifest = match directory.join(manifest::FILE).exists() {
        true => Some(Manifest::read(directory)?),
        false => None,
    };
    let module = if directory.join("Cargo.toml").exists() {
        cargo(directory, manifest.is_some(), output)?
    } else if manifest.is_some() && directory.join("Makefile").exists() {
        make(directory, manifest.as_ref().map_or("cell.wasm", |manifest| &manifest.wasm), output)?
    } else {
        let found = if directory.is_dir() {
            "has neither a Cargo.toml nor a Makefile with a Cell.toml"
        } else {
            "is no directory"
        };
        let message =
            format!("{} {found}; make a project with `cell new PATH`", directory.display());
        return Err(Failure::new(Exit::Usage, message).into());
    };
    check(&module.wasm)?;
    collect(directory, &module, manifest)
}

/// A module as its own build left it.
#[derive(Debug)]
struct Module {
    name: String,
    wasm: PathBuf,
}

/// One line of `cargo build --message-format json`.
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<MessageTarget>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct MessageTarget {
    name: String,
    kind: Vec<String>,
}

fn cargo(directory: &Path, cell: bool, output: &Output) -> anyhow::Result<Module> {
    let toolchain = Toolchain::find(output)?;
    output.note(&format!("building {} with {toolchain}", directory.display()));
    let mut command = toolchain.cargo_build();
    command.args(["--message-format", "json-render-diagnostics"]);
    if output.quiet() {
        command.arg("--quiet");
    }
    command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child =
        command.spawn().context("run `cargo`; is Rust installed? See https://rustup.rs")?;
    let stdout = child.stdout.take().context("read what cargo says")?;
    let manifest_path =
        directory.join("Cargo.toml").canonicalize().context("find the project's Cargo.toml")?;
    let read = modules(BufReader::new(stdout), &manifest_path, cell);
    let status = child.wait().context("wait for cargo")?;
    if !status.success() {
        bail!("cargo did not build {}: {status}; its errors are above", directory.display());
    }
    one(read?, directory, cell)
}

/// The modules among what cargo made for this package.
fn modules(lines: impl BufRead, manifest_path: &Path, cell: bool) -> anyhow::Result<Vec<Module>> {
    let kind = if cell { "cdylib" } else { "bin" };
    let mut modules = Vec::new();
    for line in lines.lines() {
        let line = line.context("read what cargo says")?;
        // A build script's own output may stand between cargo's lines.
        let Ok(message) = serde_json::from_str::<Message>(&line) else { continue };
        if message.reason != "compiler-artifact" || message.manifest_path != manifest_path {
            continue;
        }
        let Some(target) =
            message.target.filter(|target| target.kind.iter().any(|found| found == kind))
        else {
            continue;
        };
        let wasm = message
            .filenames
            .into_iter()
            .find(|file| file.extension().is_some_and(|found| found == "wasm"));
        modules.extend(wasm.map(|wasm| Module { name: target.name, wasm }));
    }
    Ok(modules)
}

fn one(mut modules: Vec<Module>, directory: &Path, cell: bool) -> anyhow::Result<Module> {
    let shown = directory.display();
    match (modules.pop(), modules.is_empty()) {
        (Some(module), true) => Ok(module),
        (Some(module), false) => {
            let names: Vec<&str> =
                modules.iter().chain([&module]).map(|module| module.name.as_str()).collect();
            bail!(
                "{shown} builds several programs ({}); keep each in a package of its own",
                names.join(", ")
            )
        }
        (None, _) if cell => bail!(
            "{shown} builds no cell; write `crate-type = [\"cdylib\"]` under [lib] in its Cargo.toml"
        ),
        (None, _) => bail!(
            "{shown} builds no program; it needs a src/main.rs, or a Cell.toml if it is a cell"
        ),
    }
}

fn make(directory: &Path, wasm: &str, output: &Output) -> anyhow::Result<Module> {
    output.note(&format!("building {} with make", directory.display()));
    let mut command = Command::new("make");
    // What make says is no result; people see it on standard error, with its errors.
    let stdout = if output.quiet() { Stdio::null() } else { std::io::stderr().into() };
    let mut child = command
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(stdout)
        .spawn()
        .context("run `make`; on Debian it is in the package `make`")?;
    match toolchain::wait_bounded(&mut child, Duration::from_secs(MAKE_S_MAX))? {
        None => bail!("make did not end in {MAKE_S_MAX} s"),
        Some(status) if !status.success() => bail!(
            "make did not build {}: {status}; a C cell needs clang and wasm-ld, on Debian `apt-get install -y clang lld`",
            directory.display()
        ),
        Some(_) => {}
    }
    Ok(Module { name: wasm.trim_end_matches(".wasm").to_owned(), wasm: directory.join(wasm) })
}

/// Refuses what cannot be a module, before it takes a good one's place.
fn check(wasm: &Path) -> anyhow::Result<()> {
    let read = || -> std::io::Result<(u64, [u8; 4])> {
        let mut file = fs::File::open(wasm)?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic)?;
        Ok((file.metadata()?.len(), magic))
    };
    let (bytes, magic) = read().with_context(|| format!("read the module {}", wasm.display()))?;
    if &magic != b"\0asm" {
        bail!("{} is no WebAssembly module", wasm.display());
    }
    if bytes > WASM_BYTES_MAX {
        bail!("{} has {bytes} bytes; at most {WASM_BYTES_MAX} are taken", wasm.display());
    }
    Ok(())
}

/// Puts the module where it is deployed from.
fn collect(directory: &Path, module: &Module, manifest: Option<Manifest>) -> anyhow::Result<Built> {
    let parent = directory.join("target").join("cell");
    let Some(manifest) = manifest else {
        let wasm = parent.join(format!("{}.wasm", module.name));
        replace(&module.wasm, &wasm)?;
        return Ok(Built { directory: parent, wasm, manifest: None });
    };
    let directory_of_cell = parent.join(manifest.name.as_str());
    let wasm = directory_of_cell.join(&manifest.wasm);
    replace(&module.wasm, &wasm)?;
    replace(&directory.join(manifest::FILE), &directory_of_cell.join(manifest::FILE))?;
    Ok(Built { directory: directory_of_cell, wasm, manifest: Some(manifest) })
}

/// Copies so that a reader sees the old file or the new one, whole; a module is no program here.
fn replace(from: &Path, to: &Path) -> anyhow::Result<()> {
    let parent = to.parent().with_context(|| format!("{} has no parent", to.display()))?;
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let staging = parent.join(format!(".{name}-{}", std::process::id()));
    let copied = fs::create_dir_all(parent)
        .and_then(|()| fs::copy(from, &staging))
        .and_then(|_| fs::set_permissions(&staging, fs::Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&staging, to));
    if copied.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&staging);
    }
    copied.with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"
warning from a build script
{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","target":{"name":"p","kind":["cdylib","rlib"]},"filenames":["/t/libp.rlib","/t/p.wasm"]}
{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","target":{"name":"a","kind":["bin"]},"filenames":["/t/a.wasm"]}
{"reason":"compiler-artifact","manifest_path":"/other/Cargo.toml","target":{"name":"o","kind":["cdylib"]},"filenames":["/t/o.wasm"]}
{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","target":{"name":"b","kind":["bin"]},"filenames":["/t/b.wasm"]}
{"reason":"build-finished","success":true}
"#;

    fn found(cell: bool) -> anyhow::Result<Module> {
        one(modules(LINES.as_bytes(), Path::new("/p/Cargo.toml"), cell)?, Path::new("/p"), cell)
    }

    #[test]
    fn takes_this_packages_one_module() {
        let module = found(true).unwrap();
        assert_eq!((module.name.as_str(), module.wasm), ("p", PathBuf::from("/t/p.wasm")));
        assert!(found(false).unwrap_err().to_string().contains("(a, b)"));
        assert!(one(Vec::new(), Path::new("/p"), true).unwrap_err().to_string().contains("cdylib"));
    }

    #[test]
    fn a_cell_becomes_a_directory_and_a_program_a_file() {
        let place = tempfile::tempdir().unwrap();
        let wasm = place.path().join("made.wasm");
        fs::write(&wasm, b"\0asm\x01\0\0\0").unwrap();
        fs::write(place.path().join(manifest::FILE), "[cell]\nname = \"a\"\n").unwrap();
        let module = Module { name: "made".into(), wasm };
        check(&module.wasm).unwrap();

        let cell =
            collect(place.path(), &module, Some(Manifest::read(place.path()).unwrap())).unwrap();
        assert_eq!(cell.wasm, place.path().join("target/cell/a/cell.wasm"));
        let mut names: Vec<_> = fs::read_dir(&cell.directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["Cell.toml", "cell.wasm"]);

        let program = collect(place.path(), &module, None).unwrap();
        assert_eq!(program.wasm, place.path().join("target/cell/made.wasm"));
    }

    #[test]
    fn refuses_what_is_no_module() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("cell.wasm");
        fs::write(&file, "#!/bin/sh").unwrap();
        assert!(check(&file).unwrap_err().to_string().contains("no WebAssembly"));
        assert!(check(&place.path().join("absent")).is_err());
    }
}
