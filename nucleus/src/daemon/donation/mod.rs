//! A machine that is lent: other machines are served only while `cell donate` runs and the owner's rules allow
//! it. What runs for them is frozen while they do not, and ended when the lending ends.
//!
//! The rules themselves are in `cell_donor`; nothing here knows what a program or a temperature is.

mod guests;
mod watch;

use std::mem::{Discriminant, discriminant};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cell_donor::{Decision, Reason, Settings};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::control::Answer;
use super::{Event, Nucleus};
use crate::processes::{Process, guests_of, peer_jobs};
use guests::Frozen;
use watch::Watch;

pub(crate) use watch::Seen;

/// How long `cell donate` may not be heard of, and the machine not be looked at.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long work may take to end when the lending ends.
pub(super) const END_TIME_MAX: Duration = Duration::from_millis(500);

/// What is asked of a nucleus about its lending.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Donating {
    /// Lend the machine for as long as this process says so.
    Start {
        by: u32,
    },
    /// It still says so.
    Renew {
        by: u32,
    },
    Status,
    Pause,
    Resume,
    /// End what runs for others, and start nothing more.
    Stop,
}

/// How the lending goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DonationRow {
    /// `working`, `paused`, or `off` where the machine is not lent.
    pub(crate) state: String,
    /// Why it is paused.
    pub(crate) reason: Option<String>,
    /// The process of `cell donate`.
    pub(crate) by: Option<u32>,
    /// Since when the machine is lent, in milliseconds since 1970.
    pub(crate) since_ms: Option<u64>,
    /// Where others reach it.
    pub(crate) listens: Option<String>,
    /// Jobs of other machines.
    pub(crate) jobs: usize,
    /// Other machines whose calls run.
    pub(crate) callers: usize,
    /// Whether what runs for others is frozen.
    pub(crate) frozen: bool,
    /// The processes that run it.
    pub(crate) guests: Vec<Process>,
}

/// Whether and how this machine is lent.
pub(super) struct Donation {
    settings: Settings,
    events: Sender<Event>,
    lent: Option<Lent>,
    /// From the first time on it serves others only while it is lent.
    was_lent: bool,
    frozen: Frozen,
    /// What was told to end, and when it is killed; soonest first.
    ending: Vec<(Instant, Process)>,
    /// The same of workers of callers, which end at every pause.
    callers_ending: Vec<(Instant, Process)>,
}

struct Lent {
    by: u32,
    since_ms: u64,
    heard: Instant,
    seen: Instant,
    /// Nothing yet before the first look.
    decision: Option<Decision>,
    watch: Watch,
}

impl Donation {
    pub(super) const fn new(settings: Settings, events: Sender<Event>) -> Self {
        let frozen = Frozen::new();
        Self {
            settings,
            events,
            lent: None,
            was_lent: false,
            frozen,
            ending: Vec::new(),
            callers_ending: Vec::new(),
        }
    }

    /// Whether `cell donate` has others' programs run here, whatever the settings say of peers' jobs.
    pub(super) const fn is_lent(&self) -> bool {
        self.lent.is_some()
    }

    /// Whether other machines are served now; what they are told otherwise names no rule.
    pub(super) fn serves(&self) -> Result<(), String> {
        let why = match &self.lent {
            None if !self.was_lent => return Ok(()),
            // It may have hung meanwhile, with requests of others waiting in line.
            Some(lent) if lent.heard.elapsed() > SILENCE_MAX => "is not lent any more",
            Some(lent) if lent.decision == Some(Decision::Work) => return Ok(()),
            Some(_) => "is paused by its owner's rules",
            None => "is not lent at the moment",
        };
        Err(format!("this machine {why}; try again later"))
    }

    /// How long an event may be waited for: what is to be killed is killed in time.
    pub(super) fn wait(&self, most: Duration) -> Duration {
        let at = self.ending.first().map(|(at, _)| *at);
        let left = at.map(|at| at.saturating_duration_since(Instant::now()));
        left.map_or(most, |left| left.min(most))
    }
}

impl Nucleus {
    /// Answers `cell donate`.
    pub(super) fn donate(&mut self, asked: &Donating) -> Answer {
        match asked {
            Donating::Start { by } => {
                if let Err(why) = self.lend(*by) {
                    return Answer::Failed(why);
                }
            }
            Donating::Renew { by } => {
                if let Some(lent) = self.donation.lent.as_mut().filter(|lent| lent.by == *by) {
                    lent.heard = Instant::now();
                }
            }
            Donating::Pause | Donating::Resume => {
                let Some(lent) = &self.donation.lent else {
                    return Answer::Failed("this machine is not lent".into());
                };
                lent.watch.pause(matches!(asked, Donating::Pause));
            }
            Donating::Stop => return Answer::Donation(self.end_lending()),
            Donating::Status => {}
        }
        Answer::Donation(self.donation_row())
    }

    fn lend(&mut self, by: u32) -> Result<(), String> {
        if self.gateway.as_ref().is_none_or(|gateway| gateway.reached().is_none()) {
            return Err("no other machine can reach the nucleus: it read nucleus.toml before it said where; \
                        type `cell down`, then `cell donate`".into());
        }
        if let Some(Lent { by, .. }) = self.donation.lent {
            return Err(format!(
                "this machine is lent already, by process {by}; `cell donate stop` ends that"
            ));
        }
        let (settings, events) = (self.donation.settings.clone(), self.donation.events.clone());
        let (memory_mb, disk_mb) = (settings.memory_mb_max, settings.disk_mb_max);
        let bandwidth_kb_s = settings.bandwidth_kb_s_max;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since_ms = u64::try_from(since.as_millis()).unwrap_or_default();
        let watch = Watch::start(settings, self.home.root(), (by, since_ms), events)
            .map_err(|error| format!("this machine cannot be watched: {error}"))?;
        let now = Instant::now();
        let lent = Lent { by, since_ms, heard: now, seen: now, decision: None, watch };
        self.jobs.lend(memory_mb, disk_mb);
        if let Some(gateway) = &mut self.gateway {
            gateway.lend(bandwidth_kb_s);
        }
        (self.donation.lent, self.donation.was_lent) = (Some(lent), true);
        tracing::info!(by, "this machine is lent");
        Ok(())
    }

