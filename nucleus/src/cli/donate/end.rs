//! The end of a lending. The nucleus ends what runs for others; where it does not answer, this does.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;

use super::told;
use crate::cli::{Exit, Failure};
use crate::daemon::donation::{Donating, DonationRow};
use crate::home::Home;
use crate::processes::{Process, guests_of, peer_jobs};

/// How long the nucleus may take to answer before its jobs are told to end without it: they pay by themselves.
pub(in crate::cli) const ANSWER_TIME_MAX: Duration = Duration::from_millis(250);
/// How long what runs for others may run on before it is killed from here.
pub(in crate::cli) const RUN_ON_TIME_MAX: Duration = Duration::from_millis(700);
/// How long jobs may take to pay when the nucleus does not answer.
pub(in crate::cli) const PAY_TIME_MAX: Duration = Duration::from_secs(3);
/// How long what was killed may take to be gone.
const GONE_TIME: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How the lending ended.
#[derive(Debug, Serialize)]
pub(super) struct Ended {
    /// How long something ran for others after it was to end, in milliseconds.
    stopped_ms: u64,
    /// Processes that were killed from here.
    killed: usize,
    pub(super) nucleus_answered: bool,
}

impl Ended {
    pub(super) fn text(&self) -> String {
        let mut text =
            format!("stopped: nothing runs for others any more, after {} ms", self.stopped_ms);
        if !self.nucleus_answered {
            text += "; the nucleus does not answer, and refuses others when it goes on";
        }
        text
    }
}

/// Ends it, and returns when no guest of others runs any more. `known` are guests that the nucleus told of.
pub(super) fn end(home: &Home, known: Vec<Process>) -> anyhow::Result<Ended> {
    let started = Instant::now();
    let answer = ask_to_stop(home.clone())?;
    let nucleus = home.lock_holder().parse::<u32>().ok();
    let mut guests: BTreeSet<Process> = known.into_iter().collect();
    let (mut answered, mut were_told, mut killed) = (false, false, BTreeSet::new());
    loop {
        if let Ok(row) = answer.try_recv() {
            answered = true;
            guests.extend(row.into_iter().flat_map(|row| row.guests));
        }
        let now = started.elapsed();
        if !answered && !were_told && now > ANSWER_TIME_MAX {
            were_told = true;
            guests.extend(tell_jobs(nucleus));
        }
        guests.retain(|guest| guest.is_alive());
        if guests.is_empty() && (answered || now > RUN_ON_TIME_MAX) {
            break;
        }
        if now > RUN_ON_TIME_MAX {
            guests.extend(nucleus.into_iter().flat_map(peer_jobs).flat_map(guests_of));
            guests.iter().for_each(|guest| guest.signal(Signal::KILL));
            killed.extend(guests.iter().copied());
        }
        if now > GONE_TIME {
            let message = format!("{} processes of others' work cannot be ended", guests.len());
            return Err(Failure::new(Exit::Failed, message).into());
        }
        thread::sleep(LOOK_EVERY);
    }
    let stopped_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if !answered {
        // They have the ledger, and may be paying.
        let jobs = nucleus.map(peer_jobs).unwrap_or_default();
        while jobs.iter().any(|job| job.is_alive()) && started.elapsed() < PAY_TIME_MAX {
            thread::sleep(LOOK_EVERY);
        }
    }
    Ok(Ended { stopped_ms, killed: killed.len(), nucleus_answered: answered })
}

/// Asks on a thread of its own, for a nucleus may hang.
fn ask_to_stop(home: Home) -> anyhow::Result<Receiver<Option<DonationRow>>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("stop".into()).spawn(move || {
        // An error is no answer.
        if let Ok(row) = told(&home, Donating::Stop) {
            let _ = sender.send(row);
        }
    })?;
    Ok(receiver)
}

/// Has every job of others below this nucleus end and pay; returns what runs their programs.
fn tell_jobs(nucleus: Option<u32>) -> Vec<Process> {
    let mut guests = Vec::new();
    for job in nucleus.map(peer_jobs).unwrap_or_default() {
        let of_job = guests_of(job);
        of_job.iter().for_each(|guest| guest.signal(Signal::CONT));
        job.signal(Signal::TERM);
        guests.extend(of_job);
    }
    guests
}
