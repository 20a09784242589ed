//! Finds a Rust toolchain that builds for wasm32-wasip1.
//!
//! In this order: the toolchain in use, when it has the target; the same after `rustup target
//! add`, bounded in time; Debian's compiler, which builds the standard library from source.
//! The variable `CELL_TOOLCHAIN`, `rustup` or `debian`, allows only one of the two ways.
//! Installs no package of the operating system: it says what to type instead.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::cli::Output;

/// What cells are built for.
pub(crate) const TARGET: &str = "wasm32-wasip1";
/// Allows only one way: `rustup` or `debian`.
const CHOICE: &str = "CELL_TOOLCHAIN";
/// Longest `rustup target add`, in seconds; a server that cannot be reached never answers.
pub(crate) const RUSTUP_S_MAX: u64 = 60;
/// Most of a tool's complaint that is shown, in bytes.
pub(crate) const COMPLAINT_BYTES_MAX: u64 = 4096;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LIBC: &str = "/usr/lib/wasm32-wasi";
const DEBIAN_PACKAGES: &str = "rustc-web rust-web-src wasi-libc";

/// A toolchain that builds for wasm32-wasip1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// The toolchain in use has the target.
    Plain,
    /// Debian's compiler builds std from source, and this linker links.
    Debian { linker: PathBuf },
}

impl Toolchain {
    /// Finds a toolchain, adding the target with rustup when that is what is missing.
    pub(crate) fn find(output: &Output) -> anyhow::Result<Self> {
        let choice = std::env::var_os(CHOICE);
        match choice.as_deref().and_then(|choice| choice.to_str()) {
            None if choice.is_none() => {}
            Some("rustup") => return Self::rustup(output),
            Some("debian") => return Self::debian(),
            _ => bail!(
                "{CHOICE} = {:?} must be \"rustup\" or \"debian\"",
                choice.unwrap_or_default()
            ),
        }
        let first = match Self::rustup(output) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => error,
        };
        Self::debian().map_err(|second| {
            anyhow::anyhow!(
                "no Rust toolchain here builds for {TARGET}:\n  {first:#}\n  {second:#}\n\
                 Type `rustup target add {TARGET}`, or on Debian as root `apt-get install -y {DEBIAN_PACKAGES}`."
            )
        })
    }

    /// `cargo build --release` for the target, with the environment this toolchain needs.
    pub(crate) fn cargo_build(&self) -> Command {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--release", "--target", TARGET]);
        if let Kind::Debian { linker } = &self.kind {
            cargo
                .arg("-Zbuild-std=std,panic_abort")
                .env("RUSTC", DEBIAN_RUSTC)
                // Debian's compiler is a stable one, and building std is not a stable feature.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_WASIP1_LINKER", linker)
                .env("CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS", debian_flags())
                // Cargo takes flags from one place only, and these would win.
                .env_remove("RUSTFLAGS")
                .env_remove("CARGO_ENCODED_RUSTFLAGS");
        }
        cargo
    }

    fn rustup(output: &Output) -> anyhow::Result<Self> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        if has_target(&rustc)? {
            return Ok(Self { kind: Kind::Plain });
        }
        output.note(&format!("adding {TARGET} with rustup, for at most {RUSTUP_S_MAX} s"));
        let progress = output.progress(format!("rustup target add {TARGET}"));
        let added = run_bounded(
            Command::new("rustup").args(["target", "add", TARGET]),
            Duration::from_secs(RUSTUP_S_MAX),
        );
        progress.finish_and_clear();
        added.with_context(|| format!("`rustup target add {TARGET}`"))?;
        if !has_target(&rustc)? {
            bail!(
                "rustup added {TARGET}, but {} does not have it: it is another toolchain's",
                rustc.display()
            );
        }
        Ok(Self { kind: Kind::Plain })
    }

    fn debian() -> anyhow::Result<Self> {
        let sources = Path::new("/usr/lib/rustlib/src/rust/library/Cargo.toml");
        let libc = Path::new(DEBIAN_LIBC).join("libc.a");
        let parts = [
            ("rustc-web", Path::new(DEBIAN_RUSTC)),
            ("rust-web-src", sources),
            ("wasi-libc", &libc),
        ];
        let missing: Vec<&str> =
            parts.iter().filter(|(_, path)| !path.exists()).map(|(name, _)| *name).collect();
        if !missing.is_empty() {
            let missing = missing.join(" ");
            bail!(
                "Debian's compiler needs packages that are not installed: `apt-get install -y {missing}`"
            );
        }
        let linker = linker().context("find a linker for Debian's compiler")?;
        Ok(Self { kind: Kind::Debian { linker } })
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Plain => write!(f, "cargo with the installed target {TARGET}"),
            Kind::Debian { .. } => {
                write!(f, "{DEBIAN_RUSTC}, building std for {TARGET} from source")
            }
        }
    }
}

