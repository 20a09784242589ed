//! Calls to other cells.

use core::fmt;
use core::marker::PhantomData;

use cell_abi::{Fuel, Receptor, Reject, Status};

use crate::dispatch::encode;
use crate::error::CallError;
use crate::host;

/// A receptor of another cell; `worker::Remote` is this type for the receptor `worker`.
///
/// ```
/// # use cell_guest::{CallError, Fuel};
/// # cell_guest::signal_receptor! { name: worker, input: Job { id: u32 }, output: u64 }
/// fn ask(id: u32) -> Result<u64, CallError> {
///     worker::Remote::new("worker-2").with_fuel(Fuel(1_000_000)).call(&Job { id })
/// }
/// # fn main() {}
/// ```
pub struct Remote<'a, R> {
    cell: &'a str,
    fuel: Fuel,
    receptor: PhantomData<fn() -> R>,
}

impl<R: Receptor> Remote<'static, R> {
    /// The receptor in the cell that has the receptor's name.
    pub const fn namesake() -> Self {
        Self::new(R::NAME)
    }
}

impl<'a, R: Receptor> Remote<'a, R> {
    /// The receptor in the cell with this name.
    pub const fn new(cell: &'a str) -> Self {
        Self { cell, fuel: Fuel(u64::MAX), receptor: PhantomData }
    }

    /// Sets the most one call may burn; it is cut to what this call has left, which is the default.
    #[must_use]
    pub const fn with_fuel(mut self, fuel: Fuel) -> Self {
        self.fuel = fuel;
        self
    }

    /// Calls the receptor and waits for its answer; what it burns is taken from this call's fuel.
    pub fn call(&self, input: &R::Input) -> Result<R::Output, CallError> {
        let request = encode(input).map_err(|_| CallError::InputTooLarge)?;
        let (status, reply) = host::call(self.cell, R::NAME, R::SCHEMA, &request, self.fuel.0);
        match Status::from_code(status) {
            Some(Status::Ok) => {
                let archived = cell_abi::schema::access::<R::Output>(&reply)
                    .map_err(|_| CallError::BadReply)?;
                cell_abi::schema::decode(archived).map_err(|_| CallError::BadReply)
            }
            Some(Status::Rejected) => {
                Err(Reject::decode(&reply).map_or(CallError::BadReply, CallError::Rejected))
            }
            Some(status) => {
                let message = String::from_utf8_lossy(&reply).into_owned();
                Err(CallError::Failed { status, message })
            }
            None => {
                let message = format!(
                    "the nucleus answered with status {status}, which this cell does not know"
                );
                Err(CallError::Failed { status: Status::HostFault, message })
            }
        }
    }
}

impl<R> Clone for Remote<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Remote<'_, R> {}

impl<R: Receptor> fmt::Debug for Remote<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("cell", &self.cell)
            .field("receptor", &R::NAME)
            .field("fuel", &self.fuel)
            .finish()
    }
}

/// Calls another cell with all the fuel that is left.
///
/// `call_as!(worker, WorkLoad { .. })` calls the receptor `worker` of the cell `worker`;
/// `call_as!("worker-2", worker, WorkLoad { .. })` names the cell.
/// The result is that of [`Remote::call`].
#[macro_export]
macro_rules! call_as {
    ($cell:literal, $($receptor:ident)::+, $input:expr $(,)?) => {
        $($receptor)::+::Remote::new($cell).call(&$input)
    };
    ($($receptor:ident)::+, $input:expr $(,)?) => {
        $($receptor)::+::Remote::namesake().call(&$input)
    };
}
