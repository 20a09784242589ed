//! Waiting for either end of a line that carries bytes both ways.

use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::PeerError;

/// How long one side may go on when the other has ended, in seconds.
pub(crate) const LINGER_S_MAX: i64 = 10;

/// Waits until something can go on with one of the two, or until this turn, and says of whom something came, an
/// error or a hang-up included.
///
/// Where one side `has_ended` the other is not waited for any longer than [`LINGER_S_MAX`]: one that never ends
/// must not keep what nobody is there for any more.
pub(crate) fn wait(
    ends: [(BorrowedFd<'_>, PollFlags); 2],
    turn: Option<Instant>,
    has_ended: bool,
) -> Result<[bool; 2], PeerError> {
    // A socket that nothing is wanted of would only say again and again that it is hung up.
    let wanted = ends.iter().filter(|(_, flags)| !flags.is_empty());
    let mut fds: Vec<_> = wanted.map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    let patience = match turn {
        Some(turn) => turn.saturating_duration_since(Instant::now()).try_into().ok(),
        None => has_ended.then_some(Timespec { tv_sec: LINGER_S_MAX, tv_nsec: 0 }),
    };
    match poll(&mut fds, patience.as_ref()) {
        // Somebody's turn has come.
        Ok(0) if turn.is_some() => {}
        Ok(0) => return Err(PeerError::Connection(ErrorKind::TimedOut)),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(std::io::Error::from(error).into()),
    }
    let mut came = fds.iter().map(|fd| !(fd.revents() - PollFlags::OUT).is_empty());
    Ok(ends.map(|(_, flags)| !flags.is_empty() && came.next() == Some(true)))
}
