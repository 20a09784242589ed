//! How cost grows: with load, with connections, with live cells, with payload. Each curve is measured
//! for the floor and for a metered cell, and drawn.
//!
//! Load is *open*: a call is due when its time has come, whether or not the one before it was
//! answered, and its latency counts from then. So a server that stalls is not spared the calls that
//! would have come meanwhile.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cell_abi::frame::{HELLO_BYTES, Hello};
use cell_abi::{CellName, Fingerprint, Fuel, Header, Kind, Open, ReceptorName, Status};
use hdrhistogram::Histogram;
use rustix::event::epoll;
use serde_json::{Value, json};

use crate::cli::Plan;
use crate::floor;
use crate::measure::{Tally, compare, nanoseconds};
use crate::nucleus::{ECHO, Nucleus};
use crate::ours::{self, Way};
use crate::plot::{Chart, Series};
use crate::process::Process;
use crate::report::Report;
use crate::socket::start_echo;

/// Payload of every call but those of the payload's curve.
const BYTES: u32 = 64;
/// A header and that payload; requests and replies are alike.
const FRAME_BYTES: usize = 96;
/// Calls a connection may have in flight; those that are due beyond it wait, and their time counts.
const WINDOW: usize = 256;
/// Calls per second that are due, as long as they are served.
const RATES: [u32; 13] = [
    1_000, 5_000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 150_000, 200_000, 300_000,
    400_000, 500_000,
];
/// How long the calls of a rate may take beyond the time in which they are due.
const BACKLOG_TIME_MAX: Duration = Duration::from_secs(1);
const CONNECTIONS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const CELLS: [u32; 4] = [1, 10, 100, 1000];
const PAYLOADS: [usize; 10] =
    [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];
const FUEL: Fuel = Fuel(100_000_000);
const DEPLOY_TIME_MAX: Duration = Duration::from_secs(60);

/// Measures all curves and draws them into a directory, beside the figures they are made of.
pub(crate) fn measure(plan: &Plan, directory: &Path, report: &Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).context("make the directory")?;
    let nucleus = Nucleus::start()?;
    let home = tempfile::Builder::new().prefix("cell-bench-").tempdir()?;
    let socket = home.path().join("echo.sock");
    let echo = start_echo(&socket)?;
    let servers = Servers { nucleus: &nucleus, echo: &socket, _process: &echo };
    let time = plan.rounds.slice * plan.rounds.count / 2;
    let charts = [
        load(plan, &servers, time, report)?,
        connections(plan, &servers, time)?,
        cells(plan, &servers, time, report)?,
        payloads(plan, &servers)?,
    ];
    for chart in &charts {
        chart.draw(directory).with_context(|| format!("draw {}", chart.file))?;
    }
    let figures: Vec<Value> = charts.iter().map(Chart::to_json).collect();
    let text = serde_json::to_string(&json!({ "machine": report.machine(), "curves": figures }))?;
    std::fs::write(directory.join("curves.json"), text + "\n").context("write the figures")
}

struct Servers<'a> {
    nucleus: &'a Nucleus,
    echo: &'a Path,
    _process: &'a Process,
}

impl Servers<'_> {
    fn both(&self) -> anyhow::Result<[(&'static str, Wire); 2]> {
        Ok([("floor", Wire::floor(self.echo)?), ("cell", Wire::cell(self.nucleus, "echo")?)])
    }
}

/// A connection with frames of one length, read and written by hand.
struct Wire {
    stream: UnixStream,
    frame: [u8; FRAME_BYTES],
    input: Vec<u8>,
    filled: usize,
}

