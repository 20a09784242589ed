//! The worker's limits, as rows of the one table.

cell_abi::limits! {
    crate::worker {
        /// Instances alive at once in a worker; each reserves 4 GiB of addresses.
        ///
        /// A call that needs one more answers `Busy`.
        INSTANCES_MAX: u32;
        /// Largest memory of an instance that the worker has room for, in bytes.
        ///
        /// A cell that starts with more does not start.
        MEMORY_BYTES_MAX: usize;
        /// Private memory of a worker besides twice its guests', in bytes: stacks, tables, buffers.
        ///
        /// Allocating more fails: the worker ends, its callers are disconnected, another one starts.
        OWN_BYTES_MAX: u64;
        /// How long calls in flight may take to end when the nucleus goes down.
        ///
        /// They are ended; what they burned is not charged.
        DRAIN_TIME_MAX: Duration;
    }
    crate::worker::elsewhere::choice {
        /// How long a machine rests at most that failed to answer calls of cells here.
        ///
        /// Calls go to the other machines that have the cell, or answer `Unreachable`.
        REST_MAX: Duration;
    }
    crate::worker::elsewhere {
        /// How long a machine may leave a call of a cell here unanswered before it is asked whether it is there;
        /// how long it may take to say so, or to open a receptor.
        ///
        /// The call answers `Unreachable`, the next one comes over another connection, and the machine rests.
        SILENCE_MAX: Duration;
        /// Receptors that are open on one connection to such a machine.
        ///
        /// The next call comes over another connection.
        OPEN_MAX: usize;
    }
    crate::worker::event_loop {
        /// Connections of all clients together.
        ///
        /// One more is closed at once.
        CONNECTIONS_MAX: usize;
    }
    crate::worker::connection {
        /// Call frames up to this size wait in a buffer until they are complete, in bytes.
        ///
        /// A larger one is read straight into the guest's mailbox.
        BUFFERED_BYTES_MAX: usize;
        /// Calls one connection may have in flight.
        ///
        /// Its socket is not read until one of them ends.
        CALLS_IN_FLIGHT_MAX: usize;
        /// Reply bytes that may wait for a client that reads slowly.
        ///
        /// Its socket is not read until it has taken some.
        UNSENT_BYTES_MAX: usize;
        /// Time a client has to say hello.
        ///
        /// The connection is closed.
        HELLO_TIME_MAX: Duration;
        /// Time without progress in the middle of a frame, either way.
        ///
        /// The connection is closed, and its calls are cancelled.
        STALL_TIME_MAX: Duration;
        /// Time a large reply may take to be sent: it keeps its instance for so long.
        ///
        /// The connection is closed.
        SEND_TIME_MAX: Duration;
    }
    crate::worker::slots {
        /// Receptors one connection may have open.
        ///
        /// One more `open` is refused with `Busy`.
        SLOTS_MAX: usize;
    }
    crate::worker::unsent {
        /// Replies up to this size are copied to be sent together, in bytes.
        ///
        /// A larger one goes straight from the guest's memory.
        COPIED_REPLY_BYTES_MAX: usize;
        /// How long a large reply stays in its instance while its client reads slowly.
        ///
        /// It is copied, and the instance is free for other calls.
        IN_INSTANCE_TIME_MAX: Duration;
        /// Bytes of slow readers' replies copied so, all connections together.
        ///
        /// A reply that finds no room keeps its instance, until it is sent or `SEND_TIME_MAX` is over.
        MOVED_BYTES_MAX: usize;
    }
    crate::worker::wire {
        /// Memory shared with clients, of all connections together, in bytes.
        ///
        /// A client that asks for more is served through its socket.
        SHARED_BYTES_MAX: usize;
    }
    crate::worker::purse {
        /// Calls that one user may have in flight, over all connections.
        ///
        /// One more answers `Busy`.
        CALLS_PER_USER_MAX: usize;
        /// The most that is set aside for a user ahead of need, in fuel: 20 ATP.
        ///
        /// More is asked for when it is needed.
        AHEAD_MAX: u64;
    }
    crate::worker::log {
        /// Bytes of records that wait for a log's file to be opened.
        ///
        /// Records beyond it are dropped, and the log says how many.
        WAITING_BYTES_MAX: usize;
        /// Bytes a cell may log per second, over time.
        ///
        /// Records beyond it are dropped, and the log says how many.
        BYTES_PER_S_MAX: u64;
        /// Bytes a cell may log at once after a silence.
        ///
        /// Records beyond it are dropped, and the log says how many.
        BURST_BYTES_MAX: u64;
    }
    crate::worker::times {
        /// Longest time of a call that is told apart, in microseconds: an hour.
        ///
        /// A longer one counts as this in `cell ps`.
        TIME_US_MAX: u64;
    }
    crate::worker::cells {
        /// Characters of a cell's last error that `cell ps` shows.
        ///
        /// The rest is cut.
        LAST_ERROR_CHARS_MAX: usize;
    }
}
