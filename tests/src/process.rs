//! What `/proc` says of processes.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    started: u64,
}

impl Process {
    /// The running process with this number.
    pub fn of(pid: u32) -> Option<Self> {
        let (_, started) = parent_and_start(pid)?;
        Some(Self { pid, started })
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends SIGKILL, if it is still the same process.
    pub fn kill(self) {
        self.signal(Signal::KILL);
    }

    /// Sends a signal, if it is still the same process.
    pub fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // It may have ended since.
            let _ = kill_process(pid, signal);
        }
    }

    /// Its arguments, the program first.
    pub fn arguments(self) -> Vec<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect()
    }

    /// Its running children.
    pub fn children(self) -> Vec<Self> {
        all()
            .into_iter()
            .filter(|other| {
                parent_and_start(other.pid).is_some_and(|(parent, _)| parent == self.pid)
            })
            .collect()
    }

    /// The children that its first thread started; cheaper to ask for than all of them.
    pub fn children_of_main(self) -> Vec<Self> {
        let pid = self.pid;
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let list = list.unwrap_or_default();
        list.split_whitespace().filter_map(|child| Self::of(child.parse().ok()?)).collect()
    }

    /// Processor time that it has taken, in ticks: a hundred are a second of one core.
    pub fn ticks(self) -> u64 {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the process runs");
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
        fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
    }

    /// How many threads it has.
    pub fn threads(self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid)).map_or(0, Iterator::count)
    }

    /// Memory that it occupies, in KiB.
    pub fn resident_kib(self) -> u64 {
        self.figure("VmRSS:").expect("the process runs")
    }

    /// The most memory it ever occupied, or since [`reset_peak`](Self::reset_peak), in KiB; 0 once it is gone.
    pub fn peak_kib(self) -> u64 {
        self.figure("VmHWM:").unwrap_or(0)
    }

    /// Forgets the peak, where the system lets us, and returns what is occupied now, in KiB.
    pub fn reset_peak(self) -> u64 {
        // Where this is refused, a peak of an earlier time counts as of now: too strict, never too lax.
        let _ = fs::write(format!("/proc/{}/clear_refs", self.pid), "5");
        self.figure("VmRSS:").unwrap_or(0)
    }

    fn figure(self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

/// Every running process whose command line names this path.
pub fn naming(path: &Path) -> Vec<Process> {
    let path = path.to_string_lossy();
    all()
        .into_iter()
        .filter(|process| process.arguments().iter().any(|argument| argument.contains(&*path)))
        .collect()
}

fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("read /proc").flatten();
    entries.filter_map(|entry| Process::of(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Parent and start time; `None` for what does not run, a zombie among it.
fn parent_and_start(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, parentheses and spaces too.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}
