//! The relays at which this machine waits, so that others reach it without a port of its own.
//!
//! This process cannot open connections: it asks the nucleus for each, which connects to the relays that
//! `nucleus.toml` names and to nobody else. What is said over them is said here.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use cell_abi::AccountId;
use cell_peer::{
    Answer, Credentials, Handshake, Opened, PeerError, Records, Request, Session, Step, Token,
    tunnel,
};

use super::limits::{ARRIVALS_PER_RELAY_MAX, HANDSHAKE_TIME_MAX, RELAY_DELAY_MAX};
use super::meter::{Meter, Source};
use crate::link::Link;
use crate::link::gateway::{DIAL_TIME_MAX, FromGateway};

/// Longest record of a relay, in bytes: an answer with a reason.
pub(super) const RECORD_BYTES_MAX: usize = 1024;
/// How long after a relay is lost for the first time it is tried again.
const DELAY_FIRST: Duration = Duration::from_secs(1);

/// All of them.
pub(super) struct Ways {
    ways: Vec<Way>,
    lines: BTreeMap<u64, Line>,
    next: u64,
}

/// One relay.
struct Way {
    relay: AccountId,
    delay: Duration,
    /// When it is tried again; `None` while it is tried, and while this machine waits there.
    retry_at: Option<Instant>,
}

/// A connection to a relay.
struct Line {
    way: usize,
    purpose: Purpose,
    stage: Stage,
    since: Instant,
}

#[derive(Clone, Copy)]
enum Purpose {
    /// To wait.
    Wait,
    /// To fetch whom this token stands for.
    Meet(Token),
}

enum Stage {
    /// The nucleus connects.
    Dialling,
    Handshake(Socket, Handshake),
    /// The relay is asked.
    Asked(Socket, Session),
    /// It tells who wants to be connected.
    Waiting(Socket, Session),
}

/// A connection, and what came over it.
struct Socket {
    stream: TcpStream,
    source: Source,
    records: Records,
}

/// Somebody who came through a relay: a connection like one that was accepted from that address, and what came
/// over it already.
pub(super) struct Arrival {
    pub(super) stream: TcpStream,
    pub(super) source: Source,
    pub(super) records: Records,
}

/// Where a record led.
enum Next {
    On(Stage),
    Arrived(Socket),
    Wanted(Stage, Token),
}

impl Ways {
    pub(super) fn new(relays: &[AccountId]) -> Self {
        let way = |relay: &AccountId| Way {
            relay: *relay,
            delay: DELAY_FIRST,
            retry_at: Some(Instant::now()),
        };
        Self { ways: relays.iter().map(way).collect(), lines: BTreeMap::new(), next: 0 }
    }

    /// The connections that may have something to say.
    pub(super) fn streams(&self) -> impl Iterator<Item = (u64, &TcpStream)> {
        self.lines.iter().filter_map(|(id, line)| Some((*id, &line.stage.socket()?.stream)))
    }

    /// Gives up what takes too long, and tries again what is due. An error is the nucleus' end.
    pub(super) fn tick(&mut self, link: &Link, now: Instant) -> std::io::Result<()> {
        let late: Vec<_> = self.lines.iter().filter(|(_, line)| line.is_late(now)).collect();
        for id in late.into_iter().map(|(id, _)| *id).collect::<Vec<_>>() {
            self.lost(id, "it did not answer in time", link, now)?;
        }
        for at in 0..self.ways.len() {
            let due = self.ways.get_mut(at).filter(|way| way.retry_at.is_some_and(|at| now >= at));
            if let Some(way) = due {
                way.retry_at = None;
                self.dial(at, Purpose::Wait, link, now)?;
            }
        }
        Ok(())
    }

    fn dial(
        &mut self,
        way: usize,
        purpose: Purpose,
        link: &Link,
        now: Instant,
    ) -> std::io::Result<()> {
        let id = self.next;
        self.next += 1;
        self.lines.insert(id, Line { way, purpose, stage: Stage::Dialling, since: now });
        link.send(&FromGateway::Dial { id, way: number(way) }, &[])
    }

