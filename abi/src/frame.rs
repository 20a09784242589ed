//! The wire protocol's fixed parts: the hello and the 32-byte frame header.
//!
//! `docs/PROTOCOL.md` specifies both byte by byte; files in `tests/golden/` pin them.
//! This module moves no bytes over any connection.

use crate::limits::{FRAME_PAYLOAD_BYTES_MAX, OPEN_PAYLOAD_BYTES_MAX};
use crate::units::Fuel;

/// The version this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// Bytes of a [`Hello`].
pub const HELLO_BYTES: usize = 16;
/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 32;
/// Every frame starts at a multiple of this many bytes after the hello.
pub const FRAME_ALIGN: usize = 16;

/// Feature: frames go through memory that the server makes and sends along with its hello.
pub const FEATURE_SHARED_MEMORY: u32 = 1;

const MAGIC: [u8; 4] = *b"CELL";

/// Why bytes are not a hello or a frame of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The first four bytes are not `CELL`.
    #[error("the peer does not speak Cell: its first bytes are {0:02x?}")]
    BadMagic([u8; 4]),
    /// The peer speaks another version.
    #[error("the peer speaks protocol version {theirs}, this side version {PROTOCOL_VERSION}")]
    BadVersion {
        /// The version in the peer's hello.
        theirs: u16,
    },
    /// A kind this version does not know.
    #[error("frame kind {0} is not known")]
    UnknownKind(u8),
    /// A flag this version does not know.
    #[error("frame flags {0:#04x} are not known")]
    UnknownFlags(u8),
    /// The payload is larger than its kind may have.
    #[error("a frame claims {claimed} bytes of payload; at most {max} are taken")]
    PayloadTooLarge {
        /// The length in the header.
        claimed: u32,
        /// The most that was allowed.
        max: u32,
    },
    /// A kind that only the other side may send.
    #[error("frame kind {0:?} is not for this side to receive")]
    WrongDirection(Kind),
    /// A payload that is too short or not of its kind's form.
    #[error("the payload of a {0:?} frame is malformed")]
    MalformedPayload(Kind),
}

/// What each side sends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version.
    pub version: u16,
    /// Bits for optional parts of the protocol; a side uses one only if both set it.
    pub features: u32,
}

impl Hello {
    /// What this crate's version sends.
    pub const CURRENT: Self = Self { version: PROTOCOL_VERSION, features: 0 };

    /// The bytes on the wire.
    pub fn encode(self) -> [u8; HELLO_BYTES] {
        let [m0, m1, m2, m3] = MAGIC;
        let [v0, v1] = self.version.to_le_bytes();
        let [f0, f1, f2, f3] = self.features.to_le_bytes();
        [m0, m1, m2, m3, v0, v1, 0, 0, f0, f1, f2, f3, 0, 0, 0, 0]
    }

    /// Reads a peer's hello; unknown features are kept, another version is refused.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, v0, v1, _, _, f0, f1, f2, f3, ..] = *bytes;
        let magic = [m0, m1, m2, m3];
        if magic != MAGIC {
            return Err(FrameError::BadMagic(magic));
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != PROTOCOL_VERSION {
            return Err(FrameError::BadVersion { theirs: version });
        }
        Ok(Self { version, features: u32::from_le_bytes([f0, f1, f2, f3]) })
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Kind {
    /// Client: bind a cell's receptor to a slot.
    Open = 1,
    /// Server: the answer to an open.
    Opened = 2,
    /// Client: run a receptor.
    Call = 3,
    /// Server: how a call ended.
    Reply = 4,
    /// Client: stop a call; its reply says `Cancelled` unless it was faster.
    Cancel = 5,
    /// Client: answer with a pong of the same request id.
    Ping = 6,
    /// Server: the answer to a ping.
    Pong = 7,
    /// Payment for remote calls; not used on local sockets.
    Voucher = 8,
    /// Signed bill for remote calls; not used on local sockets.
    Receipt = 9,
    /// Server: the connection closes; the status says why.
    Goaway = 10,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Open,
            2 => Self::Opened,
            3 => Self::Call,
            4 => Self::Reply,
            5 => Self::Cancel,
            6 => Self::Ping,
            7 => Self::Pong,
            8 => Self::Voucher,
            9 => Self::Receipt,
            10 => Self::Goaway,
            _ => return None,
        })
    }

    /// The largest payload a frame of this kind may have, in bytes.
    pub const fn payload_bytes_max(self) -> u32 {
        match self {
            Self::Call | Self::Reply => FRAME_PAYLOAD_BYTES_MAX,
            // The schema of the receptor.
            Self::Opened => 64 << 10,
            Self::Open => OPEN_PAYLOAD_BYTES_MAX,
            Self::Goaway | Self::Voucher | Self::Receipt => 4 << 10,
            Self::Cancel | Self::Ping | Self::Pong => 0,
        }
    }
}

