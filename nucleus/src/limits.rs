//! The one table of limits: every room's rows, and those of the nucleus' own files.
//!
//! `cell inspect --limits` prints it, and `docs/SECURITY.md` shows it.

use cell_abi::Limit;

cell_abi::limits! {
    crate::config {
        /// Relays that `peers.through` names.
        ///
        /// The nucleus does not start.
        RELAYS_MAX: usize;
        /// Largest `nucleus.toml`, in bytes.
        ///
        /// The nucleus does not start.
        FILE_BYTES_MAX: u64;
    }
    crate::audit::check {
        /// Longest line of a file in an audit bundle, in bytes.
        ///
        /// It is named as a problem.
        LINE_BYTES_MAX: usize;
        /// Problems of an audit bundle that are told: one wrong bit may break all that comes after it.
        ///
        /// The rest are not told.
        PROBLEMS_TOLD_MAX: usize;
    }
    crate::audit::archive {
        /// Longest name of a file in an audit bundle, in bytes.
        ///
        /// The bundle is not written, or its structure is named as a problem.
        NAME_BYTES_MAX: usize;
    }
    crate::bank {
        /// How long a job or a compilation tries to pay when the ledger does not answer.
        ///
        /// It fails, and nothing is charged unless the lost answer was a yes.
        SETTLE_TIME_MAX: Duration;
    }
    crate::bank::shared {
        /// How long a nucleus or a `cell run` may not be heard of by a ledger that it shares.
        ///
        /// Its holds are void, and nothing that it asks for is applied any more: it ends.
        SESSION_SILENT_MAX: Duration;
    }
    crate::link {
        /// Largest message between the nucleus and its processes, in bytes.
        ///
        /// It is not sent: the nucleus or its worker ends with an error.
        PACKET_BYTES_MAX: usize;
        /// Most descriptors beside one such message.
        ///
        /// It is not sent.
        FDS_MAX: usize;
    }
    crate::link::gateway {
        /// How long the nucleus tries to connect to a relay.
        ///
        /// It is tried again later.
        DIAL_TIME_MAX: Duration;
        /// How long connecting to a machine that has a cell may take, and then asking it for that.
        ///
        /// Calls of that cell go to the next machine that has it, or answer `Unreachable`.
        REACH_TIME_MAX: Duration;
    }
    crate::link::state {
        /// Longest message about a cell's state between the nucleus and a worker, in bytes.
        ///
        /// The stream is closed, and the worker ends.
        MESSAGE_BYTES_MAX: u64;
        /// Room that such a stream keeps for its next message, in bytes.
        ///
        /// What a longer one took is given back.
        BUFFER_BYTES_KEPT_MAX: usize;
    }
    crate::walls::cgroup {
        /// Threads of a worker, where the nucleus has a control group of its own.
        ///
        /// Starting one more fails.
        TASKS_MAX: u64;
        /// Memory of a worker's control group besides its guests', in bytes.
        ///
        /// The kernel ends the worker, and another one starts.
        OWN_BYTES_MAX: u64;
    }
    crate::config {
        /// Linear memory and tables of all instances of a worker together, in MiB.
        ///
        /// `memory.grow` past it gives the guest -1; a call that needs a new instance answers `Busy`.
        ///
        /// Changed in `nucleus.toml`: `worker.memory_mb_max`, 64 to 1,048,576.
        MEMORY_MB_MAX: u64;
    }
    crate::config {
        /// Leaves, requests and tapes of calls that get receipts, in MiB.
        ///
        /// The oldest are dropped, and their calls cannot be checked any more; receipts stay.
        ///
        /// Changed in `nucleus.toml`: `receipts.kept_mb_max`, 1 to 1,048,576.
        KEPT_MB_MAX: u64;
    }
    crate::config {
        /// Places where a machine says that it is there.
        ///
        /// The nucleus does not start.
        ANNOUNCE_MAX: usize;
        /// Addresses that a machine says it has.
        ///
        /// The nucleus does not start.
        ADDRESSES_MAX: usize;
    }
    crate::peers {
        /// Other machines that a home may know.
        ///
        /// `cell peer add` refuses one more.
        PEERS_MAX: usize;
        /// Largest `peers.toml`, in bytes.
        ///
        /// Nobody is served who is not known otherwise, and commands that need it fail.
        FILE_BYTES_MAX: u64;
    }
    crate::found {
        /// Largest `nodes.jsonl`, in bytes.
        ///
        /// More machines that were found are not kept.
        NODES_BYTES_MAX: usize;
    }
    crate::reputation {
        /// Largest `reputation.json`, in bytes.
        ///
        /// `cell run --on any`, checks and replicas fail until it is removed.
        FILE_BYTES_MAX: u64;
        /// Engines of one machine whose results are told apart.
        ///
        /// The one that was used longest ago is forgotten.
        ENGINES_MAX: usize;
        /// Longest text about a machine's last problem, in characters.
        ///
        /// The rest is not kept.
        PROBLEM_CHARACTERS_MAX: usize;
    }
    crate::prices {
        /// Highest price of a unit in `nucleus.toml`, in ATP.
        ///
        /// The nucleus does not start, and `cell run` refuses.
        PRICE_ATP_MAX: u64;
    }
    crate::config {
        /// Memory of a job of another machine, in MiB.
        ///
        /// It is refused, with the reason.
        ///
        /// Changed in `nucleus.toml`: `peers.job_memory_mb_max`, 1 to 4096.
        JOB_MEMORY_MB_MAX: u32;
        /// How long such a job may take, in seconds.
        ///
        /// It ends as one that timed out, and pays for what it did.
        ///
        /// Changed in `nucleus.toml`: `peers.job_s_max`, 1 to 80,000.
        JOB_S_MAX: u64;
    }
    crate::link::records {
        /// Calls of one user and one cell that keeps receipts, between two reports to the nucleus.
        ///
        /// One more answers `Busy`.
        PENDING_MAX: usize;
        /// Requests and tapes of one user's calls of such cells, between two reports, in bytes.
        ///
        /// The call is billed and gets its leaf, which says that it cannot be checked.
        BODIES_BYTES_MAX: usize;
        /// One such report, in bytes.
        ///
        /// Its calls are not charged.
        RECORDS_BYTES_MAX: u64;
    }
    crate::toolchain {
        /// Longest `rustup target add` of `cell build`, in seconds.
        ///
        /// It is ended, and Debian's packages are tried.
        RUSTUP_S_MAX: u64;
        /// Most of a tool's complaint that is shown, in bytes.
        ///
        /// The rest is not shown.
        COMPLAINT_BYTES_MAX: u64;
    }
}

/// Every limit of the product, by room.
pub(crate) fn all() -> impl Iterator<Item = &'static Limit> {
    [
        cell_abi::limits::LIMITS,
        cell_host::gate::limits::LIMITS,
        crate::compile::LIMITS,
        cell_host::artefact::LIMITS,
        cell_host::limits::LIMITS,
        cell_host::WASI_LIMITS,
        cell_host::tape::LIMITS,
        crate::worker::limits::LIMITS,
        crate::manifest::LIMITS,
        crate::daemon::limits::LIMITS,
        LIMITS,
        crate::cli::LIMITS,
        crate::cli::remote::LIMITS,
        crate::cli::channel::LIMITS,
        crate::gateway::LIMITS,
        cell_peer::LIMITS,
        cell_channel::LIMITS,
        cell_discovery::LIMITS,
        cell_donor::LIMITS,
        cell_client::LIMITS,
    ]
    .into_iter()
    .flatten()
}
