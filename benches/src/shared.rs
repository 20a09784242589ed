//! The floor under a call through shared memory: two processes that write a message, and a number
//! that says so, and look for the other's until it comes.
//!
//! The server sleeps between slices, so that it takes no core from what else is measured.

use std::hint::spin_loop;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::frame::HEADER_BYTES;
use cell_client::ring::Memory;
use rustix::fs::MemfdFlags;

use crate::measure::{Side, Tally};
use crate::payload::Payload;
use crate::process::Process;

/// Bytes of the memory: a page for each direction's number, and one for each message.
const BYTES: usize = 4 * PAGE;
const PAGE: usize = 4096;
const ASKED: usize = 0;
const ANSWERED: usize = PAGE;
const REQUEST: usize = 2 * PAGE;
const REPLY: usize = 3 * PAGE;
/// In place of numbers: go to sleep, and what the server says of itself.
const SLEEP: u64 = u64::MAX;
const AWAKE: u64 = u64::MAX - 1;
const ASLEEP: u64 = u64::MAX - 2;

/// Answers for ever what comes through the memory that is its standard output; a byte at its
/// standard input wakes it.
pub(crate) fn serve() -> anyhow::Result<()> {
    let memory = Memory::map(std::io::stdout().as_fd(), BYTES).context("map the memory")?;
    let (mut wake, mut last) = ([0], 0);
    while std::io::stdin().read(&mut wake)? > 0 {
        let mut message = [0; message_bytes(64)];
        memory.word(ANSWERED).store(AWAKE, Release);
        loop {
            let asked = memory.word(ASKED).load(Acquire);
            if asked == SLEEP {
                break;
            }
            if asked == last {
                spin_loop();
                continue;
            }
            last = asked;
            memory.load(REQUEST, &mut message);
            memory.store(REPLY, &message);
            memory.word(ANSWERED).store(asked, Release);
        }
        memory.word(ANSWERED).store(ASLEEP, Release);
    }
    Ok(())
}

/// What a call of this payload takes on the wire.
const fn message_bytes(payload: usize) -> usize {
    HEADER_BYTES + payload
}

/// One message in flight.
#[derive(Debug)]
pub(crate) struct PingPong {
    memory: Memory,
    wake: UnixStream,
    payload: Payload,
    message: [u8; message_bytes(64)],
    // Ends before its memory is gone.
    _server: Process,
}

impl PingPong {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let file = rustix::fs::memfd_create("cell-bench", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, BYTES as u64)?;
        let memory = Memory::map(&file, BYTES).context("map memory")?;
        memory.word(ASKED).store(SLEEP, Release);
        let (wake, theirs) = UnixStream::pair()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("pong").stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(file));
        let server = Process::start(&mut command)?;
        let message = [0; message_bytes(64)];
        Ok(Self { memory, wake, payload: Payload::new(64), message, _server: server })
    }

    fn call(&mut self, tally: &mut Tally) -> Result<Instant, String> {
        let number = self.payload.next();
        let start = Instant::now();
        let (_, body) = self.message.split_at_mut(HEADER_BYTES);
        body.copy_from_slice(self.payload.bytes());
        self.memory.store(REQUEST, &self.message);
        self.memory.word(ASKED).store(number, Release);
        while self.memory.word(ANSWERED).load(Acquire) != number {
            spin_loop();
        }
        self.memory.load(REPLY, &mut self.message);
        let end = Instant::now();
        tally.record_time(end - start);
        self.payload.check(number, self.message.get(HEADER_BYTES..).unwrap_or_default())?;
        Ok(end)
    }

    /// Wakes the server, and waits until it looks.
    fn wake(&mut self) -> Result<(), String> {
        self.memory.word(ASKED).store(self.payload.number(), Release);
        self.wake.write_all(&[0]).map_err(|e| e.to_string())?;
        self.await_server(AWAKE);
        Ok(())
    }

    fn await_server(&self, state: u64) {
        while self.memory.word(ANSWERED).load(Acquire) != state {
            spin_loop();
        }
    }
}

impl Side for PingPong {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        if let Err(error) = self.wake() {
            return tally.error(error);
        }
        let end = Instant::now() + length;
        loop {
            match self.call(tally) {
                Ok(now) if now < end => {}
                Ok(_) => break,
                Err(error) => {
                    tally.error(error);
                    break;
                }
            }
        }
        self.memory.word(ASKED).store(SLEEP, Release);
        self.await_server(ASLEEP);
    }
}
