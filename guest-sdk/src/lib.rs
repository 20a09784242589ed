//! Write a cell: receptors, calls to other cells, state and log.
//!
//! A cell is a crate with `crate-type = ["cdylib"]` (add `"rlib"` to unit-test it) that depends on
//! this crate alone:
//!
//! ```
//! use cell_guest::{Context, Reject, receptor, signal_receptor};
//!
//! signal_receptor! {
//!     name: worker,
//!     input: WorkLoad { id: u32, payload: Vec<u8> },
//!     output: WorkResult { id: u32, checksum: u64 },
//! }
//!
//! #[receptor]
//! fn worker(job: &ArchivedWorkLoad, cx: &mut Context) -> Result<WorkResult, Reject> {
//!     cell_guest::debug!("{} asks for job {}", cx.caller(), job.id);
//!     let checksum = job.payload.iter().map(|byte| u64::from(*byte)).sum();
//!     Ok(WorkResult { id: job.id.to_native(), checksum })
//! }
//! # fn main() {}
//! ```
//!
//! Built for `wasm32-wasip1` the crate is the cell; built natively it gives unit tests ([`testing`])
//! and `worker::Client`, the typed client for programs.
//! This crate does no input or output of its own: everything a cell reaches is an import of
//! `docs/GUEST-ABI.md`.
//!
//! # Calling another cell
//!
//! A module holds the handlers of **one** crate, and Cargo compiles a package once for all who
//! depend on it. So what other cells need of a cell lives in a crate of its own, beside it:
//!
//! ```text
//! worker/interface/   signal_receptor! { name: worker, .. }         depends on cell-guest
//! worker/             use worker_interface::*; #[receptor] fn ..    depends on worker-interface
//! frontend/           call_as!(worker, WorkLoad { .. })             depends on worker-interface
//! ```
//!
//! Nothing but `#[receptor]` puts anything into a module, so `frontend` exposes its own receptors
//! only, whatever else is built in the same workspace, with which features and in which order.
//! A Cargo feature could not do this: features are unified when both cells are built at once.
//! A module into which the handlers of two crates were linked stops in `_initialize` and names both.
//!
//! # The same bill every time
//!
//! A call costs the same fuel on a fresh instance and on one that has served others, as long as
//! the handlers keep no state in the instance. With the feature `allocator` (on by default) each
//! call starts from the same heap. What still makes a call depend on those before it:
//! values kept in statics or thread-locals, `OnceLock` and `LazyLock`, the random seeds of
//! `HashMap` (use `BTreeMap`), and text printed without a newline at its end (use [`info!`]).
//!
//! # Features
//!
//! - `json`: callers may send JSON; converted in the sandbox at the call's cost.
//! - `allocator`: the global allocator described above, on wasm only.

// The macros name the facade by its path, also in this crate's own tests.
#[allow(unused_extern_crates, reason = "used by tests and examples only")]
extern crate self as cell_guest;

#[cfg(all(target_arch = "wasm32", feature = "allocator"))]
mod allocator;
mod call;
mod context;
mod dispatch;
mod error;
#[cfg(target_arch = "wasm32")]
mod exports;
mod host;
mod log;
mod state;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use cell_abi::{AccountId, Fuel, Message, Receptor, Reject, Signal, Status, Text};
pub use rkyv::Archived;

pub use call::Remote;
pub use context::Context;
pub use error::{CallError, NotThisType, QuotaExceeded, reject_code};
pub use log::Level;
pub use state::State;

/// Makes a function the handler of the receptor with its name.
///
/// The form is
/// `fn name(input: &ArchivedInput, cx: &mut Context) -> Result<Output, Reject>`;
/// `cx` may be left out, and the error may be any type that turns into a [`Reject`].
/// The module `name` of [`signal_receptor!`] must be in scope.
///
/// The input is read in place: the bytes of the request were validated, not copied.
/// For an input type from elsewhere the argument is `&Archived<Type>`, see [`Archived`].
pub use cell_guest_macros::receptor;

