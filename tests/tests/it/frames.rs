//! Frames of a job's session, as `docs/PEERS.md` has them, written and read by hand.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

/// `None` where the other side has hung up.
pub(crate) fn send(to: &mut UnixStream, kind: u8, content: &[u8]) -> Option<()> {
    let length = u32::try_from(content.len()).unwrap().to_le_bytes();
    to.write_all(&[&[kind], &length[..], content].concat()).ok()
}

/// The next one; `None` at the end.
pub(crate) fn receive(from: &mut UnixStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head).ok()?;
    let [kind, length @ ..] = head;
    let mut content = vec![0; u32::from_le_bytes(length).try_into().unwrap()];
    from.read_exact(&mut content).ok()?;
    Some((kind, content))
}
