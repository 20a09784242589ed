//! `cell run` of a hostile program, with a directory it may use and things beside it that it may not.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::world::escape;
use super::{Seen, World};
use crate::process::Process;
use crate::{GUARD, Home, wat};

/// What no program may ever get hold of.
pub(super) const SECRET: &str = "the neighbour's secret";
/// Looks at a job's memory this often.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A program and how it is run.
#[derive(Clone)]
pub(super) struct Job {
    text: String,
    options: Vec<&'static str>,
    /// `Some("")` gives the directory, `Some("::ro")` only to read.
    directory: Option<&'static str>,
    /// Adds to the answer what became of the directory.
    inspect: fn(&Path) -> String,
    fuel: u64,
}

/// A program with these steps, without a directory.
pub(super) fn job(text: String) -> Job {
    Job {
        text,
        options: Vec::new(),
        directory: None,
        inspect: |_| String::new(),
        fuel: 200_000_000,
    }
}

impl Job {
    /// The directory is `/d`, descriptor 3.
    pub(super) const fn directory(mut self) -> Self {
        self.directory = Some("");
        self
    }

    /// The directory is `/d`, descriptor 3, and not to be changed.
    pub(super) const fn read_only(mut self) -> Self {
        self.directory = Some("::ro");
        self
    }

    pub(super) fn options(mut self, options: &[&'static str]) -> Self {
        self.options.extend(options);
        self
    }

    pub(super) const fn inspect(mut self, inspect: fn(&Path) -> String) -> Self {
        self.inspect = inspect;
        self
    }

    pub(super) const fn fuel(mut self, fuel: u64) -> Self {
        self.fuel = fuel;
        self
    }

    pub(super) fn run(self, world: &World) -> Seen {
        self.run_in(world.jobs(), &world.directory())
    }

    /// Runs it in this home, with its files in this place.
    pub(super) fn run_in(self, home: &Home, place: &Path) -> Seen {
        let inside = fill(place);
        let (wasm, receipt) = (place.join("job.wasm"), place.join("receipt.json"));
        fs::write(&wasm, wat::compile(&self.text)).unwrap();
        let mut words: Vec<String> = vec!["run".into(), "--fuel".into(), self.fuel.to_string()];
        words.extend(["--receipt".into(), receipt.display().to_string()]);
        if let Some(suffix) = self.directory {
            words.extend(["--dir".into(), format!("{}::/d{suffix}", inside.display())]);
        }
        words.extend(self.options.iter().map(|option| (*option).to_owned()));
        words.push(wasm.display().to_string());
        let mut command = home.command(&words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let ran = watch(command.spawn().unwrap());
        let leaked = [&ran.stdout, &ran.stderr].iter().any(|text| text.contains(SECRET));
        assert!(!leaked, "the secret got out: {}", escape(&ran.stdout));
        assert_eq!(
            fs::read_to_string(place.join("outside.txt")).unwrap(),
            SECRET,
            "it was changed"
        );
        let (answer, fuel) = told(&receipt, &ran);
        let answer = answer + &(self.inspect)(&inside);
        Seen { limit: Some(self.fuel), peak_kib: Some(ran.peak_kib), ..Seen::charged(answer, fuel) }
    }
}

/// A directory with what tempts a program: links out of it, of every kind.
fn fill(place: &Path) -> PathBuf {
    use std::os::unix::fs::symlink;
    let inside = place.join("inside");
    fs::create_dir_all(inside.join("sub")).unwrap();
    fs::write(place.join("outside.txt"), SECRET).unwrap();
    fs::create_dir(place.join("outside")).unwrap();
    fs::write(place.join("outside").join("file"), SECRET).unwrap();
    fs::write(inside.join("file"), "harmless").unwrap();
    symlink("../outside.txt", inside.join("up")).unwrap();
    symlink(place.join("outside.txt"), inside.join("absolute")).unwrap();
    symlink("../outside", inside.join("updir")).unwrap();
    symlink("/proc/self/root", inside.join("root")).unwrap();
    symlink("loop", inside.join("loop")).unwrap();
    inside
}

/// How the job ended, and what it cost; what did not start has no receipt worth reading.
fn told(receipt: &Path, ran: &Watched) -> (String, u64) {
    let text = fs::read_to_string(receipt).unwrap_or_default();
    let Ok(receipt) = serde_json::from_str::<Value>(&text) else {
        let said = ran.stderr.lines().last().unwrap_or_default();
        return (format!("exit code {}: {}", ran.code, escape(said)), 0);
    };
    let outcome = &receipt["outcome"];
    let message = outcome["message"].as_str().filter(|message| !message.is_empty());
    let answer = match (outcome["exit_code"].as_u64(), outcome["status"].as_str()) {
        (Some(code), _) => format!("exit {code}"),
        (None, status) => {
            let message = message.map_or_else(String::new, |text| format!(": {}", escape(text)));
            format!("{}{message}", status.unwrap_or_default())
        }
    };
    let out = if ran.stdout_bytes > 0 {
        format!(", {} bytes out", ran.stdout_bytes)
    } else {
        String::new()
    };
    (answer + &out, receipt["fuel"].as_u64().unwrap())
}

struct Watched {
    code: i32,
    stdout: String,
    stdout_bytes: usize,
    stderr: String,
    peak_kib: u64,
}

/// Waits for the command and looks at the memory of the process it runs the job in.
fn watch(mut child: Child) -> Watched {
    let stdout = read(child.stdout.take().unwrap());
    let stderr = read(child.stderr.take().unwrap());
    let (started, mut peak_kib) = (Instant::now(), 0);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        for process in Process::of(child.id()).map_or_else(Vec::new, Process::children_of_main) {
            peak_kib = peak_kib.max(process.peak_kib());
        }
        if started.elapsed() > GUARD {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the job hangs");
        }
        thread::sleep(LOOK_EVERY);
    };
    let (stdout, stdout_bytes) = stdout.join().unwrap();
    let (stderr, _) = stderr.join().unwrap();
    Watched { code: status.code().unwrap_or(-1), stdout, stdout_bytes, stderr, peak_kib }
}

/// The first 64 KiB of a stream, and its length.
fn read(mut from: impl Read + Send + 'static) -> thread::JoinHandle<(String, usize)> {
    thread::spawn(move || {
        let (mut kept, mut bytes, mut buffer) = (Vec::new(), 0, vec![0; 64 << 10]);
        while let Ok(read) = from.read(&mut buffer) {
            if read == 0 {
                break;
            }
            let room = (64_usize << 10).saturating_sub(kept.len()).min(read);
            kept.extend_from_slice(&buffer[..room]);
            bytes += read;
        }
        (String::from_utf8_lossy(&kept).into_owned(), bytes)
    })
}
