//! The process that runs one job for another machine: it takes the job from a socket, sets its budget aside
//! in that machine's account, has a walled process run it, pays, and sends the receipt.
//!
//! What the socket brings is a stranger's. It is bounded, and the job itself runs as any other.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use cell_abi::{AccountId, CellHash, NanoAtp};
use cell_host::gate::MODULE_BYTES_MAX;
use cell_host::{ModuleKind, Rates};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::job_ids;
use super::modules::Modules;
use super::parts::Parts;
use super::wire::{self, End, Kind, RECEIPT_BYTES_MAX, RUNNING, SPEC_BYTES_MAX, Spec};
use crate::bank::Bank;
use crate::cli::channel;
use crate::cli::job_end::{Ended, Terms};
use crate::cli::job_funds::Funds;
use crate::cli::job_process::JobProcess;
use crate::cli::run::pass_signals_on;
use crate::cli::{Exit, Failure, Global};
use crate::compile::{self, Compiled, Payer};
use crate::config::Config;
use crate::home::Home;
use crate::job_worker::{Prepare, RunJob, TapeUse, Task};
use crate::link::{Link, ModuleFacts};
use crate::peers::Peers;
use crate::processes;

/// How long the other machine may be silent before its job runs.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(20);

/// How long the job and its module may take to come, and its last output and its receipt to go.
pub(super) const TRANSFER_TIME_MAX: Duration = Duration::from_secs(600);

/// How long a job may take to end when its time is over, before it is killed and not paid.
pub(super) const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// How often it is looked whether a job is frozen.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often a peer hears that its job still runs.
const BEAT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Who pays.
    payer: String,
    /// What a job may have on a machine that is lent, in MiB.
    #[arg(long = "memory-max")]
    memory_mb_max: Option<u32>,
    /// What modules may take of its disk, in MiB.
    #[arg(long = "disk-max")]
    disk_mb_max: Option<u64>,
}

/// Runs the job that comes by standard input, which is a socket.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<()> {
    let socket = Link::session_of_child()?;
    // Its program has a share of the processor of its own, where the kernel shares by session.
    let _ = rustix::process::setsid();
    socket.set_read_timeout(Some(SILENCE_MAX))?;
    let prepared = Arc::new(AtomicBool::new(false));
    hurry(socket.try_clone()?, Arc::clone(&prepared))?;
    let home = global.home()?;
    let peer = AccountId::parse(&arguments.payer)?;
    let out = Out(Arc::new(Mutex::new(socket.try_clone()?)));
    let served = serve(&home, (peer, arguments), &socket, &out, &prepared);
    let (end, error) = match served {
        Ok(end) => (end, None),
        Err(error) => {
            let exit = Exit::of(&error);
            // What is the peer's doing it is told; what is this machine's it is not.
            let told = error.downcast_ref::<Failure>().map(|failure| failure.message.clone());
            let message =
                told.unwrap_or_else(|| "this machine failed; nothing more is charged".into());
            (End { exit: exit.code(), message, ran: false }, Some(error))
        }
    };
    out.write(Kind::End, &serde_json::to_vec(&end)?);
    match error {
        Some(error) if error.downcast_ref::<Failure>().is_none() => Err(error),
        _ => Ok(()),
    }
}

/// The peer's end, for several threads. A peer that is gone is told nothing; its job was cancelled.
#[derive(Clone)]
struct Out(Arc<Mutex<UnixStream>>);

impl Out {
    fn write(&self, kind: Kind, content: &[u8]) -> bool {
        wire::write(&mut *lock(&self.0), kind, content).is_ok()
    }
}

/// A peer that sends its job, or takes its receipt, a byte at a time does not keep a place for ever.
fn hurry(socket: UnixStream, is_done: Arc<AtomicBool>) -> anyhow::Result<()> {
    thread::Builder::new().name("hurry".into()).spawn(move || {
        thread::sleep(TRANSFER_TIME_MAX);
        if !is_done.load(Relaxed) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    })?;
    Ok(())
}

