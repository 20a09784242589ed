//! The daemon's limits, as rows of the one table.

cell_abi::limits! {
    crate::daemon {
        /// How long the worker may take to end its calls when the nucleus goes down.
        ///
        /// It is killed; what it did not report is not charged.
        DOWN_TIME_MAX: Duration;
    }
    crate::daemon::donation {
        /// How long a nucleus may hear nothing of the `cell donate` that lends it.
        ///
        /// The lending ends, as with `cell donate stop`. Where the machine cannot be looked at for as long, what
        /// runs for others waits.
        SILENCE_MAX: Duration;
        /// How long work for others may take to end when the lending ends, or memory or disk is short.
        ///
        /// It is killed, and nothing is charged for it.
        END_TIME_MAX: Duration;
    }
    crate::daemon::holds {
        /// Users' cells whose charges besides fuel are summed before they are rounded.
        ///
        /// Those of further ones are rounded down with each report.
        TOTALS_MAX: usize;
    }
    crate::daemon::gateway {
        /// Messages of the gateway that the nucleus has not dealt with.
        ///
        /// The gateway is ended, and another one starts.
        UNHEARD_MAX: usize;
        /// How long the gateway may leave a message of the nucleus unread.
        ///
        /// The gateway is ended, and another one starts.
        SEND_TIME_MAX: Duration;
    }
    crate::daemon::reach {
        /// Cells on other machines that are being reached at once.
        ///
        /// One more is not reached; calls of it go to the next machine that has it, or answer `Unreachable`.
        REACHED_AT_ONCE_MAX: usize;
        /// The same, for one worker.
        ///
        /// The same.
        REACHED_PER_WORKER_MAX: usize;
    }
    crate::daemon::ways {
        /// Connections to relays that are being opened.
        ///
        /// One more is not opened; whom it was to fetch is told by the relay that nobody came.
        DIALS_MAX: usize;
        /// Longest reason that is kept why this machine does not wait at a relay, in bytes.
        ///
        /// It is cut.
        WHY_BYTES_MAX: usize;
    }
    crate::daemon::jobs {
        /// Jobs of all other machines at once.
        ///
        /// One more is refused, with the reason.
        JOBS_MAX: usize;
        /// Jobs of one other machine at once.
        ///
        /// One more is refused, with the reason.
        JOBS_PER_PEER_MAX: usize;
        /// Jobs of machines that `cell peer add` has not named, at once; each of them may have one.
        ///
        /// One more is refused, with the reason.
        STRANGER_JOBS_MAX: usize;
        /// Sessions about channels, or about deposits of channels, of all other machines at once.
        ///
        /// One more is refused, with the reason.
        TELLERS_MAX: usize;
        /// The same of one other machine.
        ///
        /// One more is refused, with the reason.
        TELLERS_PER_PEER_MAX: usize;
        /// The same of all machines that `cell peer add` has not named; each of them may have one.
        ///
        /// One more is refused, with the reason.
        STRANGER_TELLERS_MAX: usize;
    }
    crate::daemon::own_log {
        /// Size of `nucleus.log`, in bytes.
        ///
        /// It is kept as `nucleus.log.1`, in place of the one before, and begun anew.
        LOG_BYTES_MAX: u64;
    }
    crate::daemon::control {
        /// Longest request at the control socket, in bytes.
        ///
        /// It is answered as one that is no request.
        REQUEST_BYTES_MAX: u64;
        /// Connections to the control socket.
        ///
        /// One more is closed at once.
        CONNECTIONS_MAX: usize;
        /// How long a connection to the control socket may be silent.
        ///
        /// It is closed.
        SILENCE_MAX: Duration;
        /// How long an asker waits for an answer; a deployment may have to compile first.
        ///
        /// It is answered that the nucleus did not answer in time.
        ANSWER_TIME_MAX: Duration;
    }
    crate::daemon::metrics {
        /// Longest head of a request for metrics, in bytes.
        ///
        /// It is answered with 431, and the connection is closed.
        REQUEST_BYTES_MAX: usize;
        /// Time in which a request for metrics must have come.
        ///
        /// It is answered with 408, and the connection is closed.
        REQUEST_TIME_MAX: Duration;
        /// Time in which an answer with metrics must have been taken.
        ///
        /// The connection is closed.
        ANSWER_TIME_MAX: Duration;
        /// How long the nucleus may take to say how the cells fare.
        ///
        /// The request is answered with 503.
        ASK_TIME_MAX: Duration;
        /// Bytes that a client may send after its request and that are thrown away.
        ///
        /// The connection is closed, and the answer may be lost with it.
        LEFTOVER_BYTES_MAX: usize;
        /// Connections at once to the socket for metrics, and as many to the port.
        ///
        /// One more is answered with 503, and closed.
        CONNECTIONS_MAX: usize;
    }
    crate::daemon::announce {
        /// Cells that a machine says it has for others.
        ///
        /// The rest are not announced; they can be called all the same.
        CELLS_TOLD_MAX: usize;
    }
    crate::daemon::cells {
        /// Largest log of a cell, in bytes; one older log is kept besides.
        ///
        /// It is moved aside, in place of the older one.
        LOG_BYTES_MAX: u64;
    }
    crate::daemon::artefacts {
        /// Artefacts that the nucleus keeps open.
        ///
        /// The oldest is closed, and verified again when it is needed.
        FILES_OPEN_MAX: usize;
    }
    crate::daemon::state {
        /// Files of cells' state that are open.
        ///
        /// The one that was used longest ago is closed, and opened again when it is needed.
        FILES_OPEN_MAX: usize;
    }
    crate::daemon::workers {
        /// Users besides the owner whose calls run at once, each in a worker of its own.
        ///
        /// A connection of one more is told `Busy`.
        FOREIGN_WORKERS_MAX: usize;
        /// The same, where one more would be another machine's: the rest is for users of this one.
        ///
        /// That machine is refused, with the reason.
        PEER_WORKERS_MAX: usize;
        /// The same, where that machine is not one that `cell peer add` named.
        ///
        /// That machine is refused, with the reason.
        STRANGER_WORKERS_MAX: usize;
        /// Accounts, its own and channels, from which one other machine pays for calls that run at once.
        ///
        /// That machine is refused, with the reason.
        ACCOUNTS_PER_PEER_MAX: usize;
        /// The same of a machine that `cell peer add` has not named.
        ///
        /// That machine is refused, with the reason.
        ACCOUNTS_PER_STRANGER_MAX: usize;
        /// Connections that may wait for a user's worker to start.
        ///
        /// One more is told `Busy`.
        CONNECTIONS_WAITING_MAX: usize;
        /// How long a worker may let a message to it wait.
        ///
        /// It is ended, and another one starts.
        SEND_TIME_MAX: Duration;
        /// Bytes of messages that a worker may have sent and the nucleus not heard.
        ///
        /// It is ended, and another one starts.
        UNHEARD_BYTES_MAX: usize;
        /// Longest wait before a worker that keeps dying is started again.
        ///
        /// Callers meanwhile cannot connect, or wait.
        DELAY_MAX: Duration;
    }
}
