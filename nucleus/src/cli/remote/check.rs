//! Whether to believe a machine: running its job again here, from its receipt, and keeping what was found.

#![allow(clippy::indexing_slicing, reason = "a field that is not in a JSON value reads as null")]

use clap::ValueEnum;

use super::attempt::{Ran, Work, line};
use crate::cli::verify;
use crate::home::random;
use crate::reputation::{Found, PROVEN_AFTER, Reputation, is_due};

/// When a result is checked by running the job again here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// Always, until a machine was right ten times in a row; then less often, the longer it is.
    Adaptive,
    /// Every time.
    Always,
    /// Never.
    Never,
}

/// What running it again showed.
pub(super) enum Verdict {
    Valid,
    /// The machine's own signature is under something else.
    Invalid(String),
    NotCheckable(String),
}

/// Runs a job again.
pub(super) fn again(work: &Work<'_>, ran: &Ran) -> Verdict {
    let read = ran.receipt["stdin_bytes"].as_u64().unwrap_or(0);
    let (given, _) = work.input.hash(0);
    if read < given as u64 {
        // Its tape says that it saw no more; whether it was shown no more is not to be seen.
        return Verdict::NotCheckable(format!("it read {read} of {given} bytes of its input"));
    }
    let bar = work.output.progress(format!("running it again, as {} says", ran.machine.name));
    let findings = verify::job_again(work.home, work.wasm, &ran.receipt, work.output);
    bar.finish_and_clear();
    match findings {
        Ok(findings) if !findings.differences.is_empty() => {
            Verdict::Invalid(line(&findings.differences.join("; ")))
        }
        Ok(findings) if !findings.not_checkable.is_empty() => {
            Verdict::NotCheckable(line(&findings.not_checkable.join("; ")))
        }
        Ok(_) => Verdict::Valid,
        Err(error) => Verdict::NotCheckable(line(&format!("{error:#}"))),
    }
}

/// Decides on one machine's word alone: checks it if that is due, and keeps what was found. Why it is not
/// believed, if it is not.
pub(super) fn decide(work: &Work<'_>, ran: &Ran, check: Check) -> anyhow::Result<Option<String>> {
    let key = ran.machine.machine.peer;
    let reputation = Reputation::read(work.home)?;
    let standing = reputation.of(&key.to_string());
    let valid = ran.engine.and_then(|engine| Some(standing?.valid(engine))).unwrap_or(0);
    let is_checked = match check {
        Check::Always => true,
        Check::Never => false,
        Check::Adaptive => is_due(valid, u64::from_le_bytes(random()?)),
    };
    let verdict = is_checked.then(|| again(work, ran));
    let (found, why) = match verdict {
        None => (Found::Unchecked, None),
        Some(Verdict::Valid) => (Found::Valid, None),
        Some(Verdict::Invalid(why)) => {
            let why = format!("its result is wrong: {why}");
            (Found::Proven(why.clone()), Some(why))
        }
        // A machine that was right often enough is believed without a check as well.
        Some(Verdict::NotCheckable(why)) if check == Check::Adaptive && valid >= PROVEN_AFTER => {
            work.output.note(&format!("not checked: {why}"));
            (Found::Unchecked, None)
        }
        Some(Verdict::NotCheckable(why)) => {
            let why = format!("it cannot be checked: {why}; --check never takes it as it is");
            (Found::Unchecked, Some(why))
        }
    };
    Reputation::note(work.home, &[(key, ran.engine, found)])?;
    Ok(why)
}
