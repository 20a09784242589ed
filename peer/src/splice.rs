//! Two connections of other machines that become one: bytes pass both ways, unread.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::PeerError;
use crate::tunnel::{LINGER_S_MAX, Pending, is_passing};

/// Bytes of one side that wait until the other takes them.
pub(crate) const SPLICE_BYTES_MAX: usize = 32 << 10;

/// Carries bytes between two connections until both have ended, or one is gone; with each, what came from it
/// before. Neither is read while the other does not take what was read before.
pub fn run(one: (&TcpStream, Vec<u8>), other: (&TcpStream, Vec<u8>)) -> Result<(), PeerError> {
    let ((one, of_one), (other, of_other)) = (one, other);
    one.set_nonblocking(true)?;
    other.set_nonblocking(true)?;
    let (mut there, mut back) = (Way::new(of_one), Way::new(of_other));
    let mut buffer = vec![0; SPLICE_BYTES_MAX];
    while !(there.is_over() && back.is_over()) {
        wait((one, other), (&there, &back))?;
        there.step(one, other, &mut buffer)?;
        back.step(other, one, &mut buffer)?;
    }
    Ok(())
}

/// Waits until something can go on. One that never ends must not keep what nobody is there for any more.
fn wait(
    (one, other): (&TcpStream, &TcpStream),
    (there, back): (&Way, &Way),
) -> Result<(), PeerError> {
    let mut fds = Vec::with_capacity(2);
    for (stream, from, to) in [(one, there, back), (other, back, there)] {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, from.listens());
        flags.set(PollFlags::OUT, !to.pending.is_empty());
        // One that nothing is wanted of would only say again and again that it is hung up.
        if !flags.is_empty() {
            fds.push(PollFd::from_borrowed_fd(stream.as_fd(), flags));
        }
    }
    let linger = Timespec { tv_sec: LINGER_S_MAX, tv_nsec: 0 };
    match poll(&mut fds, (there.has_ended || back.has_ended).then_some(&linger)) {
        Ok(0) => Err(PeerError::Connection(ErrorKind::TimedOut)),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

/// One direction.
struct Way {
    pending: Pending,
    has_ended: bool,
    is_told: bool,
}

impl Way {
    const fn new(came: Vec<u8>) -> Self {
        Self { pending: Pending::new(came), has_ended: false, is_told: false }
    }

    const fn is_over(&self) -> bool {
        self.is_told
    }

    /// Whether its sender is heard now.
    const fn listens(&self) -> bool {
        self.pending.is_empty() && !self.has_ended
    }

    fn step(
        &mut self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        buffer: &mut [u8],
    ) -> Result<(), PeerError> {
        if self.listens() {
            match from.read(buffer) {
                Ok(0) => self.has_ended = true,
                Ok(read) => {
                    self.pending.bytes.extend(buffer.get(..read).unwrap_or_default());
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.pending.write(|bytes| to.write(bytes))?;
        if self.has_ended && self.pending.is_empty() && !self.is_told {
            self.is_told = true;
            // Who is gone already needs not be told.
            let _ = to.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}
