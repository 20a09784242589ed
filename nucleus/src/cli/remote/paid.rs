//! How a job elsewhere is paid: by this home's account there, or by a channel that is open for as long as
//! the job takes.

#![allow(clippy::indexing_slicing, reason = "a field that is not in a JSON value reads as null")]

use anyhow::Context as _;
use cell_abi::NanoAtp;
use cell_channel::ChannelError;
use cell_host::price;
use clap::Args;
use serde_json::Value;

use super::interrupt::Interrupts;
use crate::cli::channel::{Money, Paying, Purse, Settled};
use crate::cli::{Exit, Failure};
use crate::home::Home;
use crate::peers::Machine;
use crate::signals::Hearing;

/// The least that is agreed to at a time, in nano-ATP: a machine does not work for less than it costs to ask.
const SLICE_NANO_MIN: u64 = 10_000_000;

/// The most slices that a budget comes in: machines take no vouchers for less.
pub(super) const SLICES_MAX: u64 = 4000;

/// With what a job elsewhere is paid.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Pay {
    /// Pay by a channel on a ledger that both accept: `here`, or a peer that keeps it.
    #[arg(long = "pay-by", value_name = "LEDGER", requires = "on")]
    ledger: Option<String>,
    /// The most of it that is at stake at a time, in ATP. Default: a tenth of the budget; a 4,000th at least.
    #[arg(long, value_name = "ATP", requires = "ledger", value_parser = NanoAtp::parse_atp)]
    slice: Option<NanoAtp>,
    #[arg(skip)]
    pub(super) interrupts: Interrupts,
}

impl Pay {
    /// From now on Ctrl-C ends the work and pays for it, where a channel does.
    pub(super) fn hear_interrupts(&self) -> anyhow::Result<Option<Hearing>> {
        self.ledger.as_ref().map(|_| self.interrupts.hear()).transpose()
    }

    /// A channel over the budget and what compiling costs, whose bills are paid from here on; `None` where
    /// the account there pays.
    pub(super) fn open(
        &self,
        home: &Home,
        machine: &Machine,
        budget_nano: u64,
        wasm: &[u8],
    ) -> anyhow::Result<Option<Paying>> {
        let Some(ledger) = &self.ledger else { return Ok(None) };
        let (compile, budget) = (compiling(wasm), NanoAtp(budget_nano));
        let deposit = budget.checked_add(compile).context("such a budget cannot be")?;
        // What compiling costs is known before, and due at once.
        let least = SLICE_NANO_MIN.max(budget_nano / SLICES_MAX);
        let slice = self.slice.unwrap_or(NanoAtp(budget_nano / 10)).max(NanoAtp(least));
        let slice = slice.checked_add(compile).context("such a slice cannot be")?;
        let money = Money::open(home, machine, Purse { ledger, deposit, slice });
        money.context("open a channel")?.pay().map(Some)
    }
}

/// What the bill of a channel has to be.
pub(super) enum Due<'a> {
    /// The line was lost; what was done until then cannot be known here.
    Unknown,
    /// As the receipt says, which is of this job.
    Receipt(&'a Value),
    /// Nothing ran, so no more than compiling.
    Compiling,
    /// What came is not of this job.
    Nothing(String),
}

/// Closes the channel, if its bill is what is due.
pub(super) fn settle(paying: Paying, due: &Due<'_>, wasm: &[u8]) -> anyhow::Result<Settled> {
    let is_right = |charge: NanoAtp| match due {
        Due::Unknown => Ok(()),
        Due::Receipt(receipt) => {
            let part = |field: &str| receipt[field].as_u64().unwrap_or(u64::MAX);
            let compiled = part("compile_fuel");
            if compiled > compiling(wasm).0 {
                return Err("compiling is billed above its price".into());
            }
            match charge.0.checked_sub(compiled) == Some(part("charge_nano_atp")) {
                true => Ok(()),
                false => Err(format!(
                    "the channel is billed {charge} ATP, and the receipt says another sum"
                )),
            }
        }
        Due::Compiling if charge <= compiling(wasm) => Ok(()),
        Due::Compiling => {
            Err(format!("the channel is billed {charge} ATP for a job that did not run"))
        }
        Due::Nothing(why) => Err(why.clone()),
    };
    paying.end(is_right)
}

/// Whether a channel was not settled because what the machine signed or billed is wrong.
pub(super) fn is_cheat(error: &anyhow::Error) -> bool {
    let is_fault = |failure: &Failure| failure.exit == Exit::NucleusFault;
    error.downcast_ref::<Failure>().is_some_and(is_fault)
        || error.downcast_ref::<ChannelError>().is_some()
}

fn compiling(wasm: &[u8]) -> NanoAtp {
    NanoAtp(price::compile(wasm.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An honest machine must not lose its name because a ledger was away.
    #[test]
    fn what_is_a_cheat() {
        #[track_caller]
        fn check(error: anyhow::Error, expect: bool) {
            assert_eq!(is_cheat(&error), expect);
            assert_eq!(is_cheat(&error.context("settle the channel")), expect);
        }
        check(Failure::new(Exit::NucleusFault, "billed another sum").into(), true);
        check(ChannelError::DoesNotFollow("charge").into(), true);
        check(Failure::new(Exit::Refused, "the ledger: the channel's time is over").into(), false);
        check(anyhow::anyhow!("the ledger does not answer"), false);
    }
}
