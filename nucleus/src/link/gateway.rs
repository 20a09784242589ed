//! The messages between a nucleus and its gateway, which speaks with other machines.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::walls::Wall;

/// From the nucleus to its gateway.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToGateway {
    /// The first message. Descriptor: the listening socket.
    Start {
        /// [`cell_peer::Credentials`]; never the identity itself.
        credentials: Vec<u8>,
    },
    /// Use these from now on.
    Credentials(Vec<u8>),
    /// From now on all sessions together are no faster than this in each direction; `None` is no limit.
    Pace { bytes_per_s: Option<NonZeroU64> },
    /// What this peer asked for is served; the owner has named it, or not.
    Served { id: u64, is_known: bool },
    /// It is not.
    Refused { id: u64, why: String },
}

/// From the gateway to its nucleus.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromGateway {
    /// It takes connections; these are the walls around it.
    Ready { walls: Vec<Wall> },
    /// A peer wants something. Descriptor: its connection, as bytes that are no longer secret. Who it is
    /// follows from its proof and the session's key, which the nucleus checks itself.
    Connect { id: u64, proof: Vec<u8>, public: Vec<u8>, wanted: Wanted },
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
}
