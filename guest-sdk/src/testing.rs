//! Unit tests of handlers, natively.
//!
//! ```
//! use cell_guest::testing::Archive;
//! use cell_guest::{Context, Reject, receptor, signal_receptor};
//!
//! signal_receptor! { name: double, input: Double { n: u32 }, output: u64 }
//!
//! #[receptor]
//! fn double(input: &ArchivedDouble, cx: &mut Context) -> Result<u64, Reject> {
//!     cx.state().set(b"last", &input.n.to_native().to_le_bytes())?;
//!     Ok(u64::from(input.n.to_native()) * 2)
//! }
//!
//! fn main() {
//!     let mut cx = Context::for_test();
//!     assert_eq!(double(&Archive::of(&Double { n: 4 }), &mut cx), Ok(8));
//!     assert_eq!(cx.state().get(b"last"), Some(vec![4, 0, 0, 0]));
//! }
//! ```

use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;

use cell_abi::{AccountId, Fuel, Message, Receptor, Reject, Status};
use rkyv::Archived;
use rkyv::util::AlignedVec;

use crate::context::Context;
use crate::dispatch::encode;
use crate::host::fake::{self, Fake};
use crate::log::Level;

/// A context for unit tests: one call of a cell with empty state.
impl Context {
    /// A fresh context; it replaces all that this thread's earlier ones held.
    pub fn for_test() -> Self {
        fake::with(|fake| *fake = Fake::new());
        Self::new()
    }

    /// Sets who pays.
    #[must_use]
    pub fn with_caller(self, caller: AccountId) -> Self {
        fake::with(|fake| fake.context.caller = caller);
        self
    }

    /// Sets when the call started, in nanoseconds since 1970.
    #[must_use]
    pub fn with_started_at_ns(self, started_at_ns: u64) -> Self {
        fake::with(|fake| fake.context.started_at_ns = started_at_ns);
        self
    }

    /// Sets what the call may still burn; natively nothing is burned.
    #[must_use]
    pub fn with_fuel_left(self, fuel: Fuel) -> Self {
        fake::with(|fake| fake.fuel_left = fuel.0);
        self
    }

    /// Sets the quota of the state, in bytes of keys and values.
    #[must_use]
    pub fn with_state_bytes_max(self, bytes: usize) -> Self {
        fake::with(|fake| fake.state_bytes_max = bytes);
        self
    }

    /// Answers calls to a receptor of another cell with this function.
    #[must_use]
    pub fn with_cell<R: Receptor>(
        self,
        cell: &str,
        handler: impl Fn(&Archived<R::Input>) -> Result<R::Output, Reject> + 'static,
    ) -> Self {
        let answering = move |request: &[u8]| {
            let Ok(input) = cell_abi::schema::access::<R::Input>(request) else {
                return (Status::BadRequest, AlignedVec::new());
            };
            match handler(input) {
                Ok(output) => encode(&output).map_or_else(
                    |_| (Status::BadReply, AlignedVec::new()),
                    |reply| (Status::Ok, reply),
                ),
                Err(reject) => {
                    let mut reply = AlignedVec::new();
                    reply.extend_from_slice(&reject.encode());
                    (Status::Rejected, reply)
                }
            }
        };
        let key = (cell.to_owned(), R::NAME.to_owned());
        fake::with(|fake| fake.cells.insert(key, Box::new(answering)));
        self
    }

    /// The log records so far.
    pub fn logged(&self) -> Vec<(Level, String)> {
        fake::with(|fake| fake.log.clone())
    }
}

/// A message as a handler sees it: its archive, which it dereferences to.
pub struct Archive<T> {
    bytes: AlignedVec,
    message: PhantomData<fn() -> T>,
}

impl<T: Message> Archive<T> {
    /// Archives a message.
    ///
    /// # Panics
    ///
    /// If the message is too large for its format, past 2 GiB.
    pub fn of(message: &T) -> Self {
        let bytes = encode(message).unwrap_or_else(|error| panic!("archive a message: {error}"));
        Self { bytes, message: PhantomData }
    }

    /// The bytes as they travel.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T: Message> Deref for Archive<T> {
    type Target = T::Archived;

    fn deref(&self) -> &T::Archived {
        cell_abi::schema::access::<T>(&self.bytes)
            .unwrap_or_else(|error| panic!("access an archive that was just written: {error}"))
    }
}

impl<T: Message<Archived: fmt::Debug>> fmt::Debug for Archive<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Archive").field(&**self).finish()
    }
}
