//! The gateway's limits, as rows of the one table.

use std::time::Duration;

use super::sessions::Bounds;

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
/// The four.
pub(super) const SESSIONS: Bounds = Bounds {
    all: SESSIONS_MAX,
    of_peer: SESSIONS_PER_PEER_MAX,
    of_stranger: SESSIONS_PER_STRANGER_MAX,
    of_strangers: STRANGER_SESSIONS_MAX,
};
/// Machines that wait here for whoever wants to be connected to them.
pub(super) const MACHINES_WAITING_MAX: usize = 128;
/// Peers that wait to be connected to one of those.
pub(super) const MEETINGS_MAX: usize = 128;
/// The same, to one machine.
pub(super) const MEETINGS_PER_MACHINE_MAX: usize = 16;
/// The same, of peers that nobody has named.
pub(super) const STRANGER_MEETINGS_PER_MACHINE_MAX: usize = 8;
/// The same, of one peer.
pub(super) const MEETINGS_PER_PAIR_MAX: usize = 4;
/// How long a machine may take to come for a peer.
pub(super) const MEETING_TIME_MAX: Duration = Duration::from_secs(8);
/// Connections that are passed on, or are to be.
pub(super) const RELAYED_MAX: usize = 256;
/// Those of one peer: half of what one machine may have, so that it cannot fill that.
pub(super) const RELAYED_PER_PEER_MAX: usize = 32;
/// Those of one peer that nobody has named.
pub(super) const RELAYED_PER_STRANGER_MAX: usize = 8;
/// Those of all such peers, for the same reason.
pub(super) const STRANGER_RELAYED_MAX: usize = 32;
/// Those to one machine.
pub(super) const RELAYED_PER_MACHINE_MAX: usize = 64;
/// Connections by who asked for them.
pub(super) const RELAYED: Bounds = Bounds {
    all: RELAYED_MAX,
    of_peer: RELAYED_PER_PEER_MAX,
    of_stranger: RELAYED_PER_STRANGER_MAX,
    of_strangers: STRANGER_RELAYED_MAX,
};
/// The same by whom they are to: machines that wait are all named.
pub(super) const RELAYED_TO: Bounds =
    Bounds { all: RELAYED_MAX, of_peer: RELAYED_PER_MACHINE_MAX, of_stranger: 0, of_strangers: 0 };
/// Those who come through one relay and are being fetched there.
pub(super) const ARRIVALS_PER_RELAY_MAX: usize = 16;
/// Longest wait before a relay is tried again.
pub(super) const RELAY_DELAY_MAX: Duration = Duration::from_secs(60);
/// Memory of the gateway's own, in bytes.
pub(super) const DATA_BYTES_MAX: u64 = 1 << 30;

cell_abi::limits! {
    crate::gateway::reaches {
        /// Sessions with cells on other machines that cells here call.
        ///
        /// One more is not begun; calls go to the next machine that has the cell, or answer `Unreachable`.
        REACHES_MAX: usize;
    }
    crate::gateway::hall {
        /// Longest record of another machine before there is a session, in bytes.
        ///
        /// The connection is closed.
        RECORD_BYTES_MAX: usize;
    }
    crate::gateway::ways {
        /// Longest record of a relay at which this machine waits, in bytes.
        ///
        /// The connection is closed, and made again later.
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
        /// Other machines that wait at this one, a relay, for whoever wants to be connected to them.
        ///
        /// One more is refused with the reason, and tries again.
        MACHINES_WAITING_MAX: usize;
        /// Peers that wait at a relay until the machine comes that they want.
        ///
        /// One more is refused with the reason.
        MEETINGS_MAX: usize;
        /// The same, for one machine.
        ///
        /// One more is refused with the reason.
        MEETINGS_PER_MACHINE_MAX: usize;
        /// The same, for one machine, of peers that `cell peer add` has not named at the relay.
        ///
        /// One more is refused with the reason.
        STRANGER_MEETINGS_PER_MACHINE_MAX: usize;
        /// The same, for one machine, of one peer.
        ///
        /// One more is refused with the reason.
        MEETINGS_PER_PAIR_MAX: usize;
        /// How long a machine that waits at a relay may take to come for a peer.
        ///
        /// The peer is told that it did not come.
        MEETING_TIME_MAX: Duration;
        /// Connections that a relay passes on, those included for which a machine is to come.
        ///
        /// One more is refused with the reason.
        RELAYED_MAX: usize;
        /// Those of one peer.
        ///
        /// One more is refused with the reason.
        RELAYED_PER_PEER_MAX: usize;
        /// Those of one peer that `cell peer add` has not named at the relay.
        ///
        /// One more is refused with the reason.
        RELAYED_PER_STRANGER_MAX: usize;
        /// Those of all such peers.
        ///
        /// One more is refused with the reason.
        STRANGER_RELAYED_MAX: usize;
        /// Those to one machine that waits.
        ///
        /// One more is refused with the reason.
        RELAYED_PER_MACHINE_MAX: usize;
        /// Peers that come through one relay and are being fetched there.
        ///
        /// One more is not fetched; the relay tells it that nobody came.
        ARRIVALS_PER_RELAY_MAX: usize;
        /// Longest wait before a relay that is lost is tried again.
        ///
        /// It is tried again.
        RELAY_DELAY_MAX: Duration;
        /// Memory that the gateway's process may have, in bytes.
        ///
        /// It ends, and another one starts.
        DATA_BYTES_MAX: u64;
    }
}
