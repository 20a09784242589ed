//! What a session is for: its first message in each direction.

use cell_abi::{AccountId, CellName};

use crate::error::PeerError;

/// Longest reason of a refusal, in bytes.
pub(crate) const REASON_BYTES_MAX: usize = 512;

const CELL: u8 = 1;
const JOB: u8 = 2;
const CHANNEL: u8 = 3;
const ESCROW: u8 = 4;
const PAID: u8 = 8;
const WAIT: u8 = 5;
const THROUGH: u8 = 6;
const MEET: u8 = 7;
const YES: u8 = 0;
const NO: u8 = 1;

/// Bytes of a [`Token`].
pub const TOKEN_BYTES: usize = 16;

/// What a relay makes up for each who wants to be connected, and tells the machine that is wanted.
pub type Token = [u8; TOKEN_BYTES];

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
    /// To be told of everybody who wants a connection to the initiator: from then on each record of the
    /// responder holds a [`Token`]. Byte 5.
    Wait,
    /// To be connected to this machine, which waits. After the answer the session is over, and what follows
    /// are bytes of that machine. Byte 6, then the key.
    Through(AccountId),
    /// To be connected to whom this token stands for, in the same way. Byte 7, then the token.
    Meet(Token),
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
            Self::Wait => vec![WAIT],
            Self::Through(machine) => [&[THROUGH], &machine.as_bytes()[..]].concat(),
            Self::Meet(token) => [&[MEET], &token[..]].concat(),
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
            Some((&WAIT, [])) => Ok(Self::Wait),
            Some((&THROUGH, machine)) => {
                let machine = machine.try_into().map(AccountId::from_bytes);
                machine
                    .map(Self::Through)
                    .map_err(|_| PeerError::Unexpected("a request for what is no machine's key"))
            }
            Some((&MEET, token)) => token
                .try_into()
                .map(Self::Meet)
                .map_err(|_| PeerError::Unexpected("a request with what is no token")),
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
