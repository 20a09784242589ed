//! What a session between machines costs: echoes over loopback TCP, plain and over Noise, and a whole
//! call of a cell on another machine.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use cell_abi::{AccountId, CellName};
use cell_client::{Client, Config};
use cell_peer::{Credentials, Handshake, PREFACE, Records, Request, Session, Step, tunnel};
use ed25519_dalek::SigningKey;

use crate::cli::Plan;
use crate::measure::{Side, Tally, compare};
use crate::nucleus::Nucleus;
use crate::ours;
use crate::payload::Payload;
use crate::placement::{Cores, Mode};
use crate::report::Report;
use crate::row::{Row, Unit};

const SIZES: [(usize, &str); 3] = [(64, "64 B"), (64 << 10, "64 KiB"), (1 << 20, "1 MiB")];
/// Bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;
const RECORD_BYTES_MAX: usize = 65_535;
const DIAL_TIME_MAX: Duration = Duration::from_secs(10);

/// Measures what is wanted.
pub(crate) fn measure(plan: &Plan, cores: &Cores, report: &mut Report) -> anyhow::Result<()> {
    cores.pin_this_process(Mode::Plain)?;
    let nucleus = Nucleus::start_with("[peers]\nlisten = \"127.0.0.1:0\"\n", "peers = true\n")?;
    for (bytes, size) in SIZES {
        let works = [format!("noise echo {size}"), format!("remote call {size}")];
        for (work, is_call) in works.iter().zip([false, true]) {
            if !plan.wants(work) {
                continue;
            }
            let mut floor = Raw::new(bytes)?;
            let mut ours: Box<dyn Side> = if is_call {
                Box::new(ours::Call::over(dial(&nucleus)?, bytes)?)
            } else {
                Box::new(Noise::new(bytes)?)
            };
            let (floor, ours) = compare(plan, &mut floor, &mut *ours, || {})?;
            let (name, mode) = (work.clone(), Mode::Plain.to_string());
            let row = Row::new(name, mode, Unit::Nanoseconds, floor, ours);
            report.add(row.with_bytes(bytes));
        }
    }
    Ok(())
}

/// A client of the nucleus' echo cell, by way of its gateway.
fn dial(nucleus: &Nucleus) -> anyhow::Result<Client> {
    let identity = SigningKey::from_bytes(&[3; 32]);
    let (wanted, address) = nucleus.admit(&identity)?;
    let credentials = Credentials::new(&identity, tunnel::now_s())?;
    let request = Request::Cell(CellName::parse("echo")?);
    let stream = tunnel::dial(&address, &credentials, wanted, &request, DIAL_TIME_MAX)
        .context("dial the gateway")?;
    Ok(Client::from_stream(stream, "echo", Config::default())?)
}

/// Listens once, and has another thread serve who comes.
fn serve(
    echo: impl FnOnce(TcpStream) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || -> anyhow::Result<()> {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        // A client that hangs up is done.
        echo(stream)
    });
    Ok(address)
}

/// The floor: bytes there and back.
struct Raw {
    stream: TcpStream,
    payload: Payload,
    reply: Vec<u8>,
}

impl Raw {
    fn new(bytes: usize) -> anyhow::Result<Self> {
        let address = serve(move |mut stream| {
            let mut buffer = vec![0; READ_BYTES];
            let mut all = Vec::with_capacity(bytes);
            loop {
                let read = stream.read(&mut buffer)?;
                if read == 0 {
                    return Ok(());
                }
                // Like a server of messages, it answers when the whole of one has come.
                all.extend_from_slice(buffer.get(..read).unwrap_or_default());
                if all.len() >= bytes {
                    stream.write_all(&all)?;
                    all.clear();
                }
            }
        })?;
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, payload: Payload::new(bytes), reply: vec![0; bytes] })
    }

    fn once(&mut self) -> anyhow::Result<Duration> {
        let number = self.payload.next();
        let started = Instant::now();
        self.stream.write_all(self.payload.bytes())?;
        self.stream.read_exact(&mut self.reply)?;
        let time = started.elapsed();
        self.payload.check(number, &self.reply).map_err(|error| anyhow!(error))?;
        Ok(time)
    }
}

