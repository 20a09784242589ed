//! What can go wrong for a handler, and how each becomes a reject when it is passed on with `?`.

use cell_abi::{Reject, Status};

/// Codes of the rejects that the SDK itself makes; a cell's own codes are better kept small.
pub mod reject_code {
    /// The JSON of the request does not fit the input type; the nucleus turns it into `BadRequest`.
    pub const BAD_JSON: u32 = u32::MAX;
    /// The handler's answer could not be written, because it is too large for its format.
    pub const BAD_ANSWER: u32 = u32::MAX - 1;
    /// A [`QuotaExceeded`](crate::QuotaExceeded) was passed on.
    pub const QUOTA_EXCEEDED: u32 = u32::MAX - 2;
    /// A [`NotThisType`](crate::NotThisType) was passed on.
    pub const NOT_THIS_TYPE: u32 = u32::MAX - 3;
    /// A [`CallError`](crate::CallError) other than a reject was passed on.
    pub const CALL_FAILED: u32 = u32::MAX - 4;
}

/// The cell's state would pass its quota (`state_mb_max`); nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cell's state would pass its quota")]
pub struct QuotaExceeded;

/// The value under a key is not of the type that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored value is not of the type that was asked for")]
pub struct NotThisType;

/// Why a call to another cell gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The other cell's handler said no.
    #[error(transparent)]
    Rejected(Reject),
    /// The call did not come to an answer.
    #[error("{}: {message}", status.describe())]
    Failed {
        /// How it ended.
        status: Status,
        /// More about it, for people.
        message: String,
    },
    /// The other cell's answer is not a valid value of the output type.
    #[error("the answer is not a valid value of the output type")]
    BadReply,
    /// The input could not be written, because it is too large for its format.
    #[error("the input is too large to be sent")]
    InputTooLarge,
}

impl From<QuotaExceeded> for Reject {
    fn from(error: QuotaExceeded) -> Self {
        Self::new(reject_code::QUOTA_EXCEEDED, error.to_string())
    }
}

impl From<NotThisType> for Reject {
    fn from(error: NotThisType) -> Self {
        Self::new(reject_code::NOT_THIS_TYPE, error.to_string())
    }
}

/// A reject of the other cell is passed on as it is.
impl From<CallError> for Reject {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Rejected(reject) => reject,
            other => Self::new(reject_code::CALL_FAILED, other.to_string()),
        }
    }
}
