//! The process that runs one job, or one call again: it has the streams and directories of its task,
//! and nothing else.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use cell_abi::limits::FRAME_PAYLOAD_BYTES_MAX;
use cell_abi::{CellHash, CellName, Fuel, Interface, Status};
use cell_host::stdio::Stream;
use cell_host::tape::TAPE_BYTES_MAX;
use cell_host::{
    Allocation, Allowance, Cell, CellOptions, Directory, Isolation, Job, JobEnd, JobTape, JobTrace,
    Limits, ModuleInfo, NoServices, Rates, Replay, Sandbox, StopHandle,
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::link::{Link, ModuleFacts};
use crate::{memory_file, walls};

/// How often a job that is paid by slices says what it has spent.
const SPENT_EVERY: Duration = Duration::from_millis(50);
/// How often it is looked how long a guest has run.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// More time than this between two looks is time in which the process was frozen.
const GAP: Duration = Duration::from_secs(1);

/// The first message: what the process will be able to reach. What is slow to start is started then.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Prepare {
    /// Host path, read-only.
    pub(crate) directories: Vec<(PathBuf, bool)>,
    /// Do not start where a wall is missing.
    pub(crate) require_walls: bool,
}

/// The second: what is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Run a job. Descriptors: standard input, output and error, artefact; the tape if it is played.
    Job(RunJob),
    /// Run a call again. Descriptors: artefact, request, tape.
    Call(RerunCall),
}

/// The job, as `cell run` hands it over.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunJob {
    pub(crate) hash: String,
    pub(crate) facts: ModuleFacts,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Host path, guest name, read-only.
    pub(crate) directories: Vec<(PathBuf, String, bool)>,
    pub(crate) fuel: u64,
    /// What it may spend of that until it is told of more, in nano-ATP; `None` for all of it. Where there is
    /// one the process reports what is spent, and is sent [`Raise`]s.
    pub(crate) allowance: Option<u64>,
    pub(crate) memory_bytes_max: u64,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) tape: TapeUse,
    /// What it pays besides fuel: [`cell_host::Rates`].
    pub(crate) rates: [u64; 3],
}

/// What becomes of all that a job learns from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TapeUse {
    None,
    /// It is recorded, and comes back beside the report.
    Record,
    /// It comes from a tape.
    Play,
}

/// The job may spend this much, for everything since its start, in nano-ATP.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Raise {
    pub(crate) nano_atp: u64,
}

/// A call that is to be run again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RerunCall {
    pub(crate) cell: String,
    pub(crate) hash: String,
    pub(crate) facts: ModuleFacts,
    pub(crate) memory_bytes_max: u64,
    pub(crate) state_bytes_max: u64,
    pub(crate) receptor: u16,
    pub(crate) json: bool,
    pub(crate) fuel_max: u64,
    pub(crate) input_bytes: u32,
    pub(crate) timeout_ms: u64,
}

/// How the job went.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum JobReport {
    /// Nothing ran; nothing is to be paid.
    NotStarted { message: String },
    /// It ran.
    Ended {
        exit_code: Option<u32>,
        /// Why it was stopped; a status code.
        status: u32,
        message: String,
        fuel: u64,
        /// What it took besides: [`cell_host::Taken`].
        taken: [u64; 3],
        memory_bytes_peak: u64,
        stdin: (u64, String),
        stdout: (u64, String),
        stderr_bytes: u64,
        /// It was recorded: the tape is beside this, or this is why there is none that would do.
        flaw: Option<String>,
        /// It was played, and asked for other things than the tape has.
        diverged: bool,
    },
    /// It runs, and has spent this much since its start. Only of a job with an allowance.
    Spent { nano_atp: u64 },
    /// A call was run again.
    Called {
        /// A status code.
        status: u32,
        fuel: u64,
        own_fuel: u64,
        output: (u64, String),
        diverged: bool,
    },
}

