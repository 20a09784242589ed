//! The nucleus: one thread that decides, and others that bring it events.
//!
//! Identity, ledger and lifecycle live here. Nothing here runs guest code; what a worker says is
//! checked against what was set aside for it.

mod accept;
mod announce;
mod artefacts;
mod book;
mod callers;
mod cells;
pub(crate) mod control;
pub(crate) mod donation;
mod gateway;
mod holds;
mod jobs;
pub(crate) mod limits;
mod metrics;
mod own_log;
mod prepare;
mod reach;
mod readiness;
mod scan;
mod state;
mod storage;
pub(crate) mod ways;
mod workers;

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::Fault;
use cell_ledger::LedgerError;

use crate::bank::Bank;
use crate::compile;
use crate::config::Config;
use crate::counted::Counted;
use crate::home::Home;
use crate::link::gateway::FromGateway;
use crate::link::{FromWorker, ToWorker, records};
use crate::signals::{self, SignalKind};
use crate::walls::{Wall, cgroup};
use announce::Announcer;
use artefacts::Artefacts;
use book::Book;
use cells::Cells;
use control::{Answer, NucleusRow, Request, Snapshot};
use donation::{Donation, Seen};
use gateway::Gateway;
use holds::Holds;
use jobs::Jobs;
use prepare::Prepared;
use reach::{Connected, Reach};
use readiness::Readiness;
use scan::{Scan, Scanner};
use state::States;
use storage::Storage;
use workers::Workers;

/// How often logs are looked at and a dead worker's back-off ends.
const TICK: Duration = Duration::from_millis(200);
/// How often a checkpoint of the journal is signed; one more is when the nucleus goes down.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(3600);
/// How long the worker may take to end its calls when the nucleus goes down.
const DOWN_TIME_MAX: Duration = Duration::from_secs(4);

/// What the deciding thread is told.
pub(crate) enum Event {
    /// The worker with this number said something, with descriptors beside it.
    Worker(u64, FromWorker, Vec<OwnedFd>, Counted),
    /// The worker with this number is gone.
    WorkerGone(u64),
    /// The gateway with this number said something, with descriptors beside it.
    Gateway(u64, FromGateway, Vec<OwnedFd>, Counted),
    /// The gateway with this number is gone.
    GatewayGone(u64),
    /// The connection to a relay that the gateway with this number asked for under this id.
    Dialled(u64, u64, Result<TcpStream, String>),
    /// A connection for a cell that is elsewhere, under this number.
    Connected(u64, Result<Box<Connected>, String>),
    /// `cells/` was looked at.
    Scanned(Scan),
    /// A cell was read, gated and compiled, or was not.
    Prepared(Box<Prepared>),
    /// A worker is to be told this.
    Send(u64, ToWorker, Option<OwnedFd>),
    /// The machine was looked at, for it is lent.
    Donor(Seen),
    /// Somebody at the control socket asks.
    Control(Request, Sender<Answer>),
    /// A signal asks the nucleus to end.
    Stop,
}

/// Runs the nucleus of a home until it is told to stop.
pub(crate) fn run(home: &Home) -> anyhow::Result<()> {
    home.create()?;
    let config = Config::read(home)?;
    let Some(mut lock) = home.lock()? else {
        anyhow::bail!(
            "a nucleus is running in {} already; stop it with `cell down`",
            home.root().display()
        );
    };
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    raise_descriptor_limit();
    let (events, inbox) = mpsc::channel();
    let stop = events.clone();
    let _signals = signals::hear(&[SignalKind::interrupt(), SignalKind::terminate()], move |_| {
        // The nucleus may have ended by itself.
        let _ = stop.send(Event::Stop);
    })?;
    let bank = Bank::open(home)?;
    let listener = bind_control(home)?;
    let artefacts = Artefacts::new(compile::cache(home)?);
    let preparer = prepare::start(&artefacts, home, &events)?;
    let states = States::default();
    let workers = Workers::start(&bank, &config, states.clone(), artefacts, events.clone())?;
    let scanner = Scanner::start(home, events.clone())?;
    metrics::serve(bind(&home.metrics_socket())?, config.metrics.port, &events)?;
    let gateway = Gateway::start(home, &config, &events)?;
    let announcer = Announcer::start(home, &config, gateway.as_ref().and_then(Gateway::listens))?;
    let donation = Donation::new(config.donate.clone(), events.clone());
    let reach = Reach::new(home.clone(), events.clone());
    control::serve(listener, events)?;
    let (kept, rates) = (config.receipts.kept_mb_max << 20, config.prices.rates());
    let book = Book::new(home, kept, rates)?;
    let mut nucleus = Nucleus {
        home: home.clone(),
        holds: Holds::new(bank, book),
        storage: Storage::new(config.prices.storage_gib_h, states.clone()),
        cells: Cells::new(home.clone(), preparer, states),
        require_walls: config.require_walls,
        walls: Vec::new(),
        scanner,
        scans: 0,
        workers,
        gateway,
        announcer,
        reach,
        donation,
        jobs: Jobs::new(home, &config),
        waiting: Vec::new(),
        started: Instant::now(),
        readiness: Readiness::new(),
        checkpointed: Instant::now(),
    };
    tracing::info!(home = %home.root().display(), "nucleus is up");
    let ended = nucleus.serve(&inbox);
    nucleus.go_down(&inbox);
    ended
}

