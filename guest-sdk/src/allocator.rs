//! The global allocator of a cell: every call starts from the same heap.
//!
//! Fuel must not depend on the calls an instance served before, but an ordinary heap remembers
//! them: in its free lists, and in where its blocks lie. So there are two heaps. What is allocated
//! in `_initialize` comes from the *persistent* one. What is allocated in calls comes from the
//! *call* heap, which [`start_call`] puts back into its first state if the last call left nothing
//! in it. A block's address tells which heap it is from.
//!
//! Both heaps are zeroed statics, so they take no bytes in the module and no memory until touched.
//! A call that needs more than its heap grows the module's memory; the nucleus retires such an
//! instance after the call, so this file keeps growth correct, not repeatable.
#![allow(unsafe_code, reason = "an allocator hands out raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32;
use core::cell::{Cell, UnsafeCell};
use core::ptr;

use dlmalloc::Dlmalloc;

/// Bytes for what is allocated before the first call; past them the call heap is used, which then
/// is never put back.
const PERSISTENT_BYTES: usize = 256 << 10;
/// Bytes a call can allocate before memory grows.
const CALL_BYTES: usize = 4 << 20;
/// Bytes of a wasm page.
const PAGE_BYTES: usize = 64 << 10;

#[global_allocator]
static HEAPS: Heaps = Heaps {
    in_call: Cell::new(false),
    call_blocks: Cell::new(0),
    persistent: UnsafeCell::new(dlmalloc(Source { region: &PERSISTENT, grows: false })),
    call: UnsafeCell::new(CALL_HEAP),
};

static PERSISTENT: Region<PERSISTENT_BYTES> = Region::new();
static CALL: Region<CALL_BYTES> = Region::new();
static GROWN: Grown = Grown { start: Cell::new(0), used: Cell::new(0), end: Cell::new(0) };

/// The call heap's first state.
const CALL_HEAP: Heap = dlmalloc(Source { region: &CALL, grows: true });

type Heap = Dlmalloc<Source>;

const fn dlmalloc(source: Source) -> Heap {
    let mut heap = Dlmalloc::new_with_allocator(source);
    // Nothing can be given back, so looking for it would be wasted fuel.
    heap.set_max_release_check_rate(0);
    heap
}
