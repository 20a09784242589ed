//! The messages between a nucleus and its worker, over a socket pair that keeps their bounds.
//!
//! Each message is one packet of JSON, with file descriptors beside it where its doc says so.
//! The worker is not trusted: a packet of its that is too long or does not parse ends it.

mod cause;
pub(crate) mod gateway;
pub(crate) mod records;
pub(crate) mod state;

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use cell_host::ModuleInfo;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::walls::Wall;
pub(crate) use cause::Cause;

/// Largest packet, in bytes; also asked of the kernel as the sockets' buffer.
pub(crate) const PACKET_BYTES_MAX: usize = 192 << 10;
/// Most descriptors beside one packet.
pub(crate) const FDS_MAX: usize = 5;

/// Users from here on are other machines, by a number that lasts as long as their worker. No user of this
/// machine has such an id: systems keep them apart, and a client that has one is not served.
pub(crate) const PEER_UID_MIN: u32 = 1 << 31;

/// One end of the pair.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

impl Link {
    /// Two connected ends; neither survives an exec unless it is handed over.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        for end in [&a, &b] {
            rustix::net::sockopt::set_socket_send_buffer_size(end, PACKET_BYTES_MAX * 2)?;
        }
        Ok((Self(a), Self(b)))
    }

    /// This process' end, which came as standard input from the process that started it; and what every
    /// such process begins with: it ends with the other, holds nothing else of it, and reads nothing from
    /// standard input.
    pub(crate) fn of_child() -> io::Result<Self> {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        crate::walls::close_inherited_descriptors()?;
        let link = rustix::stdio::stdin().try_clone_to_owned()?;
        let null = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        Ok(Self(link))
    }

    /// The socket of another machine's session, which came as standard input from the nucleus.
    pub(crate) fn session_of_child() -> io::Result<std::os::unix::net::UnixStream> {
        let socket = Self::of_child()?.into_fd();
        let socket = std::os::unix::net::UnixStream::from(socket);
        // So far this end of the socket is as the gateway left it.
        socket.set_nonblocking(false)?;
        Ok(socket)
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// From now on sending fails when the peer does not make room for this long.
    pub(crate) fn limit_sending(&self, wait_max: Duration) -> io::Result<()> {
        use rustix::net::sockopt::{Timeout, set_socket_timeout};
        Ok(set_socket_timeout(&self.0, Timeout::Send, Some(wait_max))?)
    }

    /// Sends a message, waiting while the peer's buffer is full.
    pub(crate) fn send<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = serde_json::to_vec(message)?;
        if packet.len() > PACKET_BYTES_MAX {
            return Err(io::Error::other(format!("a link message has {} bytes", packet.len())));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors for one link message"));
        }
        let slices = [IoSlice::new(&packet)];
        loop {
            match rustix::net::sendmsg(self.0.as_fd(), &slices, &mut ancillary, SendFlags::NOSIGNAL)
            {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for a message; `None` when the peer is gone.
    pub(crate) fn receive<M: DeserializeOwned>(
        &self,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        Ok(self.receive_sized(buffer)?.map(|(message, fds, _)| (message, fds)))
    }

    /// The same, with the bytes that the message took.
    pub(crate) fn receive_sized<M: DeserializeOwned>(
        &self,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Option<(M, Vec<OwnedFd>, usize)>> {
        buffer.resize(PACKET_BYTES_MAX, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut slices = [IoSliceMut::new(buffer)];
            match rustix::net::recvmsg(
                &self.0,
                &mut slices,
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let fds = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let packet = buffer.get(..received.bytes).unwrap_or_default();
        Ok(Some((serde_json::from_slice(packet)?, fds, received.bytes)))
    }
}

/// From the nucleus to its worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// The first message. Descriptor: the stream for cells' state.
    Start(Start),
    /// Serve this cell, or serve this code instead of what it had. Its artefact is asked for when it
    /// is first called. Descriptor: the cell's socket, for a new cell in a worker that listens.
    Load(Box<LoadCell>),
    /// The code that `NeedArtefact` asked for. Descriptor: the artefact; without one, `error` says why.
    Artefact { cell: String, generation: u64, error: Option<String> },
    /// Other machines answer the calls of this cell from now on.
    LoadElsewhere(LoadElsewhere),
    /// What `Reach` asked for. Descriptor: the socket of the cell there; without one, the message says why.
    Reached(Reached),
    /// Stop serving this cell; calls in flight end in peace.
    Drop { cell: String },
    /// Write the log there from now on. Descriptor: the file.
    Log { cell: String },
    /// Serve this client of a cell. Descriptor: the connection.
    Connection { cell: String },
    /// What the last `NeedHold` of this user brought; less than asked means that is all there is.
    Granted { uid: u32, amount: u64 },
    /// Let calls in flight end, report what they burned, and exit.
    Shutdown,
}

/// Whom a worker serves, and within which bounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The one user whose calls this worker runs: of this machine, or a number for a peer.
    pub(crate) serves_uid: u32,
    /// The account that those run under.
    pub(crate) payer: String,
    /// It is the owner's: it has the cells' sockets, and hands other users' connections back.
    pub(crate) listens: bool,
    /// Linear memory and tables of all instances together, in bytes.
    pub(crate) memory_bytes_max: u64,
    /// What calls pay besides fuel: [`cell_host::Rates`].
    pub(crate) rates: [u64; 3],
}

/// A cell as the nucleus hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LoadCell {
    pub(crate) cell: String,
    pub(crate) generation: u64,
    pub(crate) hash: String,
    /// The gate's findings, so that the worker need not see the wasm.
    pub(crate) facts: ModuleFacts,
    pub(crate) settings: crate::manifest::Settings,
}

/// A cell that other machines run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LoadElsewhere {
    pub(crate) cell: String,
    pub(crate) generation: u64,
    /// Those machines, as the manifest calls them.
    pub(crate) machines: Vec<String>,
}

/// How reaching a cell on another machine went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reached {
    pub(crate) cell: String,
    pub(crate) generation: u64,
    /// Which of its machines, counted from 0.
    pub(crate) machine: u32,
    pub(crate) error: Option<String>,
}

