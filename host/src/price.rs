//! What host calls, memory and starts burn, in fuel. `docs/METERING.md` shows the same table.
//!
//! One fuel stands for 0.013 to 0.13 ns of a core, as for operators; `cargo xtask bench calibrate`
//! measures it. A host call is charged before it works, so a guest cannot get work it did not pay.

/// Any host call: leaving the guest, checking arguments, coming back (about 300 ns).
pub const HOST_CALL: u64 = 3_000;
/// A WASI call that asks the operating system for something (about 1 µs).
pub const SYSTEM_CALL: u64 = 14_000;
/// One byte copied between guest and host.
pub const BYTE: u64 = 1;
/// One byte of randomness (about 3 ns).
pub const RANDOM_BYTE: u64 = 24;
/// One byte of a log record: it is escaped and goes to a file (up to 15 ns).
pub const LOG_BYTE: u64 = 120;
/// Any call of a cell: its frame, its instance, its bill (2 to 7 µs).
pub const CALL: u64 = 60_000;
/// One byte of a call's request or reply (0.1 to 0.3 ns: the kernel copies it).
pub const FRAME_BYTE: u64 = 2;
/// One call to another cell, besides what any call costs and what that cell burns.
pub const CELL_CALL: u64 = 5_000;
/// The first use of the cell's state in a call: it is locked, and what was written is stored in the
/// end (40 to 70 µs).
pub const STATE_TAKE: u64 = 600_000;
/// Reading a key of the cell's state (about 20 µs: it is asked of another process).
pub const STATE_READ: u64 = 170_000;
/// Writing a key of the cell's state (about 20 µs).
pub const STATE_WRITE: u64 = 170_000;
/// One byte of a key or value that is written (6 to 9 ns).
pub const STATE_BYTE: u64 = 80;
/// One 64 KiB page of memory: sixteen page faults of 1.5 to 2.5 µs.
pub const MEMORY_PAGE: u64 = 130_000;
/// One table element.
pub const TABLE_ELEMENT: u64 = 64;
/// Starting an instance, besides its pages and data (about 7 µs).
pub const START: u64 = 60_000;

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
/// it is not used. A page costs the same whether a module starts with it or grows by it.
pub const fn start(memory_pages: u64, data_bytes: u64) -> u64 {
    START
        .saturating_add(memory_pages.saturating_mul(MEMORY_PAGE))
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
    ("frame_byte", FRAME_BYTE),
    ("cell_call", CELL_CALL),
    ("state_take", STATE_TAKE),
    ("state_read", STATE_READ),
    ("state_write", STATE_WRITE),
    ("state_byte", STATE_BYTE),
    ("memory_page", MEMORY_PAGE),
    ("table_element", TABLE_ELEMENT),
    ("start", START),
    ("compile", COMPILE),
    ("compile_byte", COMPILE_BYTE),
];