struct Nucleus {
    home: Home,
    holds: Holds,
    storage: Storage,
    cells: Cells,
    /// Refuse to go on where a wall is missing.
    require_walls: bool,
    /// Those around the worker that started last.
    walls: Vec<Wall>,
    scanner: Scanner,
    /// The last request for a look at `cells/` that was answered.
    scans: u64,
    workers: Workers,
    /// Speaks with other machines, where the settings say so.
    gateway: Option<Gateway>,
    /// Says that this machine is there, where the settings say so.
    announcer: Option<Announcer>,
    /// Connects to other machines, for cells that they run.
    reach: Reach,
    donation: Donation,
    jobs: Jobs,
    waiting: Vec<Waiting>,
    started: Instant,
    readiness: Readiness,
    checkpointed: Instant,
}

/// Somebody who waits for a deployment to end.
struct Waiting {
    cell: String,
    hash: Option<String>,
    /// The look at `cells/` that sees what was deployed.
    scan: u64,
    answer: Sender<Answer>,
}

impl Nucleus {
    fn serve(&mut self, inbox: &Receiver<Event>) -> anyhow::Result<()> {
        let mut ticked = Instant::now();
        loop {
            match inbox.recv_timeout(self.donation.wait(TICK)) {
                Ok(Event::Stop) => return Ok(()),
                Ok(Event::Control(Request::Down, answer)) => {
                    // The asker waits for the lock; the answer only says that it was heard.
                    let _ = answer.send(Answer::Done);
                    return Ok(());
                }
                Ok(event) => self.handle(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.lending_tick();
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                own_log::bound(&self.home.log());
                self.cells.rotate_logs(&mut self.workers);
                self.workers.restart_if_due()?;
                if let Some(gateway) = &mut self.gateway {
                    gateway.tick()?;
                }
                if let Some(announcer) = &mut self.announcer {
                    announcer.tick(|| self.cells.for_peers());
                }
                self.give_up_reaching(false);
                self.jobs.reap();
                self.jobs.claim();
                tolerate(self.holds.catch_up())?;
                tolerate(self.storage.tick(self.holds.bank()).map_err(Into::into))?;
                if self.checkpointed.elapsed() >= CHECKPOINT_EVERY {
                    self.checkpointed = Instant::now();
                    self.holds.checkpoint();
                }
                self.readiness.tick(|| self.workers.is_ready() && self.cells.are_settled());
            }
        }
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Worker(number, message, fds, _unheard) => {
                // A worker that was replaced has nothing to say any more.
                if let Some(uid) = self.workers.user(number) {
                    self.worker_says(number, uid, message, fds)?;
                }
            }
            Event::WorkerGone(number) => self.worker_gone(number)?,
            Event::Gateway(number, message, fds, _unheard) => {
                self.gateway_says(number, message, fds)
            }
            Event::GatewayGone(number) => {
                if let Some(gateway) = self.gateway.as_mut().filter(|g| g.is_current(number)) {
                    gateway.gone();
                    self.give_up_reaching(true);
                }
            }
            Event::Connected(id, connected) => self.connected(id, connected),
            Event::Dialled(number, id, stream) => {
                if let Some(gateway) = self.gateway.as_mut().filter(|g| g.is_current(number)) {
                    gateway.dialled(id, stream);
                }
            }
            Event::Scanned(scan) => {
                self.scans = scan.answers;
                self.cells.scanned(scan, &mut self.workers);
            }
            Event::Prepared(prepared) => self.cells.prepared(*prepared, &mut self.workers),
            Event::Send(worker, message, fd) => {
                let fds: Vec<_> = fd.iter().map(std::os::fd::AsFd::as_fd).collect();
                self.workers.send(worker, &message, &fds);
            }
            Event::Donor(seen) => self.donor_saw(seen),
            Event::Control(request, answer) => self.answer(request, answer),
            Event::Stop => {}
        }
        self.answer_waiting();
        Ok(())
    }

