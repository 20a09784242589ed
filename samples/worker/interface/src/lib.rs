//! What the cell `worker` and its callers agree on: one receptor and its types.
//!
//! A crate of its own, so that a caller is built without the handler.

cell_guest::signal_receptor! {
    name: worker,
    /// One piece of work.
    input: WorkLoad {
        /// Comes back in the result.
        id: u32,
        /// The bytes to be summed up.
        payload: Vec<u8>,
    },
    /// What the work came to.
    output: WorkResult {
        /// The id of the work load.
        id: u32,
        /// FNV-1a of the payload.
        checksum: u64,
    },
}
