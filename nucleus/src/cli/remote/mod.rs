//! Jobs on other machines: `cell run --on`, and the process that runs one for somebody else.
//!
//! Both ends speak [`wire`] over a session's socket. What a job costs is paid by the account of who sent it,
//! in the ledger of the machine that runs it.

pub(crate) mod ask;
mod modules;
pub(crate) mod serve;
mod wire;

pub(crate) use limits::LIMITS;

mod limits {
    //! This room's limits, as rows of the one table.

    cell_abi::limits! {
        crate::cli::remote::wire {
            /// Longest frame of a job that is sent to another machine, in bytes.
            ///
            /// The connection is closed; more bytes become more frames.
            FRAME_BYTES_MAX: usize;
            /// Most bytes of arguments, variables and the rest that such a job is described with.
            ///
            /// `cell run --on` refuses; the other machine closes the connection.
            SPEC_BYTES_MAX: usize;
            /// Longest receipt of such a job, in bytes.
            ///
            /// It is not taken; the job is paid all the same, and its machine's ledger says so.
            RECEIPT_BYTES_MAX: usize;
        }
        crate::cli::remote::ask {
            /// How long it may take `cell run --on` to be connected.
            ///
            /// It fails, and nothing was sent.
            DIAL_TIME_MAX: Duration;
        }
        crate::cli::remote::serve {
            /// How long a machine waits for a job to be described, and for each part of its module.
            ///
            /// The connection is closed, and nothing is charged.
            SILENCE_MAX: Duration;
            /// How long the description and the module may take to come; and, when the job has ended, its last
            /// output and its receipt to go.
            ///
            /// The connection is closed; a job that has not begun is not charged.
            TRANSFER_TIME_MAX: Duration;
            /// How long such a job may take to end when its time is over.
            ///
            /// It is killed, and nothing is charged.
            STOP_TIME_MAX: Duration;
        }
        crate::cli::remote::modules {
            /// Modules of other machines that are kept for their next job, with what they were compiled to, in
            /// bytes.
            ///
            /// Those that were used longest ago are dropped, and sent again when they are needed.
            MODULES_BYTES_MAX: u64;
            /// How many of them are kept.
            ///
            /// The same.
            MODULES_MAX: usize;
        }
    }
}
