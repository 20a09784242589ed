//! Cells that other machines run: a connection to each of those machines, and calls over it.
//!
//! This process has no network. The nucleus reaches a machine when it is first needed and hands its socket
//! over; which cells are elsewhere, and where, it says too. What such a call costs is what the machine says,
//! up to the call's limit.

pub(super) mod choice;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cell_abi::{CellName, Fuel, Status};
use cell_client::tokio::Client;
use cell_client::{CallOptions, Config, Error, RawSlot};
use cell_host::{Asking, RemoteCall, RemoteCell, RemoteReply};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::cells::{Entry, lock};
use crate::link::{FromWorker, Link, LoadElsewhere};
use choice::{Record, choose};

/// How long a connection is kept that nobody uses.
const LINE_IDLE: Duration = Duration::from_secs(60);
/// How long a machine may leave a call unanswered before it is asked whether it is there, and how long it may
/// take to say so, or to open a receptor.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Receptors that are kept open on one connection: less than a machine allows.
pub(super) const OPEN_MAX: usize = 200;

/// A cell of other machines.
#[derive(Debug)]
pub(super) struct Elsewhere {
    name: CellName,
    generation: u64,
    link: Arc<Link>,
    runtime: Handle,
    machines: Vec<Machine>,
    /// How each fared.
    records: Mutex<Vec<Record>>,
    retired: AtomicBool,
}

#[derive(Debug)]
struct Machine {
    /// What the cell's manifest calls it.
    named: String,
    line: Mutex<Line>,
    changed: Notify,
}

#[derive(Debug)]
enum Line {
    Down,
    /// The nucleus was asked for it.
    Asked,
    Up(Arc<Lane>),
    /// Why there was none.
    Refused(String),
}

/// A connection to the cell on one machine.
#[derive(Debug)]
struct Lane {
    client: Client,
    /// The receptors that were opened there: few, as a rule.
    slots: Mutex<Vec<Opened>>,
    /// Held while one is opened: who comes meanwhile wants the same one, most likely.
    opening: tokio::sync::Mutex<()>,
    used: Mutex<Instant>,
}

/// A receptor that was opened, as a cell that calls it knows it.
#[derive(Debug)]
struct Opened {
    receptor: String,
    schema: String,
    slot: RawSlot,
}

/// What asking one machine came to.
enum Asked {
    /// It answered, or nobody knows whether it did what it was asked.
    Settled(RemoteReply),
    /// It certainly did nothing; another one may.
    Refused(RemoteReply),
}

impl Elsewhere {
    pub(super) fn new(
        name: CellName,
        load: &LoadElsewhere,
        link: Arc<Link>,
        runtime: Handle,
    ) -> Self {
        let machine = |named: &String| Machine {
            named: named.clone(),
            line: Mutex::new(Line::Down),
            changed: Notify::new(),
        };
        Self {
            name,
            generation: load.generation,
            link,
            runtime,
            machines: load.machines.iter().map(machine).collect(),
            records: Mutex::new(vec![Record::default(); load.machines.len()]),
            retired: AtomicBool::new(false),
        }
    }

    /// Takes the socket that the nucleus was asked for, or why there is none.
    pub(super) fn reached(&self, generation: u64, at: u32, socket: Result<OwnedFd, String>) {
        let machine = usize::try_from(at).ok().and_then(|at| self.machines.get(at));
        let Some(machine) = machine.filter(|_| generation == self.generation) else { return };
        let client = socket.and_then(|socket| {
            let _runtime = self.runtime.enter();
            Client::from_stream(socket.into(), self.name.as_str(), Config::default())
                .map_err(|error| error.to_string())
        });
        machine.set(match client {
            Ok(client) => Line::Up(Arc::new(Lane {
                client,
                slots: Mutex::default(),
                opening: tokio::sync::Mutex::default(),
                used: Mutex::new(Instant::now()),
            })),
            Err(why) => Line::Refused(why),
        });
    }

    /// It is not called any more: who waits for a connection is told, and those that are there are closed
    /// when the calls on them have ended.
    pub(super) fn retire(&self) {
        self.retired.store(true, Relaxed);
        for machine in &self.machines {
            machine.set(Line::Refused("the cell was removed or changed".into()));
        }
    }

