//! The imports of module `cell_v1`.
#![allow(
    unsafe_code,
    reason = "a foreign function has no safe declaration, and these take addresses"
)]

use cell_abi::AccountId;
use rkyv::util::AlignedVec;

use super::CallContext;

// An address and a length are `u32` in the ABI, which is what `usize` is on wasm32.
#[link(wasm_import_module = "cell_v1")]
unsafe extern "C" {
    #[link_name = "context"]
    fn cell_context(out: *mut CallContextBytes);
    #[link_name = "fuel_left"]
    safe fn cell_fuel_left() -> u64;
    #[link_name = "log"]
    fn cell_log(level: u32, text: *const u8, text_len: usize);
    #[link_name = "reject"]
    fn cell_reject(code: u32, message: *const u8, message_len: usize);
    #[link_name = "call"]
    fn cell_call(
        cell: *const u8,
        cell_len: usize,
        receptor: *const u8,
        receptor_len: usize,
        schema: *const u8,
        schema_len: usize,
        request: *const u8,
        request_len: usize,
        fuel: u64,
    ) -> u64;
    #[link_name = "call_reply"]
    fn cell_call_reply(out: *mut u8, len: usize) -> usize;
    #[link_name = "kv_get"]
    fn cell_kv_get(key: *const u8, key_len: usize) -> i64;
    #[link_name = "kv_value"]
    fn cell_kv_value(out: *mut u8, len: usize) -> usize;
    #[link_name = "kv_set"]
    fn cell_kv_set(key: *const u8, key_len: usize, value: *const u8, value_len: usize) -> u32;
    #[link_name = "kv_delete"]
    fn cell_kv_delete(key: *const u8, key_len: usize) -> u32;
}

/// The call context as it lies in memory; wasm and the ABI are both little-endian.
#[repr(C)]
#[derive(Default)]
struct CallContextBytes {
    caller: [u8; 32],
    started_at_ns: u64,
    left_ns: u64,
    depth: u32,
    reserved: [u32; 3],
}

const _: () = assert!(size_of::<CallContextBytes>() == 64);

pub(crate) fn context() -> CallContext {
    let mut out = CallContextBytes::default();
    // SAFETY: the import writes 64 bytes, the size of `out`, and every value of them is valid.
    unsafe { cell_context(&raw mut out) };
    CallContext {
        caller: AccountId::from_bytes(out.caller),
        started_at_ns: out.started_at_ns,
        left_ns: out.left_ns,
        depth: out.depth,
    }
}

pub(crate) fn fuel_left() -> u64 {
    cell_fuel_left()
}

pub(crate) fn log(level: u32, text: &str) {
    // SAFETY: the import only reads `text`.
    unsafe { cell_log(level, text.as_ptr(), text.len()) }
}

pub(crate) fn reject(code: u32, message: &str) {
    // SAFETY: the import only reads `message`.
    unsafe { cell_reject(code, message.as_ptr(), message.len()) }
}

/// The status and the reply, 16-aligned.
pub(crate) fn call(
    cell: &str,
    receptor: &str,
    schema: &str,
    request: &[u8],
    fuel: u64,
) -> (u32, AlignedVec) {
    // SAFETY: the import only reads the four ranges.
    let ended = unsafe {
        cell_call(
            cell.as_ptr(),
            cell.len(),
            receptor.as_ptr(),
            receptor.len(),
            schema.as_ptr(),
            schema.len(),
            request.as_ptr(),
            request.len(),
            fuel,
        )
    };
    let [l0, l1, l2, l3, s0, s1, s2, s3] = ended.to_le_bytes();
    let len = usize::from_le_bytes([l0, l1, l2, l3]);
    let mut reply = AlignedVec::with_capacity(len);
    // SAFETY: the import writes at most `len` bytes, which `reply` has room for, and says how many.
    unsafe {
        let written = cell_call_reply(reply.as_mut_ptr(), len);
        reply.set_len(written.min(len));
    }
    (u32::from_le_bytes([s0, s1, s2, s3]), reply)
}

/// The length of a value; [`kv_value`] reads it.
pub(crate) fn kv_get(key: &[u8]) -> Option<usize> {
    // SAFETY: the import only reads `key`.
    let len = unsafe { cell_kv_get(key.as_ptr(), key.len()) };
    usize::try_from(len).ok()
}

pub(crate) fn kv_value(out: &mut [u8]) {
    // SAFETY: the import writes at most `out.len()` bytes to `out`.
    unsafe { cell_kv_value(out.as_mut_ptr(), out.len()) };
}

/// Whether the quota allowed it.
pub(crate) fn kv_set(key: &[u8], value: &[u8]) -> bool {
    // SAFETY: the import only reads both ranges.
    unsafe { cell_kv_set(key.as_ptr(), key.len(), value.as_ptr(), value.len()) == 0 }
}

/// Whether there was a value.
pub(crate) fn kv_delete(key: &[u8]) -> bool {
    // SAFETY: the import only reads `key`.
    unsafe { cell_kv_delete(key.as_ptr(), key.len()) == 1 }
}
