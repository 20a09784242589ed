//! Everything that can go wrong, and whose fault it was.
//!
//! Text from the other side is escaped and cut here, before anyone can print it.

use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use cell_abi::frame::PROTOCOL_VERSION;
use cell_abi::limits::{FRAME_PAYLOAD_BYTES_MAX, MESSAGE_BYTES_MAX};
use cell_abi::{FrameError, Fuel, Kind, NameError, Reject, Status};

use crate::options::CALLS_IN_FLIGHT_MAX;

/// Why a call, or a connection, came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(clippy::error_impl_error, reason = "callers write `cell_client::Error`")]
pub enum Error {
    /// Policy or host: the socket could not be connected to.
    #[error("{}", connect_hint(.path, .source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Caller: a cell or receptor cannot have this name.
    #[error("`{}` names no cell and no receptor", escape_line(.name))]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// Caller: the request could not be turned into bytes.
    #[error("encode the request")]
    InvalidRequest(#[source] rkyv::rancor::Error),
    /// Caller: the request is larger than a frame may be.
    #[error("the request has {bytes} bytes; at most {FRAME_PAYLOAD_BYTES_MAX} can be sent")]
    RequestTooLarge {
        /// Bytes of the request.
        bytes: usize,
    },
    /// Caller: the slot was opened on another connection, where its number means something else.
    #[error("the slot was opened on another connection")]
    ForeignSlot,
    /// Caller: [`CALLS_IN_FLIGHT_MAX`] requests wait already; receive a reply first.
    #[error("{CALLS_IN_FLIGHT_MAX} calls are in flight on this connection; receive a reply first")]
    WindowFull,
    /// Caller: there is no request under way that `receive` could wait for.
    #[error("no call is in flight on this connection; there is nothing to receive")]
    NothingInFlight,
    /// Peer: the nucleus is older or newer than this program.
    #[error(
        "the nucleus speaks protocol version {theirs}, this program version {ours}: upgrade the {}",
        if .theirs < .ours { "nucleus" } else { "program" }
    )]
    VersionMismatch {
        /// The version in the nucleus's hello.
        theirs: u16,
        /// The version of this crate.
        ours: u16,
    },
    /// Caller: this program and the cell were built against different types.
    #[error("{}", Mismatch { cell, receptor, ours, theirs })]
    SchemaMismatch {
        /// The cell.
        cell: String,
        /// The receptor.
        receptor: String,
        /// The schema this program was built against.
        ours: String,
        /// The schema of the cell that runs.
        theirs: String,
    },
    /// Guest: the cell's handler said no.
    #[error("{reject}{}", burned(*.fuel))]
    Rejected {
        /// The handler's code and message.
        reject: Reject,
        /// What the call burned.
        fuel: Fuel,
    },
    /// The nucleus says that the call or the open failed; `status.fault()` tells whose fault it was.
    #[error("{}{}{message}{}", .status.describe(), if .message.is_empty() { "" } else { ": " }, burned(*.fuel))]
    Failed {
        /// How it ended; never `Ok`.
        status: Status,
        /// What the nucleus had to say, possibly nothing.
        message: String,
        /// What the call burned and is charged.
        fuel: Fuel,
    },
    /// Caller: the deadline passed. The call was cancelled; what it burned stays unknown here.
    #[error("no answer within the time limit")]
    TimedOut,
    /// Peer: the connection is gone.
    #[error("the nucleus closed the connection {during}")]
    Disconnected {
        /// What was under way.
        during: &'static str,
    },
    /// Peer: the nucleus said why it closes the connection.
    #[error("the nucleus closes the connection: {}{}{message}", .status.describe(), if .message.is_empty() { "" } else { ": " })]
    Goaway {
        /// The reason.
        status: Status,
        /// What it had to say, possibly nothing.
        message: String,
    },
    /// Peer: what came in is not the protocol; the connection is closed.
    #[error("the peer broke the protocol: {0}")]
    Protocol(ProtocolError),
    /// Host: the system refused to move bytes; the connection is closed.
    #[error("move bytes over the connection: {0}")]
    Io(io::ErrorKind),
    /// Caller: the reply is larger than [`Config::reply_bytes_max`](crate::Config::reply_bytes_max).
    #[error("the reply has {bytes} bytes; this client takes {max} ({fuel} fuel)")]
    ReplyTooLarge {
        /// Bytes of the reply.
        bytes: u32,
        /// The limit.
        max: u32,
        /// What the call burned.
        fuel: Fuel,
    },
    /// Guest: the reply is not a valid value of the output type, or not text where JSON was asked for.
    #[error("the reply is not a valid value of the receptor's output type ({fuel} fuel)")]
    InvalidReply {
        /// What the call burned.
        fuel: Fuel,
    },
}

