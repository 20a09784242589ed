//! Connections to cells on other machines, made when a worker needs one.
//!
//! Names and addresses are looked up each time, so that `cell peer add` counts at once.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::{Event, Nucleus};
use crate::home::Home;
use crate::link::{Reached, ToWorker};
use crate::peers::{Peers, Remote};

/// How long reaching a machine may take.
pub(super) const REACH_TIME_MAX: Duration = Duration::from_secs(10);
/// How many are being reached at once.
pub(super) const REACHED_AT_ONCE_MAX: usize = 64;

/// Reaches other machines, on threads of their own.
#[derive(Clone)]
pub(super) struct Reach {
    home: Home,
    events: Sender<Event>,
    under_way: Arc<AtomicUsize>,
}

/// One of those that are under way.
struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Reach {
    pub(super) fn new(home: Home, events: Sender<Event>) -> Self {
        Self { home, events, under_way: Arc::default() }
    }

    /// Reaches a cell; the worker hears of it either way.
    fn start(&self, worker: u64, reached: Reached, named: String) {
        let before = self.under_way.fetch_add(1, Relaxed);
        let under_way = UnderWay(Arc::clone(&self.under_way));
        let refuse = |why: &str| self.tell(worker, &reached, Err(why.into()));
        if before >= REACHED_AT_ONCE_MAX {
            return refuse("too many machines are being reached at once");
        }
        let (this, of) = (self.clone(), reached.clone());
        let started = thread::Builder::new().name("reach".into()).spawn(move || {
            let _under_way = under_way;
            let socket = reach(&this.home, &of.cell, &named);
            this.tell(worker, &of, socket.map_err(|error| format!("{error:#}")));
        });
        if let Err(error) = started {
            refuse(&format!("start a thread: {error}"));
        }
    }

    fn tell(&self, worker: u64, reached: &Reached, socket: Result<OwnedFd, String>) {
        let error = socket.as_ref().err().cloned();
        let message = ToWorker::Reached(Reached { error, ..reached.clone() });
        // The nucleus may have ended first.
        let _ = self.events.send(Event::Send(worker, message, socket.ok()));
    }
}

fn reach(home: &Home, cell: &str, named: &str) -> anyhow::Result<OwnedFd> {
    let peers = Peers::read(home)?;
    let remote = Remote::of_manifest(named, cell, &peers)?;
    Ok(remote.connect(home, REACH_TIME_MAX)?.into())
}

impl Nucleus {
    /// A worker needs a connection to a cell that other machines run.
    pub(super) fn reach(&self, worker: u64, cell: String, generation: u64, machine: usize) {
        match self.cells.machine(&cell, generation, machine).map(str::to_owned) {
            Some(named) => {
                let reached = Reached { cell, generation, machine, error: None };
                self.reach.start(worker, reached, named);
            }
            // It was removed or changed, which the worker hears of next.
            None => tracing::debug!(worker, cell, "asks for what is not elsewhere"),
        }
    }
}
