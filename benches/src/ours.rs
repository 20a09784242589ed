//! Our side of a call: the blocking client, a socket, and an echo cell that is metered and billed.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cell_client::{
    CallOptions, Client, Config, Fuel, RawResponse, RawSlot, RequestId, TIMEOUT_DEFAULT,
};

use crate::floor::WINDOW;
use crate::measure::{Side, Tally};
use crate::payload::Payload;

/// Modest, so that what is set aside for the calls in flight stays small.
/// A call burns a little more than two for each byte of request and reply, of which there may be 16 MiB.
const OPTIONS: CallOptions = CallOptions { fuel: Fuel(100_000_000), timeout: TIMEOUT_DEFAULT };

/// What the bytes go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Socket,
    SharedMemory,
}

fn connect(socket: &Path, cell: &str, way: Way) -> anyhow::Result<(Client, RawSlot)> {
    let config = Config { shared_memory: way == Way::SharedMemory, ..Config::default() };
    let mut client = Client::connect_with(socket, cell, config).context("connect to the cell")?;
    ensure!(client.shares_memory() == config.shared_memory, "the worker shares no memory");
    let slot = client.open_raw("echo").context("open the receptor")?;
    Ok((client, slot))
}

fn check(payload: &Payload, number: u64, reply: &RawResponse) -> Result<(), String> {
    if reply.fuel() == Fuel::ZERO {
        return Err("a reply says that it burned nothing".into());
    }
    payload.check(number, reply.bytes())
}

/// One call in flight.
#[derive(Debug)]
pub(crate) struct Call {
    client: Client,
    slot: RawSlot,
    payload: Payload,
}

impl Call {
    pub(crate) fn new(socket: &Path, way: Way, payload: usize) -> anyhow::Result<Self> {
        Self::named(socket, "echo", way, payload)
    }

    /// The same of another cell that echoes.
    pub(crate) fn named(
        socket: &Path,
        cell: &str,
        way: Way,
        payload: usize,
    ) -> anyhow::Result<Self> {
        let (client, slot) = connect(socket, cell, way)?;
        Ok(Self { client, slot, payload: Payload::new(payload) })
    }

    /// Of an echo cell that a client is connected to already.
    pub(crate) fn over(mut client: Client, payload: usize) -> anyhow::Result<Self> {
        let slot = client.open_raw("echo").context("open the receptor")?;
        Ok(Self { client, slot, payload: Payload::new(payload) })
    }

    fn call(&mut self, tally: &mut Tally) -> Result<Instant, String> {
        let number = self.payload.next();
        let start = Instant::now();
        let reply = self
            .client
            .call_raw(&self.slot, self.payload.bytes(), OPTIONS)
            .map_err(|e| e.to_string())?;
        let end = Instant::now();
        tally.record_time(end - start);
        check(&self.payload, number, &reply)?;
        self.client.recycle(reply);
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

/// Many calls in flight: each reply that is taken is followed by another call.
#[derive(Debug)]
pub(crate) struct Pipelined {
    client: Client,
    slot: RawSlot,
    payload: Payload,
    /// Numbers of the requests under way; replies may come in any order.
    in_flight: VecDeque<(RequestId, u64)>,
}

impl Pipelined {
    pub(crate) fn new(socket: &Path, way: Way, payload: usize) -> anyhow::Result<Self> {
        let (client, slot) = connect(socket, "echo", way)?;
        Ok(Self {
            client,
            slot,
            payload: Payload::new(payload),
            in_flight: VecDeque::with_capacity(WINDOW),
        })
    }

    fn fill(&mut self) -> Result<(), String> {
        while self.in_flight.len() < WINDOW {
            let number = self.payload.next();
            let id = self
                .client
                .send_raw(&self.slot, self.payload.bytes(), OPTIONS)
                .map_err(|e| e.to_string())?;
            self.in_flight.push_back((id, number));
        }
        Ok(())
    }

    fn take(&mut self) -> Result<(), String> {
        let (id, reply) = self.client.receive().map_err(|e| e.to_string())?;
        let reply = reply.map_err(|e| e.to_string())?;
        let at = self.in_flight.iter().position(|(other, _)| *other == id);
        let (_, number) =
            at.and_then(|at| self.in_flight.remove(at)).ok_or("a reply to nothing")?;
        check(&self.payload, number, &reply)?;
        self.client.recycle(reply);
        Ok(())
    }

    fn run(&mut self, length: Duration) -> Result<u64, String> {
        let end = Instant::now() + length;
        let mut replies = 0;
        while Instant::now() < end {
            self.fill()?;
            // Looking at the clock once a window is enough, and both sides do about that.
            for _ in 0..WINDOW / 2 {
                self.take()?;
                self.fill()?;
                replies += 1;
            }
        }
        while !self.in_flight.is_empty() {
            self.take()?;
            replies += 1;
        }
        Ok(replies)
    }
}

impl Side for Pipelined {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let start = Instant::now();
        match self.run(length) {
            Ok(replies) => tally.record_rate(replies, start.elapsed()),
            Err(error) => tally.error(error),
        }
    }
}
