//! Connections that are not yet sessions: one thread polls them all, so that a peer that says nothing
//! costs a descriptor and a few hundred bytes.

use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cell_peer::{
    Answer, Credentials, Handshake, Opened, PREFACE, Pace, Records, Request, Session, Step, tunnel,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::limits::{HANDSHAKE_TIME_MAX, HANDSHAKES_MAX};
use super::meter::{Meter, Source};
use super::sessions::{Counted, Sessions};
use crate::link::Link;
use crate::link::gateway::{FromGateway, ToGateway, Wanted};

/// Longest record before a session is one, in bytes: a handshake's message, or a request.
pub(super) const RECORD_BYTES_MAX: usize = 512;
/// How often deadlines are looked at.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Connections that are accepted before the others are looked at again.
const ACCEPTED_AT_ONCE: usize = 64;

/// Everybody who has not been served or refused yet.
pub(super) struct Hall {
    link: Link,
    listener: TcpListener,
    credentials: Credentials,
    meter: Meter,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    sessions: Sessions,
    /// How fast those are.
    pace: Arc<Pace>,
}

struct Waiting {
    stream: TcpStream,
    source: Source,
    since: Instant,
    records: Records,
    stage: Stage,
}

enum Stage {
    /// Its first bytes are to say what it speaks.
    Preface,
    Handshake(Handshake),
    /// It is to say what it wants.
    Request(Session),
    /// The nucleus is asked; this is our end of the connection that it has.
    Asked(Session, UnixStream),
}

impl Hall {
    pub(super) fn new(link: Link, listener: TcpListener, credentials: Credentials) -> Self {
        Self {
            link,
            listener,
            credentials,
            meter: Meter::default(),
            waiting: BTreeMap::new(),
            next: 0,
            sessions: Sessions::default(),
            pace: Arc::default(),
        }
    }

    /// Serves until the nucleus is gone.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        self.listener.set_nonblocking(true)?;
        let mut buffer = Vec::new();
        loop {
            let ids: Vec<_> = self.waiting.iter().filter(|(_, w)| w.listens()).collect();
            let mut fds = vec![
                PollFd::from_borrowed_fd(self.link.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
            ];
            for (_, waiting) in &ids {
                fds.push(PollFd::from_borrowed_fd(waiting.stream.as_fd(), PollFlags::IN));
            }
            match poll(&mut fds, Some(&TICK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut is_ready = fds.iter().map(|fd| !fd.revents().is_empty());
            let (link, listener) = (is_ready.next() == Some(true), is_ready.next() == Some(true));
            let ready: Vec<u64> = ids
                .iter()
                .zip(is_ready)
                .filter(|(_, ready)| *ready)
                .map(|((id, _), _)| **id)
                .collect();
            for id in ready {
                self.read(id)?;
            }
            if link && !self.hear(&mut buffer)? {
                return Ok(());
            }
            if listener {
                self.accept()?;
            }
            let now = Instant::now();
            self.waiting.retain(|_, waiting| now - waiting.since < HANDSHAKE_TIME_MAX);
        }
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        for _ in 0..ACCEPTED_AT_ONCE {
            let (stream, address) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Nothing listens there any more; the next gateway gets another socket.
                Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error.into()),
                // A peer that is gone already, or no descriptor left: the next look finds out.
                Err(_) => {
                    thread::sleep(Duration::from_millis(10));
                    return Ok(());
                }
            };
            let (source, since) = (Source::of(address.ip()), Instant::now());
            if !self.meter.admits(source, since) || stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.waiting.len() >= HANDSHAKES_MAX {
                self.make_room();
            }
            let (records, stage) = (Records::default(), Stage::Preface);
            self.waiting.insert(self.next, Waiting { stream, source, since, records, stage });
            self.next += 1;
        }
        Ok(())
    }

    /// Closes the oldest connection of the address that has the most.
    fn make_room(&mut self) {
        let mut counts = HashMap::<Source, usize>::new();
        for waiting in self.waiting.values() {
            *counts.entry(waiting.source).or_default() += 1;
        }
        let most = counts.values().max().copied().unwrap_or(0);
        let of_most = |w: &Waiting| counts.get(&w.source) == Some(&most);
        let oldest = self.waiting.iter().find(|(_, waiting)| of_most(waiting)).map(|(id, _)| *id);
        if let Some(oldest) = oldest {
            self.waiting.remove(&oldest);
        }
    }

    /// Takes what came from one; who sends what is not expected is not waited for any more.
    fn read(&mut self, id: u64) -> anyhow::Result<()> {
        let Some(mut waiting) = self.waiting.remove(&id) else { return Ok(()) };
        let room = waiting.records.room(RECORD_BYTES_MAX);
        let read = waiting.stream.read(room);
        waiting.records.filled(RECORD_BYTES_MAX - *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Ok(()),
            Ok(_) => {}
        }
        loop {
            waiting = match self.step(id, waiting)? {
                Next::Again(waiting) => waiting,
                Next::Wait(waiting) => {
                    self.waiting.insert(id, waiting);
                    return Ok(());
                }
                Next::Gone => return Ok(()),
            };
        }
    }

    /// One step of one connection. The outer error is the nucleus' end.
    fn step(&self, id: u64, mut waiting: Waiting) -> anyhow::Result<Next> {
        if matches!(waiting.stage, Stage::Preface) {
            return Ok(match waiting.records.take(PREFACE.len()) {
                None => Next::Wait(waiting),
                Some(preface) if preface == PREFACE => {
                    match Handshake::respond(&self.credentials, tunnel::now_s()) {
                        Ok(handshake) => {
                            waiting.stage = Stage::Handshake(handshake);
                            Next::Again(waiting)
                        }
                        Err(_) => Next::Gone,
                    }
                }
                Some(_) => Next::Gone,
            });
        }
        let record = match waiting.records.next(RECORD_BYTES_MAX) {
            Ok(Some(record)) => record.to_vec(),
            Ok(None) => return Ok(Next::Wait(waiting)),
            Err(_) => return Ok(Next::Gone),
        };
        match waiting.stage {
            Stage::Handshake(handshake) => {
                let (stage, reply) = match handshake.step(&record) {
                    Ok(Step::Reply(handshake, reply)) => (Stage::Handshake(handshake), reply),
                    Ok(Step::Done(session, reply)) => (Stage::Request(session), reply),
                    Err(_) => return Ok(Next::Gone),
                };
                // A few hundred bytes fit the buffer of a connection that has sent nothing.
                if waiting.stream.write_all(&reply).is_err() {
                    return Ok(Next::Gone);
                }
                waiting.stage = stage;
                Ok(Next::Again(waiting))
            }
            Stage::Request(mut session) => {
                let mut content = Vec::new();
                let opened = session.open(&record, &mut content);
                let wanted = match (opened, Request::decode(&content)) {
                    (Ok(Opened::Data), Ok(Request::Cell(cell))) => {
                        Wanted::Cell(cell.as_str().to_owned())
                    }
                    (Ok(Opened::Data), Ok(Request::PaidCell(channel, cell))) => {
                        Wanted::PaidCell { channel, cell: cell.as_str().to_owned() }
                    }
                    (Ok(Opened::Data), Ok(Request::Job)) => Wanted::Job,
                    (Ok(Opened::Data), Ok(Request::Channel)) => Wanted::Channel,
                    (Ok(Opened::Data), Ok(Request::Escrow)) => Wanted::Escrow,
                    (Ok(Opened::Data), _) => {
                        let why = "this machine does not know such a request";
                        refuse(&waiting.stream, &mut session, why);
                        return Ok(Next::Gone);
                    }
                    _ => return Ok(Next::Gone),
                };
                let (ours, theirs) = UnixStream::pair()?;
                let (proof, public) = session.shown();
                let (proof, public) = (proof.to_vec(), public.to_vec());
                let connect = FromGateway::Connect { id, proof, public, wanted };
                self.link.send(&connect, &[theirs.as_fd()])?;
                waiting.stage = Stage::Asked(session, ours);
                Ok(Next::Wait(waiting))
            }
            // It may speak before it is answered; the session takes it from here.
            Stage::Preface | Stage::Asked(..) => Ok(Next::Gone),
        }
    }

    /// Takes a message of the nucleus; `false` when it is gone.
    fn hear(&mut self, buffer: &mut Vec<u8>) -> anyhow::Result<bool> {
        let Some((message, _)) = self.link.receive::<ToGateway>(buffer)? else { return Ok(false) };
        match message {
            ToGateway::Start { credentials } | ToGateway::Credentials(credentials) => {
                self.credentials = Credentials::from_bytes(&credentials)?;
            }
            ToGateway::Pace { bytes_per_s } => self.pace.set(bytes_per_s),
            ToGateway::Served { id, is_known } => {
                if let Some(Waiting {
                    stage: Stage::Asked(session, local), stream, records, ..
                }) = self.waiting.remove(&id)
                {
                    let counted = self.sessions.enter(session.peer(), is_known);
                    serve(counted, stream, session, records, local, Arc::clone(&self.pace));
                }
            }
            ToGateway::Refused { id, why } => {
                if let Some(Waiting { stage: Stage::Asked(mut session, _), stream, .. }) =
                    self.waiting.remove(&id)
                {
                    refuse(&stream, &mut session, &why);
                }
            }
        }
        Ok(true)
    }
}

/// From here on a thread carries what both sides say, if one more may be.
fn serve(
    counted: Option<Counted>,
    mut stream: TcpStream,
    mut session: Session,
    records: Records,
    local: UnixStream,
    pace: Arc<Pace>,
) {
    let Some(counted) = counted else {
        return refuse(&stream, &mut session, "too many sessions; try again later");
    };
    let mut answer = Vec::new();
    let sealed = session.seal(&Answer::Yes.encode(), &mut answer);
    if sealed.is_err() || stream.write_all(&answer).is_err() {
        return;
    }
    // Without a thread the connection is closed, and the peer sees that.
    let _ = thread::Builder::new().name("session".into()).stack_size(256 << 10).spawn(move || {
        let _counted = counted;
        let _ = tunnel::run_at((&stream, session, records), &local, &pace);
    });
}

enum Next {
    Again(Waiting),
    Wait(Waiting),
    Gone,
}

impl Waiting {
    /// Whether it is its turn to speak; what a peer says while the nucleus is asked waits in its socket.
    const fn listens(&self) -> bool {
        !matches!(self.stage, Stage::Asked(..))
    }
}

/// Tells a peer why not; one that does not take it sees that the connection ends.
fn refuse(mut stream: &TcpStream, session: &mut Session, why: &str) {
    let mut answer = Vec::new();
    if session.seal(&Answer::No(why.to_owned()).encode(), &mut answer).is_ok() {
        let _ = stream.write_all(&answer);
    }
}
