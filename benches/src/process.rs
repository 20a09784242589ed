//! Processes that this program starts and, whatever happens, ends.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use crate::placement::{Cores, pin_to};

/// How long a process that was asked to end may take before it is killed.
const END_TIME_MAX: Duration = Duration::from_secs(8);

/// A child that ends when this value does.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts a part of this program.
    pub(crate) fn of_part(part: &str, arguments: &[&OsStr]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(part).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Self::start(&mut command)
    }

    /// Starts a program.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        command
            .spawn()
            .map(Self)
            .with_context(|| format!("start {}", command.get_program().display()))
    }

    pub(crate) fn id(&self) -> anyhow::Result<Pid> {
        i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).context("a process has no id")
    }

    /// Fails if the process has ended by itself.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            Some(status) => anyhow::bail!("it ended with {status}"),
            None => Ok(()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors here mean that it is gone already.
        if let Ok(id) = self.id() {
            let _ = kill_process(id, Signal::TERM);
        }
        let started = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            if started.elapsed() > END_TIME_MAX {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Spinners at idle priority, one on each core.
#[derive(Debug)]
pub(crate) struct Spinners {
    _running: Vec<Process>,
    /// They are not of the kind they should be.
    pub(crate) only_nice: bool,
}

impl Spinners {
    pub(crate) fn start(cores: &Cores) -> anyhow::Result<Self> {
        // rustix cannot set SCHED_IDLE; chrt is in util-linux, nice in coreutils.
        let has_chrt = Command::new("chrt")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
        let mut running = Vec::new();
        for core in cores.numbers() {
            let mut command = Command::new(if has_chrt { "chrt" } else { "nice" });
            command.args(if has_chrt { ["--idle", "0"] } else { ["-n", "19"] });
            command.arg(std::env::current_exe()?).arg("spin").arg(core.to_string());
            running.push(Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()))?);
        }
        Ok(Self { _running: running, only_nice: !has_chrt })
    }
}

/// Makes the system end this process when its parent ends.
pub(crate) fn end_with_parent() -> anyhow::Result<()> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::TERM))
        .context("tie this process to its parent")?;
    if getppid() != parent {
        anyhow::bail!("the parent is gone");
    }
    Ok(())
}

/// Becomes another program that ends with its parent: the request to do so survives `exec`.
pub(crate) fn launch(command: &[OsString]) -> anyhow::Result<bool> {
    end_with_parent()?;
    let (program, arguments) = command.split_first().context("no program was named")?;
    Err(Command::new(program).args(arguments).exec())
        .with_context(|| format!("become {}", program.display()))
}

/// Uses up one core.
pub(crate) fn spin(core: usize) -> anyhow::Result<bool> {
    pin_to(core)?;
    loop {
        std::hint::spin_loop();
    }
}