/// Runs the job that comes over the link, and reports.
pub(crate) fn run() -> anyhow::Result<()> {
    let link = Link::of_child().context("take the link")?;
    let Some((prepare, _)) = link.receive::<Prepare>(&mut Vec::new())? else {
        bail!("no job came");
    };
    // Before the first byte of the program is read, and before there is a second thread.
    let walls = walls::raise(&walls::Role::Job(prepare.directories), &walls::Resources::default());
    if let Some(missing) = walls.iter().find(|wall| !wall.stands && prepare.require_walls) {
        let message = format!("the wall `{}` is missing: {}", missing.name, missing.detail);
        return Ok(link.send(&JobReport::NotStarted { message }, &[])?);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let sandbox = Sandbox::new(Allocation::OnDemand)?;
    let Some((task, fds)) = link.receive::<Task>(&mut Vec::new())? else {
        // It was not to be run after all.
        return Ok(());
    };
    let done = runtime.block_on(async {
        match task {
            Task::Job(job) => execute(&sandbox, &link, job, fds).await,
            Task::Call(call) => Ok((rerun(sandbox, call, fds).await?, None)),
        }
    });
    let not_started = |error| (JobReport::NotStarted { message: format!("{error:#}") }, None);
    let (report, tape) = done.unwrap_or_else(not_started);
    let tape = tape.map(|tape| memory_file::write(&tape)).transpose()?;
    let beside: Vec<_> = tape.iter().map(std::os::fd::AsFd::as_fd).collect();
    link.send(&report, &beside)?;
    // A blocked read of a stream must not keep the process.
    runtime.shutdown_background();
    Ok(())
}

async fn execute(
    sandbox: &Sandbox,
    link: &Link,
    job: RunJob,
    fds: Vec<OwnedFd>,
) -> anyhow::Result<(JobReport, Option<Vec<u8>>)> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().context("the job came without its streams");
    let (stdin, stdout) = (Stream::input(next()?)?, Stream::output(next()?)?);
    let (stderr, artefact) = (Stream::output(next()?)?, next()?);
    let tape = match job.tape {
        TapeUse::None => JobTape::None,
        TapeUse::Record => JobTape::Record,
        TapeUse::Play => JobTape::Play(memory_file::read(next()?, TAPE_BYTES_MAX as u64)?),
    };
    let info = ModuleInfo::of_command(job.facts.memory_pages, job.facts.data_bytes);
    let module = sandbox.load(artefact.into(), info, CellHash::parse(&job.hash)?)?;
    let mut limits = Limits::JOB;
    limits.memory_bytes_max = usize::try_from(job.memory_bytes_max)?;
    let stop = StopHandle::new();
    let allowance = job.allowance.map(Allowance::new);
    if let Some(allowance) = &allowance {
        by_slices(link, allowance)?;
    }
    let to_run = Job {
        arguments: job.arguments,
        environment: job.environment,
        directories: job
            .directories
            .into_iter()
            .map(|(host, guest, read_only)| Directory { host, guest, read_only })
            .collect(),
        stdin: stdin.clone(),
        stdout: stdout.clone(),
        stderr: stderr.clone(),
        fuel: Fuel(job.fuel),
        limits,
        allowance,
        stop: stop.clone(),
        tape,
        rates: Rates(job.rates),
    };
    let running = to_run.run(sandbox, &module);
    let outcome = stopped_in_time(running, &stop, job.timeout_ms).await??;
    let (exit_code, status, message) = match outcome.end {
        JobEnd::Exited { code } => (Some(code), Status::Ok, String::new()),
        JobEnd::Stopped { status, message } => (None, status, message),
        _ => (None, Status::HostFault, String::from("unknown end")),
    };
    let told = |(bytes, hash): (u64, [u8; 32])| (bytes, blake3::Hash::from_bytes(hash).to_string());
    let (mut stdin, mut stdout) = (stdin.digest(), stdout.digest());
    let (mut stderr_bytes, _) = stderr.digest();
    let (mut tape, mut flaw, mut has_diverged) = (None, None, false);
    match outcome.trace {
        JobTrace::Recorded(Ok(recorded)) => tape = Some(recorded),
        JobTrace::Recorded(Err(why)) => flaw = Some(why.name().to_owned()),
        JobTrace::Played { input, output, error_bytes, diverged } => {
            (stdin, stdout, has_diverged) = (input, output, diverged);
            stderr_bytes = error_bytes;
        }
        _ => {}
    }
    let report = JobReport::Ended {
        exit_code,
        status: status.code(),
        message,
        fuel: outcome.fuel.0,
        taken: outcome.taken.0,
        memory_bytes_peak: outcome.memory_bytes_peak,
        stdin: told(stdin),
        stdout: told(stdout),
        stderr_bytes,
        flaw,
        diverged: has_diverged,
    };
    Ok((report, tape))
}

