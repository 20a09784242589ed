//! What can go wrong between two machines.

use cell_abi::AccountId;

/// Why there is no session, or none any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// What came first is not this protocol, or not this version of it.
    #[error("the peer does not speak this version of the protocol")]
    Preface,
    /// A record is longer than it may be at this point.
    #[error("the peer announces a record of {0} bytes")]
    RecordTooLong(usize),
    /// A message does not decrypt: it was changed, replayed, left out, or is for another session.
    #[error("a message of the peer does not decrypt")]
    Decrypt,
    /// The key of the session is not signed by the identity that the peer claims.
    #[error("the peer does not prove that it is {0}")]
    Proof(AccountId),
    /// The proof is past its time.
    #[error("the proof of {0} has expired; compare the clocks of both machines")]
    Expired(AccountId),
    /// Somebody else than was asked for.
    #[error("the peer is {found}, not {wanted}")]
    WrongPeer {
        /// Who answered.
        found: AccountId,
        /// Who was meant.
        wanted: AccountId,
    },
    /// The connection ended in the middle.
    #[error("the connection ended before the peer did")]
    Truncated,
    /// What came does not fit in its place.
    #[error("the peer sent {0}")]
    Unexpected(&'static str),
    /// The peer does not serve this.
    #[error("the peer refuses: {0}")]
    Refused(String),
    /// The way there is through another machine, and ends at that.
    #[error("through the machine {}: {why}", .relay.short())]
    Through {
        /// Which one.
        relay: AccountId,
        /// What went wrong with it.
        why: Box<Self>,
    },
    /// This is not where a machine can be.
    #[error("`{0}` is no HOST:PORT, and no RELAYKEY@HOST:PORT")]
    Address(String),
    /// The connection cannot be made, or failed.
    #[error("the connection failed: {0}")]
    Connection(std::io::ErrorKind),
    /// The operating system has no random numbers, say.
    #[error("the host failed: {0}")]
    Host(String),
}

impl From<std::io::Error> for PeerError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Truncated,
            // What a socket's own time limit is called.
            std::io::ErrorKind::WouldBlock => Self::Connection(std::io::ErrorKind::TimedOut),
            kind => Self::Connection(kind),
        }
    }
}

impl From<snow::Error> for PeerError {
    fn from(error: snow::Error) -> Self {
        match error {
            snow::Error::Decrypt | snow::Error::Input | snow::Error::Dh => Self::Decrypt,
            other => Self::Host(other.to_string()),
        }
    }
}