/// What the gate found in a cell's module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ModuleFacts {
    /// The interface section's text.
    pub(crate) interface: String,
    pub(crate) has_json: bool,
    pub(crate) memory_pages: u64,
    pub(crate) data_bytes: u64,
}

impl ModuleFacts {
    pub(crate) fn of(info: &ModuleInfo) -> Self {
        Self {
            interface: info
                .interface
                .receptors()
                .iter()
                .map(|receptor| format!("{}\n", receptor.schema))
                .collect(),
            has_json: info.has_json,
            memory_pages: info.memory_pages,
            data_bytes: info.data_bytes,
        }
    }
}

/// From a worker to its nucleus.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// The worker takes messages; these are the walls around it.
    Ready { walls: Vec<Wall> },
    /// How a `Load` went.
    Loaded { cell: String, generation: u64, error: Option<String> },
    /// This user's calls need at least `amount_min` more than was granted; `amount` would be good.
    NeedHold { uid: u32, amount_min: u64, amount: u64 },
    /// What was burned since the last report. Each `sequence` is used once. Descriptor, beside a row of
    /// a cell that keeps receipts: the records of its calls; what they say counts, not the row.
    Usage { sequence: u64, uid: u32, rows: Vec<UsageRow> },
    /// This user's calls need nothing for now.
    Release { uid: u32 },
    /// How cells fare; sent for those that changed.
    Stats { rows: Vec<CellStats> },
    /// How the worker fares; sent when it changed.
    Totals(Totals),
    /// A cell has something to log.
    NeedLog { cell: String },
    /// A cell is called whose code is not loaded.
    NeedArtefact { cell: String, generation: u64, hash: String },
    /// A cell is called that another machine runs, and there is no connection to it.
    Reach { cell: String, generation: u64, machine: u32 },
    /// A client of another user than this worker serves. Descriptor: the connection.
    Foreign { cell: String },
    /// This worker, which does not listen, has had no client for a while.
    Idle,
}

/// What one user burned in one cell.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct UsageRow {
    pub(crate) cell: String,
    pub(crate) fuel: u64,
    /// What they took besides: [`cell_host::Taken`].
    pub(crate) taken: [u64; 3],
    pub(crate) calls: u64,
}