/// Makes a struct or an enum a type that can travel between cells.
///
/// ```
/// #[cell_guest::signal]
/// pub struct Point {
///     x: f32,
///     y: f32,
/// }
///
/// #[cell_guest::signal]
/// pub enum Shape {
///     Dot,
///     Circle { r: f32 },
///     Poly(Vec<Point>),
/// }
/// ```
///
/// Fields may be numbers, `bool`, `char`, `String`, `Vec`, `Option`, `Box`, arrays, tuples of two
/// or three, and other signals. The type gets `Debug`, `Clone`, `PartialEq` and a description that
/// is part of the fingerprint of every receptor that uses it.
///
/// Where `missing_docs` is denied, a public enum whose variants have named fields needs
/// `#![allow(missing_docs)]` in its module: of the types that rkyv derives beside it, the resolver
/// has fields without documentation.
pub use cell_guest_macros::signal;

/// Defines a receptor: its name, its types and its clients.
///
/// Either type is defined here as a block of fields, or named if it exists:
///
/// ```
/// cell_guest::signal_receptor! {
///     name: measure,
///     /// What to measure.
///     input: Measure { text: String },
///     output: Vec<u64>,
/// }
/// # fn main() {}
/// ```
///
/// Blocks become `pub` structs as by [`signal`](macro@signal). Beside them stands a module with the
/// receptor's name: `measure::Receptor` is the receptor as a type, `measure::Remote` calls it from
/// another cell, and natively `measure::Client` calls it from a program.
pub use cell_guest_macros::signal_receptor;

/// The typed client of native programs.
#[cfg(not(target_arch = "wasm32"))]
pub mod client {
    pub use cell_client::TypedClient;
}

/// What the macros' output needs; no part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use rkyv;
    #[cfg(feature = "json")]
    pub use serde;

    pub use cell_abi::schema::receptor_text;

    pub use crate::__enter as enter;
    pub use crate::dispatch::{Answer as Ended, Entry, Handle, Payload};
    #[cfg(target_arch = "wasm32")]
    pub use crate::exports::register;
    pub use crate::log::write;

    /// The archived input of a receptor.
    pub type Input<R> = rkyv::Archived<<R as cell_abi::Receptor>::Input>;
    /// What a handler of a receptor returns.
    pub type Answer<R, E> = Result<<R as cell_abi::Receptor>::Output, E>;

    /// A handler's answer with its error as a reject.
    pub fn or_reject<T, E: Into<cell_abi::Reject>>(
        answer: Result<T, E>,
    ) -> Result<T, cell_abi::Reject> {
        answer.map_err(Into::into)
    }

    /// Text from the bytes of a [`Text`](cell_abi::Text).
    pub const fn utf8(bytes: &'static [u8]) -> &'static str {
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(_) => "",
        }
    }

    /// A block of the interface section: the schema and an empty line.
    #[expect(
        clippy::indexing_slicing,
        reason = "evaluated by the compiler, which reports a bad index"
    )]
    pub const fn section_block<const N: usize>(schema: &str) -> [u8; N] {
        let mut block = [b'\n'; N];
        let mut at = 0;
        while at < schema.len() {
            block[at] = schema.as_bytes()[at];
            at += 1;
        }
        block
    }
}

/// Puts a handler into the module: a line of the table, and a block of the interface section.
#[doc(hidden)]
#[cfg(target_arch = "wasm32")]
#[macro_export]
macro_rules! __enter {
    ($receptor:ty, $entry:expr) => {
        static ENTRY: $crate::__private::Entry = $entry;

        extern "C" fn enter() {
            $crate::__private::register(&ENTRY);
        }

        // Runs in `_initialize`: outside any call, and before the first one.
        #[used]
        #[unsafe(link_section = ".init_array")]
        static ENTER: extern "C" fn() = enter;

        const SCHEMA: &str = <$receptor as $crate::Receptor>::SCHEMA;

        #[used]
        #[unsafe(link_section = "cell:interface")]
        static INTERFACE: [u8; SCHEMA.len() + 1] = $crate::__private::section_block(SCHEMA);
    };
}

/// Natively a handler is checked in the same way and entered nowhere.
#[doc(hidden)]
#[cfg(not(target_arch = "wasm32"))]
#[macro_export]
macro_rules! __enter {
    ($receptor:ty, $entry:expr) => {
        const _: $crate::__private::Entry = $entry;
    };
}
