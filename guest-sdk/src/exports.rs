//! The module's exports: where requests arrive and replies leave.
//!
//! The buffers of a call live until the next one, as the ABI promises; they are then released
//! together with everything else the call allocated.
#![allow(
    unsafe_code,
    reason = "exports have unmangled names, and the nucleus writes the request into memory"
)]

use core::cell::{Cell, RefCell};
use core::mem::ManuallyDrop;

use cell_abi::Reject;
use cell_abi::limits::FRAME_PAYLOAD_BYTES_MAX;
use rkyv::util::AlignedVec;

use crate::dispatch::{Answer, Entry, Table};
use crate::error::reject_code;
use crate::host;

/// The request is not a valid value of the input type.
const BAD_REQUEST: u64 = u64::MAX;
/// The handler said no: the reject is the reply, and this only must not be [`BAD_REQUEST`].
const REJECTED: u64 = 0;

/// What the nucleus may still write to or read from.
struct Buffers {
    request: AlignedVec,
    reply: Reply,
}

enum Reply {
    None,
    Archive(AlignedVec),
    #[cfg(feature = "json")]
    Json(Vec<u8>),
}

// Constants without destructors: nothing is set up in the first call.
thread_local! {
    static TABLE: RefCell<Table> = const { RefCell::new(Table::new()) };
    static BUFFERS: Cell<Option<ManuallyDrop<Buffers>>> = const { Cell::new(None) };
    /// How many blocks of the heap the buffers hold: known without looking at them, so that a call
    /// on a fresh instance takes the same branches as on any other.
    static BLOCKS: Cell<usize> = const { Cell::new(0) };
}

/// Enters a receptor into the table; called in `_initialize`.
///
/// # Panics
///
/// If the module cannot be a cell; the module is then refused at deploy, with this message in its log.
#[expect(clippy::panic, reason = "the only way to refuse from `_initialize`")]
pub fn register(entry: &'static Entry) {
    TABLE.with_borrow_mut(|table| {
        if let Err(message) = table.insert(entry) {
            panic!("{message}");
        }
    });
}

unsafe extern "C" {
    /// Made by the linker: runs what stands in `.init_array`.
    fn __wasm_call_ctors();
}

/// Enters the receptors; the nucleus calls it once, before anything else.
///
/// Without a function that calls them, the linker would have every export run the constructors
/// again: `rustc` links a start file into programs only.
#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    // SAFETY: the ABI has this called once and first; the constructors need nothing before them.
    unsafe { __wasm_call_ctors() }
}

/// Gives the 16-aligned address of `len` writable bytes for the next request, or 0 if that is too large.
#[unsafe(no_mangle)]
extern "C" fn cell_mailbox(len: usize) -> *mut u8 {
    release_buffers();
    if u32::try_from(len).is_ok_and(|len| len > FRAME_PAYLOAD_BYTES_MAX) {
        return core::ptr::null_mut();
    }
    let mut request = AlignedVec::with_capacity(len);
    let address = request.as_mut_ptr();
    keep(Buffers { request, reply: Reply::None });
    address
}

/// Handles the archive at `request`; gives the reply's address in the low and its length in the high 32 bits.
#[unsafe(no_mangle)]
extern "C" fn cell_receive(receptor: usize, request: *const u8, len: usize) -> u64 {
    handle(receptor, request, len, Entry::receive)
}

/// The same as [`cell_receive`] with JSON text on both sides.
///
/// For text that does not fit the input type it rejects with `reject_code::BAD_JSON` and returns
/// [`BAD_REQUEST`]: the nucleus answers `BadRequest` with the reject's message as the detail.
#[cfg(feature = "json")]
#[unsafe(no_mangle)]
extern "C" fn cell_receive_json(receptor: usize, request: *const u8, len: usize) -> u64 {
    handle(receptor, request, len, Entry::receive_json)
}

fn handle(
    receptor: usize,
    address: *const u8,
    len: usize,
    receive: fn(&Entry, &[u8]) -> Answer,
) -> u64 {
    let Some(buffers) = BUFFERS.take() else { return BAD_REQUEST };
    let mut request = ManuallyDrop::into_inner(buffers).request;
    if request.as_ptr() != address || request.capacity() < len {
        keep(Buffers { request, reply: Reply::None });
        return BAD_REQUEST;
    }
    // SAFETY: the buffer has room for `len` bytes, and the nucleus wrote them before this call.
    unsafe { request.set_len(len) };
    let answer = match TABLE.with_borrow(|table| table.find(receptor)) {
        Some(entry) => receive(entry, &request),
        None => Answer::BadRequest(None),
    };
    let (reply, result) = match answer {
        Answer::Archive(reply) => {
            let result = range(&reply);
            (Reply::Archive(reply), result)
        }
        #[cfg(feature = "json")]
        Answer::Json(reply) => {
            let result = range(&reply);
            (Reply::Json(reply), result)
        }
        Answer::Reject(reject) => {
            host::reject(reject.code, &reject.message);
            (Reply::None, REJECTED)
        }
        Answer::BadRequest(detail) => {
            if let Some(detail) = detail {
                let reject = Reject::new(reject_code::BAD_JSON, detail);
                host::reject(reject.code, &reject.message);
            }
            (Reply::None, BAD_REQUEST)
        }
    };
    keep(Buffers { request, reply });
    result
}

/// Keeps buffers until the next call.
fn keep(buffers: Buffers) {
    let reply = match &buffers.reply {
        Reply::None => 0,
        Reply::Archive(reply) => reply.capacity(),
        #[cfg(feature = "json")]
        Reply::Json(reply) => reply.capacity(),
    };
    BLOCKS.set(usize::from(buffers.request.capacity() > 0) + usize::from(reply > 0));
    BUFFERS.set(Some(ManuallyDrop::new(buffers)));
}

/// Releases what [`keep`] kept, and with the SDK's allocator all else that the last call allocated.
fn release_buffers() {
    #[cfg(feature = "allocator")]
    if crate::allocator::start_call(BLOCKS.get()) {
        return;
    }
    // The last call left something in a static: only its buffers may go.
    drop(BUFFERS.take().map(ManuallyDrop::into_inner));
}

/// Address and length in one number.
fn range(bytes: &[u8]) -> u64 {
    let [a0, a1, a2, a3] = bytes.as_ptr().addr().to_le_bytes();
    let [l0, l1, l2, l3] = bytes.len().to_le_bytes();
    u64::from_le_bytes([a0, a1, a2, a3, l0, l1, l2, l3])
}
