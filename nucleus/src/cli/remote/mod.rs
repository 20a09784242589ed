//! Jobs on other machines: `cell run --on`, and the process that runs one for somebody else.
//!
//! Both ends speak [`wire`] over a session's socket. What a job costs is paid by the account of who sent it,
//! in the ledger of the machine that runs it, or by a channel. One machine that was named gets this command's streams as they
//! are; where there may be several, or a check, all is kept until one result is believed.

pub(crate) mod ask;
mod attempt;
mod check;
mod choose;
mod in_turn;
mod input;
mod interrupt;
mod job_ids;
mod modules;
mod paid;
mod parts;
mod replicas;
mod results;
pub(crate) mod serve;
mod upload;
mod wire;

use std::path::Path;

use cell_host::{ModuleKind, gate};
use clap::Args;

use super::{Exit, Failure, Output};
use crate::home::Home;
use crate::peers::Peers;
pub(crate) use ask::Asked;
use attempt::Work;
use check::Check;
pub(crate) use choose::ANY;
use input::Input;
use replicas::Wanted;

/// Where else than here a job is to run.
#[derive(Debug, Args)]
pub(crate) struct Elsewhere {
    /// Have another machine run it: a peer's name, or KEY@HOST:PORT, or KEY@RELAYKEY@HOST:PORT
    /// for one that waits at a relay; its account there pays. Several with
    /// commas are asked in turn, and `any` is every peer with an address, the best first.
    #[arg(long, value_name = "MACHINES", conflicts_with_all = ["dir", "quote"])]
    on: Option<String>,
    /// With `--on any`, ask machines as well that say at this place that they run jobs: a file,
    /// https://HOST/PATH or http://HOST/PATH, with their signed records.
    #[arg(long, value_name = "PLACE", requires = "on")]
    from: Vec<String>,
    /// Have so many machines run it at once, and compare what they say.
    #[arg(long, value_name = "N", requires = "on", value_parser = clap::value_parser!(u32).range(2..=i64::from(replicas::REPLICAS_MAX)))]
    replicas: Option<u32>,
    /// Take what so many of them agree on: more than half, which is the default.
    #[arg(long, value_name = "N", requires = "replicas")]
    quorum: Option<u32>,
    /// Give each machine so much of the budget that so many may have run it in vain.
    #[arg(long, value_name = "N", requires = "on", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=i64::from(in_turn::TRIES_MAX)))]
    tries: u32,
    /// Run it again here before its result is believed. Default: never for machines that are named, adaptive
    /// for `any`; of replicas, adaptive is where they do not agree.
    #[arg(long, value_name = "WHEN", requires = "on")]
    check: Option<Check>,
    #[command(flatten)]
    pay: paid::Pay,
}

impl Elsewhere {
    /// Whether it is to run on another machine at all.
    pub(crate) const fn is_asked(&self) -> bool {
        self.on.is_some()
    }
}

/// Has the job run elsewhere; ends as it does. The path is where the receipt goes.
pub(crate) fn run(
    home: &Home,
    (elsewhere, path): (&Elsewhere, Option<&Path>),
    mut asked: Asked<'_>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let on = elsewhere.on.as_deref().unwrap_or_default();
    let _signals = elsewhere.pay.hear_interrupts()?;
    let peers = Peers::read(home)?;
    let is_any = on == ANY;
    let check = match elsewhere.check {
        Some(check) => check,
        None if is_any || elsewhere.replicas.is_some() => Check::Adaptive,
        None => Check::Never,
    };
    if !is_any && !elsewhere.from.is_empty() {
        return Err(Failure::new(Exit::Usage, "--from is for --on any").into());
    }
    let candidates = match is_any {
        true => choose::any(home, (&peers, &elsewhere.from), asked.memory_mb_max, output)?,
        false => choose::named(on, &peers)?,
    };
    if let ([one], None, Check::Never, false) =
        (candidates.as_slice(), elsewhere.replicas, check, is_any)
    {
        return ask::run(home, &one.machine, (asked, &elsewhere.pay), output);
    }
    // What nobody would run is not sent to everybody.
    let info = gate::inspect(asked.wasm)
        .map_err(|error| Failure::new(Exit::Refused, format!("refused by the gate: {error}")))?;
    if info.kind != ModuleKind::Command {
        return Err(Failure::new(Exit::Refused, "this is a cell, not a command").into());
    }
    let receipts = asked.receipt.take().zip(path);
    let spec = asked.spec(true)?;
    let pay = &elsewhere.pay;
    let work = Work { home, wasm: asked.wasm, spec, input: Input::start()?, output, pay };
    match elsewhere.replicas {
        Some(replicas) => {
            let wanted = Wanted::new(replicas, elsewhere.quorum)?;
            replicas::run(&work, &candidates, (wanted, check), receipts)
        }
        None => in_turn::run(&work, &candidates, (elsewhere.tries, check), receipts),
    }
}

pub(crate) use limits::LIMITS;

mod limits {
    //! This room's limits, as rows of the one table.

