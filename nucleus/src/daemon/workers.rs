//! Starts the workers, and starts them again when they die: one for the owner's calls, which listens,
//! and one for each other user who calls.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::AccountId;
use cell_abi::Status;
use cell_abi::frame::{Header, Hello, Kind, padding};

use super::Event;
use super::artefacts::Artefacts;
use super::control::WorkerRow;
use super::state::States;
use crate::bank::{Accounts, Bank};
use crate::config::Config;
use crate::counted::Counted;
use crate::link::state::StateStream;
use crate::link::{FromWorker, Link, PEER_UID_MIN, Start, ToWorker, Totals};
use crate::processes::Process;
use crate::walls::Wall;
use crate::walls::cgroup::{self, Cgroups, Group};

/// A worker that dies sooner than this after its start is started again with a growing delay.
const STEADY: Duration = Duration::from_secs(5);
const DELAY_MIN: Duration = Duration::from_millis(50);
pub(super) const DELAY_MAX: Duration = Duration::from_secs(5);
/// Users besides the owner whose calls run at once, each in a worker of its own; the connection of
/// one more is told `Busy`.
pub(super) const FOREIGN_WORKERS_MAX: usize = 16;
/// The same, where one more would be another machine's.
pub(super) const PEER_WORKERS_MAX: usize = 12;
/// The same, where nobody has named that machine.
pub(super) const STRANGER_WORKERS_MAX: usize = 6;
/// Accounts, its own and channels, from which one machine pays for calls that run at once.
pub(super) const ACCOUNTS_PER_PEER_MAX: usize = 4;
/// The same of a machine that nobody has named.
pub(super) const ACCOUNTS_PER_STRANGER_MAX: usize = 2;
/// Connections that may wait for a user's worker to start; one more is told `Busy`.
pub(super) const CONNECTIONS_WAITING_MAX: usize = 64;

/// How long a worker may let a message to it wait before it is ended.
pub(super) const SEND_TIME_MAX: Duration = Duration::from_secs(2);
/// Bytes of messages that a worker may have sent and the nucleus not heard; one that sends more is
/// ended.
pub(super) const UNHEARD_BYTES_MAX: usize = 32 << 20;

pub(super) struct Workers {
    events: Sender<Event>,
    start: Start,
    /// The group that workers get theirs in, or why there is none.
    cgroups: Result<Cgroups, String>,
    cores_max: Option<f64>,
    states: States,
    artefacts: Artefacts,
    last_number: u64,
    running: BTreeMap<u64, Running>,
    /// The worker that serves the owner, and listens.
    listener: u64,
    delay: Duration,
    restart_at: Option<Instant>,
    /// How often a worker that listens was started after one that died.
    restarts: u64,
    /// Accounts whose worker died young, and until when theirs is not started.
    resting: HashMap<AccountId, Instant>,
    accounts: Accounts,
    /// The number that was given to a peer last.
    last_peer: u32,
    /// The machine behind each such number; one may pay from several accounts.
    machines: HashMap<u32, AccountId>,
}

struct Running {
    child: Child,
    link: Link,
    /// Its control group, or why it has none.
    group: Result<Group, String>,
    uid: u32,
    payer: AccountId,
    started: Instant,
    ready: bool,
    /// It was told to end.
    leaves: bool,
    totals: Totals,
    waiting: Vec<(String, OwnedFd)>,
}

impl Workers {
    pub(super) fn start(
        bank: &Bank,
        config: &Config,
        states: States,
        artefacts: Artefacts,
        events: Sender<Event>,
    ) -> anyhow::Result<Self> {
        let accounts = &bank.accounts;
        let start = Start {
            serves_uid: accounts.owner_uid(),
            payer: accounts.owner.to_string(),
            listens: true,
            memory_bytes_max: config.worker.memory_mb_max << 20,
            rates: config.prices.rates().0,
        };
        let mut this = Self {
            events,
            start,
            cgroups: Cgroups::take(),
            cores_max: config.worker.cores_max,
            states,
            artefacts,
            last_number: 0,
            running: BTreeMap::new(),
            listener: 0,
            delay: DELAY_MIN,
            restart_at: None,
            restarts: 0,
            resting: HashMap::new(),
            accounts: *accounts,
            last_peer: PEER_UID_MIN,
            machines: HashMap::new(),
        };
        this.listener = this.spawn(accounts.owner_uid(), accounts.owner)?;
        Ok(this)
    }

