//! What a session is for: its first message in each direction.

use cell_abi::CellName;

use crate::error::PeerError;

/// Longest reason of a refusal, in bytes.
pub(crate) const REASON_BYTES_MAX: usize = 512;

const CELL: u8 = 1;
const JOB: u8 = 2;
const CHANNEL: u8 = 3;
const ESCROW: u8 = 4;
const PAID: u8 = 8;
const YES: u8 = 0;
const NO: u8 = 1;

/// What the initiator wants: the content of its first record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// A connection to this cell; what follows is `docs/PROTOCOL.md`. Byte 1, then the name.
    Cell(CellName),
    /// To run a job; what follows is told in `docs/PEERS.md`. Byte 2.
    Job,
    /// To pay by a channel; what follows is told there too. Byte 3.
    Channel,
    /// The same as a cell's, for calls that this channel pays. Byte 8, then the channel's id of 32 bytes, then
    /// the name.
    PaidCell([u8; 32], CellName),
    /// To have the ledger set deposits of channels aside, and pay them out; the same. Byte 4.
    Escrow,
}

impl Request {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Cell(name) => [&[CELL], name.as_str().as_bytes()].concat(),
            Self::Job => vec![JOB],
            Self::Channel => vec![CHANNEL],
            Self::Escrow => vec![ESCROW],
            Self::PaidCell(channel, name) => {
                [&[PAID], &channel[..], name.as_str().as_bytes()].concat()
            }
        }
    }

    /// A request from its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, PeerError> {
        match bytes.split_first() {
            Some((&CELL, name)) => cell(name).map(Self::Cell),
            Some((&PAID, rest)) => {
                let (channel, name) = rest
                    .split_first_chunk::<32>()
                    .ok_or(PeerError::Unexpected("a request whose channel is cut"))?;
                Ok(Self::PaidCell(*channel, cell(name)?))
            }
            Some((&JOB, [])) => Ok(Self::Job),
            Some((&CHANNEL, [])) => Ok(Self::Channel),
            Some((&ESCROW, [])) => Ok(Self::Escrow),
            _ => Err(PeerError::Unexpected("a request of an unknown kind")),
        }
    }
}

fn cell(name: &[u8]) -> Result<CellName, PeerError> {
    let name = std::str::from_utf8(name).ok().and_then(|name| CellName::parse(name).ok());
    name.ok_or(PeerError::Unexpected("a request for what is no cell's name"))
}

/// The responder's answer: the content of its first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Go on. Byte 0.
    Yes,
    /// Why not. Byte 1, then text.
    No(String),
}

impl Answer {
    /// Its bytes; a long reason is cut.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Yes => vec![YES],
            Self::No(reason) => {
                let cut = reason.floor_char_boundary(REASON_BYTES_MAX);
                [&[NO], reason.get(..cut).unwrap_or_default().as_bytes()].concat()
            }
        }
    }

    /// An answer from its bytes. A reason is for people, and has no control characters in it.
    pub fn decode(bytes: &[u8]) -> Result<Self, PeerError> {
        match bytes.split_first() {
            Some((&YES, [])) => Ok(Self::Yes),
            Some((&NO, reason)) if reason.len() <= REASON_BYTES_MAX => {
                let reason = String::from_utf8_lossy(reason);
                Ok(Self::No(reason.chars().filter(|c| !c.is_control()).collect()))
            }
            _ => Err(PeerError::Unexpected("an answer that is none")),
        }
    }
}
