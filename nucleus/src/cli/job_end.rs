//! From a job's budget to its bill, wherever the job comes from: setting it aside, reading what the job's
//! process reports, paying, and telling.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::SystemTime;

use anyhow::Context as _;
use cell_abi::{AccountId, Fuel, NanoAtp, Status};
use cell_host::rates::Dimension;
use cell_host::tape::TAPE_BYTES_MAX;
use cell_host::{Rates, Taken, price};
use cell_ledger::LedgerError;
use ed25519_dalek::SigningKey;
use serde_json::Value;

use super::job_funds::Funds;
use super::job_receipt::{self, Facts};
use super::output::escape;
use super::{Exit, Failure};
use crate::bank::{Bank, Held};
use crate::compile::Compiled;
use crate::job_worker::JobReport;
use crate::memory_file;

/// What a job was given, and who pays.
pub(super) struct Terms<'a> {
    /// The number that another machine gave the job.
    pub(super) job_id: Option<&'a str>,
    pub(super) compiled: &'a Compiled,
    pub(super) rates: Rates,
    pub(super) payer: AccountId,
    pub(super) program: &'a str,
    pub(super) arguments: &'a [String],
    pub(super) environment: &'a [(String, String)],
    pub(super) directories: Vec<&'a str>,
    pub(super) memory_mb_max: u32,
}

impl Terms<'_> {
    /// Sets the budget aside. Who names one gets it or nothing; a default is cut to what there is. `hint` says
    /// what to do where there is too little.
    pub(super) fn hold(
        &self,
        bank: &mut Bank,
        (budget, is_given): (NanoAtp, bool),
        hint: &str,
    ) -> anyhow::Result<Held> {
        let info = &self.compiled.info;
        let start = price::start(info.memory_pages, info.data_bytes);
        let start = NanoAtp(start.saturating_add(self.rates.of(Dimension::Start)));
        let out_of_atp =
            |message: String| anyhow::Error::from(Failure::new(Exit::OutOfAtp, message));
        if budget < start {
            return Err(out_of_atp(format!(
                "a budget of {budget} ATP does not cover the job's start, which costs {start} ATP"
            )));
        }
        let least = if is_given { budget } else { start };
        match bank.hold(self.payer, least.max(NanoAtp(1)), budget) {
            Ok(held) => Ok(held),
            Err(LedgerError::InsufficientFunds { available, .. }) => Err(out_of_atp(format!(
                "the account has {available} ATP and the job may cost {least} ATP; lower --budget, or {hint}"
            ))),
            Err(error) => Err(error).context("set the budget aside"),
        }
    }

    /// What the job is paid from: this hold, or where there is a budget, slices of that.
    pub(super) fn funds(&self, held: Held, budget: Option<NanoAtp>) -> Funds {
        Funds::new(self.payer, format!("job {}", self.compiled.hash.short()), held, budget)
    }

    /// Pays for the job, and signs its receipt.
    pub(super) fn settle(
        self,
        bank: &mut Bank,
        funds: Funds,
        ended: &Ended,
        started: SystemTime,
        key: &SigningKey,
    ) -> anyhow::Result<(NanoAtp, Value)> {
        let charge = if ended.status == Status::HostFault {
            NanoAtp::ZERO
        } else {
            let extra = NanoAtp(ended.taken.charge(self.rates));
            ended.fuel.at_base_price().checked_add(extra).context("such a charge cannot be")?
        };
        let payee = bank.accounts.node();
        let most = funds.most();
        let (charge, transfer) = funds.pay(bank, charge)?;
        let facts = Facts {
            job_id: self.job_id,
            compiled: self.compiled,
            program: self.program,
            arguments: self.arguments,
            environment: self.environment,
            directories: self.directories,
            memory_bytes_max: u64::from(self.memory_mb_max) << 20,
            fuel_max: most.fuel_at_base_price().0,
            charge,
            rates: self.rates,
            payer: self.payer,
            payee,
            transfer,
            started,
        };
        Ok((charge, job_receipt::make(&facts, ended, key)))
    }
}

/// What the job's process reported.
pub(super) struct Ended {
    pub(super) exit_code: Option<u32>,
    pub(super) status: Status,
    pub(super) message: String,
    pub(super) fuel: Fuel,
    pub(super) taken: Taken,
    pub(super) memory_bytes_peak: u64,
    pub(super) stdin: (u64, String),
    pub(super) stdout: (u64, String),
    pub(super) stderr_bytes: u64,
    /// What it learned from outside, if that was recorded, or why that does not suffice.
    pub(super) tape: Option<Vec<u8>>,
    pub(super) flaw: Option<String>,
}

impl Ended {
    /// Reads the report of a process that ended so, with the tape if the job was recorded.
    pub(super) fn read(
        reported: Option<(JobReport, Vec<OwnedFd>)>,
        process: ExitStatus,
    ) -> anyhow::Result<Self> {
        match reported {
            Some((
                JobReport::Ended {
                    exit_code,
                    status,
                    message,
                    fuel,
                    taken,
                    memory_bytes_peak,
                    stdin,
                    stdout,
                    stderr_bytes,
                    flaw,
                    ..
                },
                fds,
            )) => Ok(Self {
                exit_code,
                status: Status::from_code(status).unwrap_or(Status::HostFault),
                message,
                fuel: Fuel(fuel),
                taken: Taken(taken),
                memory_bytes_peak,
                stdin,
                stdout,
                stderr_bytes,
                tape: fds
                    .into_iter()
                    .next()
                    .map(|tape| memory_file::read(tape, TAPE_BYTES_MAX as u64))
                    .transpose()?,
                flaw,
            }),
            Some((JobReport::NotStarted { message }, _)) => {
                let message = format!("the job was not started: {message}");
                Err(Failure::new(Exit::Refused, message).into())
            }
            Some((JobReport::Called { .. } | JobReport::Spent { .. }, _)) | None => {
                let message = format!("the job's process ended with {process}; nothing is charged");
                Err(Failure::new(Exit::NucleusFault, message).into())
            }
        }
    }

    /// What `cell run` exits with.
    pub(super) fn exit(&self) -> Exit {
        match self.exit_code {
            Some(code) => Exit::Job(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
            None if self.status == Status::Cancelled => Exit::Job(130),
            None => Exit::of_status(self.status),
        }
    }

    /// What it cost, for how much of what, and how it ended.
    pub(super) fn bill(&self, charge: NanoAtp, rates: Rates) -> String {
        let mut text = format!("bill: {charge} ATP for {} fuel", self.fuel);
        for (dimension, count) in Dimension::ALL.into_iter().zip(self.taken.0) {
            if rates.of(dimension) == 0 || count == 0 {
                continue;
            }
            // Writing to a String cannot fail.
            let _ = match dimension {
                Dimension::Start => write!(text, ", {count} start"),
                Dimension::Egress => write!(text, ", {count} bytes of output"),
                Dimension::Memory => {
                    write!(text, ", {:.3} GiB·s of memory", count as f64 / dimension.per() as f64)
                }
            };
        }
        let how = match self.exit_code {
            Some(code) => format!("exited with {code}"),
            None if self.message.is_empty() => self.status.describe().to_owned(),
            None => format!("{}: {}", self.status.describe(), escape(&self.message)),
        };
        text + "; " + &how
    }
}
