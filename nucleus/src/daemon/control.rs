//! The control socket: one JSON request a line, one JSON answer a line.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::donation::{Donating, DonationRow};
use super::ways::WayRow;
use super::{Event, accept};
use crate::home::Home;
use crate::link::CellStats;
use crate::walls::Wall;

/// Longest request, in bytes.
pub(super) const REQUEST_BYTES_MAX: u64 = 4096;
/// Connections at once; one more is closed.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// How long a connection may be silent.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long an asker waits for an answer; a deployment may have to compile first.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_secs(240);

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Is anybody there?
    Ping,
    /// How do the cells fare?
    Ps,
    /// How do the nucleus, its workers and the cells fare?
    Status,
    /// What stands around the worker?
    Walls,
    /// Wait until this cell is live with this code, refused, or, without a hash, gone.
    Await { cell: String, hash: Option<String> },
    /// Lend this machine, or say how that goes.
    Donate(Donating),
    /// End.
    Down,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    Cells(Vec<CellRow>),
    Status(Snapshot),
    Walls(Vec<Wall>),
    Donation(DonationRow),
    /// The cell could not be deployed, or the request was wrong.
    Failed(String),
}

/// What `cell ps`, `cell top` and the metrics show.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// `None` when no nucleus runs.
    pub(crate) nucleus: Option<NucleusRow>,
    pub(crate) cells: Vec<CellRow>,
}

/// How a nucleus fares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NucleusRow {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) up_s: u64,
    /// How often the worker that listens died and was started again.
    pub(crate) worker_restarts: u64,
    pub(crate) workers: Vec<WorkerRow>,
    /// Walls that this machine lacks around the worker; a control group is not counted.
    pub(crate) walls_missing: Vec<Wall>,
    /// Where it listens for other machines, if it does.
    pub(crate) listens: Option<String>,
    /// The relays at which it waits for other machines.
    pub(crate) through: Vec<WayRow>,
}

/// How a worker fares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WorkerRow {
    pub(crate) pid: u32,
    /// The user whose calls it runs.
    pub(crate) uid: u32,
    /// Whether it has the cells' sockets: the owner's worker.
    pub(crate) listens: bool,
    /// Whether it takes cells yet.
    pub(crate) ready: bool,
    pub(crate) up_s: u64,
    pub(crate) connections: u64,
    /// Linear memory and tables of its instances.
    pub(crate) memory_bytes: u64,
    /// Heap allocations of the threads that serve calls, since it started: two for each call, both of Wasmtime.
    pub(crate) allocations: u64,
    /// What the whole process occupies.
    pub(crate) resident_bytes: u64,
}

/// One line of `cell ps`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct CellRow {
    pub(crate) cell: String,
    /// `live`, `away` (other machines run it), `resting`, `loading`, `failed` or `stopped`.
    pub(crate) state: String,
    pub(crate) hash: Option<String>,
    /// Why it failed, or rests.
    pub(crate) reason: Option<String>,
    pub(crate) stats: CellStats,
}

/// Serves the socket on threads of its own.
pub(super) fn serve(listener: UnixListener, events: Sender<Event>) -> anyhow::Result<()> {
    let next = move || listener.accept().map(|(stream, _)| stream);
    // An asker who sends garbage or hangs up ends only its own thread.
    let converse = move |stream| drop(converse(&stream, &events));
    accept::serve("control", CONNECTIONS_MAX, next, drop, converse)?;
    Ok(())
}

fn converse(stream: &UnixStream, events: &Sender<Event>) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(REQUEST_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str::<Request>(&line) {
            Ok(request) => {
                let (sender, receiver) = mpsc::channel();
                events.send(Event::Control(request, sender))?;
                receiver
                    .recv_timeout(ANSWER_TIME_MAX)
                    .unwrap_or_else(|_| Answer::Failed("the nucleus did not answer in time".into()))
            }
            Err(error) => Answer::Failed(format!("not a request: {error}")),
        };
        let mut answer = serde_json::to_vec(&answer)?;
        answer.push(b'\n');
        (&*stream).write_all(&answer)?;
    }
}

/// Asks the nucleus of a home; `None` if none is running.
pub(crate) fn ask(home: &Home, request: &Request) -> anyhow::Result<Option<Answer>> {
    use std::io::ErrorKind;
    let path = home.socket();
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("connect to {}", path.display())),
    };
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer)?;
    if answer.is_empty() {
        anyhow::bail!("the nucleus closed the connection; see {}", home.log().display());
    }
    Ok(Some(serde_json::from_str(&answer)?))
}
