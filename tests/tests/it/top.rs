//! `cell top`: figures under load for machines, and a screen that leaves the terminal as it was.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use cell_client::CallOptions;
use cell_tests::{Home, Nucleus, eventually, process, wat};
use rustix::process::Signal;
use serde_json::Value;

/// A client that calls for as long as it lives.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(home: &Home, cell: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (home, seen) = (home.clone(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut client = home.client(cell);
            let slot = client.open_raw("run").unwrap();
            while !seen.load(Relaxed) {
                client.call_raw(&slot, b"hi", CallOptions::default()).unwrap();
            }
        });
        Self { stop, thread: Some(thread) }
    }

    fn end(mut self) {
        self.stop.store(true, Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn looks(home: &Home, arguments: &[&str]) -> Vec<Value> {
    let ran = home.cell([&["top"], arguments].concat());
    let lines = ran.expect(0).stdout.lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn stats(look: &Value, cell: &str) -> Value {
    let rows = look["cells"].as_array().unwrap();
    rows.iter().find(|row| row["cell"] == cell).unwrap_or_else(|| panic!("{look}"))["stats"].clone()
}

#[test]
fn figures_under_load() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("busy", &wat::cell("", wat::ECHO), "");
    nucleus.deploy_wat("idle", &wat::cell("", wat::ECHO), "");
    let load = Load::start(&nucleus, "busy");
    eventually("a rate is known", || {
        let row = nucleus.row("busy").unwrap();
        row["stats"]["calls_per_s"].as_f64().filter(|rate| *rate > 0.0)
    });
    // Standard output is no terminal, so this is for machines with and without the option.
    for option in [&["--json"][..], &[]] {
        let looks =
            looks(&nucleus, &[&["--iterations", "2", "--interval", "0.2"], option].concat());
        assert_eq!(looks.len(), 2);
        assert!(looks[0]["at_ms"].as_u64().unwrap() < looks[1]["at_ms"].as_u64().unwrap());
        for look in &looks {
            let busy = stats(look, "busy");
            let figure = |name: &str| busy[name].as_f64().unwrap_or_else(|| panic!("{busy}"));
            assert!(figure("calls_per_s") > 0.0 && figure("fuel_per_s") > 0.0, "{busy}");
            assert!(figure("p50_us") > 0.0 && figure("p99_us") >= figure("p50_us"), "{busy}");
            assert!(figure("instances") >= 1.0 && figure("memory_bytes") >= 65_536.0, "{busy}");
            assert!(figure("timed") > 0.0 && figure("timed_us") > 0.0, "{busy}");
            let idle = stats(look, "idle");
            assert_eq!((idle["calls"].as_u64(), idle["p99_us"].as_u64()), (Some(0), Some(0)));
            let found = &look["nucleus"];
            assert_eq!(found["pid"], nucleus.process().pid);
            assert_eq!(found["workers"][0]["pid"], nucleus.worker().pid);
            assert!(found["workers"][0]["resident_bytes"].as_u64() > Some(1 << 20), "{found}");
            assert!(found["walls_missing"].is_array(), "{found}");
        }
        assert!(
            stats(&looks[1], "busy")["calls"].as_u64()
                >= stats(&looks[0], "busy")["calls"].as_u64()
        );
    }
    let connected = || {
        let look = looks(&nucleus, &[]).remove(0);
        (look["nucleus"]["workers"][0]["connections"] == 1).then_some(())
    };
    eventually("the connection is counted", connected);
    load.end();
    // Rates fall to nothing when nobody calls, and the times of calls that are over are forgotten.
    eventually("nothing is left", || {
        let busy = stats(&looks(&nucleus, &[]).remove(0), "busy");
        (busy["calls_per_s"] == 0.0 && busy["p99_us"] == 0).then_some(())
    });
    let home = nucleus.down();
    let look = looks(&home, &[]).remove(0);
    assert_eq!((&look["nucleus"], &look["cells"][0]["state"]), (&Value::Null, &"stopped".into()));
    for wrong in [["--interval", "0"], ["--interval", "x"], ["--iterations", "0"]] {
        home.cell([&["top"], &wrong[..]].concat()).expect(2);
    }
}

/// A command in a terminal that `script` makes, and what it wrote there.
pub(crate) struct Screen {
    child: Child,
    stdin: Option<ChildStdin>,
    written: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

const TOP: &[&str] = &["top", "--interval", "0.1"];
const ROWS: usize = 30;
const COLUMNS: usize = 120;

impl Screen {
    /// `None` on a machine without `script`.
    pub(crate) fn start(home: &Home, arguments: &[&str], test: &str) -> Option<Self> {
        if Command::new("script").arg("--version").output().is_err() {
            println!("skipped {test}: script is not installed");
            return None;
        }
        let command = home.command(arguments);
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let shell = format!(
            "stty rows {ROWS} cols {COLUMNS}; echo before $(stty -g); {}; echo code $?; echo after $(stty -g)",
            words.join(" ")
        );
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &shell, "/dev/null"])
            .env("TERM", "xterm-256color")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, mut stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let written = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&written);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                kept.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Some(Self { child, stdin, written, reader })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str) {
        eventually(&format!("the screen shows {what:?}"), || {
            shown(&self.text()).contains(what).then_some(())
        });
    }

    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// Waits for the end; fails the test unless it came with 0 and the terminal is as it was.
    #[track_caller]
    fn expect_end(self) {
        let text = self.end();
        // The alternate screen is entered once and left once, and the cursor is there again.
        let at = |sequence: &str| text.rfind(sequence).unwrap_or_else(|| panic!("{text:?}"));
        assert!(at("\x1b[?1049l") > at("\x1b[?1049h"), "{text:?}");
        assert!(at("\x1b[?25h") > at("\x1b[?25l"), "{text:?}");
    }

    /// The same for what does not use a screen of its own; returns all that was written.
    #[track_caller]
    pub(crate) fn end(mut self) -> String {
        eventually("the shell ends", || self.child.try_wait().unwrap());
        drop(self.stdin.take());
        self.reader.join().unwrap();
        let text = String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned();
        let word = |name: &str| {
            let line = text.lines().find_map(|line| line.trim_end().strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name:?} in {text:?}")).to_owned()
        };
        assert_eq!(word("before "), word("after "), "the terminal's settings");
        assert!(text.contains("code 0"), "{text:?}");
        text
    }
}