    /// Closes connections that nobody uses.
    pub(super) fn stop_idle(&self) {
        let now = Instant::now();
        for machine in &self.machines {
            let mut line = lock(&machine.line);
            if let Line::Up(lane) = &*line
                && Arc::strong_count(lane) == 1
                && now.saturating_duration_since(*lock(&lane.used)) >= LINE_IDLE
            {
                *line = Line::Down;
            }
        }
    }

    /// Whether there is nothing to look after.
    pub(super) fn is_asleep(&self) -> bool {
        let is_asleep = |line: &Line| matches!(line, Line::Down | Line::Refused(_));
        self.machines.iter().all(|machine| is_asleep(&lock(&machine.line)))
    }

    /// Asks one machine after another until one has settled it.
    async fn ask(&self, call: &RemoteCall<'_>) -> RemoteReply {
        let mut tried = vec![false; self.machines.len()];
        let mut refused = None;
        loop {
            let chosen = choose(&mut lock(&self.records), &tried, Instant::now());
            let Some((at, machine)) = chosen.and_then(|at| Some((at, self.machines.get(at)?)))
            else {
                return refused.unwrap_or_else(|| self.nobody());
            };
            if let Some(tried) = tried.get_mut(at) {
                *tried = true;
            }
            let mut flight = Flight::new(self, at);
            match self.ask_one(machine, &mut flight, call).await {
                Asked::Settled(reply) => return reply,
                Asked::Refused(reply) => {
                    call.refused();
                    refused = Some(reply);
                }
            }
        }
    }

    async fn ask_one(
        &self,
        machine: &Machine,
        flight: &mut Flight<'_>,
        call: &RemoteCall<'_>,
    ) -> Asked {
        let lane = match self.line(flight.at, machine).await {
            Ok(lane) => lane,
            Err(why) => {
                flight.failed();
                return Asked::Refused(machine.says(Status::Unreachable, Fuel::ZERO, &why));
            }
        };
        let slot = match lane.slot(call.receptor, call.schema).await {
            Ok(slot) => slot,
            Err(error) => {
                if !is_word_of_the_machine(&error) {
                    machine.hang_up(&lane);
                }
                return Asked::Refused(machine.refused(&error, flight));
            }
        };
        let timeout = call.deadline.saturating_duration_since(Instant::now());
        let options = CallOptions { fuel: call.fuel, timeout };
        flight.sent();
        call.sent();
        let answer = tokio::select! {
            biased;
            answer = lane.client.call_raw(&slot, &call.request, options) => answer,
            error = lane.is_silent() => Err(error),
        };
        *lock(&lane.used) = Instant::now();
        // What was opened there is not there any more, or nothing is; or one more would be too many.
        let is_over = match &answer {
            Ok(_) => false,
            Err(error) => error.status() == Some(Status::Gone) || error.status().is_none(),
        };
        if is_over || lane.is_full() {
            machine.hang_up(&lane);
        }
        match answer {
            Ok(reply) => {
                flight.answered(reply.fuel());
                let (status, fuel) = (Status::Ok, reply.fuel());
                Asked::Settled(RemoteReply { status, fuel, bytes: reply.into_bytes().to_vec() })
            }
            Err(Error::Rejected { reject, fuel }) => {
                flight.answered(fuel);
                let (status, bytes) = (Status::Rejected, reject.encode());
                Asked::Settled(RemoteReply { status, fuel, bytes })
            }
            Err(error) => machine.failed(&error, flight, call.fuel),
        }
    }

    /// The connection to a machine; asks the nucleus for one if need be.
    async fn line(&self, at: usize, machine: &Machine) -> Result<Arc<Lane>, String> {
        let mut waited = false;
        loop {
            let changed = machine.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change is missed in between.
            changed.as_mut().enable();
            {
                let mut line = lock(&machine.line);
                match &*line {
                    Line::Up(lane) if !lane.client.is_closed() => return Ok(Arc::clone(lane)),
                    Line::Refused(why) if waited || self.retired.load(Relaxed) => {
                        return Err(why.clone());
                    }
                    Line::Up(_) if waited => return Err("it hung up at once".into()),
                    Line::Asked => {}
                    Line::Down | Line::Up(_) | Line::Refused(_) => {
                        self.reach(at);
                        *line = Line::Asked;
                    }
                }
            }
            waited = true;
            changed.await;
        }
    }

