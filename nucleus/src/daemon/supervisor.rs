//! Starts the worker, and starts it again when it dies.

use std::os::fd::BorrowedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::Event;
use crate::bank::Bank;
use crate::link::{FromWorker, Link, ToWorker};

/// A worker that dies sooner than this after its start is started again with a growing delay.
const STEADY: Duration = Duration::from_secs(5);
const DELAY_MIN: Duration = Duration::from_millis(50);
pub(super) const DELAY_MAX: Duration = Duration::from_secs(5);

pub(super) struct Supervisor {
    events: Sender<Event>,
    owner: ToWorker,
    number: u64,
    worker: Option<Running>,
    delay: Duration,
    restart_at: Option<Instant>,
}

struct Running {
    child: Child,
    link: Link,
    started: Instant,
    ready: bool,
}

impl Supervisor {
    pub(super) fn start(bank: &Bank, events: Sender<Event>) -> anyhow::Result<Self> {
        let accounts = &bank.accounts;
        let owner =
            ToWorker::Owner { uid: accounts.owner_uid(), account: accounts.owner.to_string() };
        let mut this =
            Self { events, owner, number: 0, worker: None, delay: DELAY_MIN, restart_at: None };
        this.spawn()?;
        Ok(this)
    }

    /// Which worker is the current one; messages of earlier ones are stale.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// Whether the worker takes cells.
    pub(super) fn is_ready(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.ready)
    }

    pub(super) fn ready(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.ready = true;
        }
    }

    /// Tells the worker something; one that is gone is told when the next one starts.
    pub(super) fn send(&self, message: &ToWorker, fds: &[BorrowedFd<'_>]) {
        if let Some(worker) = &self.worker
            && let Err(error) = worker.link.send(message, fds)
        {
            tracing::warn!(%error, "send to the worker");
        }
    }

    /// The worker's end was seen: the next one starts after a delay.
    pub(super) fn gone(&mut self) {
        let lived = self.worker.as_ref().map_or(Duration::ZERO, |worker| worker.started.elapsed());
        self.kill();
        self.delay = if lived > STEADY { DELAY_MIN } else { (self.delay * 2).min(DELAY_MAX) };
        self.restart_at = Some(Instant::now() + self.delay);
    }

    /// Starts a worker if the delay after the last one's death is over.
    pub(super) fn restart_if_due(&mut self) -> anyhow::Result<bool> {
        if self.restart_at.is_none_or(|at| Instant::now() < at) {
            return Ok(false);
        }
        self.restart_at = None;
        self.spawn()?;
        Ok(true)
    }

    /// Ends the worker and waits for it, so that no zombie stays.
    pub(super) fn kill(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            let _ = worker.child.kill();
            if let Err(error) = worker.child.wait() {
                tracing::warn!(%error, "wait for the worker");
            }
        }
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let (ours, theirs) = Link::pair().context("make the worker's link")?;
        let child = Command::new(std::env::current_exe()?)
            .arg("worker")
            .env_clear()
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .spawn()
            .context("start the worker")?;
        self.number += 1;
        let (number, events, reader) = (self.number, self.events.clone(), ours.try_clone()?);
        thread::Builder::new()
            .name(format!("worker {number}"))
            .spawn(move || read(&reader, number, &events))?;
        ours.send(&self.owner, &[]).context("send to the worker")?;
        self.worker = Some(Running { child, link: ours, started: Instant::now(), ready: false });
        Ok(())
    }
}

/// Passes on what the worker says until it is gone, or says something that is no message.
fn read(link: &Link, number: u64, events: &Sender<Event>) {
    let mut buffer = Vec::new();
    loop {
        let event = match link.receive::<FromWorker>(&mut buffer) {
            Ok(Some((message, _))) => Event::Worker(number, message),
            Ok(None) => Event::WorkerGone(number),
            Err(error) => {
                tracing::error!(%error, "read from the worker");
                Event::WorkerGone(number)
            }
        };
        let gone = matches!(event, Event::WorkerGone(_));
        if events.send(event).is_err() || gone {
            return;
        }
    }
}