/// Says what is spent again and again, and hears how much may be; on threads that end with the process.
fn by_slices(link: &Link, allowance: &Allowance) -> anyhow::Result<()> {
    let (says, hears) = (link.try_clone()?, link.try_clone()?);
    let (spent, raised) = (allowance.clone(), allowance.clone());
    thread::Builder::new().name("spent".into()).spawn(move || {
        // Where it does not go through the other process is gone, and this one with it.
        while says.send(&JobReport::Spent { nano_atp: spent.spent() }, &[]).is_ok() {
            thread::sleep(SPENT_EVERY);
        }
    })?;
    thread::Builder::new().name("raise".into()).spawn(move || {
        while let Ok(Some((Raise { nano_atp }, _))) = hears.receive(&mut Vec::new()) {
            raised.raise(nano_atp);
        }
    })?;
    Ok(())
}

/// Runs a call again, on an instance that learns from the tape and nothing else.
async fn rerun(sandbox: Sandbox, call: RerunCall, fds: Vec<OwnedFd>) -> anyhow::Result<JobReport> {
    let Ok([artefact, input, tape]) = <[_; 3]>::try_from(fds) else {
        bail!("the call came without its code, request and tape");
    };
    let ModuleFacts { interface, has_json, memory_pages, data_bytes } = call.facts;
    let interface = Interface::parse(interface.as_bytes())?;
    let info = ModuleInfo::of_cell(interface, has_json, memory_pages, data_bytes);
    let module = sandbox.load(artefact.into(), info, CellHash::parse(&call.hash)?)?;
    let mut options = CellOptions::default();
    options.isolation = Isolation::Call;
    options.limits.memory_bytes_max = usize::try_from(call.memory_bytes_max)?;
    options.state_bytes_max = call.state_bytes_max;
    let name = CellName::parse(&call.cell)?;
    let cell = Cell::new(&Arc::new(sandbox), name, module, options, Arc::new(NoServices))?;
    let replay = Replay {
        receptor: call.receptor,
        json: call.json,
        limit: Fuel(call.fuel_max),
        input_bytes: call.input_bytes,
        input: memory_file::read(input, FRAME_PAYLOAD_BYTES_MAX.into())?,
        tape: memory_file::read(tape, TAPE_BYTES_MAX as u64)?,
    };
    let stop = StopHandle::new();
    let running = replay.run(&cell, stop.clone());
    let replayed = stopped_in_time(running, &stop, Some(call.timeout_ms)).await?;
    let replayed = replayed.map_err(|status| anyhow::anyhow!("{}", status.describe()))?;
    let hash = blake3::hash(&replayed.output).to_string();
    Ok(JobReport::Called {
        status: replayed.status.code(),
        fuel: replayed.fuel.0,
        own_fuel: replayed.own_fuel.0,
        output: (replayed.output.len() as u64, hash),
        diverged: replayed.diverged,
    })
}

/// Waits until this process has run for so long. A machine that is lent freezes it now and then, which its
/// guest neither sees nor has to answer for.
async fn running_for(timeout: Option<Duration>) {
    let Some(mut left) = timeout else { return std::future::pending().await };
    while !left.is_zero() {
        let began = Instant::now();
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
        left = left.saturating_sub(began.elapsed().min(GAP));
    }
}

/// Waits for a guest, and stops it when its time is over or an interrupt comes.
async fn stopped_in_time<F: Future>(
    running: F,
    stop: &StopHandle,
    timeout_ms: Option<u64>,
) -> anyhow::Result<F::Output> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let timeout = running_for(timeout_ms.map(Duration::from_millis));
    tokio::pin!(running, timeout);
    loop {
        tokio::select! {
            biased;
            _ = interrupts.recv(), if stop.status().is_none() => stop.cancel(),
            () = &mut timeout, if stop.status().is_none() => stop.time_out(),
            output = &mut running => return Ok(output),
        }
    }
}
