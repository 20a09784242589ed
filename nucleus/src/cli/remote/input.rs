//! This command's standard input, kept: several machines can be given it, one after the other or at once.

use std::io::Read as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::wire::{self, FRAME_BYTES_MAX, Kind};

/// Bytes that are kept.
pub(super) const INPUT_KEPT_BYTES_MAX: usize = 64 << 20;

/// What was read so far; a thread reads on.
#[derive(Clone)]
pub(super) struct Input(Arc<Shared>);

struct Shared {
    read: Mutex<ReadSoFar>,
    changed: Condvar,
}

#[derive(Default)]
struct ReadSoFar {
    bytes: Vec<u8>,
    has_ended: bool,
    is_too_long: bool,
}

impl Input {
    /// Begins to read.
    pub(super) fn start() -> anyhow::Result<Self> {
        let this = Self::new();
        let reading = this.clone();
        thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut bytes = vec![0; FRAME_BYTES_MAX];
            let mut stdin = std::io::stdin().lock();
            loop {
                let read = stdin.read(&mut bytes).unwrap_or(0);
                if !reading.add(bytes.get(..read).unwrap_or_default()) {
                    return;
                }
            }
        })?;
        Ok(this)
    }

    fn new() -> Self {
        Self(Arc::new(Shared { read: Mutex::default(), changed: Condvar::new() }))
    }

    /// Takes what was read, or the end where it is nothing; whether more is wanted.
    fn add(&self, part: &[u8]) -> bool {
        let mut read = self.lock();
        if read.bytes.len() + part.len() > INPUT_KEPT_BYTES_MAX {
            read.is_too_long = true;
        } else {
            read.bytes.extend_from_slice(part);
        }
        read.has_ended = part.is_empty();
        self.0.changed.notify_all();
        !read.has_ended && !read.is_too_long
    }

    /// Whether there is more than is kept.
    pub(super) fn is_too_long(&self) -> bool {
        self.lock().is_too_long
    }

    /// How many bytes came, as far as is known; and BLAKE3 of so many of the first, if there are so many.
    pub(super) fn hash(&self, first: usize) -> (usize, Option<String>) {
        let read = self.lock();
        let hash = read.bytes.get(..first).map(|bytes| blake3::hash(bytes).to_string());
        (read.bytes.len(), hash)
    }

    /// Carries all of it, from its beginning to its end, on a thread that ends with the socket. Where it is too
    /// long the socket is closed.
    pub(super) fn feed(&self, mut socket: UnixStream) -> anyhow::Result<()> {
        let this = self.clone();
        thread::Builder::new().name("input".into()).spawn(move || {
            let mut sent = 0;
            while let Some(part) = this.part(sent) {
                // An empty part says that there is no more.
                if wire::write(&mut socket, Kind::Input, &part).is_err() || part.is_empty() {
                    return;
                }
                sent += part.len();
            }
            let _ = socket.shutdown(Shutdown::Both);
        })?;
        Ok(())
    }

    /// The next part behind so many bytes, which is waited for; nothing where it is too long.
    fn part(&self, sent: usize) -> Option<Vec<u8>> {
        let waits =
            |read: &mut ReadSoFar| read.bytes.len() <= sent && !read.has_ended && !read.is_too_long;
        let read = self.0.changed.wait_while(self.lock(), waits);
        let read = read.unwrap_or_else(PoisonError::into_inner);
        let rest = read.bytes.get(sent..).unwrap_or_default();
        let part = rest.get(..rest.len().min(FRAME_BYTES_MAX)).unwrap_or_default();
        (!read.is_too_long).then(|| part.to_vec())
    }

    fn lock(&self) -> MutexGuard<'_, ReadSoFar> {
        self.0.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(socket: &mut UnixStream) -> Option<Vec<u8>> {
        let (mut all, mut content) = (Vec::new(), Vec::new());
        while let Ok(Some(Kind::Input)) = wire::read(socket, &mut content) {
            if content.is_empty() {
                return Some(all);
            }
            all.extend_from_slice(&content);
        }
        None
    }

    /// Who begins early and who begins late get the same.
    #[test]
    fn everybody_gets_all_of_it() {
        let input = Input::new();
        let (mut early, theirs) = UnixStream::pair().unwrap();
        input.feed(theirs).unwrap();
        let sent: Vec<u8> = (0..FRAME_BYTES_MAX * 2 + 9).map(|at| at.to_le_bytes()[0]).collect();
        let reading = thread::spawn(move || all(&mut early));
        for part in sent.chunks(1000) {
            assert!(input.add(part));
        }
        assert!(!input.add(&[]));
        assert_eq!(reading.join().unwrap().as_ref(), Some(&sent));
        let (mut late, theirs) = UnixStream::pair().unwrap();
        input.feed(theirs).unwrap();
        assert_eq!(all(&mut late).as_ref(), Some(&sent));
        let (length, hash) = input.hash(3);
        assert_eq!((length, hash), (sent.len(), Some(blake3::hash(&sent[..3]).to_string())));
        assert_eq!(input.hash(sent.len() + 1).1, None);
    }

    #[test]
    fn what_is_too_long_is_not_sent_as_if_it_had_ended() {
        let input = Input::new();
        assert!(input.add(&vec![0; INPUT_KEPT_BYTES_MAX]));
        assert!(!input.add(&[1]));
        assert!(input.is_too_long());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        input.feed(theirs).unwrap();
        assert_eq!(all(&mut ours), None);
    }
}
