//! One connection's protocol, without its socket: requests become bytes, bytes become answers.
//!
//! It reads no clock and waits for nothing, so the blocking and the async client share it. `T` is
//! what a client wants to find again with the answer to a request.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use cell_abi::frame::HELLO_BYTES;
use cell_abi::limits::{FRAME_PAYLOAD_BYTES_MAX, MESSAGE_BYTES_MAX};
use cell_abi::{FrameError, Header, Hello, Kind, Status};
use rkyv::util::AlignedVec;

use crate::error::{self, Closed, ProtocolError};
use crate::inbox::Inbox;
use crate::options::CALLS_IN_FLIGHT_MAX;
use crate::outbox::{COPY_BYTES_MAX, Outbox};

#[derive(Debug)]
pub(crate) struct Session<T> {
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) reply_bytes_max: u32,
    waiting: HashMap<u64, Waiting<T>, BuildHasherDefault<IdHasher>>,
    greeted: bool,
}

/// A request that has no answer yet.
#[derive(Debug)]
struct Waiting<T> {
    expected: Kind,
    /// Nobody wants the answer any more; it is dropped when it comes.
    abandoned: bool,
    tag: T,
}

impl<T> Session<T> {
    pub(crate) fn new(reply_bytes_max: u32) -> Self {
        let mut outbox = Outbox::default();
        outbox.push(&Hello::CURRENT.encode());
        Self {
            inbox: Inbox::new(),
            outbox,
            reply_bytes_max: reply_bytes_max.min(FRAME_PAYLOAD_BYTES_MAX),
            waiting: HashMap::with_capacity_and_hasher(
                2 * CALLS_IN_FLIGHT_MAX,
                BuildHasherDefault::default(),
            ),
            greeted: false,
        }
    }

    /// Of a connection on which both sides have said hello.
    pub(crate) fn greeted(reply_bytes_max: u32) -> Self {
        Self { outbox: Outbox::default(), greeted: true, ..Self::new(reply_bytes_max) }
    }

    /// Puts a request in the outbox; its id must be new on this connection.
    ///
    /// Returns whether the payload was left out because it is large. Then it and its padding must
    /// be the next bytes on the wire.
    pub(crate) fn ask(&mut self, header: &Header, payload: &[u8], tag: T) -> bool {
        let expected = match header.kind {
            Kind::Open => Kind::Opened,
            Kind::Ping => Kind::Pong,
            _ => Kind::Reply,
        };
        self.waiting.insert(header.request_id, Waiting { expected, abandoned: false, tag });
        let large = payload.len() > COPY_BYTES_MAX;
        if large {
            self.outbox.push_header(header);
        } else {
            self.outbox.push_frame(header, payload);
        }
        large
    }

    /// Asks the server to stop a call; its answer still comes.
    pub(crate) fn cancel(&mut self, id: u64) {
        if self.waiting.get(&id).is_some_and(|waiting| waiting.expected == Kind::Reply) {
            self.outbox.push_header(&Header { request_id: id, ..Header::new(Kind::Cancel) });
        }
    }

    /// Cancels a call and drops its answer when it comes.
    pub(crate) fn abandon(&mut self, id: u64) {
        self.cancel(id);
        if let Some(waiting) = self.waiting.get_mut(&id) {
            waiting.abandoned = true;
        }
    }

    /// The next answer in the bytes that came in, if it is whole, with the tag of its request.
    ///
    /// Must be asked until there is none before the inbox is given more bytes.
    pub(crate) fn next(&mut self) -> Result<Option<(T, Header, AlignedVec)>, Closed> {
        if !self.greeted {
            let Some(hello) = self.inbox.plain::<HELLO_BYTES>() else { return Ok(None) };
            Hello::decode(&hello)?;
            self.greeted = true;
        }
        loop {
            let Self { inbox, waiting, reply_bytes_max, .. } = self;
            let Some((header, payload)) =
                inbox.frame(|header| kept_bytes(waiting, header, *reply_bytes_max))?
            else {
                return Ok(None);
            };
            if header.kind == Kind::Goaway {
                // An end of the connection is no success, whatever the peer calls it.
                let status = Status::from_code(header.status)
                    .filter(|status| *status != Status::Ok)
                    .unwrap_or(Status::HostFault);
                return Err(Closed::Goaway { status, message: error::message(&payload) });
            }
            match waiting.remove(&header.request_id) {
                Some(Waiting { abandoned: false, tag, .. }) => {
                    return Ok(Some((tag, header, payload)));
                }
                _ => inbox.recycle(payload),
            }
        }
    }

    /// Why the connection is over if no more bytes come.
    pub(crate) fn end_of_stream(&self) -> Closed {
        let during = if !self.greeted {
            "before its hello"
        } else if self.inbox.is_mid_frame() {
            "in the middle of a frame"
        } else if self.waiting.is_empty() {
            "between calls"
        } else {
            "before it answered"
        };
        Closed::Disconnected { during }
    }

    /// Requests without an answer, wanted or not.
    pub(crate) fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    /// Requests whose answer somebody wants.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = (u64, &T)> {
        self.waiting
            .iter()
            .filter(|(_, waiting)| !waiting.abandoned)
            .map(|(id, waiting)| (*id, &waiting.tag))
    }
}

/// How many bytes of a frame's payload are wanted, if it may come at all.
fn kept_bytes<T, S: std::hash::BuildHasher>(
    waiting: &HashMap<u64, Waiting<T>, S>,
    header: &Header,
    reply_bytes_max: u32,
) -> Result<u32, Closed> {
    let found = header.kind;
    match found {
        Kind::Goaway => return Ok(header.payload_bytes),
        Kind::Opened | Kind::Reply | Kind::Pong => {}
        _ => return Err(FrameError::WrongDirection(found).into()),
    }
    let request =
        waiting.get(&header.request_id).ok_or(ProtocolError::UnknownRequest(header.request_id))?;
    if found != request.expected {
        return Err(ProtocolError::WrongAnswer { found, expected: request.expected }.into());
    }
    let status =
        Status::from_code(header.status).ok_or(ProtocolError::UnknownStatus(header.status))?;
    Ok(match (request.abandoned, found, status) {
        (true, ..) => 0,
        (false, Kind::Reply, Status::Ok) if header.payload_bytes > reply_bytes_max => 0,
        (false, Kind::Reply, Status::Ok) | (false, Kind::Opened, _) => header.payload_bytes,
        // A code and a message.
        #[expect(clippy::cast_possible_truncation, reason = "about a thousand")]
        _ => 4 + MESSAGE_BYTES_MAX as u32,
    })
}

/// Spreads request ids, which this side counts up; no peer chooses what is inserted.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }

    fn write_u64(&mut self, id: u64) {
        // The multiplier of Fibonacci hashing: 2^64 divided by the golden ratio.
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