    /// The nucleus has connected, or not.
    pub(super) fn dialled(
        &mut self,
        id: u64,
        stream: Result<(TcpStream, Source), String>,
        credentials: &Credentials,
        link: &Link,
    ) -> std::io::Result<()> {
        let now = Instant::now();
        let Some(line) = self.lines.get_mut(&id) else { return Ok(()) };
        let Some(relay) = self.ways.get(line.way).map(|way| way.relay) else { return Ok(()) };
        let begun = stream.and_then(|stream| {
            begin(stream, credentials, relay).map_err(|error| error.to_string())
        });
        match begun {
            Ok(stage) => (line.stage, line.since) = (stage, now),
            Err(why) => self.lost(id, &why, link, now)?,
        }
        Ok(())
    }

    /// Takes what came over one of them; somebody who arrived, perhaps.
    pub(super) fn read(
        &mut self,
        id: u64,
        link: &Link,
        meter: &mut Meter,
    ) -> std::io::Result<Option<Arrival>> {
        let now = Instant::now();
        let Some(socket) = self.lines.get_mut(&id).and_then(|line| line.stage.socket_mut()) else {
            return Ok(None);
        };
        if let Err(error) = socket.read() {
            self.lost(id, &error.to_string(), link, now)?;
            return Ok(None);
        }
        while let Some(record) = self.record(id).transpose() {
            let Some(Line { way, purpose, stage, since }) = self.lines.remove(&id) else { break };
            let was_waiting = matches!(stage, Stage::Waiting(..));
            let (stage, token) = match record.and_then(|record| stage.step(&record, purpose)) {
                Ok(Next::On(stage)) => (stage, None),
                Ok(Next::Wanted(stage, token)) => (stage, Some(token)),
                Ok(Next::Arrived(Socket { stream, source, records })) => {
                    return Ok(Some(Arrival { stream, source, records }));
                }
                Err(error) => {
                    self.fell(way, purpose, since, &error.to_string(), (link, now))?;
                    break;
                }
            };
            let begins = !was_waiting && matches!(stage, Stage::Waiting(..));
            let source = stage.socket().map(|socket| socket.source);
            // From here on `since` says since when it waits.
            let since = if begins { now } else { since };
            self.lines.insert(id, Line { way, purpose, stage, since });
            if begins {
                link.send(&FromGateway::Waits { way: number(way), why_not: None }, &[])?;
            }
            if let (Some(token), Some(source)) = (token, source)
                && self.arriving(way) < ARRIVALS_PER_RELAY_MAX
                && meter.admits(source, now)
            {
                self.dial(way, Purpose::Meet(token), link, now)?;
            }
        }
        Ok(None)
    }

    /// The next record that came over one of them, if all of it is there.
    fn record(&mut self, id: u64) -> Result<Option<Vec<u8>>, PeerError> {
        let line = self.lines.get_mut(&id);
        let Some(socket) = line.and_then(|line| line.stage.socket_mut()) else { return Ok(None) };
        Ok(socket.records.next(RECORD_BYTES_MAX)?.map(<[u8]>::to_vec))
    }

    /// How many are being fetched at a relay.
    fn arriving(&self, way: usize) -> usize {
        let is_one = |line: &&Line| line.way == way && matches!(line.purpose, Purpose::Meet(_));
        self.lines.values().filter(is_one).count()
    }

    fn lost(&mut self, id: u64, why: &str, link: &Link, now: Instant) -> std::io::Result<()> {
        let Some(Line { way, purpose, since, stage }) = self.lines.remove(&id) else {
            return Ok(());
        };
        drop(stage);
        self.fell(way, purpose, since, why, (link, now))
    }

    /// A connection is no more. Whom nobody fetched is told so by the relay.
    fn fell(
        &mut self,
        at: usize,
        purpose: Purpose,
        since: Instant,
        why: &str,
        (link, now): (&Link, Instant),
    ) -> std::io::Result<()> {
        let (Purpose::Wait, Some(way)) = (purpose, self.ways.get_mut(at)) else { return Ok(()) };
        if now.duration_since(since) >= RELAY_DELAY_MAX {
            way.delay = DELAY_FIRST;
        }
        way.retry_at = Some(now + jittered(way.delay));
        way.delay = (way.delay * 2).min(RELAY_DELAY_MAX);
        let why_not = Some(why.to_owned());
        link.send(&FromGateway::Waits { way: number(at), why_not }, &[])
    }
}

