//! What a handler knows of its call.

use core::marker::PhantomData;
use core::time::Duration;

use cell_abi::{AccountId, Fuel};

use crate::host;
use crate::log::{self, Level};
use crate::state::State;

/// The call a handler is working on.
///
/// Every method asks the nucleus, which costs fuel: keep what is needed twice.
#[derive(Debug)]
pub struct Context {
    // Only the SDK makes one, and none leaves its call's thread.
    _private: PhantomData<*mut ()>,
}

impl Context {
    pub(crate) const fn new() -> Self {
        Self { _private: PhantomData }
    }

    /// The account that pays for the call.
    pub fn caller(&self) -> AccountId {
        host::context().caller
    }

    /// Wall-clock time at which the call started, in nanoseconds since 1970.
    pub fn started_at_ns(&self) -> u64 {
        host::context().started_at_ns
    }

    /// Time until the nucleus cuts the call off.
    pub fn time_left(&self) -> Duration {
        Duration::from_nanos(host::context().left_ns)
    }

    /// Cells between the outside and this one: 0 for a call from outside.
    pub fn depth(&self) -> u32 {
        host::context().depth
    }

    /// Fuel the call may still burn.
    pub fn fuel_left(&self) -> Fuel {
        Fuel(host::fuel_left())
    }

    /// The cell's key-value state.
    pub fn state(&mut self) -> State<'_> {
        State::new(self)
    }

    /// Writes a record to the cell's log; the macros such as [`info!`](crate::info) are shorter.
    pub fn log(&self, level: Level, text: &str) {
        log::write(level, format_args!("{text}"));
    }
}