    fn worker_says(
        &mut self,
        number: u64,
        uid: u32,
        message: FromWorker,
        fds: Vec<OwnedFd>,
    ) -> anyhow::Result<()> {
        let listens = self.workers.listens(number);
        match message {
            FromWorker::Ready { walls } => self.worker_ready(number, walls)?,
            FromWorker::Loaded { cell, generation, error } if listens => {
                self.cells.loaded(&cell, generation, error)
            }
            FromWorker::NeedHold { uid: of, amount_min, amount } if of == uid => {
                let granted = tolerate(self.holds.raise(uid, amount_min, amount))?.unwrap_or(0);
                self.workers.send(number, &ToWorker::Granted { uid, amount: granted }, &[]);
            }
            FromWorker::Usage { sequence, uid: of, rows } if of == uid => {
                let records = match fds.into_iter().next().map(records::read).transpose() {
                    Ok(records) => records,
                    Err(error) => {
                        tracing::error!(worker = number, error = %format!("{error:#}"), "records of calls; they are not charged");
                        return Ok(());
                    }
                };
                tolerate(self.holds.pay((number, sequence), uid, rows, records))?;
            }
            FromWorker::Release { uid: of } if of == uid => {
                tolerate(self.holds.release(uid))?;
            }
            FromWorker::Stats { rows } => self.cells.stats(number, rows),
            FromWorker::Totals(totals) => self.workers.totals(number, totals),
            FromWorker::NeedLog { cell } => self.cells.open_log(&cell, number, &mut self.workers),
            FromWorker::NeedArtefact { cell, generation, hash } => {
                self.cells.make_artefact(number, cell, generation, hash)
            }
            FromWorker::Reach { cell, generation, machine } => {
                self.reach(number, cell, generation, machine)
            }
            FromWorker::Foreign { cell } if listens => {
                for connection in fds {
                    if let Err(error) = self.workers.connect(cell.clone(), connection) {
                        tracing::warn!(error = %format!("{error:#}"), "pass a client on");
                    }
                }
            }
            FromWorker::Idle => self.workers.let_go(number),
            message @ (FromWorker::Loaded { .. } | FromWorker::Foreign { .. }) => {
                // One that does not listen has no say in these.
                tracing::debug!(worker = number, ?message, "not heard");
            }
            FromWorker::NeedHold { .. } | FromWorker::Usage { .. } | FromWorker::Release { .. } => {
                tracing::error!(worker = number, "a worker speaks of another user's money");
            }
        }
        Ok(())
    }

    fn worker_ready(&mut self, number: u64, walls: Vec<Wall>) -> anyhow::Result<()> {
        for wall in walls.iter().filter(|wall| !wall.stands) {
            tracing::warn!(
                wall = wall.name,
                why = wall.detail,
                "a wall around the worker is missing"
            );
        }
        if self.require_walls
            && let Some(missing) = walls.iter().find(|wall| !wall.stands)
        {
            anyhow::bail!(
                "the wall `{}` is missing ({}), and nucleus.toml says require_walls = true; see `cell inspect --sandbox`",
                missing.name,
                missing.detail
            );
        }
        self.walls = walls;
        self.walls.extend(self.workers.group_wall(number));
        self.workers.ready(number);
        let listens = self.workers.listens(number);
        self.cells.load_all(number, listens, &mut self.workers);
        self.workers.hand_over_waiting(number);
        Ok(())
    }

    fn worker_gone(&mut self, number: u64) -> anyhow::Result<()> {
        let Some(uid) = self.workers.user(number) else { return Ok(()) };
        let listened = self.workers.listens(number);
        tracing::info!(
            worker = number,
            uid,
            "a worker is gone; what it did not report is not charged"
        );
        tolerate(self.holds.release(uid))?;
        self.workers.gone(number)?;
        if !self.workers.has_one_of(uid) {
            self.holds.forget_peer(uid);
        }
        self.cells.worker_gone(number, listened);
        Ok(())
    }

    fn answer(&mut self, request: Request, answer: Sender<Answer>) {
        // An asker who hung up needs no answer.
        match request {
            Request::Ping => drop(answer.send(Answer::Done)),
            Request::Ps => drop(answer.send(Answer::Cells(self.cells.rows()))),
            Request::Status => drop(answer.send(Answer::Status(self.snapshot()))),
            Request::Walls => drop(answer.send(Answer::Walls(self.walls.clone()))),
            Request::Await { cell, hash } => {
                let scan = self.scanner.ask();
                self.waiting.push(Waiting { cell, hash, scan, answer });
            }
            Request::Donate(asked) => {
                let answered = self.donate(&asked);
                let _ = answer.send(answered);
            }
            Request::Down => {}
        }
    }

