//! Processes as `/proc` shows them: who started whom, and signals to exactly those that were meant.
//!
//! A number may belong to another process tomorrow, so each is known by its start as well.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// How far others' programs stand back behind the owner's. With more of it, on a machine whose owner is busy, a
/// guest that is to end would not get to the end of its slice in time, and what it did would not be paid.
pub(crate) const LENT_NICE: i32 = 10;

/// What a process that runs a program of another machine is called with.
const JOB_WORKER: &str = "job-worker";
/// What a process that takes such a program, and pays for it, is called with.
const PEER_JOB: &str = "peer-job";

/// The kernel takes one such wish in a tenth of a second.
const SESSION_TRIES: u32 = 3;
const SESSION_AGAIN: Duration = Duration::from_millis(40);

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// When it started, in ticks since the machine began.
    started: u64,
}

/// What `/proc/PID/stat` says of one.
struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Process {
    /// The process with this number; `None` if none runs, be it that it has ended and nobody asked how.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?.started })
    }

    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal, if it still runs.
    pub(crate) fn signal(self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| self.is_alive()) {
            // One that has just ended needs none.
            let _ = kill_process(pid, signal);
        }
    }

    /// Those that it started and that run.
    pub(crate) fn children(self) -> Vec<Self> {
        children(self.pid).into_iter().filter_map(Self::of).collect()
    }

    /// Its children that were called with this word.
    fn children_called(self, word: &str) -> Vec<Self> {
        self.children().into_iter().filter(|child| is_called(child.pid, word)).collect()
    }

    /// It, those it started, and so on.
    pub(crate) fn tree(self) -> BTreeSet<u32> {
        let (mut all, mut left) = (BTreeSet::new(), vec![self.pid]);
        while let Some(pid) = left.pop() {
            if all.insert(pid) {
                left.extend(children(pid));
            }
        }
        all
    }

    /// Its threads.
    pub(crate) fn threads(self) -> Vec<Pid> {
        numbers(&format!("/proc/{}/task", self.pid))
            .filter_map(|thread| Pid::from_raw(i32::try_from(thread).ok()?))
            .collect()
    }
}

/// The processes below a nucleus that take programs of other machines, and pay for them.
pub(crate) fn peer_jobs(nucleus: u32) -> Vec<Process> {
    Process::of(nucleus).map(|nucleus| nucleus.children_called(PEER_JOB)).unwrap_or_default()
}

/// Those below one of these that run the program.
pub(crate) fn guests_of(peer_job: Process) -> Vec<Process> {
    peer_job.children_called(JOB_WORKER)
}

/// Whether a process was frozen by a signal.
pub(crate) fn is_frozen(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state == 'T')
}

/// Has the processes that share this one's terminal group stand back behind others, on kernels that share the
/// processor among such groups.
pub(crate) fn have_session_stand_back(nice: i32) {
    set_session(std::process::id(), nice);
}

/// Has the group of a process share as any other.
pub(crate) fn have_session_stand_up(process: Process) {
    set_session(process.pid, 0);
}

fn set_session(pid: u32, nice: i32) {
    for _ in 0..SESSION_TRIES {
        // Where there is no such file the kernel shares by process, and a process' own nice value counts.
        match fs::write(format!("/proc/{pid}/autogroup"), nice.to_string()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                thread::sleep(SESSION_AGAIN);
            }
            _ => return,
        }
    }
}

fn is_called(pid: u32, word: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(word.as_bytes())
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, brackets and spaces too.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let state = fields.first()?.chars().next()?;
    if matches!(state, 'Z' | 'X') {
        return None;
    }
    let (parent, started) = (fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?);
    Some(Stat { state, parent, started })
}

fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for thread in numbers(&format!("/proc/{pid}/task")) {
        match fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")) {
            Ok(list) => found.extend(list.split_whitespace().filter_map(|c| c.parse::<u32>().ok())),
            // Not every kernel has this list, but each tells who the parent is.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_there(pid) => {
                let is_child = |child: &u32| stat(*child).is_some_and(|stat| stat.parent == pid);
                return numbers("/proc").filter(is_child).collect();
            }
            Err(_) => {}
        }
    }
    found
}

fn is_there(pid: u32) -> bool {
    stat(pid).is_some()
}

fn numbers(folder: &str) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_is_found_frozen_and_ended() {
        let own = Process::of(std::process::id()).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let found = own.children().into_iter().find(|p| p.pid == child.id()).unwrap();
        assert!(own.tree().contains(&found.pid) && own.tree().contains(&own.pid));
        // It may not have taken its arguments yet.
        while own.children_called("60") != [found] {
            assert!(child.try_wait().unwrap().is_none());
            thread::sleep(Duration::from_millis(1));
        }
        let wait_for = |what: bool| {
            while is_frozen(found.pid) != what {
                thread::sleep(Duration::from_millis(1));
            }
        };
        found.signal(Signal::STOP);
        wait_for(true);
        found.signal(Signal::CONT);
        wait_for(false);
        assert_eq!(found.threads().len(), 1);
        // Another process that had its number before it is left alone.
        Process { started: 0, ..found }.signal(Signal::KILL);
        assert!(found.is_alive());
        found.signal(Signal::KILL);
        child.wait().unwrap();
        assert!(!found.is_alive() && Process::of(found.pid).is_none());
    }
}
