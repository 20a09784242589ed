//! A job on one machine after another, until one has run it and is believed.
//!
//! Each attempt has an equal part of the budget. What a machine may have charged before its line was lost
//! is counted as spent, so that all attempts together never cost more than the budget.

use super::attempt::{Attempt, Work};
use super::check::{self, Check};
use super::choose::Candidate;
use super::results::{self, Receipts};
use crate::cli::{Exit, Failure};
use crate::reputation::{Found, Reputation};

/// Attempts of one job that may be charged.
pub(super) const TRIES_MAX: u32 = 8;

/// Has the first of these machines that can run it, or the next one.
pub(super) fn run(
    work: &Work<'_>,
    candidates: &[Candidate],
    (tries, check): (u32, Check),
    receipts: Receipts<'_>,
) -> anyhow::Result<Exit> {
    let tries = tries.min(u32::try_from(candidates.len()).unwrap_or(u32::MAX)).max(1);
    let budget = work.spec.budget_nano_atp / u64::from(tries);
    let (mut left, mut last) = (tries, None);
    for machine in candidates {
        if left == 0 {
            break;
        }
        let name = &machine.name;
        let note =
            |found: Found| Reputation::note(work.home, &[(machine.machine.peer, None, found)]);
        let (exit, why) = match work.attempt(machine, budget) {
            Attempt::Ran(ran) => match check::decide(work, &ran, check)? {
                None => {
                    if ran.is_out_of_fuel() && tries > 1 {
                        let text = format!(
                            "each of {tries} tries has an equal part of the budget; --tries 1 gives it all to one"
                        );
                        work.output.note(&text);
                    }
                    return results::show(work, &ran, &[], receipts);
                }
                Some(why) => (Exit::NucleusFault, why),
            },
            Attempt::NotRun { exit, why } => {
                work.output.note(&format!("{name} does not run it: {why}"));
                last = Some((exit, format!("{name}: {why}")));
                continue;
            }
            Attempt::GivenUp(failure) => return Err(failure.into()),
            Attempt::Lost(why) => {
                note(Found::Lost(why.clone()))?;
                (Exit::NucleusFault, why)
            }
            Attempt::Wrong(why) => {
                note(Found::Invalid(why.clone()))?;
                (Exit::NucleusFault, why)
            }
        };
        work.output.note(&format!("{name}: {why}"));
        last = Some((exit, format!("{name}: {why}")));
        left -= 1;
    }
    Err(failure(last, left))
}

/// Why nobody ran it.
fn failure(last: Option<(Exit, String)>, left: u32) -> anyhow::Error {
    let Some((exit, why)) = last else {
        let message = "there is no machine to ask; see `cell peer list` and `cell peer find`";
        return Failure::new(Exit::Failed, message).into();
    };
    let what = match left {
        0 => "no try is left; see --tries",
        _ => "no other machine is left",
    };
    Failure::new(exit, format!("{why}; {what}")).into()
}
