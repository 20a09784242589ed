//! The messages between a nucleus and its gateway, which speaks with other machines.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::walls::Wall;

/// How long the nucleus tries to connect to a relay for the gateway.
pub(crate) const DIAL_TIME_MAX: Duration = Duration::from_secs(5);

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
    /// What this peer asked for is served; the owner has named it, or not.
    Served { id: u64, is_known: bool },
    /// It is not.
    Refused { id: u64, why: String },
    /// What `Dial` asked for, and the address that it is connected to. Descriptor: the connection.
    Dialled { id: u64, at: IpAddr },
    /// There is no such connection.
    NotDialled { id: u64, why: String },
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
}

/// What a peer may want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wanted {
    /// To call a cell.
    Cell(String),
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
