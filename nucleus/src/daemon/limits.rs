//! The daemon's limits, as rows of the one table.

cell_abi::limits! {
    crate::daemon {
        /// How long the worker may take to end its calls when the nucleus goes down.
        ///
        /// It is killed; what it did not report is not charged.
        DOWN_TIME_MAX: Duration;
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
    crate::daemon::cells {
        /// Largest log of a cell, in bytes; one older log is kept besides.
        ///
        /// It is moved aside, in place of the older one.
        LOG_BYTES_MAX: u64;
    }
    crate::daemon::supervisor {
        /// Longest wait before a worker that keeps dying is started again.
        ///
        /// Callers meanwhile cannot connect, or wait.
        DELAY_MAX: Duration;
    }
}
