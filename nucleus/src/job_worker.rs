//! The process that runs one job: it has the job's streams and directories, and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use cell_abi::{CellHash, Fuel, Status};
use cell_host::stdio::Stream;
use cell_host::{Allocation, Directory, Job, JobEnd, Limits, ModuleInfo, Sandbox, StopHandle};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::link::{Link, ModuleFacts};
use crate::walls;

/// The first message: what the process will be able to reach. What is slow to start is started then.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Prepare {
    /// Host path, read-only.
    pub(crate) directories: Vec<(PathBuf, bool)>,
    /// Do not start where a wall is missing.
    pub(crate) require_walls: bool,
}

/// The second: the job, as `cell run` hands it over. Descriptors: standard input, output and error, artefact.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunJob {
    pub(crate) hash: String,
    pub(crate) facts: ModuleFacts,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Host path, guest name, read-only.
    pub(crate) directories: Vec<(PathBuf, String, bool)>,
    pub(crate) fuel: u64,
    pub(crate) memory_bytes_max: u64,
    pub(crate) timeout_ms: Option<u64>,
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
        memory_bytes_peak: u64,
        stdin: (u64, String),
        stdout: (u64, String),
    },
}

/// Runs the job that comes over the link, and reports.
pub(crate) fn run() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    walls::close_inherited_descriptors()?;
    let link = Link::from_fd(rustix::stdio::stdin().try_clone_to_owned().context("take the link")?);
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
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
    let Some((job, fds)) = link.receive::<RunJob>(&mut Vec::new())? else {
        // It was not to be run after all.
        return Ok(());
    };
    let report = runtime.block_on(execute(&sandbox, job, fds));
    let report =
        report.unwrap_or_else(|error| JobReport::NotStarted { message: format!("{error:#}") });
    link.send(&report, &[])?;
    // A blocked read of a stream must not keep the process.
    runtime.shutdown_background();
    Ok(())
}

async fn execute(
    sandbox: &Sandbox,
    job: RunJob,
    fds: Vec<std::os::fd::OwnedFd>,
) -> anyhow::Result<JobReport> {
    let Ok([stdin, stdout, stderr, artefact]) = <[_; 4]>::try_from(fds) else {
        bail!("the job came without its streams");
    };
    let (stdin, stdout) = (Stream::input(stdin)?, Stream::output(stdout)?);
    let info = ModuleInfo::of_command(job.facts.memory_pages, job.facts.data_bytes);
    let module = sandbox.load(artefact.into(), info, CellHash::parse(&job.hash)?)?;
    let mut limits = Limits::JOB;
    limits.memory_bytes_max = usize::try_from(job.memory_bytes_max)?;
    let stop = StopHandle::new();
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
        stderr: Stream::output(stderr)?,
        fuel: Fuel(job.fuel),
        limits,
        stop: stop.clone(),
    };
    let mut interrupts = signal(SignalKind::interrupt())?;
    let timeout = tokio::time::sleep(job.timeout_ms.map_or(Duration::MAX, Duration::from_millis));
    let running = to_run.run(sandbox, &module);
    tokio::pin!(running, timeout);
    let outcome = loop {
        tokio::select! {
            biased;
            _ = interrupts.recv(), if stop.status().is_none() => stop.cancel(),
            () = &mut timeout, if stop.status().is_none() => stop.time_out(),
            outcome = &mut running => break outcome?,
        }
    };
    let (exit_code, status, message) = match outcome.end {
        JobEnd::Exited { code } => (Some(code), Status::Ok, String::new()),
        JobEnd::Stopped { status, message } => (None, status, message),
        _ => (None, Status::HostFault, String::from("unknown end")),
    };
    let digest = |stream: &Stream| {
        let (bytes, hash) = stream.digest();
        (bytes, blake3::Hash::from_bytes(hash).to_string())
    };
    Ok(JobReport::Ended {
        exit_code,
        status: status.code(),
        message,
        fuel: outcome.fuel.0,
        memory_bytes_peak: outcome.memory_bytes_peak,
        stdin: digest(&stdin),
        stdout: digest(&stdout),
    })
}