impl Wire {
    fn floor(socket: &Path) -> anyhow::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(&(FRAME_BYTES as u64).to_le_bytes())?;
        Ok(Self::new(stream, &Header::new(Kind::Call)))
    }

    fn cell(nucleus: &Nucleus, cell: &str) -> anyhow::Result<Self> {
        let mut stream = UnixStream::connect(nucleus.socket_of(cell))?;
        let open = Open {
            fingerprint: Fingerprint::UNTYPED,
            cell: CellName::parse(cell)?,
            receptor: ReceptorName::parse("echo")?,
        };
        let mut payload = open.encode();
        let payload_bytes = u32::try_from(payload.len())?;
        payload.resize(payload.len().next_multiple_of(16), 0);
        let header = Header { payload_bytes, ..Header::new(Kind::Open) };
        stream.write_all(&Hello::CURRENT.encode())?;
        stream.write_all(&header.encode())?;
        stream.write_all(&payload)?;
        stream.read_exact(&mut [0; HELLO_BYTES])?;
        let mut opened = [0; 32];
        stream.read_exact(&mut opened)?;
        let opened = Header::decode(&opened)?;
        ensure!(opened.status == Status::Ok.code(), "{cell} has no receptor `echo`");
        let schema = usize::try_from(opened.payload_bytes)?.next_multiple_of(16);
        stream.read_exact(&mut vec![0; schema])?;
        let header = Header {
            receptor: opened.receptor,
            slot: opened.slot,
            fuel: FUEL,
            ..Header::new(Kind::Call)
        };
        Ok(Self::new(stream, &header))
    }

    fn new(stream: UnixStream, header: &Header) -> Self {
        let mut frame = [0; FRAME_BYTES];
        let header = Header { payload_bytes: BYTES, ..*header }.encode();
        for (to, from) in frame.iter_mut().zip(header) {
            *to = from;
        }
        Self { stream, frame, input: vec![0; WINDOW * FRAME_BYTES], filled: 0 }
    }

    /// The frame of the request with this number.
    fn request(&mut self, number: u64) -> &[u8; FRAME_BYTES] {
        if let Some(id) = self.frame.get_mut(8..16) {
            id.copy_from_slice(&number.to_le_bytes());
        }
        &self.frame
    }

    /// Reads what there is, and hands out the numbers of the requests that it answers.
    fn read(&mut self, mut answered: impl FnMut(u64)) -> anyhow::Result<()> {
        let got = match self.stream.read(self.input.get_mut(self.filled..).unwrap_or_default()) {
            Ok(0) => bail!("the server hung up"),
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.filled += got;
        let whole = self.filled - self.filled % FRAME_BYTES;
        for frame in self.input.get(..whole).unwrap_or_default().chunks_exact(FRAME_BYTES) {
            let header = frame.first_chunk().context("a header")?;
            let header = Header::decode(header)?;
            ensure!(header.status == Status::Ok.code(), "a call ended with {}", header.status);
            answered(header.request_id);
        }
        self.input.copy_within(whole..self.filled, 0);
        self.filled -= whole;
        Ok(())
    }

    fn call(&mut self, number: u64) -> anyhow::Result<()> {
        let frame = *self.request(number);
        self.stream.write_all(&frame)?;
        let mut answered = None;
        while answered.is_none() {
            self.read(|id| answered = Some(id))?;
        }
        ensure!(answered == Some(number), "a reply to another request");
        Ok(())
    }
}

fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

