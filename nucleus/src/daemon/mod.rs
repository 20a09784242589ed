//! The nucleus: one thread that decides, and others that bring it events.
//!
//! Identity, ledger and lifecycle live here. Nothing here runs guest code; what a worker says is
//! checked against what was set aside for it.

mod cells;
pub(crate) mod control;
mod holds;
pub(crate) mod limits;
mod supervisor;
mod watch;

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::Fault;
use cell_ledger::LedgerError;
use tokio::signal::unix::{SignalKind, signal};

use crate::bank::Bank;
use crate::compile;
use crate::config::Config;
use crate::home::Home;
use crate::link::FromWorker;
use cells::{Cells, Prepared};
use control::{Answer, Request};
use holds::Holds;
use supervisor::Supervisor;

/// How often logs are looked at and a dead worker's back-off ends.
const TICK: Duration = Duration::from_millis(200);
/// How long the worker may take to end its calls when the nucleus goes down.
const DOWN_TIME_MAX: Duration = Duration::from_secs(4);

/// What the deciding thread is told.
pub(crate) enum Event {
    /// The worker with this number said something.
    Worker(u64, FromWorker),
    /// The worker with this number is gone.
    WorkerGone(u64),
    /// Something in `cells/` may have changed.
    Changed,
    /// A cell was read, gated and compiled, or was not.
    Prepared(Box<Prepared>),
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
    let (events, inbox) = mpsc::channel();
    stop_on_signals(events.clone())?;
    let bank = Bank::open(home)?;
    let listener = bind_control(home)?;
    let preparer = cells::start_preparer(compile::cache(home)?, home, events.clone())?;
    let _watcher = watch::start(&home.cells(), events.clone())?;
    let supervisor = Supervisor::start(&bank, events.clone())?;
    control::serve(listener, events)?;
    let mut nucleus = Nucleus {
        home: home.clone(),
        holds: Holds::new(bank),
        cells: Cells::new(home.clone(), preparer),
        config,
        supervisor,
        waiting: Vec::new(),
    };
    nucleus.cells.scan();
    tracing::info!(home = %home.root().display(), "nucleus is up");
    let ended = nucleus.serve(&inbox);
    nucleus.go_down(&inbox);
    ended
}

struct Nucleus {
    home: Home,
    config: Config,
    holds: Holds,
    cells: Cells,
    supervisor: Supervisor,
    /// Who waits for a deployment to end, and until when.
    waiting: Vec<(String, Option<String>, Sender<Answer>)>,
}

impl Nucleus {
    fn serve(&mut self, inbox: &Receiver<Event>) -> anyhow::Result<()> {
        let mut ticked = Instant::now();
        loop {
            match inbox.recv_timeout(TICK) {
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
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.cells.rotate_logs(&self.supervisor);
                if self.supervisor.restart_if_due()? {
                    self.cells.load_all(&self.supervisor);
                }
            }
        }
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Worker(number, message) if number == self.supervisor.number() => {
                self.worker_says(message)?
            }
            Event::WorkerGone(number) if number == self.supervisor.number() => {
                tracing::error!("the worker is gone; its unreported calls are not charged");
                self.holds.void_all()?;
                self.supervisor.gone();
                self.cells.worker_gone();
            }
            // A worker that was replaced has nothing to say any more.
            Event::Worker(..) | Event::WorkerGone(_) => {}
            Event::Changed => self.cells.scan(),
            Event::Prepared(prepared) => self.cells.prepared(*prepared, &self.supervisor),
            Event::Control(request, answer) => self.answer(request, answer),
            Event::Stop => {}
        }
        for gone in self.cells.take_gone() {
            self.supervisor.send(&crate::link::ToWorker::Drop { cell: gone }, &[]);
        }
        self.answer_waiting();
        Ok(())
    }

    fn worker_says(&mut self, message: FromWorker) -> anyhow::Result<()> {
        match message {
            FromWorker::Ready => {
                self.supervisor.ready();
                self.cells.load_all(&self.supervisor);
            }
            FromWorker::Loaded { cell, generation, error } => {
                self.cells.loaded(&cell, generation, error)
            }
            FromWorker::NeedHold { uid, amount_min, amount } => {
                let granted = tolerate(self.holds.raise(uid, amount_min, amount))?.unwrap_or(0);
                self.supervisor.send(&crate::link::ToWorker::Granted { uid, amount: granted }, &[]);
            }
            FromWorker::Usage { sequence, uid, rows } => {
                tolerate(self.holds.pay(self.supervisor.number(), sequence, uid, &rows))?;
            }
            FromWorker::Release { uid } => {
                tolerate(self.holds.release(uid))?;
            }
            FromWorker::Stats { rows } => self.cells.stats(rows),
        }
        Ok(())
    }

    fn answer(&mut self, request: Request, answer: Sender<Answer>) {
        // An asker who hung up needs no answer.
        match request {
            Request::Ping => drop(answer.send(Answer::Done)),
            Request::Ps => drop(answer.send(Answer::Cells(self.cells.rows()))),
            Request::Await { cell, hash } => {
                self.cells.scan();
                self.waiting.push((cell, hash, answer));
            }
            Request::Down => {}
        }
    }

    /// Answers those who wait for a cell to be live, refused or gone.
    fn answer_waiting(&mut self) {
        let cells = &self.cells;
        self.waiting.retain(|(cell, hash, answer)| match cells.settled(cell, hash.as_deref()) {
            Some(settled) => {
                let _ = answer.send(settled);
                false
            }
            None => true,
        });
    }

    /// Lets calls in flight end, takes the last usage, and leaves nothing behind.
    fn go_down(&mut self, inbox: &Receiver<Event>) {
        self.supervisor.send(&crate::link::ToWorker::Shutdown, &[]);
        let until = Instant::now() + DOWN_TIME_MAX;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match inbox.recv_timeout(left) {
                Ok(Event::Worker(number, message)) if number == self.supervisor.number() => {
                    if let Err(error) = self.worker_says(message) {
                        tracing::error!(error = %format!("{error:#}"), "take the last usage");
                        break;
                    }
                }
                Ok(Event::WorkerGone(number)) if number == self.supervisor.number() => break,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.supervisor.kill();
        self.cells.remove_sockets();
        let _ = fs::remove_file(self.home.socket());
        tracing::info!("nucleus is down");
    }
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

fn stop_on_signals(events: Sender<Event>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        // The nucleus may have ended by itself.
        let _ = events.send(Event::Stop);
    })?;
    Ok(())
}
