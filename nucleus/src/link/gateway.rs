//! The messages between a nucleus and its gateway, which speaks with other machines.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::walls::Wall;

/// How long the nucleus tries to connect to a relay for the gateway.
pub(crate) const DIAL_TIME_MAX: Duration = Duration::from_secs(5);
/// How long reaching a cell on another machine may take: to connect, and then to ask.
pub(crate) const REACH_TIME_MAX: Duration = Duration::from_secs(10);

/// From the nucleus to its gateway.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToGateway {
    /// The first message. Descriptor: the listening socket, if this machine listens.
    Start {
        /// [`cell_peer::Credentials`]; never the identity itself.
        credentials: Vec<u8>,
        /// Keys of the relays at which this machine waits.
        relays: Vec<[u8; 32]>,
    },
    /// Use these from now on.
    Credentials(Vec<u8>),
    /// From now on all sessions together are no faster than this in each direction; `None` is no limit.
    Pace { bytes_per_s: Option<NonZeroU64> },
    /// What this peer asked for is served; the owner has named it, or not.
    Served { id: u64, is_known: bool },
    /// It is not.
    Refused { id: u64, why: String },
    /// What `Dial` asked for, and the address that it is connected to. Descriptor: the connection.
    Dialled { id: u64, at: IpAddr },
    /// There is no such connection.
    NotDialled { id: u64, why: String },
    /// Ask for something over this connection. Descriptor: the connection.
    Reach(Reach),
}

/// What is to be asked for on another machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reach {
    pub(crate) id: u64,
    /// Who must answer.
    pub(crate) peer: [u8; 32],
    /// The relay at which that one waits, if the connection leads there.
    pub(crate) relay: Option<[u8; 32]>,
    /// [`cell_peer::Request`], as its bytes.
    pub(crate) request: Vec<u8>,
}

/// From the gateway to its nucleus.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromGateway {
    /// It takes connections; these are the walls around it.
    Ready { walls: Vec<Wall> },
    /// A peer wants something. Descriptor, unless it wants to wait or to be connected: its connection, as
    /// bytes that are no longer secret. Who it is follows from its proof and the session's key, which the
    /// nucleus checks itself.
    Connect { id: u64, proof: Vec<u8>, public: Vec<u8>, wanted: Wanted },
    /// A connection to one of the relays is needed, counted from 0 as they were named.
    Dial { id: u64, way: u32 },
    /// This machine waits at a relay from now on, or why it does not.
    Waits { way: u32, why_not: Option<String> },
    /// What `Reach` wanted. Descriptor: the socket of what was asked for.
    Reached { id: u64 },
    /// It is not to be had.
    NotReached { id: u64, why: String },
}

/// What a peer may want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wanted {
    /// To call a cell.
    Cell(String),
    /// The same, paid by the channel with this id.
    PaidCell { channel: [u8; 32], cell: String },
    /// To have a job run.
    Job,
    /// To pay by a channel.
    Channel,
    /// To have the ledger hold deposits and pay them out.
    Escrow,
    /// To wait here for those who want to be connected to it.
    Wait,
    /// To be connected to the machine with this key.
    Through([u8; 32]),
}