    /// The user whose calls a running worker runs; messages of earlier ones are stale.
    pub(super) fn user(&self, number: u64) -> Option<u32> {
        self.running.get(&number).map(|worker| worker.uid)
    }

    /// Whether a worker of this user runs.
    pub(super) fn has_one_of(&self, uid: u32) -> bool {
        self.running.values().any(|worker| worker.uid == uid)
    }

    /// Whether this is the worker that serves the owner, and listens.
    pub(super) const fn listens(&self, number: u64) -> bool {
        number == self.listener
    }

    /// What its control group keeps from a worker.
    pub(super) fn group_wall(&self, number: u64) -> Option<Wall> {
        let group = self.running.get(&number)?.group.as_ref();
        Some(cgroup::wall(group.map_err(String::as_str)))
    }

    /// Takes a worker's word on how it fares.
    pub(super) fn totals(&mut self, number: u64, totals: Totals) {
        if let Some(worker) = self.running.get_mut(&number) {
            worker.totals = totals;
        }
    }

    /// Whether the worker that listens takes cells.
    pub(super) fn is_ready(&self) -> bool {
        self.running.get(&self.listener).is_some_and(|worker| worker.ready)
    }

    /// How often the worker that listens was started after one that died.
    pub(super) const fn restarts(&self) -> u64 {
        self.restarts
    }

    /// What is told of each running worker, the one that listens first.
    pub(super) fn rows(&self) -> Vec<WorkerRow> {
        let mut rows: Vec<_> = self
            .running
            .iter()
            .map(|(number, worker)| (*number != self.listener, worker))
            .collect();
        rows.sort_by_key(|(other, worker)| (*other, worker.uid));
        rows.into_iter().map(|(other, worker)| worker.row(!other)).collect()
    }

    /// The workers that take cells, and whether each listens.
    pub(super) fn ready_ones(&self) -> Vec<(u64, bool)> {
        let ready = self.running.iter().filter(|(_, worker)| worker.ready);
        ready.map(|(number, _)| (*number, *number == self.listener)).collect()
    }

    pub(super) fn ready(&mut self, number: u64) {
        if let Some(worker) = self.running.get_mut(&number) {
            worker.ready = true;
        }
    }

    /// Hands over the clients that waited for this worker; it has its cells now.
    pub(super) fn hand_over_waiting(&mut self, number: u64) {
        let Some(worker) = self.running.get_mut(&number) else { return };
        for (cell, connection) in std::mem::take(&mut worker.waiting) {
            worker.send(&ToWorker::Connection { cell }, &[connection.as_fd()]);
        }
    }

