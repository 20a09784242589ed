//! How a call ended, and whose fault it was.

use alloc::string::String;
use alloc::vec::Vec;

use crate::limits::MESSAGE_BYTES_MAX;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $fault:ident, $text:literal;)*) => {
        /// How a call, or an attempt to open a cell, ended.
        ///
        /// The number is what stands in the frame's `status` field.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum Status {
            $($(#[$doc])* $name = $code,)*
        }

        impl Status {
            /// Every status, in the order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The status with this code, if there is one.
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The code that stands on the wire.
            pub const fn code(self) -> u32 {
                self as u32
            }

            /// Whose fault the end of the call was.
            pub const fn fault(self) -> Fault {
                match self {
                    $(Self::$name => Fault::$fault,)*
                }
            }

            /// A sentence for people.
            pub const fn describe(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

/// Who has to change something for the call to succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Nobody: the call succeeded.
    Nobody,
    /// The caller sent something wrong.
    Caller,
    /// The cell misbehaved, or said no.
    Guest,
    /// A limit or a rule of this nucleus.
    Policy,
    /// The nucleus itself.
    Host,
}

statuses! {
    /// The payload is the reply.
    Ok = 0, Nobody, "done";

    /// The request is not a valid value of the receptor's input type.
    BadRequest = 1, Caller, "the request is not a valid value of the receptor's input type";
    /// There is no cell of this name here.
    UnknownCell = 2, Caller, "there is no cell of this name here";
    /// The cell has no receptor of this name or number.
    UnknownReceptor = 3, Caller, "the cell has no such receptor";
    /// Caller and cell were built against different types; the payload is the cell's schema.
    SchemaMismatch = 4, Caller, "caller and cell were built against different types";
    /// The payload is larger than the cell or the protocol takes.
    TooLarge = 5, Caller, "the payload is larger than allowed";
    /// The bytes are not a frame of this protocol; the connection is closed after this.
    BadFrame = 6, Caller, "the bytes are not a valid frame";
    /// The slot was never opened on this connection.
    BadSlot = 7, Caller, "the slot was never opened on this connection";
    /// The cell was built without the JSON adapter.
    NoJson = 8, Caller, "the cell was built without the JSON adapter";

    /// The handler answered with a reject; the payload holds its code and message.
    Rejected = 16, Guest, "the cell rejected the request";
    /// The guest trapped; its instance is gone.
    Trapped = 17, Guest, "the cell trapped";
    /// The guest called `proc_exit`; its instance is gone.
    Exited = 18, Guest, "the cell exited";
    /// The call burned all the fuel it was given.
    OutOfFuel = 19, Guest, "out of fuel: it burned all it was given";
    /// The guest asked for more memory or host resources than its limits allow, and died of it.
    OverLimit = 20, Guest, "the cell went over one of its limits";
    /// The guest's answer does not lie in its memory or is too large.
    BadReply = 21, Guest, "the cell answered with an invalid reply";

    /// The caller's account cannot cover the fuel limit of the call.
    OutOfAtp = 32, Policy, "the account cannot cover this call";
    /// Too many calls are waiting; try again.
    Busy = 33, Policy, "too many calls are waiting";
    /// The call took longer than its wall-clock limit.
    TimedOut = 34, Policy, "out of time: it took longer than its limit";
    /// The caller cancelled the call.
    Cancelled = 35, Policy, "the caller cancelled the call";
    /// The cell was removed, or replaced by one with other types.
    Gone = 36, Policy, "the cell was removed or replaced by one with other types";
    /// The cell crashed again and again and is not started until a delay is over.
    BackingOff = 37, Policy, "the cell keeps crashing and is resting";
    /// A chain of calls between cells is too long, or comes back to a cell that holds its state.
    TooDeep = 38, Policy, "the chain of calls between cells is too deep or goes in a circle";

    /// The nucleus failed; the caller is not charged.
    HostFault = 48, Host, "the nucleus failed";
    /// The cell is on another machine, and that machine is not there or went away; whoever calls from
    /// here pays nothing for it.
    Unreachable = 49, Host, "the machine that serves the cell cannot be reached, or went away";
}

/// A handler's "no": its own code and a message for people.
///
/// On the wire: the code as four little-endian bytes, then the message in UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rejected with code {code}: {message}")]
pub struct Reject {
    /// The cell's own code; its meaning is the cell's to document.
    pub code: u32,
    /// What was wrong, in a sentence; cut at [`MESSAGE_BYTES_MAX`].
    pub message: String,
}

impl Reject {
    /// A reject with this code and message.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        Self { code, message }
    }

    /// The bytes that stand in a reply's payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.message.len());
        bytes.extend_from_slice(&self.code.to_le_bytes());
        bytes.extend_from_slice(self.message.as_bytes());
        bytes
    }

    /// Reads a reply's payload; `None` if it is shorter than a code. Bad UTF-8 is replaced.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (code, message) = payload.split_first_chunk::<4>()?;
        Some(Self::new(u32::from_le_bytes(*code), String::from_utf8_lossy(message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for status in Status::ALL {
            assert_eq!(Status::from_code(status.code()), Some(*status));
        }
        assert_eq!(Status::from_code(9), None);
        assert_eq!(Status::from_code(u32::MAX), None);
    }

    #[test]
    fn reject_round_trip_and_cut() {
        let reject = Reject::new(7, "no such name");
        assert_eq!(Reject::decode(&reject.encode()), Some(reject));
        assert_eq!(Reject::decode(&[1, 2, 3]), None);
        let long = Reject::new(1, "é".repeat(MESSAGE_BYTES_MAX));
        assert!(long.message.len() <= MESSAGE_BYTES_MAX);
    }
}
