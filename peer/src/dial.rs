//! From an address to a socket of what was asked for at the machine that is there, or through another one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use cell_abi::AccountId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::credentials::Credentials;
use crate::error::PeerError;
use crate::handshake::{HANDSHAKE_BYTES_MAX, Handshake, Step};
use crate::records::{RECORD_BYTES_MAX, Records};
use crate::request::{Answer, Request};
use crate::session::Session;
use crate::tunnel::{is_passing, now_s, prepare, run};

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
    let (route, deadline) = (Route::parse(address)?, Instant::now() + timeout);
    let stream = connect(route.at, deadline)?;
    let who = (route.relay, wanted);
    let (stream, session, records) = ask_over(stream, who, credentials, request, deadline)?;
    let (ours, theirs) = UnixStream::pair()?;
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
        let stream = connect(route.at, started + timeout)?;
        let mut dialled = Dialled::new(stream, started + timeout)?;
        dialled.pass(route.relay, credentials, wanted)?;
        return Ok(started.elapsed());
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

/// Connects to a host and a port by this time, with the options of [`prepare`]; every address that the host has
/// is tried.
pub fn connect(address: &str, deadline: Instant) -> Result<TcpStream, PeerError> {
    let left = || deadline.saturating_duration_since(Instant::now());
    let stream = first_of(address.to_socket_addrs()?, left, TcpStream::connect_timeout)?;
    prepare(&stream)?;
    Ok(stream)
}

/// The first of these that answers. Each has an equal part of the time that is left, so that one from which
/// nothing comes back does not keep those behind it from being tried.
fn first_of<T>(
    mut addresses: impl ExactSizeIterator<Item = SocketAddr>,
    left: impl Fn() -> Duration,
    connect: impl Fn(&SocketAddr, Duration) -> std::io::Result<T>,
) -> Result<T, PeerError> {
    let mut failed = PeerError::Connection(ErrorKind::NotFound);
    loop {
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let Some(address) = addresses.next() else { return Err(failed) };
        let part = left() / count.max(1);
        if part.is_zero() {
            return Err(PeerError::Connection(ErrorKind::TimedOut));
        }
        match connect(&address, part) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error.into(),
        }
    }
}

/// Asks a machine for something over a connection to it, or to the relay at which it waits, by this time. What
/// comes back is for [`run`](crate::tunnel::run); the connection does not block from here on.
pub fn ask_over(
    stream: TcpStream,
    (relay, wanted): (Option<AccountId>, AccountId),
    credentials: &Credentials,
    request: &Request,
    deadline: Instant,
) -> Result<(TcpStream, Session, Records), PeerError> {
    let mut dialled = Dialled::new(stream, deadline)?;
    dialled.pass(relay, credentials, wanted)?;
    let session = dialled.ask(credentials, wanted, request)?;
    Ok((dialled.stream, session, dialled.records))
}

/// Where to connect, and through whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route<'a> {
    /// The machine that waits there is reached through this one.
    pub relay: Option<AccountId>,
    /// HOST:PORT.
    pub at: &'a str,
}

impl<'a> Route<'a> {
    /// Reads HOST:PORT or RELAYKEY@HOST:PORT: there is one relay at most.
    pub fn parse(address: &'a str) -> Result<Self, PeerError> {
        let Some((relay, at)) = address.split_once('@') else {
            return Ok(Self { relay: None, at: address });
        };
        match AccountId::parse(relay) {
            Ok(relay) if !at.contains('@') => Ok(Self { relay: Some(relay), at }),
            _ => Err(PeerError::Address(address.chars().filter(|c| !c.is_control()).collect())),
        }
    }
}

/// A connection on which somebody is asked for something.
struct Dialled {
    stream: TcpStream,
    records: Records,
    deadline: Instant,
}

impl Dialled {
    fn new(stream: TcpStream, deadline: Instant) -> Result<Self, PeerError> {
        // So that a wait has an end without a word to the kernel about it, which a process behind walls may
        // not have.
        stream.set_nonblocking(true)?;
        Ok(Self { stream, records: Records::default(), deadline })
    }

    /// Has a relay connect this to the machine that is wanted, if there is one on the way. That session is over
    /// with its answer; what came after it is the other machine's, and stays for the next.
    fn pass(
        &mut self,
        relay: Option<AccountId>,
        credentials: &Credentials,
        wanted: AccountId,
    ) -> Result<(), PeerError> {
        let Some(relay) = relay else { return Ok(()) };
        let asked = self.ask(credentials, relay, &Request::Through(wanted));
        asked.map(drop).map_err(|why| PeerError::Through { relay, why: Box::new(why) })
    }

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

    /// Waits until the connection may go on.
    fn wait(&self, flags: PollFlags) -> Result<(), PeerError> {
        let timed_out = || PeerError::Connection(ErrorKind::TimedOut);
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok().filter(|_| !left.is_zero());
        let left = left.ok_or_else(timed_out)?;
        match poll(&mut [PollFd::from_borrowed_fd(self.stream.as_fd(), flags)], Some(&left)) {
            Ok(0) => Err(timed_out()),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), PeerError> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if is_passing(&error) => self.wait(PollFlags::OUT)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, bytes_max: usize) -> Result<Vec<u8>, PeerError> {
        loop {
            if let Some(record) = self.records.next(bytes_max)? {
                return Ok(record.to_vec());
            }
            self.wait(PollFlags::IN)?;
            let room = self.records.room(4096);
            let read = self.stream.read(room);
            let came = *read.as_ref().unwrap_or(&0);
            self.records.filled(4096 - came);
            match read {
                Ok(0) => return Err(PeerError::Truncated),
                Err(error) if !is_passing(&error) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// From the first address nothing comes back; the second refuses at once; the third answers.
    #[test]
    fn each_address_has_its_part_of_the_time() {
        let left = Cell::new(Duration::from_secs(12));
        let addresses = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let connect = |address: &SocketAddr, part: Duration| match address.port() {
            1 => {
                left.set(left.get() - part);
                Err(ErrorKind::TimedOut.into())
            }
            2 => Err(ErrorKind::ConnectionRefused.into()),
            _ => Ok(part),
        };
        let first = |count| first_of(addresses.into_iter().take(count), || left.get(), connect);
        assert_eq!(first(3), Ok(Duration::from_secs(8)));
        assert_eq!(first(2), Err(PeerError::Connection(ErrorKind::ConnectionRefused)));
        left.set(Duration::from_secs(1));
        assert_eq!(first(1), Err(PeerError::Connection(ErrorKind::TimedOut)));
        assert_eq!(first(0), Err(PeerError::Connection(ErrorKind::NotFound)));
        assert_eq!(first(3), Err(PeerError::Connection(ErrorKind::TimedOut)), "no time is left");
    }
}