/// What all cells of a worker have together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Connections of clients.
    pub(crate) connections: u64,
    /// Linear memory and tables of all instances, in bytes.
    pub(crate) memory_bytes: u64,
    /// Heap allocations of the threads that serve calls.
    pub(crate) allocations: u64,
}

/// Counters of one cell since its worker started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellStats {
    pub(crate) cell: String,
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) fuel: u64,
    pub(crate) instances: u64,
    pub(crate) waiting: u64,
    /// Of the failed ones, those that ended in a trap, an exit, a limit or a bad reply.
    pub(crate) crashed: u64,
    /// The failed ones by what they failed of.
    pub(crate) failures: BTreeMap<Cause, u64>,
    /// Linear memory and tables of its instances, in bytes.
    pub(crate) memory_bytes: u64,
    /// Calls and fuel a second over the last two seconds or so.
    pub(crate) calls_per_s: f64,
    pub(crate) fuel_per_s: f64,
    /// From frame to reply over the last seconds, in microseconds; 0 without calls.
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    /// Calls from outside that ran, and the time that all of them took, in microseconds.
    pub(crate) timed: u64,
    pub(crate) timed_us: u64,
    pub(crate) last_error: Option<String>,
    /// Why its calls are refused for now, if it keeps failing.
    pub(crate) resting: Option<String>,
}

impl CellStats {
    /// Most calls or fuel a second that are believed.
    const RATE_BELIEVED: f64 = 1e15;

    /// With rates that can be added up and written down, whatever a worker says.
    pub(crate) fn with_sane_rates(mut self) -> Self {
        for rate in [&mut self.calls_per_s, &mut self.fuel_per_s] {
            *rate = if rate.is_finite() { rate.clamp(0.0, Self::RATE_BELIEVED) } else { 0.0 };
        }
        self
    }

    /// Adds what another worker counted. The worker may be one that was taken over and counts
    /// anything, so the sums stop at their type's end.
    pub(crate) fn add_counters(&mut self, row: &Self) {
        let add = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        add(&mut self.calls, row.calls);
        add(&mut self.failed, row.failed);
        add(&mut self.crashed, row.crashed);
        add(&mut self.fuel, row.fuel);
        add(&mut self.timed, row.timed);
        add(&mut self.timed_us, row.timed_us);
        for (cause, failed) in &row.failures {
            add(self.failures.entry(*cause).or_default(), *failed);
        }
        if row.last_error.is_some() {
            self.last_error.clone_from(&row.last_error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive() {
        let (a, b) = Link::pair().unwrap();
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        a.send(&ToWorker::Log { cell: "x".into() }, &[theirs.as_fd()]).unwrap();
        drop(theirs);
        let mut buffer = Vec::new();
        let (message, fds) = b.receive::<ToWorker>(&mut buffer).unwrap().unwrap();
        assert!(matches!(message, ToWorker::Log { cell } if cell == "x"));
        let mut file = std::fs::File::from(fds.into_iter().next().unwrap());
        file.write_all(b"hi").unwrap();
        let mut text = [0; 2];
        ours.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hi");
        drop(a);
        assert!(b.receive::<ToWorker>(&mut buffer).unwrap().is_none());
    }

    #[test]
    fn sums_of_any_counters() {
        let trapped = Cause::of(cell_abi::Status::Trapped).unwrap();
        let row = CellStats { calls: u64::MAX, timed_us: 2, ..CellStats::default() };
        let row = CellStats { failures: BTreeMap::from([(trapped, u64::MAX)]), ..row };
        let mut sum = row.clone();
        sum.add_counters(&row);
        assert_eq!((sum.calls, sum.timed_us), (u64::MAX, 4));
        assert_eq!(sum.failures.get(&trapped), Some(&u64::MAX));
        let wild = CellStats { calls_per_s: 1e308, fuel_per_s: f64::NAN, ..row }.with_sane_rates();
        assert_eq!((wild.calls_per_s, wild.fuel_per_s), (1e15, 0.0));
    }

    #[test]
    fn garbage_is_an_error() {
        let (a, b) = Link::pair().unwrap();
        a.send(&"garbage", &[]).unwrap();
        assert!(b.receive::<FromWorker>(&mut Vec::new()).is_err());
    }
}
