//! Which cores the processes of a measurement may use.

use std::fmt;
use std::fs;

use anyhow::Context as _;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where client and server run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    OneCore,
    Plain,
    Awake,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OneCore => "onecore",
            Self::Plain => "plain",
            Self::Awake => "awake",
        })
    }
}

/// The cores that this process was started on.
#[derive(Debug)]
pub(crate) struct Cores {
    all: CpuSet,
    first: CpuSet,
}

impl Cores {
    pub(crate) fn of_this_process() -> anyhow::Result<Self> {
        let all = sched_getaffinity(None).context("ask for the cores of this process")?;
        let mut first = CpuSet::new();
        let core = (0..CpuSet::MAX_CPU)
            .find(|core| all.is_set(*core))
            .context("this process may use no core")?;
        first.set(core);
        Ok(Self { all, first })
    }

    /// Their numbers.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        (0..CpuSet::MAX_CPU).filter(|core| self.all.is_set(*core)).collect()
    }

    /// Places this thread, and what it starts from now on.
    pub(crate) fn pin_this_process(&self, mode: Mode) -> anyhow::Result<()> {
        sched_setaffinity(None, self.of(mode)).context("choose the cores of this process")
    }

    /// Places every thread of another process.
    pub(crate) fn pin_process(&self, process: Pid, mode: Mode) -> anyhow::Result<()> {
        let threads = format!("/proc/{}/task", process.as_raw_nonzero());
        for thread in fs::read_dir(&threads).with_context(|| format!("read {threads}"))? {
            let thread = thread?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
            let thread = thread.with_context(|| format!("read {threads}"))?;
            sched_setaffinity(Some(thread), self.of(mode))
                .context("choose the cores of a server")?;
        }
        Ok(())
    }

    const fn of(&self, mode: Mode) -> &CpuSet {
        match mode {
            Mode::OneCore => &self.first,
            Mode::Plain | Mode::Awake => &self.all,
        }
    }
}

/// Keeps the calling thread on one core.
pub(crate) fn pin_to(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("stay on core {core}"))
}
