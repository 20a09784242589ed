//! What the nucleus offers a call, with safe types.
//!
//! On wasm these are the imports of `docs/GUEST-ABI.md`; natively a small stand-in, so that
//! handlers can be unit-tested. Both have the same functions.

use cell_abi::AccountId;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod fake;
#[cfg(target_arch = "wasm32")]
mod imports;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use fake::{call, context, fuel_left, kv_delete, kv_get, kv_set, kv_value, log};
#[cfg(target_arch = "wasm32")]
pub(crate) use imports::{
    call, context, fuel_left, kv_delete, kv_get, kv_set, kv_value, log, reject,
};

/// What the import `context` writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallContext {
    pub(crate) caller: AccountId,
    pub(crate) started_at_ns: u64,
    pub(crate) left_ns: u64,
    pub(crate) depth: u32,
}