fn serve(
    home: &Home,
    (peer, lent): (AccountId, &Arguments),
    mut socket: &UnixStream,
    out: &Out,
    prepared: &AtomicBool,
) -> anyhow::Result<End> {
    let config = Config::read(home)?;
    let spec = receive_spec(&mut socket)?;
    let most = lent.memory_mb_max.unwrap_or(config.peers.job_memory_mb_max);
    if spec.memory_mb_max == 0 || spec.memory_mb_max > most {
        let message = format!("a job may have 1 to {most} MiB of memory here; see --memory");
        return Err(Failure::new(Exit::Refused, message).into());
    }
    let payer = match &spec.channel {
        // What it may cost there is on the channel's account, and nowhere else.
        Some(channel) => channel::account_of(home, peer, channel)?,
        None => peer,
    };
    let hash = CellHash::parse(&spec.module).context("the module's hash")?;
    let process = JobProcess::start(&Prepare {
        directories: Vec::new(),
        require_walls: config.require_walls,
    })?;
    let modules = Modules::open(home, lent.disk_mb_max)?;
    let (wasm, is_new) = match modules.find(hash) {
        Some(wasm) => (wasm, false),
        None => (receive_module(home, (peer, &spec, hash), &modules.parts, (socket, out))?, true),
    };
    prepared.store(true, Relaxed);
    let mut bank = Bank::open(home)?;
    let cache = compile::cache(home)?;
    if cache.find(hash).is_none() {
        out.write(Kind::Progress, b"compiling");
    }
    let compiled = compile::compile(&cache, &wasm, Payer::Peer(&mut bank, payer))?;
    if compiled.info.kind != ModuleKind::Command {
        return Err(Failure::new(Exit::Refused, "this is a cell, not a command").into());
    }
    if is_new {
        // It has been paid for, so what is kept was.
        modules.keep(hash, &wasm, &cache)?;
        modules.parts.forget(peer, hash);
    }
    let artefact = cache.find(hash).context("the artefact vanished")?;
    let rates = config.prices.rates();
    let (program, arguments) = match spec.arguments.split_first() {
        Some((program, arguments)) => (program.as_str(), arguments),
        None => ("", [].as_slice()),
    };
    let terms = Terms {
        job_id: spec.id.as_deref(),
        compiled: &compiled,
        rates,
        payer,
        program,
        arguments,
        environment: &spec.environment,
        directories: Vec::new(),
        memory_mb_max: spec.memory_mb_max,
    };
    let by_slices = spec.channel.is_some();
    let budget = NanoAtp(spec.budget_nano_atp);
    let hint = match by_slices {
        true => "agree to larger slices, with --slice".to_owned(),
        false => format!("have that machine's owner type: cell ledger grant 5 {peer}"),
    };
    let is_given = spec.is_budget_given && !by_slices;
    if has_hung_up(socket) {
        // Its number stays free for when it comes again.
        return Err(Failure::new(Exit::Refused, "the other machine hung up").into());
    }
    let held = terms.hold(&mut bank, (budget, is_given), &hint)?;
    if let Some(id) = &spec.id {
        job_ids::take(home, peer, id)?;
    }
    let job_ms_max = config.peers.job_s_max.saturating_mul(1000);
    let running = Running {
        spec: &spec,
        compiled: &compiled,
        rates,
        started: SystemTime::now(),
        timeout_ms: spec.timeout_ms.unwrap_or(job_ms_max).clamp(1, job_ms_max),
    };
    if lent.memory_mb_max.is_some() {
        processes::have_session_stand_back(processes::LENT_NICE);
    }
    let mut funds = terms.funds(held, by_slices.then_some(budget));
    let ended = running.execute(process, (&mut bank, &mut funds), &artefact, socket, out);
    let (ended, carried) = ended.inspect_err(|_| funds.give_back(&bank))?;
    let (charge, receipt) =
        terms.settle(&mut bank, funds, &ended, running.started, &home.key()?)?;
    // It is paid before a peer that does not read on can keep its last output here.
    for carrying in carried {
        // The pipes have no writer any more, so they end.
        let _ = carrying.join();
    }
    let receipt = receipt.to_string();
    if receipt.len() <= RECEIPT_BYTES_MAX {
        out.write(Kind::Receipt, receipt.as_bytes());
    }
    Ok(End { exit: ended.exit().code(), message: ended.bill(charge, rates), ran: true })
}