/// Bits of the header's flags byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Request and reply are JSON text, converted inside the sandbox.
    pub const JSON: Self = Self(1);

    /// Whether the payload is JSON.
    pub const fn is_json(self) -> bool {
        self.0 & Self::JSON.0 != 0
    }
}

/// The 32 bytes in front of every payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of payload, without the padding after it.
    pub payload_bytes: u32,
    /// What the frame is.
    pub kind: Kind,
    /// Bits that change the payload's meaning.
    pub flags: Flags,
    /// Number of the receptor within its cell.
    pub receptor: u16,
    /// Chosen by the sender of a request, repeated in its answer.
    pub request_id: u64,
    /// Which opened receptor a call is for.
    pub slot: u32,
    /// How a call ended; a [`Status`](crate::Status) code. Zero in requests.
    pub status: u32,
    /// In a call: the most it may burn. In a reply: what it burned.
    pub fuel: Fuel,
}

impl Header {
    /// A header of this kind with every other field zero.
    pub const fn new(kind: Kind) -> Self {
        Self {
            payload_bytes: 0,
            kind,
            flags: Flags::NONE,
            receptor: 0,
            request_id: 0,
            slot: 0,
            status: 0,
            fuel: Fuel::ZERO,
        }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(part) {
                *to = *from;
            }
            at += part.len();
        };
        put(&self.payload_bytes.to_le_bytes());
        put(&[self.kind as u8, self.flags.0]);
        put(&self.receptor.to_le_bytes());
        put(&self.request_id.to_le_bytes());
        put(&self.slot.to_le_bytes());
        put(&self.status.to_le_bytes());
        put(&self.fuel.0.to_le_bytes());
        bytes
    }

    /// Reads a header and checks its kind, its flags and the length it claims.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [
            p0,
            p1,
            p2,
            p3,
            kind,
            flags,
            c0,
            c1, //
            i0,
            i1,
            i2,
            i3,
            i4,
            i5,
            i6,
            i7, //
            s0,
            s1,
            s2,
            s3,
            t0,
            t1,
            t2,
            t3, //
            f0,
            f1,
            f2,
            f3,
            f4,
            f5,
            f6,
            f7,
        ] = *bytes;
        let kind = Kind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
        if flags & !Flags::JSON.0 != 0 {
            return Err(FrameError::UnknownFlags(flags));
        }
        let payload_bytes = u32::from_le_bytes([p0, p1, p2, p3]);
        let max = kind.payload_bytes_max();
        if payload_bytes > max {
            return Err(FrameError::PayloadTooLarge { claimed: payload_bytes, max });
        }
        Ok(Self {
            payload_bytes,
            kind,
            flags: Flags(flags),
            receptor: u16::from_le_bytes([c0, c1]),
            request_id: u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]),
            slot: u32::from_le_bytes([s0, s1, s2, s3]),
            status: u32::from_le_bytes([t0, t1, t2, t3]),
            fuel: Fuel(u64::from_le_bytes([f0, f1, f2, f3, f4, f5, f6, f7])),
        })
    }

    /// Zero bytes that follow the payload, so that the next header is aligned: 0 to 15.
    pub const fn padding(&self) -> usize {
        padding(self.payload_bytes as usize)
    }
}

/// Zero bytes that follow a payload of this length.
pub const fn padding(payload_bytes: usize) -> usize {
    payload_bytes.wrapping_neg() & (FRAME_ALIGN - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_reaches_the_next_multiple() {
        for (payload, expect) in [(0, 0), (1, 15), (15, 1), (16, 0), (17, 15), (64, 0)] {
            assert_eq!(padding(payload), expect);
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut [u8; HEADER_BYTES]), expect: FrameError) {
        let mut bytes = Header::new(Kind::Call).encode();
        change(&mut bytes);
        assert_eq!(Header::decode(&bytes), Err(expect));
    }

    #[test]
    fn refusals() {
        check(|b| b[4] = 0, FrameError::UnknownKind(0));
        check(|b| b[4] = 11, FrameError::UnknownKind(11));
        check(|b| b[5] = 2, FrameError::UnknownFlags(2));
        check(
            |b| b[..4].copy_from_slice(&(1u32 << 30).to_le_bytes()),
            FrameError::PayloadTooLarge { claimed: 1 << 30, max: FRAME_PAYLOAD_BYTES_MAX },
        );
        let mut ping = Header::new(Kind::Ping).encode();
        ping[0] = 1;
        assert_eq!(Header::decode(&ping), Err(FrameError::PayloadTooLarge { claimed: 1, max: 0 }));
    }

    #[test]
    fn hello_refusals() {
        let mut bytes = Hello::CURRENT.encode();
        bytes[4] = 9;
        assert_eq!(Hello::decode(&bytes), Err(FrameError::BadVersion { theirs: 9 }));
        assert_eq!(Hello::decode(b"GET / HTTP/1.1\r\n"), Err(FrameError::BadMagic(*b"GET ")));
    }
}
