//! What can go wrong when machines look for each other.

use std::io::ErrorKind;
use std::path::PathBuf;

use cell_abi::AccountId;

use crate::record::RECORD_BYTES_MAX;
use crate::rendezvous::FILE_BYTES_MAX;

/// Characters of somebody else's words that an error repeats.
const REPEATED_CHARACTERS: usize = 200;

/// Why a record is not believed, or a place cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// A record is longer than it may be; it has so many bytes.
    #[error("a record has {0} bytes, and {RECORD_BYTES_MAX} is the most")]
    RecordTooLong(usize),
    /// A record, or what is to become one, is not of the form that it must have.
    #[error("the record is wrong: {0}")]
    Record(String),
    /// A record is of another version of the format.
    #[error("a record of version {0}; this program reads version {expect}", expect = crate::record::VERSION)]
    Version(u32),
    /// A record was not signed by the machine that it is about, or was changed.
    #[error("the record of {0} is not signed by it")]
    Signature(AccountId),
    /// A record is past its time.
    #[error("the record of {0} has expired")]
    Expired(AccountId),
    /// A record is from a later time than now.
    #[error("the record of {0} is from the future; compare the clocks of both machines")]
    Early(AccountId),
    /// The caller publishes a record although one that counts as newer is there.
    #[error("a record with the sequence number {seq} is published already")]
    Outdated {
        /// The number of the one that is there.
        seq: u64,
    },
    /// The caller names a rendezvous that is neither a path nor a URL that can be read.
    #[error(
        "`{0}` is no rendezvous; write a path, file:///PATH, https://HOST/PATH or http://HOST/PATH"
    )]
    Rendezvous(String),
    /// A web server sends from HTTPS to HTTP, or from HTTP to HTTPS; to there.
    #[error("the rendezvous leads elsewhere, to {0}; name that place if it is meant")]
    Elsewhere(String),
    /// A web server could not show that it has the name that it was called by.
    #[error("the certificate of the rendezvous is refused: {0}")]
    Certificate(String),
    /// A rendezvous is longer than it may be, or would be.
    #[error("a rendezvous has at most {FILE_BYTES_MAX} bytes")]
    ListTooLong,
    /// A web server did not answer in time.
    #[error("the rendezvous did not answer in time")]
    TimedOut,
    /// A web server, or the way to it, failed.
    #[error("the rendezvous failed: {0}")]
    Http(String),
    /// A file cannot be read or written.
    #[error("read or write {}: {kind}", .path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        kind: ErrorKind,
    },
    /// The host cannot send to its neighbours, or not hear them.
    #[error("the local network failed: {0}")]
    Lan(String),
}

/// Somebody else's words, short, and with nothing in them that moves a terminal's cursor.
pub(crate) fn printable(words: impl std::fmt::Display) -> String {
    words.to_string().chars().take(REPEATED_CHARACTERS).flat_map(char::escape_debug).collect()
}
