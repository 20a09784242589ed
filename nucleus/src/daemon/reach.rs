//! Cells on other machines that cells here call: which connection leads to one, and what became of it.
//!
//! The nucleus looks names and addresses up, each time, so that `cell peer add` counts at once, and connects;
//! the gateway does the speaking.

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Instant;

use cell_abi::AccountId;
use cell_peer::Request;
use cell_peer::tunnel::{self, Route};

use super::gateway::Gateway;
use super::{Event, Nucleus};
use crate::home::Home;
use crate::link::gateway::{self as wire, REACH_TIME_MAX};
use crate::link::{Reached, ToWorker};
use crate::peers::{Peers, Remote};

/// How many are being reached at once.
pub(super) const REACHED_AT_ONCE_MAX: usize = 64;
/// The same, for one worker.
pub(super) const REACHED_PER_WORKER_MAX: usize = 16;

/// Those that are being reached.
pub(super) struct Reach {
    home: Home,
    events: Sender<Event>,
    under_way: HashMap<u64, UnderWay>,
    last: u64,
    /// A gateway without all its walls is not to be.
    is_refused: bool,
}

/// One that a worker waits for.
struct UnderWay {
    worker: u64,
    reached: Reached,
    since: Instant,
}

/// A connection to where a cell is, and what to ask for there.
pub(crate) struct Connected {
    stream: TcpStream,
    relay: Option<AccountId>,
    peer: AccountId,
    request: Request,
}

impl Reach {
    pub(super) fn new(home: Home, events: Sender<Event>) -> Self {
        let (under_way, last, is_refused) = (HashMap::new(), 0, false);
        Self { home, events, under_way, last, is_refused }
    }

    /// From now on nothing is reached.
    pub(super) const fn refuse(&mut self) {
        self.is_refused = true;
    }

    /// Connects on a thread of its own; why not, if that does not even begin.
    fn start(&mut self, worker: u64, reached: Reached, named: String) -> Result<(), String> {
        let of_worker = self.under_way.values().filter(|one| one.worker == worker).count();
        if of_worker >= REACHED_PER_WORKER_MAX || self.under_way.len() >= REACHED_AT_ONCE_MAX {
            return Err("too many machines are being reached at once".into());
        }
        self.last += 1;
        let (id, home, events) = (self.last, self.home.clone(), self.events.clone());
        let cell = reached.cell.clone();
        let connect = move || {
            let connected = connect(&home, &cell, &named).map_err(|error| format!("{error:#}"));
            // The nucleus may have ended first.
            let _ = events.send(Event::Connected(id, connected.map(Box::new)));
        };
        let started = thread::Builder::new().name("reach".into()).spawn(connect);
        started.map_err(|error| format!("start a thread: {error}"))?;
        self.under_way.insert(id, UnderWay { worker, reached, since: Instant::now() });
        Ok(())
    }
}

fn connect(home: &Home, cell: &str, named: &str) -> anyhow::Result<Connected> {
    let Remote { machine, cell } = Remote::of_manifest(named, cell, &Peers::read(home)?)?;
    let route = Route::parse(&machine.address)?;
    let stream = tunnel::connect(route.at, Instant::now() + REACH_TIME_MAX)?;
    let (relay, peer) = (route.relay, machine.peer);
    Ok(Connected { stream, relay, peer, request: Request::Cell(cell) })
}

impl Nucleus {
    /// A worker needs a connection to a cell that other machines run.
    pub(super) fn reach(&mut self, worker: u64, cell: String, generation: u64, machine: u32) {
        // Who calls elsewhere has something set aside for that; a worker that was taken over may not have.
        let uid = self.workers.user(worker).filter(|uid| self.holds.has_hold(*uid));
        let named = self.cells.machine(&cell, generation, machine).map(str::to_owned);
        let Some(named) = named.filter(|_| uid.is_some()) else {
            let reached = Reached { cell, generation, machine, error: None };
            return self.tell_reached(
                worker,
                reached,
                Err("there is no such cell elsewhere".into()),
            );
        };
        let reached = Reached { cell, generation, machine, error: None };
        if let Err(why) = self.reach.start(worker, reached.clone(), named) {
            self.tell_reached(worker, reached, Err(why));
        }
    }

