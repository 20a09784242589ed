//! What the host program does for guests: finding other cells and keeping logs.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use cell_abi::{CellName, Status};

use crate::elsewhere::Callee;

/// How serious a log record is; the numbers are those of the guest ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LogLevel {
    /// Something failed.
    Error = 1,
    /// Something may fail.
    Warn = 2,
    /// Something happened.
    Info = 3,
    /// For the cell's author.
    Debug = 4,
}

impl LogLevel {
    /// The level a guest named; unknown numbers are `Debug`.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Error,
            2 => Self::Warn,
            3 => Self::Info,
            _ => Self::Debug,
        }
    }
}

/// A cell that is looked for: it may have to be loaded first.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = Result<Callee, Status>> + Send + 'a>>;

/// Implemented by the program that embeds the sandbox.
///
/// Its methods are called from within guests' host calls: they must not block.
pub trait Services: Debug + Send + Sync + 'static {
    /// The cell with this name, or the status its caller gets.
    fn resolve<'a>(&'a self, name: &'a CellName) -> Resolving<'a>;

    /// Destroys idle instances of other cells, because a cell needs one and there is no slot or no
    /// memory for it; `false` if there is none to destroy.
    ///
    /// For a cell's `first` instance more may go than for one more beside others: a cell that takes
    /// every slot must not take its neighbours' last ones.
    fn make_room(&self, first: bool) -> bool {
        let _ = first;
        false
    }

    /// Takes one line of a cell's log: at most `LOG_LINE_BYTES_MAX` bytes, unescaped, no newline.
    fn log(&self, cell: &CellName, level: LogLevel, line: &[u8]);
}

/// Services of a program that has neither other cells nor logs.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoServices;

impl Services for NoServices {
    fn resolve<'a>(&'a self, _name: &'a CellName) -> Resolving<'a> {
        Box::pin(std::future::ready(Err(Status::UnknownCell)))
    }

    fn log(&self, _cell: &CellName, _level: LogLevel, _line: &[u8]) {}
}
