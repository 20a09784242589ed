//! The gateway's limits, as rows of the one table.

use std::time::Duration;

/// Connections of peers whose handshake or request has not come to its end.
pub(super) const HANDSHAKES_MAX: usize = 256;
/// How long that may take.
pub(super) const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// Handshakes that one address may begin in a second; twice as many at once.
pub(super) const HANDSHAKES_PER_S_MAX: u32 = 100;
/// Addresses whose handshakes are counted.
pub(super) const ADDRESSES_MAX: usize = 4096;
/// Sessions of all peers.
pub(super) const SESSIONS_MAX: usize = 512;
/// Sessions of one peer.
pub(super) const SESSIONS_PER_PEER_MAX: usize = 64;
/// Sessions of one peer that nobody has named here.
pub(super) const SESSIONS_PER_STRANGER_MAX: usize = 8;
/// Sessions of all of those.
pub(super) const STRANGER_SESSIONS_MAX: usize = 128;
/// Memory of the gateway's own, in bytes.
pub(super) const DATA_BYTES_MAX: u64 = 512 << 20;

cell_abi::limits! {
    crate::gateway::hall {
        /// Longest record of another machine before there is a session, in bytes.
        ///
        /// The connection is closed.
        RECORD_BYTES_MAX: usize;
    }
    crate::gateway::limits {
        /// Connections of other machines whose handshake or request has not come to its end.
        ///
        /// Of the address that has the most of them, the oldest is closed.
        HANDSHAKES_MAX: usize;
        /// How long a handshake and a request may take.
        ///
        /// The connection is closed.
        HANDSHAKE_TIME_MAX: Duration;
        /// Handshakes that one address, or one IPv6 network of 56 bits, may begin in a second; twice as
        /// many at once.
        ///
        /// The connection is closed before anything is read or computed.
        HANDSHAKES_PER_S_MAX: u32;
        /// Addresses whose handshakes are counted.
        ///
        /// Those that have begun none for two seconds are forgotten; those of further ones are not counted, and
        /// only [`HANDSHAKES_MAX`] holds.
        ADDRESSES_MAX: usize;
        /// Sessions of all other machines.
        ///
        /// One more is refused with the reason.
        SESSIONS_MAX: usize;
        /// Sessions of one other machine.
        ///
        /// One more is refused with the reason.
        SESSIONS_PER_PEER_MAX: usize;
        /// Sessions of one other machine that `cell peer add` has not named.
        ///
        /// One more is refused with the reason.
        SESSIONS_PER_STRANGER_MAX: usize;
        /// Sessions of all of those.
        ///
        /// One more is refused with the reason.
        STRANGER_SESSIONS_MAX: usize;
        /// Memory that the gateway's process may have, in bytes.
        ///
        /// It ends, and another one starts.
        DATA_BYTES_MAX: u64;
    }
}