    /// Tells a worker something; one that is gone is told when the next one starts.
    pub(super) fn send(&mut self, number: u64, message: &ToWorker, fds: &[BorrowedFd<'_>]) {
        if let Some(worker) = self.running.get_mut(&number) {
            worker.send(message, fds);
        }
    }

    /// Tells every worker that takes cells something.
    pub(super) fn send_all(&mut self, message: &ToWorker) {
        self.running.values_mut().filter(|worker| worker.ready).for_each(|w| w.send(message, &[]));
    }

    /// Passes a client of another user on to that user's worker.
    pub(super) fn connect(&mut self, cell: String, connection: OwnedFd) -> anyhow::Result<()> {
        // Who the client is, the kernel says, not the worker.
        let uid = rustix::net::sockopt::socket_peercred(&connection)?.uid.as_raw();
        anyhow::ensure!(uid != self.accounts.owner_uid(), "the worker hands on its own client");
        anyhow::ensure!(uid < PEER_UID_MIN, "user {uid} has the number of another machine");
        match self.connect_as(
            uid,
            self.accounts.user(uid),
            FOREIGN_WORKERS_MAX,
            cell,
            connection,
        )? {
            Ok(()) => Ok(()),
            Err((connection, why)) => turn_away(connection, why),
        }
    }

    /// Passes a client on another machine on to that machine's worker. The number that stands for it, or
    /// why it is not served.
    pub(super) fn connect_peer(
        &mut self,
        (peer, payer): (AccountId, AccountId),
        is_known: bool,
        cell: String,
        connection: OwnedFd,
    ) -> anyhow::Result<Result<u32, &'static str>> {
        let is_its = |worker: &&Running| worker.uid >= PEER_UID_MIN && worker.payer == payer;
        let uid = match self.running.values().find(is_its) {
            Some(worker) => worker.uid,
            None => {
                if !self.has_room(peer, is_known) {
                    return Ok(Err("calls of other accounts of yours run here already"));
                }
                self.last_peer = self.last_peer.checked_add(1).unwrap_or(PEER_UID_MIN);
                self.last_peer
            }
        };
        // Those that nobody named leave room for those that somebody did, and all of them for users.
        let workers_max = if is_known { PEER_WORKERS_MAX } else { STRANGER_WORKERS_MAX };
        let connected = self.connect_as(uid, payer, workers_max, cell, connection)?;
        if connected.is_ok() {
            self.machines.insert(uid, peer);
        }
        Ok(connected.map(|()| uid).map_err(|(_, why)| why))
    }

    /// Whether calls of one more account of a machine may run; one that has no client any more makes room.
    fn has_room(&mut self, peer: AccountId, is_known: bool) -> bool {
        let running = &self.running;
        self.machines.retain(|uid, _| running.values().any(|worker| worker.uid == *uid));
        let is_its = |worker: &Running| {
            !worker.leaves && self.machines.get(&worker.uid).is_some_and(|machine| *machine == peer)
        };
        let its: Vec<_> = running.iter().filter(|(_, worker)| is_its(worker)).collect();
        let most = if is_known { ACCOUNTS_PER_PEER_MAX } else { ACCOUNTS_PER_STRANGER_MAX };
        if its.len() < most {
            return true;
        }
        let is_idle = |worker: &Running| {
            worker.ready && worker.waiting.is_empty() && worker.totals.connections == 0
        };
        let idle = its.into_iter().find(|(_, worker)| is_idle(worker)).map(|(number, _)| *number);
        idle.into_iter().for_each(|number| self.let_go(number));
        idle.is_some()
    }

    /// Where it is turned away, the connection comes back with the reason.
    fn connect_as(
        &mut self,
        uid: u32,
        payer: AccountId,
        workers_max: usize,
        cell: String,
        connection: OwnedFd,
    ) -> anyhow::Result<Result<(), (OwnedFd, &'static str)>> {
        let number = self.running.iter().find(|(_, worker)| worker.uid == uid).map(|(n, _)| *n);
        self.resting.retain(|_, until| *until > Instant::now());
        let number = match number {
            Some(number) => number,
            None if self.running.len() > workers_max => {
                return Ok(Err((connection, "too many users' calls run here already")));
            }
            None if self.resting.contains_key(&payer) => {
                let why = "the worker of this user's calls died; try again";
                return Ok(Err((connection, why)));
            }
            None => self.spawn(uid, payer)?,
        };
        let Some(worker) = self.running.get_mut(&number) else {
            return Ok(Err((connection, "the worker of this user's calls is gone; try again")));
        };
        if worker.ready && !worker.leaves {
            worker.send(&ToWorker::Connection { cell }, &[connection.as_fd()]);
        } else if worker.waiting.len() < CONNECTIONS_WAITING_MAX {
            worker.waiting.push((cell, connection));
        } else {
            return Ok(Err((connection, "too many connections wait for this user's worker")));
        }
        Ok(Ok(()))
    }

