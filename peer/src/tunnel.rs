//! A local socket whose other end is on another machine.
//!
//! [`dial()`] makes one; [`run`] moves the bytes of either side until both have ended. Who reads from the
//! local socket needs to know nothing of sessions.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::PollFlags;
use rustix::net::sockopt;

pub use crate::dial::{Route, ask_over, connect, dial, knock};
use crate::error::PeerError;
use crate::pace::{Pace, Side, Way};
use crate::records::{RECORD_BYTES_MAX, Records};
use crate::session::{CONTENT_BYTES_MAX, Opened, Session};
use crate::wait::wait;

/// How long a silent connection is believed to have a peer: it is asked after so long, and again and
/// again, this many times.
const ASK_AFTER: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_secs(10);
const ASK_TIMES: u32 = 3;

/// What a record has besides content: its length, and what proves it.
const BESIDE_BYTES: usize = 18;

/// Options of a connection, or of a socket that accepts them: nothing waits to be sent, and a peer that
/// is gone is found out.
pub fn prepare(socket: impl std::os::fd::AsFd) -> Result<(), PeerError> {
    let set = || -> rustix::io::Result<()> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, ASK_AFTER)?;
        sockopt::set_tcp_keepintvl(&socket, ASK_EVERY)?;
        // How long bytes under way may stay unacknowledged is the system's to say: with a bound here Linux would
        // also cut off a peer that is there, and takes nothing for as long.
        sockopt::set_tcp_keepcnt(&socket, ASK_TIMES)
    };
    Ok(set().map_err(std::io::Error::from)?)
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Carries bytes between a peer and a local socket until both have ended, or one is gone. Returns an
/// error if the peer did not end but its connection did, or if what came is not the peer's.
///
/// Neither side is read while the other does not take what was read before.
pub fn run(
    stream: &TcpStream,
    session: Session,
    records: Records,
    local: &UnixStream,
) -> Result<(), PeerError> {
    run_at((stream, session, records), local, &Pace::default())
}

/// The same at a pace that other sessions share.
pub fn run_at(
    (stream, session, records): (&TcpStream, Session, Records),
    local: &UnixStream,
    pace: &Pace,
) -> Result<(), PeerError> {
    stream.set_nonblocking(true)?;
    local.set_nonblocking(true)?;
    let mut tunnel = Tunnel {
        session,
        records,
        to_local: Pending::default(),
        to_peer: Pending::default(),
        peer_ended: false,
        local_ended: false,
        told_peer: false,
        told_local: false,
        content: vec![0; CONTENT_BYTES_MAX],
        of_peer: Side::new(pace, Way::FromPeer),
        of_local: Side::new(pace, Way::ToPeer),
    };
    // What came with the last message of the handshake.
    tunnel.open()?;
    while !tunnel.is_over() {
        tunnel.step(stream, local)?;
    }
    Ok(())
}

struct Tunnel<'a> {
    session: Session,
    records: Records,
    to_local: Pending,
    to_peer: Pending,
    peer_ended: bool,
    local_ended: bool,
    told_peer: bool,
    told_local: bool,
    content: Vec<u8>,
    /// When each side is heard.
    of_peer: Side<'a>,
    of_local: Side<'a>,
}

impl Tunnel<'_> {
    fn is_over(&self) -> bool {
        let sent = self.to_local.is_empty() && self.to_peer.is_empty();
        sent && self.peer_ended && self.local_ended
    }

    /// Waits until something can go on, and does it.
    fn step(&mut self, stream: &TcpStream, local: &UnixStream) -> Result<(), PeerError> {
        let mut of_peer = PollFlags::empty();
        let peer_waits = self.of_peer.turn().is_some() || self.peer_ended;
        of_peer.set(PollFlags::IN, self.to_local.is_empty() && !peer_waits);
        of_peer.set(PollFlags::OUT, !self.to_peer.is_empty());
        let mut of_local = PollFlags::empty();
        let local_waits = self.of_local.turn().is_some() || self.local_ended;
        of_local.set(PollFlags::IN, self.to_peer.is_empty() && !local_waits);
        of_local.set(PollFlags::OUT, !self.to_local.is_empty());
        let turn = self.of_peer.turn().into_iter().chain(self.of_local.turn()).min();
        let ends = [(stream.as_fd(), of_peer), (local.as_fd(), of_local)];
        let [peer_came, local_came] = wait(ends, turn, self.local_ended || self.peer_ended)?;
        if (peer_came && of_peer.contains(PollFlags::IN)) || self.of_peer.turn().is_some() {
            self.read_peer(stream)?;
        }
        if (local_came && of_local.contains(PollFlags::IN)) || self.of_local.turn().is_some() {
            self.read_local(local)?;
        }
        self.to_peer.write(|bytes| (&*stream).write(bytes))?;
        if self.to_local.write(|bytes| (&*local).write(bytes)).is_err() {
            // Nobody takes what the peer says, so the peer need not say more.
            self.to_local = Pending::default();
            self.leave_peer();
        }
        // Who is gone already needs not be told.
        if self.local_ended && self.to_peer.is_empty() && !self.told_peer {
            self.told_peer = true;
            let _ = stream.shutdown(Shutdown::Write);
        }
        if self.peer_ended && self.to_local.is_empty() && !self.told_local {
            self.told_local = true;
            let _ = local.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// The peer is heard no more.
    fn leave_peer(&mut self) {
        self.peer_ended = true;
        self.of_peer.took(0);
    }

    fn read_peer(&mut self, stream: &TcpStream) -> Result<(), PeerError> {
        let Some(most) = self.of_peer.room(RECORD_BYTES_MAX) else { return Ok(()) };
        let room = self.records.room(most);
        let read = (&*stream).read(room);
        let came = *read.as_ref().unwrap_or(&0);
        self.records.filled(most - came);
        self.of_peer.took(came);
        match read {
            Ok(0) => Err(PeerError::Truncated),
            Ok(_) => self.open(),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&mut self) -> Result<(), PeerError> {
        while let Some(record) = self.records.next(RECORD_BYTES_MAX)? {
            if self.session.open(record, &mut self.to_local.bytes)? == Opened::End {
                self.peer_ended = true;
            }
        }
        Ok(())
    }

    fn read_local(&mut self, local: &UnixStream) -> Result<(), PeerError> {
        let Some(most) = self.of_local.room(CONTENT_BYTES_MAX) else { return Ok(()) };
        let read = (&*local).read(self.content.get_mut(..most).unwrap_or_default());
        self.of_local.took(read.as_ref().map_or(0, |read| read + BESIDE_BYTES));
        match read {
            Ok(0) => {
                self.local_ended = true;
                self.session.end(&mut self.to_peer.bytes)
            }
            Ok(read) => {
                let content = self.content.get(..read).unwrap_or_default();
                self.session.seal(content, &mut self.to_peer.bytes)
            }
            Err(error) if is_passing(&error) => Ok(()),
            // It is gone; the peer is told that nothing follows.
            Err(_) => {
                self.local_ended = true;
                self.leave_peer();
                self.session.end(&mut self.to_peer.bytes)
            }
        }
    }
}

/// Bytes that wait until they are taken.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) bytes: Vec<u8>,
    written: usize,
}

impl Pending {
    /// These, none of which was taken.
    pub(crate) const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, written: 0 }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes what is taken now.
    pub(crate) fn write(
        &mut self,
        mut write: impl FnMut(&[u8]) -> std::io::Result<usize>,
    ) -> Result<(), PeerError> {
        while let Some(rest) = self.bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            match write(rest) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_passing(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.bytes.clear();
        self.written = 0;
        Ok(())
    }
}

pub(crate) fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