impl Error {
    /// What the call burned and is charged, as far as it is known here.
    pub const fn fuel(&self) -> Fuel {
        match self {
            Self::Rejected { fuel, .. }
            | Self::Failed { fuel, .. }
            | Self::ReplyTooLarge { fuel, .. }
            | Self::InvalidReply { fuel } => *fuel,
            _ => Fuel::ZERO,
        }
    }

    /// The protocol's word for what happened; `None` if there is none.
    pub const fn status(&self) -> Option<Status> {
        Some(match self {
            Self::Failed { status, .. } | Self::Goaway { status, .. } => *status,
            Self::Rejected { .. } => Status::Rejected,
            Self::SchemaMismatch { .. } => Status::SchemaMismatch,
            Self::TimedOut => Status::TimedOut,
            Self::RequestTooLarge { .. } => Status::TooLarge,
            Self::InvalidReply { .. } => Status::BadReply,
            _ => return None,
        })
    }
}

/// What an error says of its cost; nothing if there was none.
fn burned(fuel: Fuel) -> String {
    if fuel == Fuel::ZERO { String::new() } else { format!(" ({fuel} fuel)") }
}

/// How bytes from the other side broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Not a hello or not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// An answer to a request that was never made, or was answered before.
    #[error("an answer to request {0}, which is not under way")]
    UnknownRequest(u64),
    /// An answer of the wrong kind.
    #[error("a {found:?} frame answers a request for {expected:?}")]
    WrongAnswer {
        /// What came in.
        found: Kind,
        /// What the request asked for.
        expected: Kind,
    },
    /// A status code this version does not know.
    #[error("status {0} is not known")]
    UnknownStatus(u32),
}

/// Why a connection is no longer usable; kept to answer every later call.
#[derive(Debug, Clone)]
pub(crate) enum Closed {
    Version { theirs: u16 },
    Disconnected { during: &'static str },
    Goaway { status: Status, message: String },
    Protocol(ProtocolError),
    Io(io::ErrorKind),
}

impl From<ProtocolError> for Closed {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::Frame(FrameError::BadVersion { theirs }) => Self::Version { theirs },
            error => Self::Protocol(error),
        }
    }
}

impl From<FrameError> for Closed {
    fn from(error: FrameError) -> Self {
        ProtocolError::from(error).into()
    }
}

impl From<Closed> for Error {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Version { theirs } => Self::VersionMismatch { theirs, ours: PROTOCOL_VERSION },
            Closed::Disconnected { during } => Self::Disconnected { during },
            Closed::Goaway { status, message } => Self::Goaway { status, message },
            Closed::Protocol(error) => Self::Protocol(error),
            Closed::Io(kind) => Self::Io(kind),
        }
    }
}

/// A message of the other side, made safe to print: one line, no control characters, bounded.
pub(crate) fn message(bytes: &[u8]) -> String {
    let bytes = bytes.get(..MESSAGE_BYTES_MAX).unwrap_or(bytes);
    escape_line(&String::from_utf8_lossy(bytes))
}

/// A schema of the other side, made safe to print; its line breaks stay.
pub(crate) fn schema(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut safe = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        safe.push_str(&escape_line(line));
        safe.push_str(end);
    }
    safe
}