impl Side for Raw {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let end = Instant::now() + length;
        while Instant::now() < end && tally.take(self.once()) {}
    }
}

/// The same in records of a session.
struct Noise {
    end: End,
    payload: Payload,
}

/// One end of a session over TCP.
struct End {
    stream: TcpStream,
    session: Session,
    records: Records,
    out: Vec<u8>,
    content: Vec<u8>,
}

impl End {
    fn send(&mut self, content: &[u8]) -> anyhow::Result<()> {
        self.out.clear();
        self.session.seal(content, &mut self.out)?;
        Ok(self.stream.write_all(&self.out)?)
    }

    /// Takes this many bytes of content; `false` when the peer is gone.
    fn receive(&mut self, bytes: usize) -> anyhow::Result<bool> {
        self.content.clear();
        loop {
            while let Some(record) = self.records.next(RECORD_BYTES_MAX)? {
                self.session.open(record, &mut self.content)?;
            }
            if self.content.len() >= bytes {
                return Ok(true);
            }
            if fill(&mut self.stream, &mut self.records)? == 0 {
                return Ok(false);
            }
        }
    }
}

fn fill(stream: &mut TcpStream, records: &mut Records) -> anyhow::Result<usize> {
    let read = stream.read(records.room(READ_BYTES));
    let came = *read.as_ref().unwrap_or(&0);
    records.filled(READ_BYTES - came);
    read?;
    Ok(came)
}

/// The next message of a handshake.
fn message(stream: &mut TcpStream, records: &mut Records) -> anyhow::Result<Vec<u8>> {
    loop {
        if let Some(record) = records.next(RECORD_BYTES_MAX)? {
            return Ok(record.to_vec());
        }
        anyhow::ensure!(fill(stream, records)? > 0, "the peer hung up");
    }
}

/// Goes on until there is a session.
fn shake(
    mut handshake: Handshake,
    mut stream: TcpStream,
    mut records: Records,
) -> anyhow::Result<End> {
    loop {
        let received = message(&mut stream, &mut records)?;
        match handshake.step(&received)? {
            Step::Reply(next, bytes) => {
                handshake = next;
                stream.write_all(&bytes)?;
            }
            Step::Done(session, bytes) => {
                stream.write_all(&bytes)?;
                return Ok(End { stream, session, records, out: Vec::new(), content: Vec::new() });
            }
        }
    }
}

impl Noise {
    fn new(bytes: usize) -> anyhow::Result<Self> {
        let (ours, theirs) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let wanted = AccountId::from_bytes(theirs.verifying_key().to_bytes());
        let now_s = tunnel::now_s();
        let credentials = Credentials::new(&theirs, now_s)?;
        let address = serve(move |mut stream| {
            let mut records = Records::default();
            while records.take(PREFACE.len()).is_none() {
                fill(&mut stream, &mut records)?;
            }
            let handshake = Handshake::respond(&credentials, now_s)?;
            let mut end = shake(handshake, stream, records)?;
            while end.receive(bytes)? {
                let content = std::mem::take(&mut end.content);
                end.send(&content)?;
                end.content = content;
            }
            Ok(())
        })?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let (handshake, first) =
            Handshake::initiate(&Credentials::new(&ours, now_s)?, wanted, now_s)?;
        stream.write_all(&first)?;
        let end = shake(handshake, stream, Records::default())?;
        Ok(Self { end, payload: Payload::new(bytes) })
    }

    fn once(&mut self) -> anyhow::Result<Duration> {
        let number = self.payload.next();
        let started = Instant::now();
        self.end.send(self.payload.bytes())?;
        anyhow::ensure!(self.end.receive(self.payload.bytes().len())?, "the peer hung up");
        let time = started.elapsed();
        self.payload.check(number, &self.end.content).map_err(|error| anyhow!(error))?;
        Ok(time)
    }
}

impl Side for Noise {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let end = Instant::now() + length;
        while Instant::now() < end && tally.take(self.once()) {}
    }
}
