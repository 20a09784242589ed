//! A nucleus of the benchmark's own, in a temporary home, with an echo cell.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use cell_abi::AccountId;
use ed25519_dalek::SigningKey;
use rustix::process::Pid;
use tempfile::TempDir;

use crate::house::resident_bytes;
use crate::process::Process;

/// Names the `cell` binary to measure; without it the one beside this program is taken.
const CELL_BIN: &str = "CELL_BIN";
/// How long the nucleus may take until its cell answers.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Far more than a run burns.
const GRANT_ATP: &str = "1000000";
const MANIFEST: &str = "[cell]\nname = \"echo\"\nreplicas_max = 64\n";

/// A cell that answers with its request: one receptor, a mailbox of 1 MiB, no import.
pub(crate) const ECHO: &str = r#"(module
    (memory (export "memory") 18)
    (@custom "cell:interface" "receptor echo(bytes) -> bytes\n\n")
    (func (export "cell_mailbox") (param $len i32) (result i32)
        (if (result i32) (i32.gt_u (local.get $len) (i32.const 1048576))
            (then (i32.const 0))
            (else (i32.const 65536))))
    (func (export "cell_receive") (param $receptor i32) (param $ptr i32) (param $len i32) (result i64)
        (i64.or
            (i64.shl (i64.extend_i32_u (local.get $len)) (i64.const 32))
            (i64.extend_i32_u (local.get $ptr)))))"#;

/// Running, with its cell live.
#[derive(Debug)]
pub(crate) struct Nucleus {
    // Ends before its home is removed.
    process: Process,
    home: TempDir,
}

impl Nucleus {
    pub(crate) fn start() -> anyhow::Result<Self> {
        Self::start_with("", "")
    }

    /// The same with settings, and with more lines for the cell's manifest.
    pub(crate) fn start_with(settings: &str, more: &str) -> anyhow::Result<Self> {
        let program = cell_binary()?;
        let home =
            tempfile::Builder::new().prefix("cell-bench-").tempdir().context("make a home")?;
        let cell = home.path().join("cells").join("echo");
        fs::create_dir_all(&cell)?;
        fs::write(cell.join("cell.wasm"), wat::parse_str(ECHO)?)?;
        fs::write(cell.join("Cell.toml"), format!("{MANIFEST}{more}"))?;
        fs::write(home.path().join("nucleus.toml"), settings)?;
        grant(&program, home.path())?;

        let log = fs::File::create(home.path().join("bench.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("launch").arg(&program).args(["up", "--foreground", "--home"]).arg(home.path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut this = Self { process: Process::start(&mut command)?, home };
        this.wait().map_err(|error| {
            let log = fs::read_to_string(this.home.path().join("bench.log")).unwrap_or_default();
            error.context(format!("start {}; its log:\n{}", program.display(), log.trim_end()))
        })?;
        Ok(this)
    }

    /// The echo cell's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket_of("echo")
    }

    /// Makes this identity a peer that can pay; who it is to dial, and where.
    pub(crate) fn admit(&self, peer: &SigningKey) -> anyhow::Result<(AccountId, String)> {
        let key = AccountId::from_bytes(peer.verifying_key().to_bytes()).to_string();
        let cell = |arguments: &[&str]| -> anyhow::Result<serde_json::Value> {
            let mut command = Command::new(cell_binary()?);
            command.args(arguments).args(["--json", "--home"]).arg(self.home.path());
            let ran = command.output().context("run cell")?;
            anyhow::ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            Ok(serde_json::from_slice(&ran.stdout)?)
        };
        cell(&["peer", "add", &key])?;
        cell(&["ledger", "grant", GRANT_ATP, &key])?;
        let (id, listed) = (cell(&["id"])?, cell(&["peer", "list"])?);
        let text = |value: &serde_json::Value, field: &str| {
            let text = value.get(field).and_then(serde_json::Value::as_str);
            text.map(str::to_owned).with_context(|| format!("there is no {field}"))
        };
        Ok((AccountId::parse(&text(&id, "owner")?)?, text(&listed, "listens")?))
    }

    /// Its ledger's file.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.home.path().join("ledger.db")
    }

