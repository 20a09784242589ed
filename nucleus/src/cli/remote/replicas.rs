//! A job on several machines at once, whose results are compared.
//!
//! Machines that agree are believed; one that says something else than they do starts from nothing. What
//! depends on a clock or on randomness differs without anybody lying, and is not for this.

use std::sync::{Mutex, PoisonError};
use std::thread;

use super::attempt::{Attempt, Ran, Work};
use super::check::{self, Check, Verdict};
use super::choose::Candidate;
use super::results::{self, Receipts};
use crate::cli::{Exit, Failure};
use crate::reputation::{Found, Reputation};

/// Machines that run one job at once.
pub(super) const REPLICAS_MAX: u32 = 8;

/// How many are to run it, and how many must agree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) replicas: u32,
    pub(super) quorum: u32,
}

impl Wanted {
    /// More than half, so that only one result can have so many.
    pub(super) fn new(replicas: u32, quorum: Option<u32>) -> anyhow::Result<Self> {
        let quorum = quorum.unwrap_or(replicas / 2 + 1);
        if quorum > replicas || quorum <= replicas / 2 {
            let least = replicas / 2 + 1;
            let message = format!("--quorum is {least} to {replicas} of {replicas} replicas");
            return Err(Failure::new(Exit::Usage, message).into());
        }
        Ok(Self { replicas, quorum })
    }
}

/// Has so many of these machines run it, each for an equal part of the budget.
pub(super) fn run(
    work: &Work<'_>,
    candidates: &[Candidate],
    (wanted, check): (Wanted, Check),
    receipts: Receipts<'_>,
) -> anyhow::Result<Exit> {
    let Wanted { replicas, quorum } = wanted;
    if candidates.len() < quorum as usize {
        let message = format!("{quorum} machines are needed, and there are {}", candidates.len());
        return Err(Failure::new(Exit::Failed, message).into());
    }
    let bar = work.output.progress(format!("running on {replicas} machines"));
    let ran = run_at_once(work, candidates, replicas)?;
    bar.finish_and_clear();
    let agreed = largest(&ran);
    let is_disputed = agreed.len() < quorum as usize;
    if agreed.len() < ran.len() {
        work.output.note("the machines do not agree:");
        ran.iter().for_each(|ran| work.output.note(&ran.told()));
    }
    let verdicts: Vec<_> = match check {
        Check::Always => ran.iter().map(|ran| Some(check::again(work, ran))).collect(),
        Check::Adaptive if is_disputed => {
            ran.iter().map(|ran| Some(check::again(work, ran))).collect()
        }
        _ => ran.iter().map(|_| None).collect(),
    };
    let believed = believe(&ran, &verdicts, (!is_disputed).then_some(agreed));
    let found = judge(&ran, &verdicts, believed.as_deref());
    for (ran, (_, _, found)) in ran.iter().zip(&found) {
        if let Found::Invalid(why) | Found::Proven(why) = found {
            work.output.note(&format!("{}: {why}", ran.machine.name));
        }
    }
    Reputation::note(work.home, &found)?;
    let first = believed.as_ref().and_then(|believed| ran.get(*believed.first()?));
    let Some(first) = first else {
        let message = format!(
            "{} machines ran it, and no {quorum} of them agree; nothing is shown",
            ran.len()
        );
        return Err(Failure::new(Exit::NucleusFault, message).into());
    };
    let others: Vec<_> = ran.iter().filter(|ran| !std::ptr::eq(*ran, first)).collect();
    results::show(work, first, &others, receipts)
}

/// Those that ran it, in the order in which they were chosen. A machine that does not is replaced by the next;
/// one that is lost is not, for its part of the budget is.
fn run_at_once(
    work: &Work<'_>,
    candidates: &[Candidate],
    replicas: u32,
) -> anyhow::Result<Vec<Ran>> {
    let budget = work.spec.budget_nano_atp / u64::from(replicas);
    let (left, told) = (Mutex::new(candidates.iter().enumerate()), Mutex::new(Vec::new()));
    let one = || {
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, machine)) = next else { return };
            let attempt = work.attempt(machine, budget);
            let is_over = !matches!(attempt, Attempt::NotRun { .. });
            told.lock().unwrap_or_else(PoisonError::into_inner).push((at, machine, attempt));
            if is_over {
                return;
            }
        }
    };
    thread::scope(|scope| {
        (0..replicas).for_each(|_| drop(scope.spawn(one)));
    });
    let mut told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
    told.sort_by_key(|(at, ..)| *at);
    let (mut ran, mut found) = (Vec::new(), Vec::new());
    for (_, machine, attempt) in told {
        let name = &machine.name;
        let mut note = |what: Found| found.push((machine.machine.peer, None, what));
        match attempt {
            Attempt::Ran(one) => ran.push(*one),
            Attempt::GivenUp(failure) => return Err(failure.into()),
            Attempt::NotRun { why, .. } => {
                work.output.note(&format!("{name} does not run it: {why}"));
            }
            Attempt::Lost(why) => {
                work.output.note(&format!("{name}: {why}"));
                note(Found::Lost(why));
            }
            Attempt::Wrong(why) => {
                work.output.note(&format!("{name}: {why}"));
                note(Found::Invalid(why));
            }
        }
    }
    Reputation::note(work.home, &found)?;
    Ok(ran)
}

/// The largest group that agrees, by place; of equals the first.
fn largest(ran: &[Ran]) -> Vec<usize> {
    let group = |one: &Ran| -> Vec<usize> {
        let same = ran.iter().enumerate().filter(|(_, other)| other.result() == one.result());
        same.map(|(at, _)| at).collect()
    };
    ran.iter().map(group).rev().max_by_key(Vec::len).unwrap_or_default()
}

/// Whom to believe: those that agree, unless running it again shows that they are wrong; where too few agree,
/// those whom that shows to be right.
fn believe(
    ran: &[Ran],
    verdicts: &[Option<Verdict>],
    agreed: Option<Vec<usize>>,
) -> Option<Vec<usize>> {
    let is_wrong = |at: &usize| matches!(verdicts.get(*at), Some(Some(Verdict::Invalid(_))));
    if let Some(agreed) = agreed.filter(|agreed| !agreed.iter().any(is_wrong)) {
        return Some(agreed);
    }
    let right = verdicts.iter().position(|verdict| matches!(verdict, Some(Verdict::Valid)))?;
    let right = ran.get(right)?;
    let same = ran.iter().enumerate().filter(|(_, other)| other.result() == right.result());
    Some(same.map(|(at, _)| at).filter(|at| !is_wrong(at)).collect())
}

type Note = (cell_abi::AccountId, Option<cell_abi::EngineId>, Found);

/// What is kept of each.
fn judge(ran: &[Ran], verdicts: &[Option<Verdict>], believed: Option<&[usize]>) -> Vec<Note> {
    let one = |((at, ran), verdict): ((usize, &Ran), &Option<Verdict>)| {
        let found = match (verdict, believed) {
            (Some(Verdict::Invalid(why)), _) => {
                Found::Proven(format!("its result is wrong: {why}"))
            }
            (Some(Verdict::Valid), _) => Found::Valid,
            (_, Some(believed)) if believed.contains(&at) => Found::Valid,
            (_, Some(_)) => Found::Invalid("its result is not that of the others".into()),
            (_, None) => Found::Unchecked,
        };
        (ran.machine.machine.peer, ran.engine, found)
    };
    ran.iter().enumerate().zip(verdicts).map(one).collect()
}

#[cfg(test)]
#[path = "replicas_tests.rs"]
mod tests;