    /// A worker that has no client any more may go; its last usage comes before its end.
    pub(super) fn let_go(&mut self, number: u64) {
        if number == self.listener {
            return;
        }
        if let Some(worker) = self.running.get_mut(&number) {
            worker.send(&ToWorker::Shutdown, &[]);
            worker.leaves = true;
        }
    }

    /// A worker's end was seen: the one that listens starts again after a delay, the others when
    /// they are needed.
    pub(super) fn gone(&mut self, number: u64) -> anyhow::Result<()> {
        let Some(mut worker) = self.running.remove(&number) else { return Ok(()) };
        let young = worker.started.elapsed() < STEADY;
        worker.end();
        if worker.leaves && !worker.waiting.is_empty() {
            // They came after it was told to end.
            let next = self.spawn(worker.uid, worker.payer)?;
            if let Some(next) = self.running.get_mut(&next) {
                next.waiting = std::mem::take(&mut worker.waiting);
            }
        } else if number == self.listener {
            self.delay = if young { (self.delay * 2).min(DELAY_MAX) } else { DELAY_MIN };
            self.restart_at = Some(Instant::now() + self.delay);
        } else if young {
            self.resting.insert(worker.payer, Instant::now() + DELAY_MAX);
        }
        Ok(())
    }

    /// Starts the worker that listens if the delay after the last one's death is over.
    pub(super) fn restart_if_due(&mut self) -> anyhow::Result<()> {
        if self.restart_at.is_some_and(|at| Instant::now() >= at) {
            self.restart_at = None;
            self.restarts = self.restarts.saturating_add(1);
            self.listener = self.spawn(self.accounts.owner_uid(), self.accounts.owner)?;
        }
        Ok(())
    }

    /// Asks every worker to end; says how many there are.
    pub(super) fn shut_down(&mut self) -> usize {
        self.running.values_mut().for_each(|worker| worker.send(&ToWorker::Shutdown, &[]));
        self.running.len()
    }

    /// The processes that run calls of other machines.
    pub(super) fn of_peers(&self) -> Vec<Process> {
        let of_peer = self.running.values().filter(|worker| worker.uid >= PEER_UID_MIN);
        of_peer.filter_map(|worker| Process::of(worker.child.id())).collect()
    }

    /// Asks those to end their calls, and then themselves.
    pub(super) fn end_peers(&mut self) {
        let of_peer = self.running.values_mut().filter(|worker| worker.uid >= PEER_UID_MIN);
        of_peer.for_each(|worker| {
            if !std::mem::replace(&mut worker.leaves, true) {
                worker.send(&ToWorker::Shutdown, &[]);
            }
            // Nobody is served after it.
            worker.waiting.clear();
        });
    }

    /// Ends every worker and waits for it, so that no zombie stays.
    pub(super) fn kill(&mut self) {
        std::mem::take(&mut self.running).values_mut().for_each(Running::end);
    }

    fn spawn(&mut self, uid: u32, payer: AccountId) -> anyhow::Result<u64> {
        let (ours, theirs) = Link::pair().context("make the worker's link")?;
        let (states, their_states) = StateStream::pair().context("make the worker's link")?;
        let child = Command::new(std::env::current_exe()?)
            .arg("worker")
            .args(crate::cli::logging::worker_arguments())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .spawn()
            .context("start a worker")?;
        self.last_number += 1;
        let number = self.last_number;
        let group = self.cgroups.as_ref().map_err(Clone::clone).and_then(|cgroups| {
            let memory = self.start.memory_bytes_max;
            cgroups.enclose(&format!("worker-{number}"), child.id(), memory, self.cores_max)
        });
        self.states.serve(number, states)?;
        ours.limit_sending(SEND_TIME_MAX)?;
        let reader = ours.try_clone()?;
        let (events, artefacts) = (self.events.clone(), self.artefacts.clone());
        thread::Builder::new()
            .name(format!("worker {number}"))
            .spawn(move || read(&reader, number, &artefacts, &events))?;
        let listens = uid == self.accounts.owner_uid();
        let start =
            Start { serves_uid: uid, payer: payer.to_string(), listens, ..self.start.clone() };
        ours.send(&ToWorker::Start(start), &[their_states.into_fd().as_fd()])
            .context("send to a worker")?;
        tracing::info!(worker = number, uid, pid = child.id(), "worker started");
        let worker = Running {
            child,
            link: ours,
            group,
            uid,
            payer,
            started: Instant::now(),
            ready: false,
            leaves: false,
            totals: Totals::default(),
            waiting: Vec::new(),
        };
        self.running.insert(number, worker);
        Ok(number)
    }
}

