//! Exit codes, and errors that carry one.

use std::fmt;
use std::process::ExitCode;

use cell_abi::{Fault, Status};

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    OutOfAtp,
    Trapped,
    TimedOut,
    NucleusFault,
    Refused,
    /// A job's own code.
    Job(u8),
}

impl Exit {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::OutOfAtp => 122,
            Self::Trapped => 123,
            Self::TimedOut => 124,
            Self::NucleusFault => 125,
            Self::Refused => 126,
            Self::Job(code) => code,
        }
    }

    /// The code for a call or job that ended with this status.
    pub(crate) const fn of_status(status: Status) -> Self {
        match status {
            Status::Ok => Self::Done,
            Status::OutOfAtp | Status::OutOfFuel => Self::OutOfAtp,
            Status::Trapped | Status::Exited | Status::OverLimit | Status::BadReply => {
                Self::Trapped
            }
            Status::TimedOut => Self::TimedOut,
            Status::Rejected => Self::Failed,
            _ => match status.fault() {
                Fault::Host => Self::NucleusFault,
                Fault::Policy => Self::Refused,
                _ => Self::Failed,
            },
        }
    }

    /// The code an error asks for, or 1.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        error.downcast_ref::<Failure>().map_or(Self::Failed, |failure| failure.exit)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error with an exit code of its own.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
