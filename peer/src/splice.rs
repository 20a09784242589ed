//! Two connections of other machines that become one: bytes pass both ways, unread, at the pace of sessions.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::PeerError;
use crate::pace::{self, Pace, Side};
use crate::tunnel::{LINGER_S_MAX, Pending, is_passing};

/// Bytes of one side that wait until the other takes them.
pub(crate) const SPLICE_BYTES_MAX: usize = 32 << 10;

/// Carries bytes between two connections until both have ended, or one is gone; with each, what came from it
/// before. Neither is read while the other does not take what was read before, nor before it is its turn.
pub fn run(
    one: (&TcpStream, Vec<u8>),
    other: (&TcpStream, Vec<u8>),
    pace: &Pace,
) -> Result<(), PeerError> {
    let ((one, of_one), (other, of_other)) = (one, other);
    one.set_nonblocking(true)?;
    other.set_nonblocking(true)?;
    let (mut there, mut back) = (Way::new(of_one, pace), Way::new(of_other, pace));
    let mut buffer = vec![0; SPLICE_BYTES_MAX];
    while !(there.is_over() && back.is_over()) {
        let [of_one, of_other] = wait((one, other), (&there, &back))?;
        there.step((one, of_one), other, &mut buffer)?;
        back.step((other, of_other), one, &mut buffer)?;
    }
    Ok(())
}

/// Waits until something can go on, and says of whom something came. One that never ends must not keep what nobody is there for any more.
fn wait(
    (one, other): (&TcpStream, &TcpStream),
    (there, back): (&Way<'_>, &Way<'_>),
) -> Result<[bool; 2], PeerError> {
    let wanted = [(there, back), (back, there)].map(|(from, to)| {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, from.listens());
        flags.set(PollFlags::OUT, !to.pending.is_empty());
        flags
    });
    let mut fds = Vec::with_capacity(2);
    for (stream, flags) in [one, other].into_iter().zip(wanted) {
        // One that nothing is wanted of would only say again and again that it is hung up.
        if !flags.is_empty() {
            fds.push(PollFd::from_borrowed_fd(stream.as_fd(), flags));
        }
    }
    let linger = Timespec { tv_sec: LINGER_S_MAX, tv_nsec: 0 };
    let turn = there.turn().into_iter().chain(back.turn()).min();
    let patience = match turn {
        Some(turn) => turn.saturating_duration_since(Instant::now()).try_into().ok(),
        None => (there.has_ended || back.has_ended).then_some(linger),
    };
    match poll(&mut fds, patience.as_ref()) {
        // Somebody's turn has come.
        Ok(0) if turn.is_some() => {}
        Ok(0) => return Err(PeerError::Connection(ErrorKind::TimedOut)),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(std::io::Error::from(error).into()),
    }
    let mut came = fds.iter().map(|fd| !(fd.revents() - PollFlags::OUT).is_empty());
    Ok(wanted.map(|flags| !flags.is_empty() && came.next() == Some(true)))
}

/// One direction.
struct Way<'a> {
    pending: Pending,
    has_ended: bool,
    is_told: bool,
    /// Its bytes come over this machine's line, and go over it again.
    comes: Side<'a>,
    goes: Side<'a>,
}

impl<'a> Way<'a> {
    const fn new(came: Vec<u8>, pace: &'a Pace) -> Self {
        Self {
            pending: Pending::new(came),
            has_ended: false,
            is_told: false,
            comes: Side::new(pace, pace::Way::FromPeer),
            goes: Side::new(pace, pace::Way::ToPeer),
        }
    }

    const fn is_over(&self) -> bool {
        self.is_told
    }

    /// Whether its sender is heard now.
    fn listens(&self) -> bool {
        self.pending.is_empty() && !self.has_ended && self.turn().is_none()
    }

    /// When it may go on, if it waits.
    fn turn(&self) -> Option<Instant> {
        self.comes.turn().max(self.goes.turn())
    }

    fn step(
        &mut self,
        (from, came): (&TcpStream, bool),
        mut to: &TcpStream,
        buffer: &mut [u8],
    ) -> Result<(), PeerError> {
        if (came && self.listens()) || self.turn().is_some() {
            self.read(from, buffer)?;
        }
        self.pending.write(|bytes| to.write(bytes))?;
        if self.has_ended && self.pending.is_empty() && !self.is_told {
            self.is_told = true;
            // Who is gone already needs not be told.
            let _ = to.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Takes what its sender says, once it may do so both ways.
    fn read(&mut self, mut from: &TcpStream, buffer: &mut [u8]) -> Result<(), PeerError> {
        let Some(most) = self.comes.room(buffer.len()) else { return Ok(()) };
        let Some(most) = self.goes.room(most).map(|goes| goes.min(most)) else { return Ok(()) };
        let room = buffer.get_mut(..most).unwrap_or_default();
        let read = from.read(room);
        let came = *read.as_ref().unwrap_or(&0);
        self.comes.took(came);
        self.goes.took(came);
        match read {
            Ok(0) => self.has_ended = true,
            Ok(_) => self.pending.bytes.extend(room.get(..came).unwrap_or_default()),
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