/// The screen after all that was written: a terminal of its own, as far as this takes one.
fn shown(written: &str) -> String {
    let mut grid = vec![vec![' '; COLUMNS]; ROWS];
    let (mut row, mut column) = (0, 0);
    let mut chars = written.chars();
    while let Some(c) = chars.next() {
        if c != '\x1b' {
            match c {
                '\r' => column = 0,
                '\n' => row = (row + 1).min(ROWS - 1),
                c => {
                    if let Some(place) = grid.get_mut(row).and_then(|line| line.get_mut(column)) {
                        *place = c;
                    }
                    column += 1;
                }
            }
            continue;
        }
        if chars.next() != Some('[') {
            continue;
        }
        let mut sequence = String::new();
        let end = chars.by_ref().find(|c| {
            let ends = c.is_ascii_alphabetic();
            if !ends {
                sequence.push(*c);
            }
            ends
        });
        match end {
            Some('H') => {
                let mut numbers = sequence.split(';').map(|number| number.parse().unwrap_or(1));
                row = numbers.next().unwrap_or(1_usize) - 1;
                column = numbers.next().unwrap_or(1_usize) - 1;
            }
            // The other screen is empty at first.
            Some('h') if sequence == "?1049" => grid.iter_mut().for_each(|line| line.fill(' ')),
            Some('J') => grid.iter_mut().for_each(|line| line.fill(' ')),
            _ => {}
        }
    }
    let lines: Vec<String> = grid.into_iter().map(|line| line.into_iter().collect()).collect();
    lines.join("\n")
}

#[test]
fn a_screen_that_q_ends() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("busy", &wat::cell("", wat::ECHO), "");
    let load = Load::start(&nucleus, "busy");
    let Some(mut screen) = Screen::start(&nucleus, TOP, "top::a_screen_that_q_ends") else {
        load.end();
        return;
    };
    screen.wait_for("CALLS/Sv");
    screen.wait_for("busy ");
    screen.wait_for(&format!("worker {}", nucleus.worker().pid));
    screen.press(b"?");
    screen.wait_for("sort by another column");
    screen.press(b"?>");
    screen.wait_for("P50v");
    load.end();
    // The nucleus goes and comes.
    let home = nucleus.down();
    screen.wait_for("no nucleus is running");
    screen.wait_for("stopped");
    let nucleus = Nucleus::up(&home);
    screen.wait_for(&format!("nucleus {} ", nucleus.process().pid));
    screen.press(b"q");
    screen.expect_end();
    nucleus.down();
}

#[test]
fn a_screen_that_a_signal_ends() {
    let home = Home::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let Some(screen) = Screen::start(&home, TOP, "top::a_screen_that_a_signal_ends") else {
            return;
        };
        screen.wait_for("no nucleus is running");
        let top = eventually("the process is found", || {
            let mut named = process::naming(home.path()).into_iter();
            named.find(|process| process.arguments().get(3).is_some_and(|word| word == "top"))
        });
        top.signal(signal);
        screen.expect_end();
    }
    // Control-C comes as a key.
    let Some(mut screen) = Screen::start(&home, TOP, "top::a_screen_that_a_signal_ends") else {
        return;
    };
    screen.wait_for("no nucleus is running");
    screen.press(b"\x03");
    screen.expect_end();
}
