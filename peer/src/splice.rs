//! Two connections of other machines that become one: bytes pass both ways, unread, at the pace of sessions.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Instant;

use rustix::event::PollFlags;

use crate::error::PeerError;
use crate::pace::{self, Pace, Side};
use crate::tunnel::{Pending, is_passing};
use crate::wait::wait;

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
        let turn = there.turn().into_iter().chain(back.turn()).min();
        let ends = [(one.as_fd(), there.flags(&back)), (other.as_fd(), back.flags(&there))];
        let [of_one, of_other] = wait(ends, turn, there.has_ended || back.has_ended)?;
        there.step((one, of_one), other, &mut buffer)?;
        back.step((other, of_other), one, &mut buffer)?;
    }
    Ok(())
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

    /// What is wanted of its sender, who takes what comes the other way.
    fn flags(&self, back: &Self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.listens());
        flags.set(PollFlags::OUT, !back.pending.is_empty());
        flags
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