/// Whether nobody is there any more to hear of the job.
fn has_hung_up(socket: &UnixStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Where that cannot be known, it is found out later.
    poll(&mut fds, Some(&now)).is_ok()
        && fds.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

fn receive_spec(socket: &mut &UnixStream) -> anyhow::Result<Spec> {
    let mut content = Vec::new();
    let came = wire::read(socket, &mut content);
    let spec = match came {
        Ok(Some(Kind::Spec)) if content.len() <= SPEC_BYTES_MAX => {
            serde_json::from_slice::<Spec>(&content).ok()
        }
        _ => None,
    };
    spec.ok_or_else(|| Failure::new(Exit::Refused, "no job came that this machine knows").into())
}

/// The module that the peer sends when it is asked to, or the rest of it.
fn receive_module(
    home: &Home,
    (peer, spec, hash): (AccountId, &Spec, CellHash),
    parts: &Parts,
    (mut socket, out): (&UnixStream, &Out),
) -> anyhow::Result<Vec<u8>> {
    let refuse = |message: &str| anyhow::Error::from(Failure::new(Exit::Refused, message));
    let length = usize::try_from(spec.module_bytes).unwrap_or(usize::MAX);
    if length > MODULE_BYTES_MAX {
        return Err(refuse("the module is too long"));
    }
    let mut upload = parts.upload((peer, &Peers::read(home)?), hash, length);
    let mut content = Vec::new();
    loop {
        let before = upload.wasm.len();
        if before < length {
            out.write(Kind::NeedModule, &wire::offset(before));
        }
        while upload.wasm.len() < length {
            match wire::read(&mut socket, &mut content) {
                Ok(Some(Kind::Module)) if upload.wasm.len() + content.len() <= length => {
                    upload.add(&content);
                }
                came => {
                    if matches!(came, Ok(Some(Kind::Module))) {
                        // More than there is to it: what came before is of something else.
                        upload.discard();
                    }
                    return Err(refuse("the module did not come"));
                }
            }
        }
        if CellHash::of(&upload.wasm) == hash {
            return Ok(upload.wasm);
        }
        upload.discard();
        if before == 0 {
            return Err(refuse("the module is not the one that was announced"));
        }
        // What came before may be what is wrong, of another connection or of this disk: once more from the start.
    }
}

struct Running<'a> {
    spec: &'a Spec,
    compiled: &'a Compiled,
    rates: Rates,
    started: SystemTime,
    timeout_ms: u64,
}

