//! The command line, and the order in which things are measured.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::measure::Rounds;
use crate::placement::{Cores, Mode};
use crate::report::Report;
use crate::{
    bare, calibrate, curves, floor, house, instructions, ledger, process, remote, shared, socket,
    start,
};

/// With these set, every error value on a measured path walks the stack.
const BACKTRACE_VARIABLES: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];

/// Measure Cell next to what the kernel and Wasmtime cost without it.
#[derive(Debug, Parser)]
#[command(name = "cell-bench", version)]
struct Cli {
    /// Fewer and shorter rounds: for a first look, not for figures to quote.
    #[arg(long)]
    quick: bool,
    /// Also write rows with their histograms, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where client and server run; without it `onecore` and then `plain`.
    #[arg(long, value_enum)]
    mode: Option<Modes>,
    /// Only works whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Modes {
    /// Client and server on one core: the steadiest, and the one that targets are judged by.
    Onecore,
    /// Nobody is pinned: what a user sees.
    Plain,
    /// Like plain, with an idle-priority spinner on every core, so that no core sleeps.
    Awake,
    /// All three.
    All,
}

/// Other things to measure, and what this program is when it starts itself.
#[derive(Debug, Subcommand)]
enum Part {
    /// Measure a nucleus with many cells, and one caller beside another.
    House {
        /// Cells that are deployed and sleep.
        #[arg(long, default_value_t = 10_000)]
        cells: u32,
    },
    /// Measure how cost grows with load, connections, cells and payload, and draw it.
    Curves {
        /// Where the pictures go, and the figures they are made of.
        #[arg(long, value_name = "DIRECTORY", default_value = "docs/performance")]
        out: PathBuf,
    },
    /// Measure durable transfers, and how long until a call is paid for good.
    Ledger,
    /// Measure sessions with other machines, over loopback TCP.
    Remote,
    /// Measure what one fuel is worth in time, for everything that a guest can do.
    Calibrate,
    /// Count the instructions of the path of a call; fails when they are too many. Needs valgrind.
    Instructions,
    /// Does something so many times, for `instructions`.
    #[command(hide = true)]
    Repeat { work: String, times: u32 },
    /// The floor's server: echoes frames on a Unix socket.
    #[command(hide = true)]
    Echo { socket: PathBuf },
    /// The floor's server for shared memory.
    #[command(hide = true)]
    Pong,
    /// The floor of a run: loads an artefact and runs it, by Wasmtime alone.
    #[command(hide = true)]
    RunArtefact { artefact: PathBuf },
    /// Keeps one core awake.
    #[command(hide = true)]
    Spin { core: usize },
    /// Becomes another program, which ends when its parent does.
    #[command(hide = true)]
    Launch {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
}

/// What every measurement is told.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) rounds: Rounds,
    pub(crate) filter: String,
    pub(crate) interrupted: Arc<AtomicBool>,
}

impl Plan {
    /// Fails once the run was interrupted, so that what was started is also stopped.
    pub(crate) fn check_interrupted(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Relaxed) { bail!("interrupted") } else { Ok(()) }
    }

    pub(crate) fn wants(&self, work: &str) -> bool {
        work.contains(&self.filter)
    }
}

/// Runs what was typed.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.part {
        Some(Part::Echo { socket }) => {
            process::end_with_parent().and_then(|()| floor::serve(socket)).map(|()| true)
        }
        Some(Part::Pong) => {
            process::end_with_parent().and_then(|()| shared::serve()).map(|()| true)
        }
        Some(Part::RunArtefact { artefact }) => start::run_artefact(artefact).map(|()| true),
        Some(Part::Spin { core }) => process::end_with_parent().and_then(|()| process::spin(*core)),
        Some(Part::Launch { command }) => process::launch(command),
        Some(Part::Instructions) => instructions::measure(Report::line),
        Some(Part::Repeat { work, times }) => instructions::repeat(work, *times).map(|()| true),
        Some(Part::Curves { out }) => cli.run_curves(out),
        Some(Part::House { cells }) => cli.run_house(*cells),
        Some(Part::Ledger) => cli.run_ledger(),
        Some(Part::Remote) => cli.run_remote(),
        Some(Part::Calibrate) => cli.run_calibrate(),
        None => cli.run(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            Report::error(&error);
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn prepare(&self) -> anyhow::Result<(Plan, Cores, Report)> {
        let (plan, cores) = self.plan()?;
        let report = Report::new(&plan, &cores);
        Ok((plan, cores, report))
    }

    fn plan(&self) -> anyhow::Result<(Plan, Cores)> {
        if BACKTRACE_VARIABLES.iter().any(|name| std::env::var_os(name).is_some()) {
            return Err(restart_without_backtraces()).context("start again without RUST_BACKTRACE");
        }
        let cores = Cores::of_this_process()?;
        let rounds = if self.quick { Rounds::QUICK } else { Rounds::FULL };
        let plan = Plan { rounds, filter: self.filter.clone(), interrupted: stop_on_interrupt()? };
        Ok((plan, cores))
    }

    fn run_house(&self, cells: u32) -> anyhow::Result<bool> {
        let (plan, cores, mut report) = self.prepare()?;
        house::measure(&plan, cells, &cores, &mut report)?;
        report.finish(self.json.as_deref())
    }

    fn run_ledger(&self) -> anyhow::Result<bool> {
        let (plan, cores, mut report) = self.prepare()?;
        ledger::measure(&plan, &cores, &mut report)?;
        report.finish(self.json.as_deref())
    }

    fn run_remote(&self) -> anyhow::Result<bool> {
        let (plan, cores, mut report) = self.prepare()?;
        remote::measure(&plan, &cores, &mut report)?;
        report.finish(self.json.as_deref())
    }

    fn run_calibrate(&self) -> anyhow::Result<bool> {
        let (plan, cores) = self.plan()?;
        calibrate::measure(&plan, &cores, self.json.as_deref()).map(|()| true)
    }

    fn run_curves(&self, out: &Path) -> anyhow::Result<bool> {
        let (plan, _, report) = self.prepare()?;
        curves::measure(&plan, out, &report)?;
        report.note(&format!("drawn into {}", out.display()));
        Ok(true)
    }

    fn run(&self) -> anyhow::Result<bool> {
        let (plan, cores, mut report) = self.prepare()?;
        for mode in modes(self.mode) {
            socket::measure(&plan, mode, &cores, &mut report)?;
        }
        cores.pin_this_process(Mode::OneCore)?;
        bare::measure(&plan, &mut report)?;
        start::measure(&plan, &cores, &mut report)?;
        report.finish(self.json.as_deref())
    }
}

fn modes(asked: Option<Modes>) -> Vec<Mode> {
    match asked {
        None => vec![Mode::OneCore, Mode::Plain],
        Some(Modes::Onecore) => vec![Mode::OneCore],
        Some(Modes::Plain) => vec![Mode::Plain],
        Some(Modes::Awake) => vec![Mode::Awake],
        Some(Modes::All) => vec![Mode::OneCore, Mode::Plain, Mode::Awake],
    }
}

/// A process may not change its own environment safely, so it becomes itself once more.
fn restart_without_backtraces() -> io::Error {
    let mut command = match std::env::current_exe() {
        Ok(program) => Command::new(program),
        Err(error) => return error,
    };
    command.args(std::env::args_os().skip(1));
    for name in BACKTRACE_VARIABLES {
        command.env_remove(name);
    }
    command.exec()
}

/// Lets Ctrl-C end the run between two slices, so that what was started is also stopped.
fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("interrupt".into()).spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            flag.store(true, Relaxed);
        }
    })?;
    Ok(interrupted)
}