/// Whether this compiler has a standard library for the target.
fn has_target(rustc: &OsString) -> anyhow::Result<bool> {
    let output =
        Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("`{}` is not installed; see https://rustup.rs", rustc.display())
        }
        output => output.with_context(|| format!("run {}", rustc.display()))?,
    };
    if !output.status.success() {
        bail!(
            "`{} --print target-libdir`: {}",
            rustc.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let directory =
        String::from_utf8(output.stdout).context("read the path of the target's libraries")?;
    let Ok(mut entries) = fs::read_dir(directory.trim()) else { return Ok(false) };
    Ok(entries.any(|entry| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
    }))
}

/// Links what Debian's compiler made: rustup's own linker, Debian's, or LLVM's.
fn linker() -> anyhow::Result<PathBuf> {
    let mut candidates = Vec::new();
    if let Some(sysroot) = query("rustc", &["--print", "sysroot"]) {
        let host = query("rustc", &["--print", "host-tuple"]).unwrap_or_default();
        candidates.push(Path::new(&sysroot).join("lib/rustlib").join(host).join("bin/rust-lld"));
    }
    candidates.push("/usr/bin/rust-lld".into());
    candidates.push("/usr/bin/wasm-ld".into());
    candidates
        .into_iter()
        .find(|linker| linker.is_file())
        .context("neither rust-lld nor wasm-ld is installed: `apt-get install -y lld`")
}

fn query(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Flags of Debian's compiler: where its C library is, and what the user's environment asks for.
fn debian_flags() -> String {
    let asked = std::env::var("RUSTFLAGS").unwrap_or_default();
    format!("-L native={DEBIAN_LIBC} {asked}").trim_end().to_owned()
}

/// Runs a command to its end or kills it, and returns what it said when it did not succeed.
fn run_bounded(command: &mut Command, longest: Duration) -> anyhow::Result<()> {
    let mut child =
        match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("it is not installed"),
            child => child.context("start it")?,
        };
    let complaint = child.stderr.take().map(|mut pipe| {
        thread::spawn(move || {
            let mut text = Vec::new();
            // What was read before an error is still worth showing.
            let _ = pipe.by_ref().take(COMPLAINT_BYTES_MAX).read_to_end(&mut text);
            let _ = io::copy(&mut pipe, &mut io::sink());
            String::from_utf8_lossy(&text).trim().to_owned()
        })
    });
    let status = wait_bounded(&mut child, longest)?;
    let Some(status) = status else {
        // Not joined: a grandchild may hold the pipe open.
        bail!("it did not end in {} s", longest.as_secs());
    };
    if !status.success() {
        let complaint = complaint.and_then(|reader| reader.join().ok()).unwrap_or_default();
        bail!("it ended with {status}: {complaint}");
    }
    Ok(())
}

/// Waits for a child, and kills it when it takes too long; `None` says that it was killed.
pub(crate) fn wait_bounded(
    child: &mut Child,
    longest: Duration,
) -> anyhow::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(status) = child.try_wait().context("wait for a child process")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill().context("kill a child process")?;
            child.wait().context("wait for a child process")?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(program: &str, arguments: &[&str], expect: &str) {
        let error = run_bounded(Command::new(program).args(arguments), Duration::from_millis(300))
            .unwrap_err();
        assert!(format!("{error:#}").contains(expect), "{error:#}");
    }

    #[test]
    fn commands_are_bounded_and_their_complaints_are_kept() {
        assert!(run_bounded(&mut Command::new("true"), Duration::from_secs(30)).is_ok());
        refused("sh", &["-c", "echo no route >&2; exit 3"], "no route");
        refused("sleep", &["30"], "did not end");
        refused("no-such-program", &[], "not installed");
    }

    /// Cargo ignores a target's flags when `RUSTFLAGS` is set, and then finds no C library.
    #[test]
    fn debian_keeps_other_flags_away() {
        let toolchain = Toolchain { kind: Kind::Debian { linker: "/x/rust-lld".into() } };
        let command = toolchain.cargo_build();
        let removed = command.get_envs().filter(|(_, value)| value.is_none());
        assert!(removed.map(|(name, _)| name).any(|name| name == "RUSTFLAGS"));
        assert!(command.get_args().any(|argument| argument == "-Zbuild-std=std,panic_abort"));
        let plain = Toolchain { kind: Kind::Plain }.cargo_build();
        assert_eq!((plain.get_args().len(), plain.get_envs().len()), (4, 0));
    }
}
