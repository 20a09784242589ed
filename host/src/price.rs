//! What host calls, memory and starts burn, in fuel. `docs/METERING.md` shows the same table.
//!
//! One fuel stands for about 0.1 to 0.4 ns of a core. The prices are measured on the side of
//! the host: a host call is charged before it works, so a guest cannot get work it did not pay.

/// Any host call: leaving the guest, checking arguments, coming back (about 100 ns).
pub const HOST_CALL: u64 = 500;
/// A WASI call that asks the operating system for something (about 2 µs).
pub const SYSTEM_CALL: u64 = 10_000;
/// One byte copied between guest and host.
pub const BYTE: u64 = 1;
/// One byte of randomness.
pub const RANDOM_BYTE: u64 = 8;
/// One byte of a log record: it is escaped and goes to a file.
pub const LOG_BYTE: u64 = 10;
/// Any call of a cell: its frame, its instance, its bill (about 2 µs); bytes of request and reply besides.
pub const CALL: u64 = 5_000;
/// One call to another cell, besides what that cell burns (about 1 µs).
pub const CELL_CALL: u64 = 5_000;
/// Reading a key of the cell's state (about 5 µs).
pub const STATE_READ: u64 = 20_000;
/// Writing a key of the cell's state; it is written to a file when the call ends (about 20 µs).
pub const STATE_WRITE: u64 = 80_000;
/// One 64 KiB page of memory: sixteen page faults of about 1 µs.
pub const MEMORY_PAGE: u64 = 60_000;
/// One table element.
pub const TABLE_ELEMENT: u64 = 64;
/// Starting an instance, besides its pages and data (about 10 µs).
pub const START: u64 = 50_000;

/// Having a module compiled, besides its bytes: a process of its own (about 10 ms).
pub const COMPILE: u64 = 100_000_000;
/// Compiling one byte of a module: 1.05 to 1.4 µs for programs of 83 KB to 13 MB.
pub const COMPILE_BYTE: u64 = 10_000;

/// What compiling a module costs its owner, once: a formula over its size.
///
/// What a compiler really takes differs between machines, and between runs on one.
pub const fn compile(module_bytes: u64) -> u64 {
    COMPILE.saturating_add(module_bytes.saturating_mul(COMPILE_BYTE))
}

/// What starting an instance burns: a formula over the module's own numbers.
///
/// The fuel that instantiation really takes differs between systems (copy-on-write images), so
/// it is not used. Initial pages are charged at a sixteenth: they are touched one by one, if ever.
pub const fn start(memory_pages: u64, data_bytes: u64) -> u64 {
    START
        .saturating_add(memory_pages.saturating_mul(MEMORY_PAGE / 16))
        .saturating_add(data_bytes.saturating_mul(BYTE))
}

/// Every price with its name: hashed into the engine's id, and shown by `cell inspect`.
pub const TABLE: &[(&str, u64)] = &[
    ("host_call", HOST_CALL),
    ("system_call", SYSTEM_CALL),
    ("byte", BYTE),
    ("random_byte", RANDOM_BYTE),
    ("log_byte", LOG_BYTE),
    ("call", CALL),
    ("cell_call", CELL_CALL),
    ("state_read", STATE_READ),
    ("state_write", STATE_WRITE),
    ("memory_page", MEMORY_PAGE),
    ("table_element", TABLE_ELEMENT),
    ("start", START),
    ("compile", COMPILE),
    ("compile_byte", COMPILE_BYTE),
];
