//! Cells that another machine runs, as the embedding program offers them to the cells here.
//!
//! How that machine is reached, and which one of several, is not known here.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use cell_abi::{CellName, Fuel, Status};

use crate::cell::Cell;

/// Implemented by the program that embeds the sandbox, for each cell that another machine runs.
pub trait RemoteCell: Debug + Send + Sync + 'static {
    /// What the cell is called here.
    fn name(&self) -> &CellName;

    /// Has it answer a call. A future that is dropped gives the call up; one that was sent, as
    /// [`RemoteCall::sent`] says, then costs all of its limit: nobody here knows how much of that was burned.
    fn call<'a>(&'a self, call: RemoteCall<'a>) -> Asking<'a>;
}

/// A call that another machine answers.
pub type Asking<'a> = Pin<Box<dyn Future<Output = RemoteReply> + Send + 'a>>;

/// What is asked of a cell on another machine.
#[derive(Debug)]
#[non_exhaustive]
pub struct RemoteCall<'a> {
    /// The receptor, as the calling cell wrote it.
    pub receptor: &'a str,
    /// The receptor's schema that the calling cell was built against; empty if it takes any.
    pub schema: &'a str,
    /// The request's bytes.
    pub request: Vec<u8>,
    /// The most it may cost.
    pub fuel: Fuel,
    /// When the calling cell's own time is over.
    pub deadline: Instant,
    pub(crate) stake: Stake,
}

impl<'a> RemoteCall<'a> {
    /// A call that no cell of this sandbox makes.
    pub fn new(
        receptor: &'a str,
        schema: &'a str,
        request: Vec<u8>,
        fuel: Fuel,
        deadline: Instant,
    ) -> Self {
        Self { receptor, schema, request, fuel, deadline, stake: Stake::default() }
    }

    /// From now on the other machine may have it.
    pub fn sent(&self) {
        self.stake.0.store(self.fuel.0, Relaxed);
    }

    /// The other machine has done nothing for it, and will not.
    pub fn refused(&self) {
        self.stake.0.store(0, Relaxed);
    }
}

/// What a call costs that is given up now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stake(Arc<AtomicU64>);

impl Stake {
    pub(crate) fn at_stake(&self) -> Fuel {
        Fuel(self.0.load(Relaxed))
    }
}

/// What came of it.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "made outside, and complete")]
pub struct RemoteReply {
    /// How it ended.
    pub status: Status,
    /// What it cost; of more than the limit only the limit counts.
    pub fuel: Fuel,
    /// The reply, or what the status alone does not say.
    pub bytes: Vec<u8>,
}

/// A cell that another cell calls.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_enums, reason = "a cell is here or it is not")]
pub enum Callee {
    /// It runs in this sandbox.
    Here(Arc<Cell>),
    /// Another machine runs it.
    Elsewhere(Arc<dyn RemoteCell>),
}

impl Callee {
    /// What it is called here.
    pub fn name(&self) -> &CellName {
        match self {
            Self::Here(cell) => cell.name(),
            Self::Elsewhere(cell) => cell.name(),
        }
    }

    /// Whether its calls are recorded here.
    pub fn is_recorded(&self) -> bool {
        match self {
            Self::Here(cell) => cell.options().receipts,
            Self::Elsewhere(_) => false,
        }
    }

    /// Whether both are one cell, and one generation of its code.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Here(a), Self::Here(b)) => Arc::ptr_eq(a, b),
            (Self::Elsewhere(a), Self::Elsewhere(b)) => a.name() == b.name(),
            _ => false,
        }
    }
}
