//! The cell's key-value state.

use cell_abi::Message;
use rkyv::util::AlignedVec;

use crate::context::Context;
use crate::dispatch::encode;
use crate::error::{NotThisType, QuotaExceeded};
use crate::host;

/// The cell's key-value state, from [`Context::state`].
///
/// It belongs to the cell, not to the instance. A call sees its own writes; others see them, all at
/// once, when the handler returns without a reject. A reject or a trap undoes them.
/// From its first use to its end a call holds the state alone.
#[derive(Debug)]
pub struct State<'a> {
    _cx: &'a mut Context,
}

impl<'a> State<'a> {
    pub(crate) const fn new(cx: &'a mut Context) -> Self {
        Self { _cx: cx }
    }

    /// The value under a key.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut value = vec![0; host::kv_get(key)?];
        host::kv_value(&mut value);
        Some(value)
    }

    /// The value under a key, as written by [`set_as`](Self::set_as) with the same type.
    pub fn get_as<T: Message>(&self, key: &[u8]) -> Result<Option<T>, NotThisType> {
        let Some(len) = host::kv_get(key) else { return Ok(None) };
        let mut value = AlignedVec::<16>::new();
        value.resize(len, 0);
        host::kv_value(&mut value);
        let archived = cell_abi::schema::access::<T>(&value).map_err(|_| NotThisType)?;
        cell_abi::schema::decode::<T>(archived).map(Some).map_err(|_| NotThisType)
    }

    /// Writes a value; nothing is written if the quota would be passed.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), QuotaExceeded> {
        if host::kv_set(key, value) { Ok(()) } else { Err(QuotaExceeded) }
    }

    /// Writes a value of a message type, for [`get_as`](Self::get_as).
    pub fn set_as<T: Message>(&mut self, key: &[u8], value: &T) -> Result<(), QuotaExceeded> {
        // A value that its format cannot hold is past any quota.
        let bytes = encode(value).map_err(|_| QuotaExceeded)?;
        self.set(key, &bytes)
    }

    /// Removes a value; whether there was one.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        host::kv_delete(key)
    }
}
