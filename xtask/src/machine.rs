//! Runs programs, and makes the machine ready: the wasm target, clang.
//!
//! It installs packages only as root, where there is apt-get, and only those named here.

use std::fs;
use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::report::say;

const TARGET: &str = "wasm32-wasip1";
/// Longest `rustup target add`, in seconds.
const RUSTUP_S_MAX: u64 = 60;
/// Longest run of apt-get, in seconds; the Rust sources are 200 MB.
const APT_S_MAX: u64 = 600;

/// Runs a command that must succeed; what it prints is seen.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("run {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// The command as it could be typed.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Whether a program is installed: it answers a question for its version.
pub(crate) fn has(program: &str, question: &[&str]) -> bool {
    let asked = Command::new(program)
        .args(question)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// The name of the target that this machine is.
pub(crate) fn triple() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("ask rustc for its host")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names its host")?.to_owned())
}

/// Makes sure that `cell build` finds a toolchain; says which way it took.
pub(crate) fn wasm_target() -> anyhow::Result<()> {
    if has_target() {
        say(&format!("    {TARGET} is installed"));
        return Ok(());
    }
    say(&format!("    adding {TARGET} with rustup, for at most {RUSTUP_S_MAX} s"));
    let added = bounded(Command::new("rustup").args(["target", "add", TARGET]), RUSTUP_S_MAX);
    if added.is_ok() && has_target() {
        return Ok(());
    }
    say(
        "    rustup has not added it; Debian's compiler will build its standard library from source",
    );
    let sources = "/usr/lib/rustlib/src/rust/library/Cargo.toml";
    if ["/usr/bin/rustc", sources, "/usr/lib/wasm32-wasi/libc.a"]
        .iter()
        .all(|path| fs::exists(path).unwrap_or(false))
    {
        return Ok(());
    }
    install(&["rustc-web", "rust-web-src", "wasi-libc"])
}

/// Makes sure of clang and wasm-ld; an error says why there is none.
pub(crate) fn clang() -> anyhow::Result<()> {
    let installed = || has("clang", &["--version"]) && has("wasm-ld", &["--version"]);
    if !installed() {
        install(&["clang", "lld", "wasi-libc", "libclang-rt-dev-wasm32"])
            .or_else(|_| install(&["clang", "lld", "wasi-libc"]))?;
    }
    if !installed() {
        bail!("clang or wasm-ld does not run");
    }
    Ok(())
}

fn has_target() -> bool {
    let asked =
        Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
    let Ok(output) = asked else { return false };
    let Ok(mut entries) = fs::read_dir(String::from_utf8_lossy(&output.stdout).trim()) else {
        return false;
    };
    entries.any(|entry| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
    })
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    let names = packages.join(" ");
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if !root || !has("apt-get", &["--version"]) {
        bail!("it needs packages; on Debian, as root: apt-get install -y {names}");
    }
    say(&format!("    apt-get install {names}, for at most {APT_S_MAX} s"));
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-y", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    bounded(&mut apt, APT_S_MAX).or_else(|_| {
        // A fresh machine has no list of packages yet.
        bounded(Command::new("apt-get").arg("update"), APT_S_MAX)?;
        bounded(&mut apt, APT_S_MAX)
    })
}

/// Runs a command to its end, or kills it.
fn bounded(command: &mut Command, seconds_max: u64) -> anyhow::Result<()> {
    let shown = shown(command);
    let mut child = match command.stdin(Stdio::null()).stdout(io::stderr()).spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{shown}: it is not installed")
        }
        child => child.with_context(|| format!("run {shown}"))?,
    };
    let deadline = Instant::now() + Duration::from_secs(seconds_max);
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("{shown} did not end in {seconds_max} s");
        }
        thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}
