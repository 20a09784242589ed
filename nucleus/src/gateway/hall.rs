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

use cell_abi::AccountId;
use cell_peer::{
    Answer, Credentials, Handshake, Opened, PREFACE, Pace, Records, Request, Session, Step, tunnel,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::limits::{HANDSHAKE_TIME_MAX, HANDSHAKES_MAX, SESSIONS};
use super::meter::{Meter, Source};
use super::reaches::Reaches;
use super::relay::{Party, Relay};
use super::sessions::{Counted, Sessions};
use super::ways::{Arrival, Ways};
use crate::link::Link;
use crate::link::gateway::{FromGateway, ToGateway, Wanted};

/// Longest record before a session is one, in bytes: a handshake's message, or a request.
pub(super) const RECORD_BYTES_MAX: usize = 512;
/// How often deadlines are looked at.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Connections that are accepted before the others are looked at again.
const ACCEPTED_AT_ONCE: usize = 64;

/// What a peer is told where descriptors or memory are short.
pub(super) const NO_ROOM: &str =
    "this machine has no room for one more connection; try again later";

/// Everybody who has not been served or refused yet.
pub(super) struct Hall {
    link: Link,
    listener: Option<TcpListener>,
    credentials: Credentials,
    meter: Meter,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    sessions: Sessions,
    /// How fast those are.
    pace: Arc<Pace>,
    /// Machines that wait here.
    relay: Relay,
    /// Where this machine waits.
    ways: Ways,
    /// What it asks of others.
    reaches: Reaches,
}

/// Who has something to say.
enum Speaker {
    /// One that waits in the hall.
    Guest(u64),
    /// A machine that waits for others.
    Machine(AccountId),
    /// A relay.
    Way(u64),
    Nucleus,
    Listener,
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
    /// The nucleus is asked.
    Asked(Session, Asked),
}

/// What for.
enum Asked {
    /// It has a connection, and this is our end.
    Local(UnixStream),
    /// May it wait here?
    Wait,
    /// May it be connected to this machine?
    Through(AccountId),
}

impl Hall {
    pub(super) fn new(
        link: Link,
        listener: Option<TcpListener>,
        credentials: Credentials,
        relays: &[AccountId],
    ) -> Self {
        let pace = Arc::<Pace>::default();
        Self {
            link,
            listener,
            credentials,
            meter: Meter::default(),
            waiting: BTreeMap::new(),
            next: 0,
            sessions: Sessions::new(SESSIONS),
            relay: Relay::new(Arc::clone(&pace)),
            pace,
            ways: Ways::new(relays),
            reaches: Reaches::default(),
        }
    }

    /// Serves until the nucleus is gone.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        if let Some(listener) = &self.listener {
            listener.set_nonblocking(true)?;
        }
        let mut buffer = Vec::new();
        loop {
            for speaker in self.poll()? {
                match speaker {
                    Speaker::Guest(id) => self.read(id)?,
                    Speaker::Machine(key) => self.relay.gone(key),
                    Speaker::Way(id) => {
                        if let Some(arrival) = self.ways.read(id, &self.link, &mut self.meter)? {
                            self.arrive(arrival)?;
                        }
                    }
                    Speaker::Nucleus if !self.hear(&mut buffer)? => return Ok(()),
                    Speaker::Nucleus => {}
                    Speaker::Listener => self.accept()?,
                }
            }
            let now = Instant::now();
            self.waiting.retain(|_, waiting| now - waiting.since < HANDSHAKE_TIME_MAX);
            self.relay.tick(now);
            self.ways.tick(&self.link, now)?;
        }
    }

    /// Waits until somebody says something.
    fn poll(&self) -> anyhow::Result<Vec<Speaker>> {
        let guests = self.waiting.iter().filter(|(_, waiting)| waiting.listens());
        let guests = guests.map(|(id, waiting)| (Speaker::Guest(*id), waiting.stream.as_fd()));
        let machines = self.relay.streams().map(|(key, s)| (Speaker::Machine(key), s.as_fd()));
        let ways = self.ways.streams().map(|(id, stream)| (Speaker::Way(id), stream.as_fd()));
        let (mut speakers, mut fds): (Vec<_>, Vec<_>) = guests
            .chain(machines)
            .chain(ways)
            .chain([(Speaker::Nucleus, self.link.as_fd())])
            .chain(self.listener.iter().map(|listener| (Speaker::Listener, listener.as_fd())))
            .map(|(speaker, fd)| (speaker, PollFd::from_borrowed_fd(fd, PollFlags::IN)))
            .unzip();
        match poll(&mut fds, Some(&TICK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut is_ready = fds.iter().map(|fd| !fd.revents().is_empty());
        speakers.retain(|_| is_ready.next() == Some(true));
        Ok(speakers)
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        for _ in 0..ACCEPTED_AT_ONCE {
            let Some(listener) = &self.listener else { return Ok(()) };
            let (stream, address) = match listener.accept() {
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
            let (records, stage) = (Records::default(), Stage::Preface);
            self.enter(Waiting { stream, source, since, records, stage });
        }
        Ok(())
    }

    /// Lets one in that is to say what it speaks.
    fn enter(&mut self, waiting: Waiting) -> u64 {
        if self.waiting.len() >= HANDSHAKES_MAX {
            self.make_room();
        }
        let id = self.next;
        self.waiting.insert(id, waiting);
        self.next += 1;
        id
    }

    /// The same for one that came through a relay, whose address it has. It may have begun to speak.
    fn arrive(&mut self, Arrival { stream, source, records }: Arrival) -> anyhow::Result<()> {
        let (since, stage) = (Instant::now(), Stage::Preface);
        let id = self.enter(Waiting { stream, source, since, records, stage });
        self.go_on(id)
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
        let Some(waiting) = self.waiting.get_mut(&id) else { return Ok(()) };
        let room = waiting.records.room(RECORD_BYTES_MAX);
        let read = waiting.stream.read(room);
        waiting.records.filled(RECORD_BYTES_MAX - *read.as_ref().unwrap_or(&0));
        match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => {
                self.waiting.remove(&id);
                return Ok(());
            }
            Ok(_) => {}
        }
        self.go_on(id)
    }

    /// Takes the steps that what came allows.
    fn go_on(&mut self, id: u64) -> anyhow::Result<()> {
        let Some(mut waiting) = self.waiting.remove(&id) else { return Ok(()) };
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
    fn step(&mut self, id: u64, mut waiting: Waiting) -> anyhow::Result<Next> {
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
            Stage::Request(session) => {
                let Waiting { stream, source, since, records, .. } = waiting;
                let party = Party { stream, session, records };
                let asked = self.ask(id, party, &record)?;
                Ok(asked.map_or(Next::Gone, |(Party { stream, session, records }, asked)| {
                    let stage = Stage::Asked(session, asked);
                    Next::Wait(Waiting { stream, source, since, records, stage })
                }))
            }
            // It may speak before it is answered; the session takes it from here.
            Stage::Preface | Stage::Asked(..) => Ok(Next::Gone),
        }
    }

    /// Has the nucleus asked for what a peer wants, unless there is nothing to ask. The outer error is the
    /// nucleus' end.
    fn ask(
        &mut self,
        id: u64,
        mut party: Party,
        record: &[u8],
    ) -> anyhow::Result<Option<(Party, Asked)>> {
        let mut content = Vec::new();
        if !matches!(party.session.open(record, &mut content), Ok(Opened::Data)) {
            return Ok(None);
        }
        let wanted = match Request::decode(&content) {
            Ok(Request::Cell(cell)) => Wanted::Cell(cell.as_str().to_owned()),
            Ok(Request::PaidCell(channel, cell)) => {
                Wanted::PaidCell { channel, cell: cell.as_str().to_owned() }
            }
            Ok(Request::Job) => Wanted::Job,
            Ok(Request::Channel) => Wanted::Channel,
            Ok(Request::Escrow) => Wanted::Escrow,
            Ok(Request::Wait) => Wanted::Wait,
            Ok(Request::Through(machine)) => Wanted::Through(*machine.as_bytes()),
            // Who waits here was asked about when it began to.
            Ok(Request::Meet(token)) => {
                self.relay.meet(&token, party);
                return Ok(None);
            }
            _ => {
                party.refuse("this machine does not know such a request");
                return Ok(None);
            }
        };
        let (proof, public) = party.session.shown();
        let (proof, public) = (proof.to_vec(), public.to_vec());
        let (asked, theirs) = match wanted {
            Wanted::Wait => (Asked::Wait, None),
            Wanted::Through(machine) => (Asked::Through(AccountId::from_bytes(machine)), None),
            _ => match UnixStream::pair() {
                Ok((ours, theirs)) => (Asked::Local(ours), Some(theirs)),
                // No descriptor is left: others stay.
                Err(_) => {
                    party.refuse(NO_ROOM);
                    return Ok(None);
                }
            },
        };
        let fds: Vec<_> = theirs.iter().map(|theirs| theirs.as_fd()).collect();
        self.link.send(&FromGateway::Connect { id, proof, public, wanted }, &fds)?;
        Ok(Some((party, asked)))
    }

    /// Takes a message of the nucleus; `false` when it is gone.
    fn hear(&mut self, buffer: &mut Vec<u8>) -> anyhow::Result<bool> {
        let Some((message, fds)) = self.link.receive::<ToGateway>(buffer)? else {
            return Ok(false);
        };
        match message {
            ToGateway::Start { credentials, .. } | ToGateway::Credentials(credentials) => {
                self.credentials = Credentials::from_bytes(&credentials)?;
            }
            ToGateway::Pace { bytes_per_s } => self.pace.set(bytes_per_s),
            ToGateway::Served { id, is_known } => {
                if let Some((party, asked)) = self.asked(id) {
                    match asked {
                        Asked::Local(local) => {
                            let counted = self.sessions.enter(party.session.peer(), is_known);
                            serve(counted, party, local, Arc::clone(&self.pace));
                        }
                        Asked::Wait => self.relay.wait(party),
                        Asked::Through(machine) => self.relay.through(machine, party, is_known),
                    }
                }
            }
            ToGateway::Refused { id, why } => {
                if let Some((mut party, _)) = self.asked(id) {
                    party.refuse(&why);
                }
            }
            ToGateway::Dialled { id, at } => {
                let stream = fds.into_iter().next().map(TcpStream::from);
                let stream = stream.ok_or("the connection is lost").map_err(String::from);
                let stream = stream.map(|stream| (stream, Source::of(at)));
                self.ways.dialled(id, stream, &self.credentials, &self.link)?;
            }
            ToGateway::NotDialled { id, why } => {
                self.ways.dialled(id, Err(why), &self.credentials, &self.link)?;
            }
            ToGateway::Reach(reach) => {
                let stream = fds.into_iter().next().map(TcpStream::from);
                self.reaches.begin(reach, stream, &self.credentials, &self.link)?;
            }
        }
        Ok(true)
    }

    /// The one that the nucleus was asked about, if it is there still.
    fn asked(&mut self, id: u64) -> Option<(Party, Asked)> {
        let Waiting { stream, records, stage, .. } = self.waiting.remove(&id)?;
        let Stage::Asked(session, asked) = stage else { return None };
        Some((Party { stream, session, records }, asked))
    }
}

/// From here on a thread carries what both sides say, if one more may be.
fn serve(counted: Option<Counted>, mut party: Party, local: UnixStream, pace: Arc<Pace>) {
    let Some(counted) = counted else {
        return party.refuse("too many sessions; try again later");
    };
    if !party.answer(&Answer::Yes) {
        return;
    }
    // Without a thread the connection is closed, and the peer sees that.
    let _ = thread::Builder::new().name("session".into()).stack_size(256 << 10).spawn(move || {
        let _counted = counted;
        let Party { stream, session, records } = party;
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