    fn snapshot(&self) -> Snapshot {
        let nucleus = NucleusRow {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            up_s: self.started.elapsed().as_secs(),
            worker_restarts: self.workers.restarts(),
            workers: self.workers.rows(),
            listens: self.gateway.as_ref().and_then(Gateway::listens).map(|at| at.to_string()),
            through: self.gateway.as_ref().map(Gateway::ways).unwrap_or_default(),
            walls_missing: self.walls.iter().filter(|wall| is_missed(wall)).cloned().collect(),
        };
        Snapshot { nucleus: Some(nucleus), cells: self.cells.rows() }
    }

    /// Answers those who wait for a cell to be live, refused or gone.
    fn answer_waiting(&mut self) {
        let (cells, scans) = (&self.cells, self.scans);
        self.waiting.retain(|waiting| {
            if waiting.scan > scans {
                return true;
            }
            match cells.settled(&waiting.cell, waiting.hash.as_deref()) {
                Some(settled) => {
                    let _ = waiting.answer.send(settled);
                    false
                }
                None => true,
            }
        });
    }

    /// Lets calls in flight end, takes the last usage, and leaves nothing behind.
    fn go_down(&mut self, inbox: &Receiver<Event>) {
        self.readiness.stopping();
        // Neighbours are told good-bye meanwhile.
        self.announcer = None;
        self.end_lending();
        self.jobs.shut_down();
        let mut running = self.workers.shut_down();
        let until = Instant::now() + DOWN_TIME_MAX;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|_| running > 0)
        {
            match inbox.recv_timeout(self.donation.wait(left)) {
                Ok(Event::Worker(number, message, fds, _unheard)) => {
                    let Some(uid) = self.workers.user(number) else { continue };
                    if let Err(error) = self.worker_says(number, uid, message, fds) {
                        tracing::error!(error = %format!("{error:#}"), "take the last usage");
                        break;
                    }
                }
                Ok(Event::WorkerGone(number)) => {
                    running -= usize::from(self.workers.user(number).is_some());
                    if self.workers.gone(number).is_err() {
                        break;
                    }
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.lending_tick();
        }
        while self.jobs.are_running() && Instant::now() < until {
            self.lending_tick();
            thread::sleep(Duration::from_millis(10));
        }
        // Until now it carried how those ended.
        self.gateway = None;
        self.pay_what_waits();
        self.holds.checkpoint();
        self.workers.kill();
        self.cells.remove_sockets();
        let _ = fs::remove_file(self.home.socket());
        let _ = fs::remove_file(self.home.metrics_socket());
        tracing::info!("nucleus is down");
    }

    /// Gives the ledger a while to answer; what then still waits is lost to the node.
    fn pay_what_waits(&mut self) {
        let until = Instant::now() + DOWN_TIME_MAX;
        while self.holds.is_behind() {
            let failed = tolerate(self.holds.catch_up()).err();
            if failed.is_some() || Instant::now() >= until {
                let why = failed.map_or_else(|| "no answer".into(), |error| format!("{error:#}"));
                tracing::error!(why, "what had to wait for the ledger is not paid");
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether a machine should have this wall and does not. A control group is a service manager's to
/// give, and its absence no fault.
fn is_missed(wall: &Wall) -> bool {
    !wall.stands && wall.name != cgroup::NAME
}

/// What a worker asks in vain is logged; only a ledger that stopped ends the nucleus.
fn tolerate<T>(result: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.downcast_ref::<LedgerError>() {
            Some(refused) if refused.fault() != Fault::Host => {
                tracing::error!(error = %format!("{error:#}"), "the ledger refuses what the worker asks");
                Ok(None)
            }
            _ => Err(error),
        },
    }
}

/// Each cell takes a descriptor; the usual soft limit is 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Where it cannot be raised, the lower limit holds, and a cell that lacks a socket says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn bind_control(home: &Home) -> anyhow::Result<UnixListener> {
    let path = home.socket();
    bind(&path)
}

/// Binds a socket that only this user can open, in place of one that a dead nucleus left.
fn bind(path: &std::path::Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!(
            "bind {} (a socket's path has at most 107 bytes; try a shorter --home)",
            path.display()
        )
    })?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