    /// The socket of a cell.
    pub(crate) fn socket_of(&self, cell: &str) -> PathBuf {
        self.home.path().join("cells").join(cell).join("cell.sock")
    }

    pub(crate) fn has(&self, cell: &str) -> bool {
        self.home.path().join("cells").join(cell).exists()
    }

    /// Drops a cell into `cells/`, whole, in one step.
    pub(crate) fn put(&self, cell: &str, text: &str) -> anyhow::Result<()> {
        self.put_wasm(cell, &wat::parse_str(text)?)
    }

    /// The same of a module that is binary already.
    pub(crate) fn put_wasm(&self, cell: &str, wasm: &[u8]) -> anyhow::Result<()> {
        self.put_with(cell, wasm, "")
    }

    /// The same with more lines for the cell's manifest.
    pub(crate) fn put_with(&self, cell: &str, wasm: &[u8], more: &str) -> anyhow::Result<()> {
        let cells = self.home.path().join("cells");
        let incoming = cells.join(format!(".{cell}"));
        fs::create_dir(&incoming)?;
        fs::write(incoming.join("cell.wasm"), wasm)?;
        fs::write(incoming.join("Cell.toml"), format!("[cell]\nname = \"{cell}\"\n{more}"))?;
        fs::rename(&incoming, cells.join(cell)).context("put a cell in its place")
    }

    /// Waits until a cell's socket is there.
    pub(crate) fn wait_for(&self, cell: &str, time_max: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        // It exists a moment before anybody listens.
        while UnixStream::connect(self.socket_of(cell)).is_err() {
            if started.elapsed() > time_max {
                bail!("{cell} is not live after {time_max:?}");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Resident memory of the nucleus and of its worker, in bytes.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<[u64; 2]> {
        let [nucleus, worker] = self.processes()?;
        let resident = |process: Pid| resident_bytes(process.as_raw_nonzero().get());
        Ok([resident(nucleus)?, resident(worker)?])
    }

    /// The nucleus and its worker.
    pub(crate) fn processes(&self) -> anyhow::Result<[Pid; 2]> {
        Ok([self.process.id()?, self.worker()?])
    }

    /// The process that runs the cell.
    pub(crate) fn worker(&self) -> anyhow::Result<Pid> {
        let nucleus = self.process.id()?.as_raw_nonzero();
        for process in fs::read_dir("/proc").context("read /proc")? {
            let path = process?.path();
            let Some(id) = path.file_name().and_then(OsStr::to_str).and_then(|id| id.parse().ok())
            else {
                continue;
            };
            // Processes come and go while the directory is read.
            let (Ok(status), Ok(arguments)) =
                (fs::read_to_string(path.join("status")), fs::read(path.join("cmdline")))
            else {
                continue;
            };
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
            let is_child = parent.and_then(|id| id.parse().ok()) == Some(nucleus.get());
            if is_child && arguments.split(|byte| *byte == 0).nth(1) == Some(b"worker") {
                return Pid::from_raw(id).context("a process has no id");
            }
        }
        bail!("the nucleus has no worker")
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            self.process.check_alive()?;
            if started.elapsed() > START_TIME_MAX {
                bail!("its cell is not live after {START_TIME_MAX:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// The program to measure.
pub(crate) fn cell_binary() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os(CELL_BIN) {
        return Ok(given.into());
    }
    let beside = std::env::current_exe()?.with_file_name("cell");
    if !beside.exists() {
        bail!("{} is missing; run `cargo build --release`, or set {CELL_BIN}", beside.display());
    }
    Ok(beside)
}

fn grant(program: &Path, home: &Path) -> anyhow::Result<()> {
    let granted = Command::new(program)
        .args(["ledger", "grant", GRANT_ATP, "--quiet", "--home"])
        .arg(home)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    if !granted.status.success() {
        let said = String::from_utf8_lossy(&granted.stderr);
        bail!("{} ledger grant: {}: {}", program.display(), granted.status, said.trim());
    }
    Ok(())
}