impl Running<'_> {
    /// Has the process run the job, while threads carry what goes in and comes out.
    fn execute(
        &self,
        mut process: JobProcess,
        (bank, funds): (&mut Bank, &mut Funds),
        artefact: &fs::File,
        socket: &UnixStream,
        out: &Out,
    ) -> anyhow::Result<(Ended, [JoinHandle<()>; 2])> {
        let (stdin, input) = pipe()?;
        let (output, stdout) = pipe()?;
        let (errors, stderr) = pipe()?;
        let fds: [BorrowedFd<'_>; 4] =
            [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), artefact.as_fd()];
        // A nucleus that goes down ends this, and the job ends first and is paid.
        let signals = pass_signals_on(&process.child)?;
        // The peer begins to send its input when it hears of this.
        out.write(Kind::Progress, RUNNING);
        // Where that fails the process has ended; what it said, or its end, tells why.
        let _ = process.link.send(&Task::Job(self.job(funds)), &fds);
        drop((stdin, stdout, stderr));
        let job = Job::of(&process);
        let from = socket.try_clone()?;
        from.set_read_timeout(None)?;
        // These end with this process: a peer may be silent for as long as its job runs.
        let (fed, beaten, watched) = (job.clone(), job.clone(), job.clone());
        thread::Builder::new().name("input".into()).spawn(move || feed(&from, input, &fed))?;
        let beats = out.clone();
        thread::Builder::new().name("beat".into()).spawn(move || beat(&beats, &beaten))?;
        let patience = Duration::from_millis(self.timeout_ms) + STOP_TIME_MAX;
        thread::Builder::new().name("watch".into()).spawn(move || {
            watched.outlast(patience);
            watched.signal(Signal::KILL);
        })?;
        let carry = |mut from: PipeReader, kind: Kind| {
            let out = out.clone();
            thread::Builder::new().name("output".into()).spawn(move || {
                let mut bytes = vec![0; wire::FRAME_BYTES_MAX];
                while let Ok(read @ 1..) = from.read(&mut bytes) {
                    if !out.write(kind, bytes.get(..read).unwrap_or_default()) {
                        return;
                    }
                }
            })
        };
        let carried = [carry(output, Kind::Output)?, carry(errors, Kind::Errors)?];
        let reported = funds.feed(bank, &process.link, || job.cancel());
        // Its number may be another process' as soon as it has ended.
        drop(signals);
        job.is_over();
        let status = process.end()?;
        // From here on it is over with this process, or in time.
        hurry(socket.try_clone()?, Arc::default())?;
        Ok((Ended::read(reported?, status)?, carried))
    }

    fn job(&self, funds: &Funds) -> RunJob {
        let spec = self.spec;
        RunJob {
            hash: self.compiled.hash.to_string(),
            facts: ModuleFacts::of(&self.compiled.info),
            arguments: spec.arguments.clone(),
            environment: spec.environment.clone(),
            directories: Vec::new(),
            fuel: funds.most().fuel_at_base_price().0,
            allowance: funds.allowance(),
            memory_bytes_max: u64::from(spec.memory_mb_max) << 20,
            timeout_ms: Some(self.timeout_ms),
            rates: self.rates.0,
            tape: if spec.recorded { TapeUse::Record } else { TapeUse::None },
        }
    }
}

/// The job's process, for those who may end it.
#[derive(Clone)]
struct Job(Arc<Mutex<Option<Pid>>>);

impl Job {
    fn of(process: &JobProcess) -> Self {
        let pid = i32::try_from(process.child.id()).ok().and_then(Pid::from_raw);
        Self(Arc::new(Mutex::new(pid)))
    }

    /// Sends it a signal, if it has not been waited for.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = *lock(&self.0) {
            // One that has just ended needs none.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it has run for so long, or is over. While it is frozen it does not run.
    fn outlast(&self, patience: Duration) {
        let mut left = patience;
        while !left.is_zero() {
            let step = left.min(LOOK_EVERY);
            thread::sleep(step);
            let pid = lock(&self.0).map(|pid| pid.as_raw_nonzero().get());
            match pid.and_then(|pid| u32::try_from(pid).ok()) {
                None => return,
                Some(pid) if processes::is_frozen(pid) => {}
                Some(_) => left -= step,
            }
        }
    }

    /// Has it end, and pay for what it did; one that is frozen as well.
    fn cancel(&self) {
        self.signal(Signal::INT);
        self.signal(Signal::CONT);
    }

    fn is_over(&self) {
        *lock(&self.0) = None;
    }
}

/// Says something to the peer now and then: one that is gone is found out even while nothing else is read
/// or written, and its job is cancelled.
fn beat(out: &Out, job: &Job) {
    loop {
        thread::sleep(BEAT);
        if !out.write(Kind::Progress, &[]) {
            return job.cancel();
        }
    }
}

/// Carries standard input to the job. A peer that hangs up cancels its job, which then pays for what it
/// did.
fn feed(mut socket: &UnixStream, input: PipeWriter, job: &Job) {
    let (mut input, mut content) = (Some(input), Vec::new());
    loop {
        match wire::read(&mut socket, &mut content) {
            Ok(Some(Kind::Input)) if content.is_empty() => input = None,
            // A job that does not read on takes the rest as read.
            Ok(Some(Kind::Input)) => {
                if input.as_mut().is_some_and(|input| input.write_all(&content).is_err()) {
                    input = None;
                }
            }
            _ => return job.cancel(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
