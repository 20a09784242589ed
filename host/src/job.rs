//! Runs a command module once, from `_start` to its exit.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use cell_abi::{Fuel, Status};
use wasmtime::Store;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::engine::{Module, Sandbox};
use crate::error::{LoadError, Stop, classify};
use crate::gate::ModuleKind;
use crate::guest::Guest;
use crate::instance::arm;
use crate::limits::{Limits, START_FUEL_MAX};
use crate::meter::{Allowance, Gauge, Metered, StopHandle};
use crate::price;
use crate::rates::{Dimension, Rates, Taken};
use crate::stdio::{Digest, Stream};
use crate::tape::{Flaw, Tape};

/// A directory of the host that a job may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Where it is.
    pub host: PathBuf,
    /// What the guest calls it.
    pub guest: String,
    /// The guest may not change anything in it.
    pub read_only: bool,
}

/// Everything a job is given; whatever is not here it does not have.
#[derive(Debug)]
pub struct Job {
    /// Arguments; the first is the program's name.
    pub arguments: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// Directories.
    pub directories: Vec<Directory>,
    /// Standard input.
    pub stdin: Stream,
    /// Standard output.
    pub stdout: Stream,
    /// Standard error.
    pub stderr: Stream,
    /// The most the job may burn, its start included.
    pub fuel: Fuel,
    /// What it may take of the host.
    pub limits: Limits,
    /// How much of that it may spend for now; `None` for all of it.
    pub allowance: Option<Allowance>,
    /// Stops it from outside.
    pub stop: StopHandle,
    /// Whether what it learns is kept, or comes from a tape.
    pub tape: JobTape,
    /// What it pays besides fuel, out of the same limit.
    pub rates: Rates,
}

/// What becomes of all that a job learns from outside; see [`tape`](crate::tape).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum JobTape {
    /// Nothing.
    #[default]
    None,
    /// It is recorded.
    Record,
    /// It comes from here, and what the job reads and writes goes nowhere.
    Play(Vec<u8>),
}

/// What a tape says of a job that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobTrace {
    /// Nothing was recorded.
    None,
    /// The tape, or why there is none that would do.
    Recorded(Result<Vec<u8>, Flaw>),
    /// It was played.
    Played {
        /// Bytes and hash of what the job read from standard input.
        input: (u64, [u8; 32]),
        /// The same of what it wrote to standard output.
        output: (u64, [u8; 32]),
        /// Bytes that it wrote to standard error.
        error_bytes: u64,
        /// The job asked for other things than the tape has.
        diverged: bool,
    },
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobEnd {
    /// It returned, with 0, or called `proc_exit`.
    Exited {
        /// Its code.
        code: u32,
    },
    /// It was ended.
    Stopped {
        /// Why.
        status: Status,
        /// For people.
        message: String,
    },
}

/// How a job ended and what it took.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobOutcome {
    /// How it ended.
    pub end: JobEnd,
    /// What it burned, its start included; never more than its limit.
    pub fuel: Fuel,
    /// What it took besides; what that costs and the fuel are together never more than the limit.
    pub taken: Taken,
    /// Largest size of its memory, in bytes.
    pub memory_bytes_peak: u64,
    /// What was recorded, or how the tape fitted.
    pub trace: JobTrace,
}

impl Job {
    /// What the start of a module burns; a job with less fuel is not started.
    pub const fn start_price(module: &Module) -> Fuel {
        Fuel(price::start(module.info.memory_pages, module.info.data_bytes))
    }

    /// Runs the job. An error says that nothing ran and nothing is to be paid.
    pub async fn run(self, sandbox: &Sandbox, module: &Module) -> Result<JobOutcome, LoadError> {
        if module.info.kind != ModuleKind::Command {
            return Err(LoadError::WrongKind(
                "the module is a cell; deploy it with `cell deploy` and call it",
            ));
        }
        let start = Self::start_price(module).0;
        let least = start.saturating_add(self.rates.of(Dimension::Start));
        let limit = self.fuel.0.min(i64::MAX.unsigned_abs() - 1);
        let Some(fuel) = limit.checked_sub(start).filter(|_| least <= limit) else {
            return Err(LoadError::Start(format!("its start alone costs {}", Fuel(least))));
        };
        let linked = sandbox
            .linker(ModuleKind::Command)
            .instantiate_pre(&module.compiled)
            .map_err(|e| LoadError::Link(format!("{e:#}")))?;
        let gauge = Arc::new({
            // The start counts too.
            let granted = fuel.saturating_add(1).saturating_add(start);
            Gauge::new(self.rates).with_allowance(granted, self.allowance.clone())
        });
        let (budget, metered) = (Arc::clone(sandbox.budget()), Arc::clone(&gauge));
        let guest = Guest::of_job(self.limits, budget, metered, self.wasi()?);
        let mut store = Store::new(sandbox.engine(), guest);
        store.limiter(|guest| guest);
        let started = |e: wasmtime::Error| LoadError::Start(format!("{e:#}"));
        arm(&mut store, START_FUEL_MAX).map_err(started)?;
        let instance = linked.instantiate_async(&mut store).await.map_err(started)?;
        store.data_mut().started = true;
        let tape = self.tape();
        store.data_mut().call.tape.clone_from(&tape);
        let main = instance
            .get_typed_func::<(), ()>(&mut store, "_start")
            .map_err(|_| LoadError::MissingExport { name: "_start", expected: "() -> ()" })?;
        arm(&mut store, fuel + 1).map_err(started)?;
        gauge.extras.start();
        // A machine that is lent freezes it, process and all.
        gauge.extras.spare_gaps();
        self.stdout.meter(&gauge);
        self.stderr.meter(&gauge);
        let result = {
            let guest = pin!(main.call_async(&mut store, ()));
            let running = Metered { guest, gauge: &gauge, stop: &self.stop };
            if self.rates.are_zero() {
                running.await
            } else {
                let (mut running, mut overdrawn) = (pin!(running), pin!(gauge.overdrawn()));
                std::future::poll_fn(|cx| match running.as_mut().poll(cx) {
                    Poll::Pending => {
                        overdrawn.as_mut().poll(cx).map(|()| Err(Stop::OutOfFuel.into()))
                    }
                    ended => ended,
                })
                .await
            }
        };
        let (mut outcome, by_extra) = outcome(&store, result, start, fuel);
        if let Some(tape) = tape {
            if by_extra {
                tape.spoil(Flaw::Charges);
            }
            outcome.trace = trace(&tape, &outcome.end);
        }
        Ok(outcome)
    }

