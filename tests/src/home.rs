//! A home directory of a test's own, and the command line run in it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use cell_abi::NanoAtp;
use cell_client::{Client, Fuel};
use serde_json::Value;
use tempfile::TempDir;

use crate::{GUARD, binary, eventually, sample};

/// What a fresh home grants its owner, in nano-ATP.
pub const FIRST_GRANT: i64 = 1_000_000_000_000;

/// A temporary `$CELL_HOME`, gone with the last of its clones.
#[derive(Debug, Clone)]
pub struct Home {
    directory: Arc<TempDir>,
}

/// How a command ended, and what it said.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output, bytes that are no UTF-8 replaced.
    pub stdout: String,
    /// Standard output as it came.
    pub stdout_bytes: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Fails the test unless the command ended with this code.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Home {
    /// A fresh home; its path is short, for a socket's path may have 107 bytes only.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("ct-")
            .tempdir_in("/tmp")
            .expect("make a temporary directory");
        Self { directory: Arc::new(directory) }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The directory of a cell.
    pub fn cell_directory(&self, name: &str) -> PathBuf {
        self.path().join("cells").join(name)
    }

    /// The socket of a cell.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.cell_directory(name).join("cell.sock")
    }

    /// `cell --home HOME ARGUMENTS`, ready to start.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(binary());
        command.arg("--home").arg(self.path()).args(arguments);
        command.env_remove("CELL_HOME").env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        command
    }

    /// Runs `cell --home HOME ARGUMENTS` to its end.
    #[track_caller]
    pub fn cell<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        finish(self.command(arguments), b"")
    }

    /// The same, with something on standard input.
    #[track_caller]
    pub fn cell_with_input<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: &[u8],
    ) -> Ran {
        finish(self.command(arguments), input)
    }

    /// Drops a sample's directory into `cells/`.
    pub fn put_sample(&self, name: &str) {
        let (wasm, manifest) = sample(name);
        self.put(name, &manifest, &wasm);
    }

    /// Drops a directory into `cells/`, whole, in one step.
    pub fn put(&self, name: &str, manifest: &str, wasm: &[u8]) {
        let cells = self.path().join("cells");
        fs::create_dir_all(&cells).expect("create cells/");
        let incoming = cells.join(format!(".{name}-incoming"));
        fs::create_dir(&incoming).expect("create a cell's directory");
        fs::write(incoming.join("Cell.toml"), manifest).expect("write Cell.toml");
        fs::write(incoming.join("cell.wasm"), wasm).expect("write cell.wasm");
        fs::rename(&incoming, self.cell_directory(name)).expect("put the cell in its place");
    }

    /// Replaces a deployed cell's module, whole, in one step.
    pub fn replace_wasm(&self, name: &str, wasm: &[u8]) {
        let directory = self.cell_directory(name);
        fs::write(directory.join(".incoming"), wasm).expect("write a module");
        fs::rename(directory.join(".incoming"), directory.join("cell.wasm"))
            .expect("replace a module");
    }

    /// Waits until a cell is in this state, and returns its row of `cell ps`.
    #[track_caller]
    pub fn wait_for(&self, name: &str, state: &str) -> Value {
        let mut last = Value::Null;
        let started = std::time::Instant::now();
        loop {
            if let Some(row) = self.row(name) {
                if row["state"] == state {
                    return row;
                }
                last = row;
            }
            assert!(started.elapsed() < GUARD, "{name} is not {state}: {last}\n{}", self.log());
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// A cell's row of `cell ps`.
    #[track_caller]
    pub fn row(&self, name: &str) -> Option<Value> {
        let shown = self.cell(["ps", "--json"]).expect(0).json();
        let rows = shown.as_array().expect("ps gives rows");
        rows.iter().find(|row| row["cell"] == name).cloned()
    }

    /// A connection to a cell.
    #[track_caller]
    pub fn client(&self, name: &str) -> Client {
        Client::connect(self.socket(name), name)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// Posted nano-ATP by account name.
    #[track_caller]
    pub fn balances(&self) -> BTreeMap<String, i64> {
        let answer = self.cell(["ledger", "balance", "--json"]).expect(0).json();
        assert_eq!(answer["sum_nano_atp"], 0, "{answer}");
        let accounts = answer["accounts"].as_array().expect("balance gives accounts");
        let row = |row: &Value| {
            (row["name"].as_str().unwrap().to_owned(), row["posted_nano_atp"].as_i64().unwrap())
        };
        accounts.iter().map(row).collect()
    }

    /// What an account has, in nano-ATP; 0 for one that never moved.
    #[track_caller]
    pub fn balance(&self, account: &str) -> i64 {
        let answer = self.cell(["ledger", "balance", account, "--json"]).expect(0).json();
        answer["accounts"][0]["posted_nano_atp"].as_i64().unwrap_or_else(|| panic!("{answer}"))
    }

    /// What the owner has paid since the first grant, but for compiling.
    #[track_caller]
    pub fn spent(&self) -> i64 {
        FIRST_GRANT - self.balance("owner") - self.spent_on_compiling()
    }

    /// What the owner has paid for compiling: once for each module, whoever calls it then.
    #[track_caller]
    pub fn spent_on_compiling(&self) -> i64 {
        let answer = self.cell(["ledger", "history", "node", "-n", "1000000", "--json"]);
        let entries = answer.expect(0).json();
        let entries = entries.as_array().expect("history gives entries");
        let texts = entries.iter().map(|entry| entry["text"].as_str().expect("a text"));
        // A payment reads: 1.25 ATP to node (compile 0123456789ab).
        let payment = |text: &str| {
            let (amount, rest) = text.split_once(" ATP to node (")?;
            rest.starts_with("compile ").then(|| amount.rsplit(' ').next().map(str::to_owned))?
        };
        let nano = |amount: String| NanoAtp::parse_atp(&amount).expect("an amount").0;
        let paid: u64 = texts.filter_map(payment).map(nano).sum();
        i64::try_from(paid).expect("a sum")
    }

    /// Waits until the cell's account holds exactly this much.
    #[track_caller]
    pub fn wait_for_earned(&self, cell: &str, fuel: Fuel) {
        let account = format!("cell:{cell}");
        let expected = i64::try_from(fuel.0).unwrap();
        let mut last = 0;
        eventually(&format!("{account} earned {expected}"), || {
            last = self.balance(&account);
            assert!(last <= expected, "{account} earned {last}, which is more than {expected}");
            (last == expected).then_some(())
        });
    }

    /// What the nucleus logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("nucleus.log")).unwrap_or_default()
    }

    /// Every socket file below the home.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() {
                    directories.push(path);
                } else if std::os::unix::fs::FileTypeExt::is_socket(&kind) {
                    found.push(path);
                }
            }
        }
        found
    }
}

/// Runs a command to its end; one that hangs is killed and fails the test.
#[track_caller]
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Ran {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("{command:?}");
    let mut child = eventually("the binary can be started", || command.spawn().ok());
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // It may end without reading all.
        thread::spawn(move || drop(stdin.write_all(&input)));
    }
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let code = wait(&mut child, &shown);
    let stdout_bytes = stdout.join().unwrap();
    Ran {
        code,
        stdout: String::from_utf8_lossy(&stdout_bytes).into_owned(),
        stdout_bytes,
        stderr: String::from_utf8_lossy(&stderr.join().unwrap()).into_owned(),
    }
}

fn read_all(mut from: impl std::io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is shown.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// Waits for a child; one that hangs is killed and fails the test.
#[track_caller]
pub(crate) fn wait(child: &mut Child, shown: &str) -> Option<i32> {
    let started = std::time::Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return status.code();
        }
        if started.elapsed() > GUARD {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{shown} hangs");
        }
        thread::sleep(std::time::Duration::from_millis(2));
    }
}