impl Line {
    /// Whether it takes too long; a machine may wait for ever.
    fn is_late(&self, now: Instant) -> bool {
        let time_max = match self.stage {
            // The nucleus gives up first; that it answers at all is not taken for granted.
            Stage::Dialling => DIAL_TIME_MAX * 2,
            Stage::Handshake(..) | Stage::Asked(..) => HANDSHAKE_TIME_MAX,
            Stage::Waiting(..) => return false,
        };
        now.duration_since(self.since) >= time_max
    }
}

fn begin(
    (stream, source): (TcpStream, Source),
    credentials: &Credentials,
    relay: AccountId,
) -> Result<Stage, PeerError> {
    stream.set_nonblocking(true)?;
    let (handshake, first) = Handshake::initiate(credentials, relay, tunnel::now_s())?;
    let mut socket = Socket { stream, source, records: Records::default() };
    socket.stream.write_all(&first)?;
    Ok(Stage::Handshake(socket, handshake))
}

impl Stage {
    const fn socket(&self) -> Option<&Socket> {
        match self {
            Self::Dialling => None,
            Self::Handshake(socket, _) | Self::Asked(socket, _) | Self::Waiting(socket, _) => {
                Some(socket)
            }
        }
    }

    const fn socket_mut(&mut self) -> Option<&mut Socket> {
        match self {
            Self::Dialling => None,
            Self::Handshake(socket, _) | Self::Asked(socket, _) | Self::Waiting(socket, _) => {
                Some(socket)
            }
        }
    }

    /// Takes a record of the relay.
    fn step(self, record: &[u8], purpose: Purpose) -> Result<Next, PeerError> {
        match self {
            Self::Dialling => Ok(Next::On(self)),
            Self::Handshake(mut socket, handshake) => {
                // A few hundred bytes fit the buffer of a connection that has sent hardly more.
                match handshake.step(record)? {
                    Step::Reply(next, bytes) => {
                        socket.stream.write_all(&bytes)?;
                        Ok(Next::On(Self::Handshake(socket, next)))
                    }
                    Step::Done(mut session, mut bytes) => {
                        session.seal(&purpose.request().encode(), &mut bytes)?;
                        socket.stream.write_all(&bytes)?;
                        Ok(Next::On(Self::Asked(socket, session)))
                    }
                }
            }
            Self::Asked(socket, mut session) => {
                let mut content = Vec::new();
                session.open(record, &mut content)?;
                match (Answer::decode(&content)?, purpose) {
                    (Answer::No(reason), _) => Err(PeerError::Refused(reason)),
                    (Answer::Yes, Purpose::Wait) => Ok(Next::On(Self::Waiting(socket, session))),
                    // That session is over; what follows is of whoever wants to be connected.
                    (Answer::Yes, Purpose::Meet(_)) => Ok(Next::Arrived(socket)),
                }
            }
            Self::Waiting(socket, mut session) => {
                let mut content = Vec::new();
                match session.open(record, &mut content)? {
                    Opened::End => Err(PeerError::Truncated),
                    // One record is one token, however they come.
                    Opened::Data => match content.try_into() {
                        Ok(token) => Ok(Next::Wanted(Self::Waiting(socket, session), token)),
                        Err(_) => Err(PeerError::Unexpected("what is no token")),
                    },
                }
            }
        }
    }
}

impl Purpose {
    const fn request(self) -> Request {
        match self {
            Self::Wait => Request::Wait,
            Self::Meet(token) => Request::Meet(token),
        }
    }
}

impl Socket {
    /// Takes what is there.
    fn read(&mut self) -> Result<(), PeerError> {
        let room = self.records.room(RECORD_BYTES_MAX);
        let read = self.stream.read(room);
        self.records.filled(RECORD_BYTES_MAX - *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(PeerError::Truncated),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn number(way: usize) -> u32 {
    u32::try_from(way).unwrap_or(u32::MAX)
}

/// Between a half and all of it, so that those who lost the same relay do not come back at once.
fn jittered(delay: Duration) -> Duration {
    let mut random = [u8::MAX];
    // Without randomness all of it.
    let _ = getrandom::fill(&mut random);
    let [part] = random.map(u32::from);
    delay / 2 + delay / 2 * part / u32::from(u8::MAX)
}

#[cfg(test)]
#[path = "ways_tests.rs"]
mod tests;