    /// Takes what was seen of the machine, and has the guests follow.
    pub(super) fn donor_saw(&mut self, seen: Seen) {
        let Some(lent) = &mut self.donation.lent else { return };
        // One of an earlier lending has no say in this one.
        if seen.since_ms != lent.since_ms {
            return;
        }
        lent.seen = Instant::now();
        if lent.decision.as_ref().map(kind) != Some(kind(&seen.decision)) {
            tracing::info!("lent: {}", seen.decision);
        }
        lent.decision = Some(seen.decision.clone());
        let guests = self.guests();
        if self.donation.ending.is_empty() {
            guests::stand_back(&guests, self.donation.settings.cores_max);
        }
        if seen.decision == Decision::Work || !self.donation.ending.is_empty() {
            self.donation.frozen.thaw();
        } else if seen.is_short {
            self.end_work();
        } else {
            self.pause_work();
        }
    }

    /// Freezes jobs. Calls end: one that stood still could keep its cell's state from the owner's own calls.
    fn pause_work(&mut self) {
        self.donation.frozen.freeze(&jobs());
        let at = Instant::now() + END_TIME_MAX;
        for caller in self.workers.of_peers() {
            if !self.donation.callers_ending.iter().any(|(_, told)| *told == caller) {
                self.donation.callers_ending.push((at, caller));
            }
        }
        self.workers.end_peers();
    }

    /// Ends what runs for others: it is paid up to here.
    pub(super) fn end_lending(&mut self) -> DonationRow {
        if let Some(lent) = self.donation.lent.take() {
            tracing::info!(by = lent.by, "this machine is not lent any more");
            self.end_work();
            if let Some(gateway) = &mut self.gateway {
                gateway.lend(None);
            }
        }
        self.donation_row()
    }

    fn end_work(&mut self) {
        self.donation.frozen.thaw();
        let guests = self.guests();
        // Who was told already is not hurt by that.
        self.jobs.end_jobs();
        self.workers.end_peers();
        guests::stand_up(&guests, &peer_jobs(std::process::id()));
        let at = Instant::now() + END_TIME_MAX;
        for guest in guests {
            if !self.donation.ending.iter().any(|(_, told)| *told == guest) {
                self.donation.ending.push((at, guest));
            }
        }
    }

    /// Kills what was told to end and did not; and goes by silence where nothing is heard or seen any more.
    pub(super) fn lending_tick(&mut self) {
        if let Some(lent) = &mut self.donation.lent {
            if lent.heard.elapsed() > SILENCE_MAX {
                tracing::warn!(by = lent.by, "nothing is heard of who lends this machine");
                self.end_lending();
            } else if lent.seen.elapsed() > SILENCE_MAX && lent.decision.take().is_some() {
                tracing::warn!("this machine cannot be looked at; what runs for others waits");
                self.pause_work();
            }
        }
        kill_late(&mut self.donation.ending);
        kill_late(&mut self.donation.callers_ending);
    }

    /// The processes that run guests of other machines.
    fn guests(&self) -> Vec<Process> {
        jobs().into_iter().chain(self.workers.of_peers()).collect()
    }

    fn donation_row(&mut self) -> DonationRow {
        let (state, reason) = match &self.donation.lent {
            None => ("off", None),
            Some(Lent { decision: None, .. }) => {
                ("paused", Some("the machine is looked at".into()))
            }
            Some(Lent { decision: Some(Decision::Work), .. }) => ("working", None),
            Some(Lent { decision: Some(Decision::Pause(why)), .. }) => {
                ("paused", Some(why.to_string()))
            }
        };
        let lent = self.donation.lent.as_ref();
        DonationRow {
            state: state.into(),
            reason,
            by: lent.map(|lent| lent.by),
            since_ms: lent.map(|lent| lent.since_ms),
            listens: self.gateway.as_ref().and_then(super::gateway::Gateway::reached),
            jobs: self.jobs.count(),
            callers: self.workers.of_peers().len(),
            frozen: !self.donation.frozen.is_empty(),
            guests: self.guests(),
        }
    }
}

/// The processes that run jobs of other machines.
fn jobs() -> Vec<Process> {
    peer_jobs(std::process::id()).into_iter().flat_map(guests_of).collect()
}

/// Kills those whose time to end is over, and forgets those that have ended.
fn kill_late(ending: &mut Vec<(Instant, Process)>) {
    let now = Instant::now();
    ending.retain(|(at, guest)| {
        let runs = guest.is_alive();
        if runs && *at <= now {
            tracing::warn!(pid = guest.pid, "work for others does not end; it is killed");
            // What pays for a job is left alone: it sees the end, and gives back what was set aside.
            guest.signal(Signal::KILL);
        }
        runs && *at > now
    });
}

/// A decision without its figures, which change all the time.
fn kind(decision: &Decision) -> Option<Discriminant<Reason>> {
    match decision {
        Decision::Work => None,
        Decision::Pause(reason) => Some(discriminant(reason)),
    }
}
