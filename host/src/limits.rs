//! Every limit of the sandbox that a deployer may change, and the fixed ones.
//!
//! What a module may be is in [`gate::limits`](crate::gate::limits).

use std::time::Duration;

cell_abi::limits! {
    /// Fuel a guest burns before it lets the next call have the thread. About 50 µs of plain
    /// arithmetic: a smaller slice answers neighbours sooner and costs more switches.
    ///
    /// The guest waits its turn and goes on.
    pub const SLICE_FUEL: u64 = 500_000;

    /// Most fuel that instantiation and `_initialize` may burn. It is not billed, for it differs
    /// between systems; a start is priced by [`price::start`](crate::price::start) instead.
    ///
    /// The start fails: the call that needed it answers `Trapped`.
    pub const START_FUEL_MAX: u64 = 4_000_000_000;

    /// Deepest chain of calls between cells.
    ///
    /// One more answers `TooDeep`.
    pub const CALL_DEPTH_MAX: u32 = 8;

    /// How long a call may wait for another cell's instance, or for its own cell's state while
    /// others wait for it: cells that wait for one another in a circle must not do so until their
    /// calls end.
    ///
    /// The nested call answers `Busy`; a wait for state ends the call with `OverLimit`.
    pub const NESTED_WAIT_MAX: Duration = Duration::from_secs(1);

    /// Calls that may wait for an instance of one cell.
    ///
    /// One more answers `Busy`.
    pub const CALLS_WAITING_MAX: usize = 4096;

    /// Of this many instances that a cell may have, one is kept from any single caller, so that
    /// another caller's call starts at once. A cell with fewer gives them all to whoever comes first.
    ///
    /// A call beyond its caller's share waits its turn.
    pub const REPLICAS_PER_RESERVED: usize = 8;

    /// Starts of a cell that may fail in a row before it rests: until then each caller tries again.
    ///
    /// Calls during the rest answer `BackingOff`.
    pub const STARTS_BEFORE_REST: u32 = 3;

    /// Calls of a cell that may crash in a row (trap, exit, pass a limit, answer with nonsense)
    /// before it rests. Running out of fuel or time is no crash: the caller sets those limits.
    ///
    /// Calls during the rest answer `BackingOff`.
    pub const CRASHES_BEFORE_REST: u32 = 10;

    /// The first rest of a cell that keeps failing; each further failure doubles it.
    ///
    /// Calls meanwhile answer `BackingOff`.
    pub const REST_MIN: Duration = Duration::from_millis(100);

    /// The longest rest of a cell that keeps failing.
    ///
    /// After it the next call tries again.
    pub const REST_MAX: Duration = Duration::from_secs(10);

    /// Longest line of a log record, in bytes.
    ///
    /// A longer one is cut into several.
    pub const LOG_LINE_BYTES_MAX: usize = 4096;

    /// Longest key of a cell's state, in bytes.
    ///
    /// A longer one traps: the call answers `OverLimit`.
    pub const STATE_KEY_BYTES_MAX: u32 = 1024;

    /// Longest value of a cell's state, in bytes.
    ///
    /// A longer one traps: the call answers `OverLimit`.
    pub const STATE_VALUE_BYTES_MAX: u32 = 1 << 20;

    /// Keys and values that one call may write, in bytes, overwritten ones included.
    ///
    /// A write past it is refused with 1 to the guest, as one past the quota is.
    pub const STATE_WRITTEN_BYTES_MAX: u64 = 64 << 20;

    /// Most times one instance may grow its memory or table.
    ///
    /// One more fails as a full memory does: the guest gets -1.
    pub const GROWS_MAX: u32 = 10_000;

    /// Linear memory of a cell's instance, in bytes. Not counted: the host's own bookkeeping
    /// (about 20 KiB) and the stack (512 KiB).
    ///
    /// `memory.grow` past it gives the guest -1; an instance that starts with more does not start.
    ///
    /// Changed in `Cell.toml`: `memory_mb_max`, downwards.
    pub const CELL_MEMORY_BYTES_MAX: usize = 64 << 20;

    /// Linear memory of a job, in bytes, counted as a cell's is.
    ///
    /// `memory.grow` past it gives the guest -1; a job that starts with more does not start.
    ///
    /// Changed by `cell run --memory`, up to 4096 MiB.
    pub const JOB_MEMORY_BYTES_MAX: usize = 256 << 20;

    /// Elements of the table of a cell's instance; each takes 8 bytes of host memory.
    ///
    /// `table.grow` past it gives the guest -1; the gate refuses a module that starts with more.
    pub const CELL_TABLE_ELEMENTS_MAX: usize = 20_000;

    /// Elements of a job's table: a large C++ program has tens of thousands of function pointers.
    ///
    /// `table.grow` past it gives the guest -1; the gate refuses a module that starts with more.
    pub const JOB_TABLE_ELEMENTS_MAX: usize = 100_000;

    /// Host memory one WASI call of a cell may take for what it copies, in bytes.
    ///
    /// A call that would take more gets the errno `nomem`.
    pub const CELL_HOST_CALL_BYTES_MAX: usize = 4 << 20;

    /// Host memory one WASI call of a job may take for what it copies, in bytes.
    ///
    /// A call that would take more gets the errno `nomem`.
    pub const JOB_HOST_CALL_BYTES_MAX: usize = 128 << 20;

    /// Largest result of one `random_get` of a cell, in bytes.
    ///
    /// A larger request fails.
    pub const CELL_RANDOM_BYTES_MAX: u64 = 64 << 10;

    /// Largest result of one `random_get` of a job, in bytes.
    ///
    /// A larger request fails.
    pub const JOB_RANDOM_BYTES_MAX: u64 = 1 << 20;
}

/// What one instance may take of the host.
///
/// Fuel is not here: it belongs to each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Linear memory of an instance, in bytes: [`CELL_MEMORY_BYTES_MAX`], [`JOB_MEMORY_BYTES_MAX`].
    pub memory_bytes_max: usize,
    /// Elements of an instance's tables: [`CELL_TABLE_ELEMENTS_MAX`],
    /// [`JOB_TABLE_ELEMENTS_MAX`].
    pub table_elements_max: usize,
    /// Host memory one WASI call may take for what it copies, in bytes:
    /// [`CELL_HOST_CALL_BYTES_MAX`], [`JOB_HOST_CALL_BYTES_MAX`].
    pub host_call_bytes_max: usize,
    /// Largest result of one `random_get`, in bytes: [`CELL_RANDOM_BYTES_MAX`],
    /// [`JOB_RANDOM_BYTES_MAX`].
    pub random_bytes_max: u64,
}

impl Limits {
    /// Defaults for a cell.
    pub const CELL: Self = Self {
        memory_bytes_max: CELL_MEMORY_BYTES_MAX,
        table_elements_max: CELL_TABLE_ELEMENTS_MAX,
        host_call_bytes_max: CELL_HOST_CALL_BYTES_MAX,
        random_bytes_max: CELL_RANDOM_BYTES_MAX,
    };

    /// Defaults for a job.
    pub const JOB: Self = Self {
        memory_bytes_max: JOB_MEMORY_BYTES_MAX,
        table_elements_max: JOB_TABLE_ELEMENTS_MAX,
        host_call_bytes_max: JOB_HOST_CALL_BYTES_MAX,
        random_bytes_max: JOB_RANDOM_BYTES_MAX,
    };
}