    fn reach(&self, machine: usize) {
        let (cell, generation) = (self.name.as_str().to_owned(), self.generation);
        let machine = u32::try_from(machine).unwrap_or(u32::MAX);
        if self.link.send(&FromWorker::Reach { cell, generation, machine }, &[]).is_err() {
            super::nucleus_is_gone();
        }
    }

    /// What is said while every machine rests.
    fn nobody(&self) -> RemoteReply {
        let (now, records) = (Instant::now(), lock(&self.records));
        let rest = records.iter().filter_map(|record| record.rest(now)).min().unwrap_or_default();
        let why = |machine: &Machine| match &*lock(&machine.line) {
            Line::Refused(why) => format!("{}: {why}", machine.named),
            _ => format!("{}: it failed", machine.named),
        };
        let all: Vec<_> = self.machines.iter().map(why).collect();
        let again = rest.as_secs_f32();
        let text = format!("tried again in {again:.1} s: {}", all.join("; "));
        RemoteReply { status: Status::Unreachable, fuel: Fuel::ZERO, bytes: text.into_bytes() }
    }
}

impl Machine {
    fn set(&self, line: Line) {
        *lock(&self.line) = line;
        self.changed.notify_waiters();
    }

    /// Has the next call come over another connection than this one.
    fn hang_up(&self, lane: &Arc<Lane>) {
        let mut line = lock(&self.line);
        if matches!(&*line, Line::Up(now) if Arc::ptr_eq(now, lane)) {
            *line = Line::Down;
        }
    }

    fn says(&self, status: Status, fuel: Fuel, what: &str) -> RemoteReply {
        let bytes = format!("{}: {what}", self.named).into_bytes();
        RemoteReply { status, fuel, bytes }
    }

    /// A receptor that was not opened: nothing ran.
    fn refused(&self, error: &Error, flight: &mut Flight<'_>) -> RemoteReply {
        let status = match error {
            Error::SchemaMismatch { theirs, .. } => {
                let (status, bytes) = (Status::SchemaMismatch, theirs.clone().into_bytes());
                return RemoteReply { status, fuel: Fuel::ZERO, bytes };
            }
            Error::InvalidName { .. } => Status::UnknownReceptor,
            Error::Failed { status, .. } => *status,
            _ => Status::Unreachable,
        };
        // What the caller did wrong is no fault of the machine's.
        if status != Status::UnknownReceptor {
            flight.failed();
        }
        self.says(status, Fuel::ZERO, &error.to_string())
    }

    /// A call that brought no reply.
    fn failed(&self, error: &Error, flight: &mut Flight<'_>, limit: Fuel) -> Asked {
        let says = |status, fuel| self.says(status, fuel, &error.to_string());
        match error {
            Error::Failed { status, fuel, .. } => {
                let did_nothing = *fuel == Fuel::ZERO;
                match status {
                    Status::Busy
                    | Status::BackingOff
                    | Status::UnknownCell
                    | Status::HostFault
                    | Status::Unreachable
                        if did_nothing =>
                    {
                        flight.failed();
                        Asked::Refused(says(*status, *fuel))
                    }
                    // The one is the caller's own doing, and the other is over with the next call.
                    Status::OutOfAtp | Status::Gone if did_nothing => {
                        Asked::Refused(says(*status, *fuel))
                    }
                    _ => {
                        flight.answered(*fuel);
                        Asked::Settled(says(*status, *fuel))
                    }
                }
            }
            // Nobody here knows what it has burned until then.
            Error::TimedOut => Asked::Settled(says(Status::TimedOut, limit)),
            Error::RequestTooLarge { .. } => Asked::Settled(says(Status::TooLarge, Fuel::ZERO)),
            Error::ReplyTooLarge { fuel, .. } => Asked::Settled(says(Status::TooLarge, *fuel)),
            Error::InvalidReply { fuel } => Asked::Settled(says(Status::BadReply, *fuel)),
            _ => {
                flight.failed();
                let what = format!("it went away, and may have run the call: {error}");
                Asked::Settled(self.says(Status::Unreachable, Fuel::ZERO, &what))
            }
        }
    }
}

