//! Standard streams of guests: log lines for cells, hashed file descriptors for jobs.

use std::fmt::Debug;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::mem;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError};

use crate::cell::Cell;
use crate::limits::LOG_LINE_BYTES_MAX;
use crate::meter::Gauge;
use crate::services::LogLevel;

/// Bytes a stream moves at a time: a pipe that polls writable takes this many without blocking.
const CHUNK_BYTES: usize = 4096;

/// Cuts what a cell prints into lines and logs them.
#[derive(Clone)]
pub(crate) struct LogStream {
    cell: Weak<Cell>,
    level: LogLevel,
    line: Arc<Mutex<Vec<u8>>>,
}

impl LogStream {
    pub(crate) fn new(cell: &Arc<Cell>, level: LogLevel) -> Self {
        Self { cell: Arc::downgrade(cell), level, line: Arc::default() }
    }

    fn take(&self, bytes: &[u8]) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            for piece in text.chunks(LOG_LINE_BYTES_MAX) {
                if line.len() + piece.len() > LOG_LINE_BYTES_MAX {
                    self.log(&mem::take(&mut *line));
                }
                line.extend_from_slice(piece);
            }
            if ends {
                self.log(&line);
                line.clear();
            }
        }
    }

    fn log(&self, line: &[u8]) {
        if let Some(cell) = self.cell.upgrade() {
            cell.log(self.level, line);
        }
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for LogStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(LOG_LINE_BYTES_MAX)
    }
}

/// What went through a stream: how many bytes, and their hash.
#[derive(Debug, Default)]
pub struct Digest {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Digest {
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Bytes so far.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// BLAKE3 of the bytes so far.
    pub fn hash(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }
}

/// A job's standard stream: a file descriptor whose bytes are counted and hashed on their way.
///
/// Nothing blocks: a descriptor is read or written only when it polls ready, so a job that waits
/// on a full pipe or an idle terminal can still be timed out. Needs a tokio runtime with I/O.
#[derive(Clone)]
pub struct Stream(Arc<Shared>);

struct Shared {
    file: std::fs::File,
    /// For descriptors epoll can wait on; regular files are always ready.
    waiter: Option<AsyncFd<OwnedFd>>,
    digest: Mutex<Digest>,
    /// What counts the bytes that a job writes.
    gauge: OnceLock<Arc<Gauge>>,
}

impl Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("file", &self.0.file).finish_non_exhaustive()
    }
}

impl Stream {
    /// A stream that a job reads from.
    pub fn input(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::READABLE)
    }

    /// A stream that a job writes to.
    pub fn output(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::WRITABLE)
    }

    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // epoll refuses regular files; those never block for long.
        let waiter = register(fd.try_clone()?, interest);
        Ok(Self(Arc::new(Shared {
            file: fd.into(),
            waiter,
            digest: Mutex::default(),
            gauge: OnceLock::new(),
        })))
    }

    /// Bytes and hash of what went through so far.
    pub fn digest(&self) -> (u64, [u8; 32]) {
        let digest = self.0.digest.lock().unwrap_or_else(PoisonError::into_inner);
        (digest.bytes(), digest.hash())
    }

    /// From now on written bytes count as egress.
    pub(crate) fn meter(&self, gauge: &Arc<Gauge>) {
        // A stream belongs to one job.
        let _ = self.0.gauge.set(Arc::clone(gauge));
    }

    fn count(&self, bytes: &[u8]) {
        self.0.digest.lock().unwrap_or_else(PoisonError::into_inner).take(bytes);
    }

    fn is_ready(&self, flags: PollFlags) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.0.file.as_fd(), flags)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Hang-up and error count as ready: the read or write then says so.
        !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(0))
    }

    fn poll_ready(&self, cx: &mut Context<'_>, flags: PollFlags) -> Poll<()> {
        let Some(waiter) = &self.0.waiter else {
            return Poll::Ready(());
        };
        loop {
            if self.is_ready(flags) {
                return Poll::Ready(());
            }
            let polled = match flags {
                PollFlags::IN => waiter.poll_read_ready(cx),
                _ => waiter.poll_write_ready(cx),
            };
            match polled {
                Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    async fn ready(&self, flags: PollFlags) {
        std::future::poll_fn(|cx| self.poll_ready(cx, flags)).await;
    }

    fn read_some(&self, size: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; size.min(64 << 10)];
        let read = (&self.0.file).read(&mut buffer)?;
        buffer.truncate(read);
        self.count(&buffer);
        Ok(buffer)
    }

    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = (&self.0.file).write(bytes)?;
        self.count(bytes.get(..written).unwrap_or_default());
        if let Some(gauge) = self.0.gauge.get() {
            gauge.extras.egress(written as u64);
        }
        Ok(written)
    }
}

#[allow(
    unsafe_code,
    reason = "tokio's safe constructor is deprecated as unsound for foreign descriptor types"
)]
fn register(fd: OwnedFd, interest: Interest) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open until it is dropped, always answers with the same descriptor, and
    // moves into the AsyncFd here.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.ok()
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        self.0.file.is_terminal()
    }
}

impl StdinStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Input(self.clone()))
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Output(self.clone()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_ready(cx, PollFlags::IN));
        Poll::Ready(self.read_some(buffer.remaining()).map(|bytes| buffer.put_slice(&bytes)))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_ready(cx, PollFlags::OUT));
        Poll::Ready(self.write_some(bytes.get(..CHUNK_BYTES).unwrap_or(bytes)))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The reading side, as wasmtime-wasi wants it.
struct Input(Stream);

#[async_trait::async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        self.0.ready(PollFlags::IN).await;
    }
}

#[async_trait::async_trait]
impl InputStream for Input {
    fn read(&mut self, size: usize) -> Result<Bytes, StreamError> {
        if size == 0 || (self.0.0.waiter.is_some() && !self.0.is_ready(PollFlags::IN)) {
            return Ok(Bytes::new());
        }
        match self.0.read_some(size) {
            Ok(bytes) if bytes.is_empty() => Err(StreamError::Closed),
            Ok(bytes) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Bytes::new()),
            Err(error) => Err(StreamError::LastOperationFailed(error.into())),
        }
    }
}

/// The writing side, as wasmtime-wasi wants it.
struct Output(Stream);

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        self.0.ready(PollFlags::OUT).await;
    }
}

#[async_trait::async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let mut left: &[u8] = &bytes;
        while !left.is_empty() {
            match self.0.write_some(left) {
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StreamError::LastOperationFailed(error.into())),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        let ready = self.0.0.waiter.is_none() || self.0.is_ready(PollFlags::OUT);
        Ok(if ready { CHUNK_BYTES } else { 0 })
    }
}
