//! Every limit of the sandbox that a deployer may change, and the fixed ones.

use std::time::Duration;

/// Fuel a guest burns before it lets the next call have the thread.
///
/// About 0.1 ms of plain arithmetic. A smaller slice answers neighbours sooner and costs more switches.
pub const SLICE_FUEL: u64 = 500_000;

/// Most fuel that instantiation and `_initialize` may burn; above it the start fails.
///
/// This fuel is not billed: it differs between systems. A start is priced by
/// [`price::start`](crate::price::start) instead.
pub const START_FUEL_MAX: u64 = 2_000_000_000;

/// Deepest chain of calls between cells; one more answers `TooDeep`.
pub const CALL_DEPTH_MAX: u32 = 8;

/// How long a call may wait for another cell's instance, or for its own cell's state while others
/// wait for it: cells that wait for one another in a circle must not do so until their calls end.
pub const NESTED_WAIT_MAX: Duration = Duration::from_secs(1);

/// Calls that may wait for an instance of one cell; one more answers `Busy`.
pub const CALLS_WAITING_MAX: usize = 4096;

/// Of this many instances that a cell may have, one is kept from any single caller, so that another
/// caller's call starts at once. A cell with fewer gives them all to whoever comes first; those who
/// wait take turns.
pub const REPLICAS_PER_RESERVED: usize = 8;

/// Starts of a cell that may fail in a row before it rests: until then each caller tries again.
pub const STARTS_BEFORE_REST: u32 = 3;
/// Calls of a cell that may crash in a row (trap, exit, pass a limit, answer with nonsense) before it
/// rests. Running out of fuel or time is no crash: the caller sets those limits.
pub const CRASHES_BEFORE_REST: u32 = 10;
/// The first rest; each further failure doubles it. Calls meanwhile answer `BackingOff`.
pub const REST_MIN: Duration = Duration::from_millis(100);
/// The longest rest.
pub const REST_MAX: Duration = Duration::from_secs(10);

/// Longest line of a log record, in bytes; a longer one is cut into several.
pub const LOG_LINE_BYTES_MAX: usize = 4096;

/// Longest key of a cell's state, in bytes; a longer one traps.
pub const STATE_KEY_BYTES_MAX: u32 = 1024;

/// Longest value of a cell's state, in bytes; a longer one traps.
pub const STATE_VALUE_BYTES_MAX: u32 = 1 << 20;

/// Keys and values that one call may write, in bytes, overwritten ones included; a write past it is
/// refused with 1 to the guest, as one past the quota is.
pub const STATE_WRITTEN_BYTES_MAX: u64 = 64 << 20;

/// Most times one instance may grow its memory or table; one more fails as the full memory does.
pub const GROWS_MAX: u32 = 10_000;

/// What one instance may take of the host.
///
/// Fuel is not here: it belongs to each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Linear memory of an instance, in bytes. Default 64 MiB for cells, 256 MiB for jobs.
    ///
    /// `memory.grow` past it returns -1 to the guest; a module that starts with more is refused.
    /// Not counted: the host's own bookkeeping (about 20 KiB) and the stack (512 KiB).
    pub memory_bytes_max: usize,
    /// Elements of an instance's tables. Default 20,000; each takes 8 bytes of host memory.
    ///
    /// `table.grow` past it returns -1 to the guest; a module that starts with more is refused.
    pub table_elements_max: usize,
    /// Host memory one WASI call may take for what it copies, in bytes. Default 128 MiB for jobs, 4 MiB for cells.
    ///
    /// A call that would take more gets the errno `nomem`.
    pub host_call_bytes_max: usize,
    /// Largest result of one `random_get`, in bytes. Default 64 KiB for cells, 1 MiB for jobs; a larger request fails.
    pub random_bytes_max: u64,
}

impl Limits {
    /// Defaults for a cell.
    pub const CELL: Self = Self {
        memory_bytes_max: 64 << 20,
        table_elements_max: 20_000,
        host_call_bytes_max: 4 << 20,
        random_bytes_max: 64 << 10,
    };

    /// Defaults for a job.
    pub const JOB: Self = Self {
        memory_bytes_max: 256 << 20,
        host_call_bytes_max: 128 << 20,
        random_bytes_max: 1 << 20,
        ..Self::CELL
    };
}
