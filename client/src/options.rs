//! What a caller may choose, and the limits it may not.
//!
//! Limits that both ends must agree on are in `cell_abi::limits`.

use std::time::Duration;

use cell_abi::Fuel;
use cell_abi::limits::FRAME_PAYLOAD_BYTES_MAX;

/// Most requests that may be under way on one connection, counting replies nobody took yet.
///
/// One more is refused with [`Error::WindowFull`](crate::Error::WindowFull) by the blocking client
/// and waits in the async one. A call that timed out counts until its late reply came. The number
/// is the server's `calls_in_flight_max` in `docs/PROTOCOL.md`.
pub const CALLS_IN_FLIGHT_MAX: usize = 256;

/// Fuel that a call may burn unless its caller says otherwise: 1 ATP at the base price.
pub const FUEL_DEFAULT: Fuel = Fuel(1_000_000_000);

/// Time that a call may take unless its caller says otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Bounds of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallOptions {
    /// The most it may burn; the nucleus stops it there with `OutOfFuel`.
    pub fuel: Fuel,
    /// The most time from the call to its whole reply, however slowly it drips in.
    ///
    /// When it is over, the call is cancelled and ends in [`Error::TimedOut`](crate::Error::TimedOut);
    /// what it burned is still charged. The connection stays usable and drops the late reply.
    /// [`Duration::MAX`] waits for ever.
    pub timeout: Duration,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self { fuel: FUEL_DEFAULT, timeout: TIMEOUT_DEFAULT }
    }
}

/// Bounds of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The most time to connect, to open a receptor, to flush and to be answered to a ping, each.
    pub timeout: Duration,
    /// Largest payload of a reply, in bytes; no more than the protocol's 16 MiB has an effect.
    ///
    /// A larger reply is dropped as it comes in, at no memory, and its call ends in
    /// [`Error::ReplyTooLarge`](crate::Error::ReplyTooLarge).
    pub reply_bytes_max: u32,
    /// Asks the server for memory to share, through which frames then go instead of the socket.
    /// Default: no. Only the blocking client can.
    ///
    /// A call may take a tenth of the time then, if both sides have a processor at that moment: each
    /// looks for the other's bytes for up to 50 µs before it sleeps. A server that has no more memory
    /// to share serves the connection through its socket, as
    /// [`Client::shares_memory`](crate::Client::shares_memory) says.
    pub shared_memory: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            timeout: TIMEOUT_DEFAULT,
            reply_bytes_max: FRAME_PAYLOAD_BYTES_MAX,
            shared_memory: false,
        }
    }
}

/// Names a request of one connection, to match it with its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);