impl Running {
    /// A worker that does not listen is ended: the nucleus does not wait for it.
    fn send(&mut self, message: &ToWorker, fds: &[BorrowedFd<'_>]) {
        if let Err(error) = self.link.send(message, fds) {
            tracing::error!(%error, pid = self.child.id(), "a worker does not take a message; it is ended");
            let _ = self.child.kill();
        }
    }

    fn row(&self, listens: bool) -> WorkerRow {
        let pid = self.child.id();
        WorkerRow {
            pid,
            uid: self.uid,
            listens,
            ready: self.ready,
            up_s: self.started.elapsed().as_secs(),
            connections: self.totals.connections,
            memory_bytes: self.totals.memory_bytes,
            allocations: self.totals.allocations,
            resident_bytes: resident_bytes(pid),
        }
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "wait for a worker");
        }
    }
}

/// Passes on what a worker says until it is gone, or says something that is no message. Code that is
/// at hand is answered from here, for a call waits for it.
fn read(link: &Link, number: u64, artefacts: &Artefacts, events: &Sender<Event>) {
    let (mut buffer, all) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    loop {
        let received = link.receive_sized::<FromWorker>(&mut buffer);
        let bytes = received.as_ref().ok().and_then(Option::as_ref).map_or(0, |(.., bytes)| *bytes);
        let waiting = all.load(Relaxed);
        let unheard = Counted::new(&all, bytes);
        let event = match received {
            Ok(_) if waiting > UNHEARD_BYTES_MAX => {
                tracing::error!(worker = number, "a worker sends more than is heard; it is ended");
                Event::WorkerGone(number)
            }
            Ok(Some((FromWorker::NeedArtefact { cell, generation, hash }, fds, _))) => {
                if let Some(artefact) = artefacts.find(&hash) {
                    let answer = ToWorker::Artefact { cell, generation, error: None };
                    if link.send(&answer, &[artefact.as_fd()]).is_ok() {
                        continue;
                    }
                    Event::WorkerGone(number)
                } else {
                    let message = FromWorker::NeedArtefact { cell, generation, hash };
                    Event::Worker(number, message, fds, unheard)
                }
            }
            Ok(Some((message, fds, _))) => Event::Worker(number, message, fds, unheard),
            Ok(None) => Event::WorkerGone(number),
            Err(error) => {
                tracing::error!(%error, "read from a worker");
                Event::WorkerGone(number)
            }
        };
        let gone = matches!(event, Event::WorkerGone(_));
        if events.send(event).is_err() || gone {
            return;
        }
    }
}

/// Memory that a process occupies; 0 where it cannot be told.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Tells a client in its own protocol why it is not served.
fn turn_away(connection: OwnedFd, why: &str) -> anyhow::Result<()> {
    let header = Header { status: Status::Busy.code(), ..Header::new(Kind::Goaway) };
    let header = Header { payload_bytes: u32::try_from(why.len())?, ..header };
    let mut bytes = Hello::CURRENT.encode().to_vec();
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(why.as_bytes());
    bytes.resize(bytes.len() + padding(why.len()), 0);
    let stream = UnixStream::from(connection);
    // It fits the buffer of a fresh connection; who is gone needs no answer.
    stream.set_nonblocking(true)?;
    let _ = (&stream).write_all(&bytes);
    Ok(())
}