fn microseconds(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

/// Latency against load.
fn load(
    plan: &Plan,
    servers: &Servers<'_>,
    time: Duration,
    report: &Report,
) -> anyhow::Result<Chart> {
    let mut all = Vec::new();
    for (name, mut wire) in servers.both()? {
        wire.stream.set_nonblocking(true)?;
        let (mut p50, mut p99) = (Series::new(name, "p50"), Series::new(name, "p99"));
        for rate in RATES {
            plan.check_interrupted()?;
            let Some(times) = open_loop(&mut wire, rate, time)? else {
                report.note(&format!("{name}: {rate} calls/s are more than it serves"));
                break;
            };
            p50.push(f64::from(rate), microseconds(&times, 0.5));
            p99.push(f64::from(rate), microseconds(&times, 0.99));
        }
        all.extend([p50, p99]);
    }
    Ok(Chart {
        file: "load",
        title: "Latency against load (open loop, 64 B, one connection)",
        x: "calls per second that are due",
        y: "µs from due to answered",
        series: all,
    })
}

/// Calls that are due at a rate; `None` if they could not be served.
fn open_loop(wire: &mut Wire, rate: u32, time: Duration) -> anyhow::Result<Option<Histogram<u64>>> {
    let total = u64::from(rate) * nanoseconds(time) / 1_000_000_000;
    let due = |number: u64| Duration::from_nanos(number * 1_000_000_000 / u64::from(rate));
    let (mut sent, mut answered, mut times) = (0_u64, 0_u64, histogram()?);
    let mut unsent: VecDeque<u8> = VecDeque::new();
    let start = Instant::now();
    while answered < total {
        let now = start.elapsed();
        if now > time + BACKLOG_TIME_MAX {
            // What is under way would answer the next measurement.
            while answered < sent {
                wire.read(|_| answered += 1)?;
            }
            return Ok(None);
        }
        while sent < total && due(sent) <= now && sent - answered < WINDOW as u64 {
            unsent.extend(wire.request(sent));
            sent += 1;
        }
        let before = answered;
        if !unsent.is_empty() {
            match wire.stream.write(unsent.make_contiguous()) {
                Ok(count) => drop(unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        wire.read(|number| {
            let late = start.elapsed().saturating_sub(due(number));
            times.saturating_record(nanoseconds(late).max(1));
            answered += 1;
        })?;
        if answered == before && unsent.is_empty() {
            // The server may need this very core.
            thread::yield_now();
        }
    }
    Ok(Some(times))
}

/// Throughput against connections, each with one call in flight.
fn connections(plan: &Plan, servers: &Servers<'_>, time: Duration) -> anyhow::Result<Chart> {
    let (mut floor, mut cell) = (Series::new("floor", "calls/s"), Series::new("cell", "calls/s"));
    for count in CONNECTIONS {
        plan.check_interrupted()?;
        let wires: anyhow::Result<Vec<_>> = (0..count).map(|_| Wire::floor(servers.echo)).collect();
        floor.push(count as f64, closed_loop(wires?, time)?);
        let wires: anyhow::Result<Vec<_>> =
            (0..count).map(|_| Wire::cell(servers.nucleus, "echo")).collect();
        cell.push(count as f64, closed_loop(wires?, time)?);
    }
    Ok(Chart {
        file: "connections",
        title: "Throughput against connections (64 B, one call in flight on each)",
        x: "connections",
        y: "calls per second",
        series: vec![floor, cell],
    })
}

/// One call in flight on each connection; returns how many a second were answered.
fn closed_loop(mut wires: Vec<Wire>, time: Duration) -> anyhow::Result<f64> {
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (at, wire) in wires.iter_mut().enumerate() {
        wire.stream.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(at as u64);
        epoll::add(&events, &wire.stream, data, epoll::EventFlags::IN)?;
        let frame = *wire.request(0);
        wire.stream.write_all(&frame)?;
    }
    let empty =
        epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
    let mut found = vec![empty; wires.len()];
    let (start, mut answered, mut in_flight) = (Instant::now(), 0_u64, wires.len());
    let mut last = start;
    while in_flight > 0 {
        let count = epoll::wait(&events, found.as_mut_slice(), None)?;
        last = Instant::now();
        for event in found.get(..count).unwrap_or_default() {
            let Some(wire) = wires.get_mut(usize::try_from(event.data.u64())?) else { continue };
            let mut came = 0_u64;
            wire.read(|_| came += 1)?;
            answered += came;
            if came > 0 && last - start < time {
                let frame = *wire.request(answered);
                wire.stream.write_all(&frame)?;
            } else if came > 0 {
                in_flight -= 1;
            }
        }
    }
    Ok(answered as f64 / (last - start).as_secs_f64())
}

/// The cost of a call against how many cells live beside the called one.
fn cells(
    plan: &Plan,
    servers: &Servers<'_>,
    time: Duration,
    report: &Report,
) -> anyhow::Result<Chart> {
    let name = |cell: u32| format!("live-{cell}");
    let (mut one, mut each) =
        (Series::new("cell", "one of them"), Series::new("cell", "each in turn"));
    let mut wires: Vec<Wire> = Vec::new();
    for count in CELLS {
        plan.check_interrupted()?;
        report.note(&format!("deploying up to {count} cells"));
        for cell in u32::try_from(wires.len())?..count {
            servers.nucleus.put(&name(cell), ECHO)?;
        }
        for cell in u32::try_from(wires.len())?..count {
            servers.nucleus.wait_for(&name(cell), DEPLOY_TIME_MAX)?;
            let mut wire = Wire::cell(servers.nucleus, &name(cell))?;
            // From here on it has an instance.
            wire.call(0)?;
            wires.push(wire);
        }
        one.push(f64::from(count), in_turn(wires.get_mut(..1).unwrap_or_default(), time)?);
        each.push(f64::from(count), in_turn(&mut wires, time)?);
    }
    Ok(Chart {
        file: "cells",
        title: "Cost of a call against live cells (64 B, p50)",
        x: "cells with an instance",
        y: "µs",
        series: vec![one, each],
    })
}

fn in_turn(wires: &mut [Wire], time: Duration) -> anyhow::Result<f64> {
    let (start, mut times) = (Instant::now(), histogram()?);
    for number in 1.. {
        for wire in &mut *wires {
            let asked = Instant::now();
            wire.call(number)?;
            times.saturating_record(nanoseconds(asked.elapsed()));
        }
        if start.elapsed() > time {
            break;
        }
    }
    Ok(microseconds(&times, 0.5))
}

/// Bandwidth against payload.
fn payloads(plan: &Plan, servers: &Servers<'_>) -> anyhow::Result<Chart> {
    servers.nucleus.put(
        "wide",
        &ECHO.replace("1048576", "16777216").replace("\"memory\") 18", "\"memory\") 258"),
    )?;
    servers.nucleus.wait_for("wide", DEPLOY_TIME_MAX)?;
    let socket = servers.nucleus.socket_of("wide");
    let mut all =
        [("floor", Vec::new()), ("cell, socket", Vec::new()), ("cell, shared memory", Vec::new())]
            .map(|(name, points)| Series { name: name.into(), points });
    for bytes in PAYLOADS {
        let mut floor = floor::Call::new(servers.echo, bytes)?;
        let mut plain = ours::Call::named(&socket, "wide", Way::Socket, bytes)?;
        let mut shared = ours::Call::named(&socket, "wide", Way::SharedMemory, bytes)?;
        let (below, through) = compare(plan, &mut floor, &mut plain, || {})?;
        let (_, beside) = compare(plan, &mut floor, &mut shared, || {})?;
        for (series, tally) in all.iter_mut().zip([below, through, beside]) {
            series.push(bytes as f64, megabytes_per_second(bytes, &tally)?);
        }
    }
    let [floor, plain, shared] = all;
    Ok(Chart {
        file: "payload",
        title: "Bandwidth against payload (one call in flight)",
        x: "bytes of request, and of reply",
        y: "MB/s in each direction",
        series: vec![floor, plain, shared],
    })
}

fn megabytes_per_second(bytes: usize, tally: &Tally) -> anyhow::Result<f64> {
    if let Some(error) = &tally.first_error {
        bail!("{bytes} B: {error}");
    }
    Ok(bytes as f64 * 1e3 / tally.histogram.value_at_quantile(0.5) as f64)
}