    cell_abi::limits! {
        crate::cli::remote::wire {
            /// Longest frame of a job that is sent to another machine, in bytes.
            ///
            /// The connection is closed; more bytes become more frames.
            FRAME_BYTES_MAX: usize;
            /// Most bytes of arguments, variables and the rest that such a job is described with.
            ///
            /// `cell run --on` refuses; the other machine closes the connection.
            SPEC_BYTES_MAX: usize;
            /// Longest receipt of such a job, in bytes.
            ///
            /// It is not taken; the job is paid all the same, and its machine's ledger says so.
            RECEIPT_BYTES_MAX: usize;
        }
        crate::cli::remote::ask {
            /// How long it may take `cell run --on` to be connected.
            ///
            /// It fails, and nothing was sent.
            DIAL_TIME_MAX: Duration;
            /// How long another machine may prepare a job without a word.
            ///
            /// The line counts as lost; the job may have been charged.
            PREPARE_SILENCE_MAX: Duration;
            /// How long another machine may say nothing while it runs a job.
            ///
            /// The same.
            RUN_SILENCE_MAX: Duration;
            /// How long a job elsewhere may last beyond its `--timeout` and its preparation.
            ///
            /// The same.
            OVERTIME_MAX: Duration;
        }
        crate::cli::remote::upload {
            /// How often `cell run --on` dials a machine for one job whose module does not get there.
            ///
            /// It fails, or another machine is asked; nothing ran, so nothing was charged.
            UPLOAD_TRIES_MAX: u32;
            /// The same where other machines could run the job as well.
            ///
            /// The next one is asked.
            UPLOAD_TRIES_OF_MANY_MAX: u32;
            /// How often a machine may ask for the module over one connection.
            ///
            /// The connection counts as lost.
            ASKED_MAX: u32;
        }
        crate::cli::remote::paid {
            /// The most slices that the budget of a job comes in.
            ///
            /// A smaller `--slice` is taken as that part of the budget: machines take no vouchers for less.
            SLICES_MAX: u64;
        }
        crate::cli::remote::choose {
            /// How long machines may take to accept a connection, for `cell run --on any`.
            ///
            /// They are not asked.
            PROBE_TIME_MAX: Duration;
            /// Machines that one `cell run --on` may ask.
            ///
            /// Of any, those with the least reputation are not asked; of those that are named, it refuses.
            CANDIDATES_MAX: usize;
        }
        crate::cli::remote::in_turn {
            /// Attempts of one job that may be charged.
            ///
            /// `--tries` takes no more.
            TRIES_MAX: u32;
        }
        crate::cli::remote::replicas {
            /// Machines that run one job at once.
            ///
            /// `--replicas` takes no more.
            REPLICAS_MAX: u32;
        }
        crate::cli::remote::input {
            /// Standard input of a job that several machines may be given, in bytes.
            ///
            /// `cell run --on` fails; what was run until then is charged.
            INPUT_KEPT_BYTES_MAX: usize;
        }
        crate::cli::remote::attempt {
            /// Standard output of a job whose result is not believed at once, in bytes.
            ///
            /// The attempt is given up; what was run until then is charged.
            OUTPUT_KEPT_BYTES_MAX: usize;
            /// Standard error of such a job, in bytes.
            ///
            /// The rest is not shown.
            ERRORS_KEPT_BYTES_MAX: usize;
        }
        crate::cli::remote::job_ids {
            /// Numbers of other machines' jobs that are remembered.
            ///
            /// The oldest half is forgotten; such a job could run, and be charged, once more.
            JOB_IDS_KEPT_MAX: usize;
        }
        crate::cli::remote::serve {
            /// How long a machine waits for a job to be described, and for each part of its module.
            ///
            /// The connection is closed, and nothing is charged.
            SILENCE_MAX: Duration;
            /// How long the description and the module may take to come; and, when the job has ended, its last
            /// output and its receipt to go.
            ///
            /// The connection is closed; a job that has not begun is not charged.
            TRANSFER_TIME_MAX: Duration;
            /// How long such a job may take to end when its time is over.
            ///
            /// It is killed, and nothing is charged.
            STOP_TIME_MAX: Duration;
        }
        crate::cli::remote::modules {
            /// Modules of other machines that are kept for their next job, with what they were compiled to, in
            /// bytes.
            ///
            /// Those that were used longest ago are dropped, and sent again when they are needed.
            MODULES_BYTES_MAX: u64;
            /// How many of them are kept.
            ///
            /// The same.
            MODULES_MAX: usize;
        }
        crate::cli::remote::parts {
            /// Modules of other machines that are kept in part, for when their line was lost: each has up to
            /// 32 MiB, and all of them no more than a quarter of what modules may take.
            ///
            /// The oldest is dropped, of machines that nobody named first; such a module is sent from its start.
            PARTS_MAX: usize;
            /// How many of one machine.
            ///
            /// Its oldest is dropped.
            PARTS_PER_PEER_MAX: usize;
            /// How long one is kept.
            ///
            /// It is dropped when the next job comes.
            PART_TIME_MAX: Duration;
        }
    }
}
