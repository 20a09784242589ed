//! From an address to a socket of what was asked for at the machine that is there, or through another one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use cell_abi::AccountId;

use crate::credentials::Credentials;
use crate::error::PeerError;
use crate::handshake::{HANDSHAKE_BYTES_MAX, Handshake, Step};
use crate::records::{RECORD_BYTES_MAX, Records};
use crate::request::{Answer, Request};
use crate::session::Session;
use crate::tunnel::{now_s, prepare, run};

/// Addresses of one host that a machine is looked for at, when it is only to be known who answers.
const ADDRESSES_KNOCKED_AT: usize = 4;

/// Connects to a machine and asks it for something, within this time.
///
/// `address` is a host and a port, of which every address is tried; or the key of a relay before an `@` and
/// its host and port, for a machine that waits there. What comes back is this end of a socket whose bytes a
/// thread carries.
pub fn dial(
    address: &str,
    credentials: &Credentials,
    wanted: AccountId,
    request: &Request,
    timeout: Duration,
) -> Result<UnixStream, PeerError> {
    let deadline = Instant::now() + timeout;
    let mut dialled = reach(&Route::parse(address)?, credentials, wanted, deadline)?;
    let session = dialled.ask(credentials, wanted, request)?;
    let (ours, theirs) = UnixStream::pair()?;
    let Dialled { stream, records, .. } = dialled;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    thread::Builder::new().name("tunnel".into()).spawn(move || {
        // Both ends see that it ended; why is nobody's to hear any more.
        let _ = run(&stream, session, records, &theirs);
    })?;
    Ok(ours)
}

/// Finds out whether somebody answers there within this time, and after how long; and nothing more. Of a machine
/// behind a relay that is the machine itself, which comes and meets.
pub fn knock(
    address: &str,
    credentials: &Credentials,
    wanted: AccountId,
    timeout: Duration,
) -> Result<Duration, PeerError> {
    let (route, started) = (Route::parse(address)?, Instant::now());
    if route.relay.is_some() {
        return reach(&route, credentials, wanted, started + timeout).map(|_| started.elapsed());
    }
    let mut failed = PeerError::Connection(ErrorKind::NotFound);
    for address in route.at.to_socket_addrs()?.take(ADDRESSES_KNOCKED_AT) {
        // Looking the name up is no part of how far it is.
        let started = Instant::now();
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(_) => return Ok(started.elapsed()),
            Err(error) => failed = error.into(),
        }
    }
    Err(failed)
}

/// Connects to a host and a port by this time; every address that the host has is tried.
pub fn connect(address: &str, deadline: Instant) -> Result<TcpStream, PeerError> {
    let mut failed = PeerError::Connection(ErrorKind::NotFound);
    for address in address.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(PeerError::Connection(ErrorKind::TimedOut));
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error.into(),
        }
    }
    Err(failed)
}

/// Where to connect, and through whom.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route<'a> {
    pub(crate) relay: Option<AccountId>,
    pub(crate) at: &'a str,
}

impl<'a> Route<'a> {
    /// Reads HOST:PORT or RELAYKEY@HOST:PORT: there is one relay at most.
    pub(crate) fn parse(address: &'a str) -> Result<Self, PeerError> {
        let Some((relay, at)) = address.split_once('@') else {
            return Ok(Self { relay: None, at: address });
        };
        match AccountId::parse(relay) {
            Ok(relay) if !at.contains('@') => Ok(Self { relay: Some(relay), at }),
            _ => Err(PeerError::Address(address.chars().filter(|c| !c.is_control()).collect())),
        }
    }
}

/// A connection whose other end is at the machine that is wanted, or is to be.
fn reach(
    route: &Route<'_>,
    credentials: &Credentials,
    wanted: AccountId,
    deadline: Instant,
) -> Result<Dialled, PeerError> {
    let stream = connect(route.at, deadline)?;
    prepare(&stream)?;
    let mut dialled = Dialled { stream, records: Records::default(), deadline };
    if let Some(relay) = route.relay {
        // That session is over with its answer. What came after it is the other machine's, and stays in
        // `records` for the next.
        dialled
            .ask(credentials, relay, &Request::Through(wanted))
            .map_err(|why| PeerError::Through { relay, why: Box::new(why) })?;
    }
    Ok(dialled)
}

/// A connection on which somebody is asked for something.
struct Dialled {
    stream: TcpStream,
    records: Records,
    deadline: Instant,
}

impl Dialled {
    /// Shakes hands, and asks; the session, if the answer is yes.
    fn ask(
        &mut self,
        credentials: &Credentials,
        wanted: AccountId,
        request: &Request,
    ) -> Result<Session, PeerError> {
        let (mut handshake, first) = Handshake::initiate(credentials, wanted, now_s())?;
        self.send(&first)?;
        let mut session = loop {
            let message = self.receive(HANDSHAKE_BYTES_MAX)?;
            match handshake.step(&message)? {
                Step::Reply(next, bytes) => {
                    handshake = next;
                    self.send(&bytes)?;
                }
                Step::Done(session, bytes) => {
                    self.send(&bytes)?;
                    break session;
                }
            }
        };
        let mut bytes = Vec::new();
        session.seal(&request.encode(), &mut bytes)?;
        self.send(&bytes)?;
        let record = self.receive(RECORD_BYTES_MAX)?;
        let mut answer = Vec::new();
        session.open(&record, &mut answer)?;
        match Answer::decode(&answer)? {
            Answer::Yes => Ok(session),
            Answer::No(reason) => Err(PeerError::Refused(reason)),
        }
    }

    fn left(&self) -> Result<Duration, PeerError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(PeerError::Connection(ErrorKind::TimedOut)) } else { Ok(left) }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), PeerError> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        Ok(self.stream.write_all(bytes)?)
    }

    fn receive(&mut self, bytes_max: usize) -> Result<Vec<u8>, PeerError> {
        loop {
            if let Some(record) = self.records.next(bytes_max)? {
                return Ok(record.to_vec());
            }
            self.stream.set_read_timeout(Some(self.left()?))?;
            let room = self.records.room(4096);
            let read = self.stream.read(room);
            let came = *read.as_ref().unwrap_or(&0);
            self.records.filled(4096 - came);
            if read? == 0 {
                return Err(PeerError::Truncated);
            }
        }
    }
}
