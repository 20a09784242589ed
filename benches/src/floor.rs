//! The floor under a call: two processes that echo the same number of bytes over a Unix socket.
//!
//! It reads no header and runs nothing. Like a server of messages, it answers a frame when the
//! whole of it has come; several whole frames go back in one write.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::frame::{HEADER_BYTES, padding};
use rustix::event::{PollFd, PollFlags, poll};

use crate::measure::{Side, Tally};
use crate::payload::{Payload, stamp};

/// Frames on their way at once in the pipelined work.
pub(crate) const WINDOW: usize = 32;
/// Both the server and the pipelined client move at least this much at a time if they can.
const BUFFER_BYTES: usize = 64 << 10;

/// Bytes on the wire of a call with this payload, and of its reply.
const fn frame_bytes(payload: usize) -> usize {
    HEADER_BYTES + payload + padding(payload)
}

/// Echoes for ever; a connection first says how many bytes a frame has.
pub(crate) fn serve(socket: &Path) -> anyhow::Result<()> {
    let listener =
        UnixListener::bind(socket).with_context(|| format!("bind {}", socket.display()))?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        thread::spawn(move || {
            // A client that hangs up is done.
            let _ = echo(&mut stream);
        });
    }
    Ok(())
}

fn echo(stream: &mut UnixStream) -> anyhow::Result<()> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let frame = usize::try_from(u64::from_le_bytes(length))?;
    let mut buffer = vec![0; frame.max(BUFFER_BYTES)];
    let mut filled = 0;
    loop {
        let read = stream.read(buffer.get_mut(filled..).unwrap_or_default())?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let whole = filled - filled % frame;
        if whole > 0 {
            stream.write_all(buffer.get(..whole).unwrap_or_default())?;
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
        }
    }
}

fn connect(socket: &Path, frame: usize) -> anyhow::Result<UnixStream> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.write_all(&(frame as u64).to_le_bytes())?;
    Ok(stream)
}

/// One frame in flight, with blocking reads and writes.
#[derive(Debug)]
pub(crate) struct Call {
    stream: UnixStream,
    payload: Payload,
    frame: Vec<u8>,
    reply: Vec<u8>,
}

impl Call {
    pub(crate) fn new(socket: &Path, payload: usize) -> anyhow::Result<Self> {
        let bytes = frame_bytes(payload);
        let payload = Payload::new(payload);
        let mut frame = vec![0; HEADER_BYTES];
        frame.extend_from_slice(payload.bytes());
        frame.resize(bytes, 0);
        Ok(Self { stream: connect(socket, bytes)?, payload, frame, reply: vec![0; bytes] })
    }

    fn call(&mut self, tally: &mut Tally) -> Result<Instant, String> {
        let number = self.payload.next();
        stamp(self.frame.get_mut(HEADER_BYTES..).unwrap_or_default(), number);
        let start = Instant::now();
        self.stream.write_all(&self.frame).map_err(|e| e.to_string())?;
        self.stream.read_exact(&mut self.reply).map_err(|e| e.to_string())?;
        let end = Instant::now();
        tally.record_time(end - start);
        self.payload.check(number, reply_of(&self.reply, &self.payload))?;
        Ok(end)
    }
}

impl Side for Call {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let end = Instant::now() + length;
        loop {
            match self.call(tally) {
                Ok(now) if now < end => {}
                Ok(_) => return,
                Err(error) => return tally.error(error),
            }
        }
    }
}

/// Many frames in flight: the window is filled up as soon as replies are in.
#[derive(Debug)]
pub(crate) struct Pipelined {
    stream: UnixStream,
    payload: Payload,
    frame: usize,
    /// Frames ready to be sent, and how much of them was.
    out: Vec<u8>,
    queued: usize,
    sent: usize,
    /// Bytes of replies.
    input: Vec<u8>,
    filled: usize,
    received: u64,
}

impl Pipelined {
    pub(crate) fn new(socket: &Path, payload: usize) -> anyhow::Result<Self> {
        let frame = frame_bytes(payload);
        let payload = Payload::new(payload);
        let batch = (BUFFER_BYTES / frame).clamp(1, WINDOW);
        let mut out = Vec::new();
        for _ in 0..batch {
            out.extend_from_slice(&[0; HEADER_BYTES]);
            out.extend_from_slice(payload.bytes());
            out.resize(out.len().next_multiple_of(frame), 0);
        }
        let stream = connect(socket, frame)?;
        // A window that fits the socket is written without a deadlock, so waiting in `read` is
        // enough; a larger one needs both directions at once.
        stream.set_nonblocking(WINDOW * frame > BUFFER_BYTES)?;
        let input = vec![0; frame.max(BUFFER_BYTES)];
        Ok(Self { stream, payload, frame, out, queued: 0, sent: 0, input, filled: 0, received: 0 })
    }

    /// Moves bytes; `false` when the last reply is in and no more is to be sent.
    fn step(&mut self, go_on: bool) -> Result<bool, String> {
        if go_on && self.sent == self.queued {
            self.refill();
        }
        let unsent = self.sent < self.queued;
        let waiting = self.payload_number() > self.received;
        if !unsent && !waiting {
            return Ok(false);
        }
        if WINDOW * self.frame <= BUFFER_BYTES {
            if unsent {
                self.write()?;
            }
            return self.read().map(|()| true);
        }
        let wanted = if unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = [PollFd::new(&self.stream, wanted)];
        poll(&mut fds, None).map_err(|e| e.to_string())?;
        let [found] = fds.map(|fd| fd.revents());
        if found.contains(PollFlags::OUT) {
            self.write()?;
        }
        if found.intersects(PollFlags::IN | PollFlags::HUP) {
            self.read()?;
        }
        Ok(true)
    }

    /// Prepares as many frames as the window and a batch take.
    fn refill(&mut self) {
        let in_flight = usize::try_from(self.payload_number() - self.received).unwrap_or(WINDOW);
        let mut frames = 0;
        for frame in self.out.chunks_exact_mut(self.frame).take(WINDOW - in_flight.min(WINDOW)) {
            stamp(frame.get_mut(HEADER_BYTES..).unwrap_or_default(), self.payload.next());
            frames += 1;
        }
        self.queued = frames * self.frame;
        self.sent = 0;
    }

    fn write(&mut self) -> Result<(), String> {
        match self.stream.write(self.out.get(self.sent..self.queued).unwrap_or_default()) {
            Ok(bytes) => self.sent += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), String> {
        match self.stream.read(self.input.get_mut(self.filled..).unwrap_or_default()) {
            Ok(0) => return Err("the echo hung up".into()),
            Ok(bytes) => self.filled += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
        let whole = self.filled - self.filled % self.frame;
        for frame in self.input.get(..whole).unwrap_or_default().chunks_exact(self.frame) {
            self.received += 1;
            self.payload.check(self.received, reply_of(frame, &self.payload))?;
        }
        if whole > 0 {
            self.input.copy_within(whole..self.filled, 0);
            self.filled -= whole;
        }
        Ok(())
    }

    const fn payload_number(&self) -> u64 {
        self.payload.number()
    }
}

impl Side for Pipelined {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let before = self.received;
        let start = Instant::now();
        loop {
            match self.step(start.elapsed() < length) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return tally.error(error),
            }
        }
        tally.record_rate(self.received - before, start.elapsed());
    }
}

/// The payload within a frame.
fn reply_of<'a>(frame: &'a [u8], payload: &Payload) -> &'a [u8] {
    frame.get(HEADER_BYTES..HEADER_BYTES + payload.bytes().len()).unwrap_or_default()
}
