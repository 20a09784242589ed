//! The works that cross a socket: client and server are two processes, placed alike on both sides.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::cli::Plan;
use crate::measure::compare;
use crate::nucleus::Nucleus;
use crate::ours::Way;
use crate::placement::{Cores, Mode};
use crate::process::{Process, Spinners};
use crate::report::Report;
use crate::row::{Row, Target, Unit};
use crate::{floor, ours, shared};

/// How long the floor's server may take to start.
const START_TIME_MAX: Duration = Duration::from_secs(10);
const SIZES: [(usize, &str); 4] =
    [(64, "64 B"), (1 << 10, "1 KiB"), (64 << 10, "64 KiB"), (1 << 20, "1 MiB")];

/// Measures every wanted work in one mode.
pub(crate) fn measure(
    plan: &Plan,
    mode: Mode,
    cores: &Cores,
    report: &mut Report,
) -> anyhow::Result<()> {
    let works: Vec<_> = works(mode).into_iter().filter(|work| plan.wants(&work.name())).collect();
    if works.is_empty() {
        return Ok(());
    }
    let stage = Stage::start(mode, cores)?;
    if stage.spinners.as_ref().is_some_and(|spinners| spinners.only_nice) {
        report.note("there is no chrt here: the spinners run at nice 19 instead of idle priority");
    }
    for work in works {
        let progress = report.progress(&work.name(), plan.rounds.count);
        let row = work.measure(plan, &stage, mode, || progress.inc(1))?;
        progress.finish_and_clear();
        report.add(row);
    }
    cores.pin_this_process(Mode::Plain)
}

/// Both servers, and who keeps the cores awake.
#[derive(Debug)]
struct Stage {
    nucleus: Nucleus,
    _echo: Process,
    echo_socket: PathBuf,
    spinners: Option<Spinners>,
    _directory: tempfile::TempDir,
}

impl Stage {
    /// Starts the servers free, so that each starts the threads it always has, then places them.
    fn start(mode: Mode, cores: &Cores) -> anyhow::Result<Self> {
        cores.pin_this_process(Mode::Plain)?;
        let nucleus = Nucleus::start()?;
        let directory =
            tempfile::Builder::new().prefix("cell-bench-").tempdir().context("make a directory")?;
        let echo_socket = directory.path().join("echo.sock");
        let echo = start_echo(&echo_socket)?;
        let spinners = (mode == Mode::Awake).then(|| Spinners::start(cores)).transpose()?;
        cores.pin_process(echo.id()?, mode)?;
        cores.pin_process(nucleus.worker()?, mode)?;
        cores.pin_this_process(mode)?;
        Ok(Self { nucleus, _echo: echo, echo_socket, spinners, _directory: directory })
    }
}

/// Starts the floor's server.
pub(crate) fn start_echo(socket: &Path) -> anyhow::Result<Process> {
    let mut echo = Process::of_part("echo", &[socket.as_os_str()])?;
    let started = Instant::now();
    // A connection that says nothing and closes is of no consequence.
    while UnixStream::connect(socket).is_err() {
        echo.check_alive().context("start the floor's server")?;
        if started.elapsed() > START_TIME_MAX {
            bail!("the floor's server did not start in {START_TIME_MAX:?}");
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(echo)
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
enum Work {
    Call(usize, &'static str),
    Pipelined(usize, &'static str),
    /// A call through shared memory.
    Shared,
    SharedPipelined,
}

fn works(mode: Mode) -> Vec<Work> {
    let calls = SIZES.map(|(bytes, text)| Work::Call(bytes, text));
    let pipelined = SIZES.map(|(bytes, text)| Work::Pipelined(bytes, text));
    let mut works: Vec<_> = calls.into_iter().chain(pipelined).collect();
    // Two sides that look for each other's bytes cannot on one core.
    if mode != Mode::OneCore {
        works.extend([Work::Shared, Work::SharedPipelined]);
    }
    works
}

impl Work {
    fn name(self) -> String {
        match self {
            Self::Call(_, size) => format!("unix call {size}"),
            Self::Pipelined(_, size) => format!("unix {} in flight {size}", floor::WINDOW),
            Self::Shared => "shared memory call 64 B".into(),
            Self::SharedPipelined => format!("shared memory {} in flight 64 B", floor::WINDOW),
        }
    }

    fn measure(
        self,
        plan: &Plan,
        stage: &Stage,
        mode: Mode,
        after_slice: impl FnMut(),
    ) -> anyhow::Result<Row> {
        let (echo, cell): (&Path, PathBuf) = (&stage.echo_socket, stage.nucleus.socket());
        let (bytes, unit, (floor, ours)) = match self {
            Self::Call(bytes, _) => {
                let (mut floor, mut ours) =
                    (floor::Call::new(echo, bytes)?, ours::Call::new(&cell, Way::Socket, bytes)?);
                (bytes, Unit::Nanoseconds, compare(plan, &mut floor, &mut ours, after_slice)?)
            }
            Self::Pipelined(bytes, _) => {
                let mut floor = floor::Pipelined::new(echo, bytes)?;
                let mut ours = ours::Pipelined::new(&cell, Way::Socket, bytes)?;
                (bytes, Unit::CallsPerSecond, compare(plan, &mut floor, &mut ours, after_slice)?)
            }
            Self::Shared => {
                let mut floor = shared::PingPong::new()?;
                let mut ours = ours::Call::new(&cell, Way::SharedMemory, 64)?;
                (64, Unit::Nanoseconds, compare(plan, &mut floor, &mut ours, after_slice)?)
            }
            Self::SharedPipelined => {
                let mut floor = floor::Pipelined::new(echo, 64)?;
                let mut ours = ours::Pipelined::new(&cell, Way::SharedMemory, 64)?;
                (64, Unit::CallsPerSecond, compare(plan, &mut floor, &mut ours, after_slice)?)
            }
        };
        Ok(Row::new(self.name(), mode.to_string(), unit, floor, ours)
            .with_bytes(bytes)
            .with_target(self.target(mode)))
    }

    /// What `DESIGN.md` section 12 wants of this work.
    fn target(self, mode: Mode) -> Option<Target> {
        match (self, mode) {
            (Self::Call(64, _), Mode::OneCore) => Some(Target {
                text: "p50 ≤ 1.10x, p99 ≤ 1.25x",
                is_met: |row| row.ratio() <= 1.10 && row.ratio_p99() <= 1.25,
            }),
            (Self::Call(0x10_0000, _), Mode::OneCore) => Some(Target {
                text: "≥ 0.9x of the bandwidth",
                is_met: |row| row.ratio() <= 1.0 / 0.9,
            }),
            (Self::Shared, Mode::Plain) => Some(Target {
                text: "p50 ≤ 300 ns, ≤ 2x",
                is_met: |row| row.ours.p50 <= 300.0 && row.ratio() <= 2.0,
            }),
            (Self::Pipelined(64, _), Mode::Plain) => {
                Some(Target { text: "≥ 1 M calls/s", is_met: |row| row.ours.p50 >= 1e6 })
            }
            _ => None,
        }
    }
}
