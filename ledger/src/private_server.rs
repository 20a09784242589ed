//! A PostgreSQL server of a test's own, from the installed binaries: it listens on a socket in a
//! temporary directory, and is gone with the value.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_debug_implementations,
    reason = "it is part of tests that other crates have too"
)]

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};

/// Where Debian and others put what is not on the path.
const DIRECTORIES: &str = "/usr/lib/postgresql";
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Running until it is dropped.
pub struct Server {
    programs: PathBuf,
    home: tempfile::TempDir,
    /// Whom the server runs as; it refuses to be root.
    user: Option<(u32, u32)>,
    running: Child,
    databases: AtomicU32,
}

impl Server {
    /// Starts one; `None`, told by the test's name, where PostgreSQL is not installed.
    pub fn start(test: &str) -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("skipped: {test}: initdb and postgres are not installed");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        let user = unprivileged(home.path());
        if let Some((uid, gid)) = user {
            chown(home.path(), Some(uid), Some(gid)).unwrap();
        }
        let data = home.path().join("data");
        let made = command(&programs, "initdb", user)
            .args(["--auth=trust", "--username=cell", "--no-sync", "--encoding=UTF8", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let running = spawn(&programs, home.path(), user);
        let this = Self { programs, home, user, running, databases: AtomicU32::new(0) };
        this.wait();
        Some(this)
    }

    /// The URL of a new database.
    pub fn database(&self) -> String {
        let name = format!("d{}", self.databases.fetch_add(1, Relaxed));
        self.client("postgres").execute(&format!("CREATE DATABASE {name}"), &[]).unwrap();
        self.url(&name)
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        let directory = self.home.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://cell@{directory}/{database}")
    }

    /// A connection for what no store does.
    pub fn client(&self, database: &str) -> Client {
        Client::connect(&self.url(database), NoTls).unwrap()
    }

    /// Ends it as a power cut would, all processes at once as far as they notice.
    pub fn kill(&mut self) {
        self.running.kill().unwrap();
        self.running.wait().unwrap();
    }

    /// Starts it again on the same data.
    pub fn restart(&mut self) {
        // Its children see that it is gone, and nobody else starts while they live.
        let started = Instant::now();
        loop {
            self.running = spawn(&self.programs, self.home.path(), self.user);
            thread::sleep(Duration::from_millis(100));
            if self.running.try_wait().unwrap().is_none() {
                break;
            }
            assert!(started.elapsed() < START_TIME_MAX, "{}", self.log());
        }
        self.wait();
    }

    fn wait(&self) {
        let started = Instant::now();
        while Client::connect(&self.url("postgres"), NoTls).is_err() {
            assert!(started.elapsed() < START_TIME_MAX, "{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // `immediate` shutdown: what it leaves is removed.
        let _ = self.running.kill();
        let _ = self.running.wait();
        // Its children end a moment later, and write until then.
        let started = Instant::now();
        while fs::remove_dir_all(self.home.path()).is_err() && started.elapsed() < START_TIME_MAX {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn spawn(programs: &Path, home: &Path, user: Option<(u32, u32)>) -> Child {
    let log = fs::File::options().create(true).append(true).open(home.join("log")).unwrap();
    command(programs, "postgres", user)
        .arg("-D")
        .arg(home.join("data"))
        .arg("-k")
        .arg(home)
        .args(["-c", "listen_addresses=", "-c", "max_connections=40", "-c", "shared_buffers=16MB"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn command(programs: &Path, name: &str, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(programs.join(name));
    command.env_clear().env("LC_ALL", "C.UTF-8").current_dir("/");
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// The directory of the newest installed server.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut versions: Vec<_> = fs::read_dir(DIRECTORIES)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    versions.sort();
    let on_path: Vec<_> = std::env::split_paths(&path).collect();
    on_path
        .into_iter()
        .chain(versions.into_iter().rev())
        .find(|directory| directory.join("initdb").exists() && directory.join("postgres").exists())
}

/// Somebody else than root, where this is root.
fn unprivileged(directory: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    if fs::metadata(directory).unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    find("postgres").or_else(|| find("nobody"))
}