    /// Has the gateway go on with a connection, or tells the worker why there is none.
    pub(super) fn connected(&mut self, id: u64, connected: Result<Box<Connected>, String>) {
        let asked = connected.and_then(|connected| {
            let Connected { stream, relay, peer, request } = *connected;
            let relay = relay.map(|relay| *relay.as_bytes());
            let (peer, request) = (*peer.as_bytes(), request.encode());
            let gateway = self.gateway_to_reach()?;
            let is_asked = gateway.reach(wire::Reach { id, peer, relay, request }, &stream);
            is_asked.then_some(()).ok_or_else(|| "the gateway starts anew".into())
        });
        if let Err(why) = asked {
            self.reached(id, Err(why));
        }
    }

    /// The one that there is, or one that only reaches others.
    fn gateway_to_reach(&mut self) -> Result<&mut Gateway, String> {
        if self.gateway.is_none() {
            if self.reach.is_refused {
                return Err("a wall around the gateway is missing, and nucleus.toml says require_walls = true".into());
            }
            let Reach { home, events, .. } = &self.reach;
            let started = Gateway::start_outward(home, events);
            self.gateway = Some(started.map_err(|error| format!("{error:#}"))?);
        }
        self.gateway.as_mut().ok_or_else(|| "there is no gateway".into())
    }

    /// What became of one.
    pub(super) fn reached(&mut self, id: u64, socket: Result<OwnedFd, String>) {
        if let Some(UnderWay { worker, reached, .. }) = self.reach.under_way.remove(&id) {
            self.tell_reached(worker, reached, socket);
        }
    }

    /// Those that the gateway had are lost with it, and those that take too long are not waited for.
    pub(super) fn give_up_reaching(&mut self, is_lost: bool) {
        // To connect, and to ask.
        let is_late = |one: &UnderWay| one.since.elapsed() > 2 * REACH_TIME_MAX;
        let lost = self.reach.under_way.iter().filter(|(_, one)| is_lost || is_late(one));
        for id in lost.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.reached(id, Err("the gateway did not reach it".into()));
        }
    }

    fn tell_reached(&mut self, worker: u64, reached: Reached, socket: Result<OwnedFd, String>) {
        let error = socket.as_ref().err().cloned();
        let fds: Vec<_> = socket.iter().map(|socket| socket.as_fd()).collect();
        let message = ToWorker::Reached(Reached { error, ..reached });
        self.workers.send(worker, &message, &fds);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn few_are_reached_at_once() {
        let place = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(place.path().to_owned())).unwrap();
        let (events, inbox) = mpsc::channel();
        let mut reach = Reach::new(home, events);
        let reached = || Reached { cell: "far".into(), generation: 1, machine: 0, error: None };
        let named = "nobody".to_owned();
        for id in 1..=REACHED_AT_ONCE_MAX as u64 {
            let worker = id % 4;
            assert_eq!(reach.start(worker, reached(), named.clone()), Ok(()));
            match inbox.recv().unwrap() {
                Event::Connected(found, Err(why)) => {
                    assert_eq!(found, id);
                    assert!(why.contains("no peer is called `nobody`"), "{why}");
                }
                _ => panic!("another event"),
            }
        }
        let is_refused = |reach: &mut Reach, worker| {
            let started = reach.start(worker, reached(), named.clone());
            started.is_err_and(|why| why.contains("too many"))
        };
        assert!(is_refused(&mut reach, 7), "of all workers");
        reach.under_way.retain(|_, one| one.worker != 3);
        assert!(is_refused(&mut reach, 2), "of one worker");
        assert!(!is_refused(&mut reach, 7));
    }
}