/// Whether a machine that does not open a receptor has at least said so.
const fn is_word_of_the_machine(error: &Error) -> bool {
    matches!(error, Error::Failed { .. } | Error::SchemaMismatch { .. } | Error::InvalidName { .. })
}

impl Lane {
    /// The receptor as its caller knows it, which is opened once.
    async fn slot(&self, receptor: &str, schema: &str) -> Result<RawSlot, Error> {
        let known = || {
            let slots = lock(&self.slots);
            let is_it = |opened: &&Opened| opened.receptor == receptor && opened.schema == schema;
            slots.iter().find(is_it).map(|opened| opened.slot.clone())
        };
        if let Some(slot) = known() {
            return Ok(slot);
        }
        let opened = timeout(SILENCE_MAX, async {
            let _opening = self.opening.lock().await;
            if let Some(slot) = known() {
                return Ok(slot);
            }
            let slot = match schema {
                "" => self.client.open_raw(receptor).await?,
                schema => self.client.open_schema(receptor, schema).await?,
            };
            let (receptor, schema) = (receptor.to_owned(), schema.to_owned());
            lock(&self.slots).push(Opened { receptor, schema, slot: slot.clone() });
            Ok(slot)
        });
        opened.await.map_err(|_| Error::TimedOut)?
    }

    /// Whether one more receptor is better opened on another connection.
    fn is_full(&self) -> bool {
        lock(&self.slots).len() >= OPEN_MAX
    }

    /// Ends when the machine does not say any more that it is there; while a guest runs it does.
    async fn is_silent(&self) -> Error {
        loop {
            sleep(SILENCE_MAX).await;
            match timeout(SILENCE_MAX, self.client.ping()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(_) => return Error::Disconnected { during: "as it said nothing any more" },
            }
        }
    }
}

/// A call that a machine has, or is to get.
struct Flight<'a> {
    of: &'a Elsewhere,
    at: usize,
    /// When it was sent, until it is known what came of it.
    sent: Option<Instant>,
}

impl<'a> Flight<'a> {
    fn new(of: &'a Elsewhere, at: usize) -> Self {
        let this = Self { of, at, sent: None };
        this.note(Record::began);
        this
    }

    fn sent(&mut self) {
        self.sent = Some(Instant::now());
    }

    fn answered(&mut self, fuel: Fuel) {
        if let Some(sent) = self.sent.take() {
            self.note(|record| record.answered(sent.elapsed(), fuel.0));
        }
    }

    fn failed(&mut self) {
        self.sent = None;
        self.note(|record| record.failed(Instant::now()));
    }

    fn note(&self, what: impl FnOnce(&mut Record)) {
        if let Some(record) = lock(&self.of.records).get_mut(self.at) {
            what(record);
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.note(Record::ended);
        // Given up: it would have taken longer than this. A caller that has no time must not have a machine rest.
        if let Some(sent) = self.sent.take() {
            self.note(|record| record.gave_up(sent.elapsed()));
        }
    }
}

/// Such a cell as one that calls it sees it.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) entry: Arc<Entry>,
    pub(super) elsewhere: Arc<Elsewhere>,
}

impl RemoteCell for Remote {
    fn name(&self) -> &CellName {
        &self.elsewhere.name
    }

    fn call<'a>(&'a self, call: RemoteCall<'a>) -> Asking<'a> {
        Box::pin(async move {
            let began = Instant::now();
            let reply = self.elsewhere.ask(&call).await;
            match reply.status {
                Status::Ok | Status::Rejected => self.entry.time(began, Instant::now()),
                status => self.entry.failed_elsewhere(status, &reply.bytes),
            }
            reply
        })
    }
}

#[cfg(test)]
mod tests;