pub(crate) fn escape_line(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // The ranges are those that reorder or hide the text around them.
        let tricks = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || tricks {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

fn connect_hint(path: &Path, source: &io::Error) -> String {
    let path = escape_line(&path.to_string_lossy());
    match source.kind() {
        io::ErrorKind::NotFound => {
            format!("no such cell socket: {path}; is the nucleus up? start it with `cell up`")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("the nucleus isn't running: nobody listens at {path}; start it with `cell up`")
        }
        io::ErrorKind::PermissionDenied => format!("this user may not use the cell socket {path}"),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("the nucleus takes no more connections at {path}; is it overloaded?")
        }
        _ => format!("connect to {path}: {source}"),
    }
}

/// Both schemas below one another, the first line that differs marked in each.
struct Mismatch<'a> {
    cell: &'a str,
    receptor: &'a str,
    ours: &'a str,
    theirs: &'a str,
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cell, receptor, ours, theirs } = self;
        let same = ours.lines().zip(theirs.lines()).take_while(|(a, b)| a == b).count();
        write!(
            f,
            "receptor `{receptor}` of cell `{cell}` has other types than this program was built \
             against; they first differ in line {}:",
            same + 1
        )?;
        for (whose, schema) in [("this program", ours), ("the cell", theirs)] {
            write!(f, "\n  {whose}:")?;
            let mut lines = 0;
            for (at, line) in schema.lines().enumerate() {
                write!(f, "\n  {} {line}", if at == same { '>' } else { ' ' })?;
                lines += 1;
            }
            if lines <= same {
                f.write_str("\n  > (ends here)")?;
            }
        }
        f.write_char('\n')?;
        f.write_str("rebuild this program against the cell's crate, or deploy the cell again")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatch_shows_both_and_marks_the_first_difference() {
        let text = Error::SchemaMismatch {
            cell: "hello".into(),
            receptor: "greet".into(),
            ours: "receptor greet(A) -> u8\nstruct A { x: u8 }\n".into(),
            theirs: "receptor greet(A) -> u8\nstruct A { x: u16 }\nstruct B { y: u8 }\n".into(),
        }
        .to_string();
        assert_eq!(
            text,
            "receptor `greet` of cell `hello` has other types than this program was built against; \
             they first differ in line 2:\n  \
               this program:\n    \
                 receptor greet(A) -> u8\n  \
               > struct A { x: u8 }\n  \
               the cell:\n    \
                 receptor greet(A) -> u8\n  \
               > struct A { x: u16 }\n    \
                 struct B { y: u8 }\n\
             rebuild this program against the cell's crate, or deploy the cell again"
        );
    }

    #[test]
    fn mismatch_where_one_schema_ends_early() {
        let text = Mismatch { cell: "c", receptor: "r", ours: "a\n", theirs: "a\nb\n" }.to_string();
        assert!(text.contains("line 2"), "{text}");
        assert!(text.contains("> (ends here)") && text.contains("> b"), "{text}");
    }

    #[track_caller]
    fn check(bytes: &[u8], expect: &str) {
        assert_eq!(message(bytes), expect);
    }

    /// A cell's message must not be able to clear a terminal or to fake a line of output.
    #[test]
    fn messages_are_made_safe() {
        check(b"plain \xc3\xa9", "plain é");
        check(b"\x1b[2Jfake\r\n", "\\u{1b}[2Jfake\\r\\n");
        check("a\u{202e}b\u{9b}c".as_bytes(), "a\\u{202e}b\\u{9b}c");
        check(b"\xff", "\u{fffd}");
        check(&[b'a'; 5000], &"a".repeat(MESSAGE_BYTES_MAX));
        assert_eq!(schema(b"a\n\x1bb\n"), "a\n\\u{1b}b\n");
    }

    #[track_caller]
    fn check_hint(kind: io::ErrorKind, expect: &str) {
        let error = Error::Connect { path: "/run/x.sock".into(), source: kind.into() };
        assert!(error.to_string().contains(expect), "{error}");
    }

    #[test]
    fn connect_hints() {
        check_hint(io::ErrorKind::NotFound, "no such cell socket: /run/x.sock; is the nucleus up?");
        check_hint(io::ErrorKind::ConnectionRefused, "the nucleus isn't running");
        check_hint(io::ErrorKind::PermissionDenied, "this user may not use");
        check_hint(io::ErrorKind::WouldBlock, "takes no more connections");
    }
}