    fn tape(&self) -> Option<Tape> {
        match &self.tape {
            JobTape::None => None,
            JobTape::Play(tape) => Some(Tape::playing(tape.clone())),
            JobTape::Record => {
                let tape = Tape::recording();
                if !self.directories.is_empty() {
                    tape.spoil(Flaw::Directories);
                }
                Some(tape)
            }
        }
    }

    fn wasi(&self) -> Result<wasmtime_wasi::p1::WasiP1Ctx, LoadError> {
        let mut builder = WasiCtxBuilder::new();
        builder
            .args(&self.arguments)
            .envs(&self.environment)
            .stdin(self.stdin.clone())
            .stdout(self.stdout.clone())
            .stderr(self.stderr.clone())
            .max_random_size(self.limits.random_bytes_max)
            .allow_tcp(false)
            .allow_udp(false);
        for directory in &self.directories {
            let permissions =
                if directory.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            builder.preopened_dir(&directory.host, &directory.guest, permissions).map_err(|e| {
                LoadError::Start(format!("open directory {}: {e:#}", directory.host.display()))
            })?;
        }
        Ok(builder.build_p1())
    }
}

fn trace(tape: &Tape, end: &JobEnd) -> JobTrace {
    if tape.is_playing() {
        let fault = matches!(end, JobEnd::Stopped { status: Status::HostFault, .. });
        let digest = |digest: &Digest| (digest.bytes(), digest.hash());
        let diverged = fault || !tape.is_over();
        return tape.with_streams(|streams| JobTrace::Played {
            input: digest(&streams.input),
            output: digest(&streams.output),
            error_bytes: streams.errors.bytes(),
            diverged,
        });
    }
    if matches!(end, JobEnd::Stopped { status: Status::TimedOut | Status::Cancelled, .. }) {
        tape.spoil(Flaw::Stopped);
    }
    let (tape, flaw) = tape.take();
    JobTrace::Recorded(flaw.map_or(Ok(tape), Err))
}

/// Also says whether it was ended by what it took besides fuel, or might have been.
fn outcome(
    store: &Store<Guest>,
    result: wasmtime::Result<()>,
    start: u64,
    fuel: u64,
) -> (JobOutcome, bool) {
    let left = store.get_fuel().unwrap_or(0);
    let burned = (fuel + 1).saturating_sub(left).saturating_add(store.data().gauge.debt());
    let mut end = match &result {
        Ok(()) => JobEnd::Exited { code: 0 },
        Err(error) => match error.downcast_ref::<Stop>() {
            Some(Stop::Exited(code)) => JobEnd::Exited { code: *code },
            _ => {
                let (status, message) = classify(error);
                JobEnd::Stopped { status, message }
            }
        },
    };
    let extras = &store.data().gauge.extras;
    extras.tick();
    let out_of_fuel = matches!(end, JobEnd::Stopped { status: Status::OutOfFuel, .. });
    let bill = extras.bill(burned, fuel, out_of_fuel);
    if bill.is_out {
        end = JobEnd::Stopped { status: Status::OutOfFuel, message: bill.message().into() };
    }
    let memory_bytes_peak = u64::try_from(store.data().memory_bytes_peak()).unwrap_or(u64::MAX);
    let by_extra = bill.is_out && bill.extra.is_some();
    let taken = bill.extra.map_or_else(Taken::default, |extra| extra.taken);
    let (fuel, trace) = (Fuel(start + bill.fuel), JobTrace::None);
    (JobOutcome { end, fuel, taken, memory_bytes_peak, trace }, by_extra)
}
