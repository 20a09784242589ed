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

#[cfg(target_feature = "atomics")]
compile_error!("a cell has one thread: build it for wasm32-wasip1 without atomics");

#[global_allocator]
static HEAPS: Heaps = Heaps {
    in_call: Cell::new(false),
    call_blocks: Cell::new(0),
    persistent: UnsafeCell::new(heap(Which::Persistent)),
    call: UnsafeCell::new(heap(Which::Call)),
};

static PERSISTENT: Region<PERSISTENT_BYTES> = Region::new();
static CALL: Region<CALL_BYTES> = Region::new();
static GROWN: Grown = Grown { start: Cell::new(0), used: Cell::new(0), end: Cell::new(0) };

type Heap = Dlmalloc<Source>;

/// A heap in its first state.
const fn heap(which: Which) -> Heap {
    let source = Source { which, region_given: Cell::new(false) };
    let mut heap = Dlmalloc::new_with_allocator(source);
    // Nothing can be given back, so looking for it would be wasted fuel.
    heap.set_max_release_check_rate(0);
    heap
}

/// Starts a call: puts the call heap into its first state if it holds `kept` blocks and no more.
///
/// `kept` are the blocks that the caller knows of and gives up by this.
/// Whether it was put back; if not, the blocks are still the caller's.
pub(crate) fn start_call(kept: usize) -> bool {
    HEAPS.in_call.set(true);
    if HEAPS.call_blocks.get() != kept {
        return false;
    }
    HEAPS.call_blocks.set(0);
    GROWN.used.set(0);
    // SAFETY: there is one thread, and no heap function is under way: none calls back.
    unsafe { HEAPS.call.get().write(const { heap(Which::Call) }) };
    true
}

struct Heaps {
    /// Set by the first call and never cleared: nothing runs between calls.
    in_call: Cell<bool>,
    /// Blocks of the call heap that were not freed.
    call_blocks: Cell<usize>,
    persistent: UnsafeCell<Heap>,
    call: UnsafeCell<Heap>,
}

// SAFETY: the module has one thread, see the check of `atomics` above.
unsafe impl Sync for Heaps {}

impl Heaps {
    fn is_persistent(block: *mut u8) -> bool {
        block.addr().wrapping_sub(PERSISTENT.start().addr()) < PERSISTENT_BYTES
    }

    /// Allocates from the heap of the current phase.
    fn allocate(&self, from: impl Fn(&mut Heap) -> *mut u8) -> *mut u8 {
        if !self.in_call.get() {
            // SAFETY: there is one thread, and no other reference to the heap: no heap function
            // calls back.
            let block = from(unsafe { &mut *self.persistent.get() });
            if !block.is_null() {
                return block;
            }
        }
        // SAFETY: as above.
        let block = from(unsafe { &mut *self.call.get() });
        if !block.is_null() {
            self.call_blocks.set(self.call_blocks.get() + 1);
        }
        block
    }
}

// SAFETY: blocks come from dlmalloc with the layout's size and alignment, go back to the heap they
// came from, and are moved between heaps by a copy of the smaller size.
unsafe impl GlobalAlloc for Heaps {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: dlmalloc takes any size, and any alignment that a layout can have.
        self.allocate(|heap| unsafe { heap.malloc(layout.size(), layout.align()) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        self.allocate(|heap| unsafe { heap.calloc(layout.size(), layout.align()) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let heap = if Self::is_persistent(block) {
            self.persistent.get()
        } else {
            self.call_blocks.set(self.call_blocks.get() - 1);
            self.call.get()
        };
        // SAFETY: the block is from this heap, with this layout; there is one thread.
        unsafe { (*heap).free(block, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !Self::is_persistent(block) {
            // SAFETY: the block is from this heap, with this layout; there is one thread.
            return unsafe {
                (*self.call.get()).realloc(block, layout.size(), layout.align(), new_size)
            };
        }
        // In a call it must not change the persistent heap's blocks in place, so it moves.
        // SAFETY: the caller gives a new size that makes a layout with the old alignment.
        let moved =
            unsafe { self.alloc(Layout::from_size_align_unchecked(new_size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both blocks have this many bytes and are distinct; the old one is not used again.
            unsafe {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
        }
        moved
    }
}

/// Where a heap gets its memory from.
struct Source {
    which: Which,
    /// Part of the heap's state, so that putting the heap back takes the region back.
    region_given: Cell<bool>,
}

#[derive(Clone, Copy)]
enum Which {
    Persistent,
    Call,
}

// SAFETY: gives out each byte of its region once between two resets, and bytes that memory grew by
// once; takes nothing back.
unsafe impl dlmalloc::Allocator for Source {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let (start, bytes) = match self.which {
            Which::Persistent => (PERSISTENT.start(), PERSISTENT_BYTES),
            Which::Call => (CALL.start(), CALL_BYTES),
        };
        if size <= bytes && !self.region_given.replace(true) {
            return (start, bytes, 0);
        }
        match self.which {
            Which::Persistent => (ptr::null_mut(), 0, 0),
            Which::Call => (GROWN.take(size), size, 0),
        }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        false
    }

    fn page_size(&self) -> usize {
        PAGE_BYTES
    }
}

/// Zeroed memory with a fixed address.
#[repr(align(16))]
struct Region<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);

// SAFETY: the module has one thread.
unsafe impl<const BYTES: usize> Sync for Region<BYTES> {}

impl<const BYTES: usize> Region<BYTES> {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; BYTES]))
    }

    const fn start(&self) -> *mut u8 {
        self.0.get().cast()
    }
}

/// Memory the module grew by for the call heap: used again in the next call.
struct Grown {
    start: Cell<usize>,
    used: Cell<usize>,
    end: Cell<usize>,
}

// SAFETY: the module has one thread.
unsafe impl Sync for Grown {}

impl Grown {
    /// The address of this many bytes, or null if memory may not grow so far.
    fn take(&self, size: usize) -> *mut u8 {
        let at = self.start.get() + self.used.get();
        if self.end.get() - at >= size {
            self.used.set(self.used.get() + size);
            return ptr::with_exposed_provenance_mut(at);
        }
        let pages = size.div_ceil(PAGE_BYTES);
        let page = wasm32::memory_grow::<0>(pages);
        if page == usize::MAX {
            return ptr::null_mut();
        }
        let address = page * PAGE_BYTES;
        if address != self.end.get() {
            // Someone else grew memory in between: what was left before it is given up.
            self.start.set(address);
            self.used.set(0);
        }
        self.end.set(address + pages * PAGE_BYTES);
        let at = self.start.get() + self.used.get();
        self.used.set(self.used.get() + size);
        ptr::with_exposed_provenance_mut(at)
    }
}
