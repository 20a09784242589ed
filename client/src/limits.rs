//! The client's limits, as rows of the table that `cell inspect --limits` prints.

cell_abi::limits! {
    crate::options {
        /// Requests under way on one connection, counting replies that nobody took yet.
        ///
        /// One more is refused with `WindowFull` by the blocking client, and waits in the async one.
        CALLS_IN_FLIGHT_MAX: usize;
    }
    crate::outbox {
        /// Payloads up to this size are copied behind their header, in bytes.
        ///
        /// A larger one is written from where it lies.
        COPY_BYTES_MAX: usize;
        /// Unsent bytes of one connection.
        ///
        /// Nothing is added before some of them are gone.
        UNSENT_BYTES_MAX: usize;
        /// Largest send buffer that is kept when it is empty, in bytes.
        ///
        /// A larger one is given back.
        KEPT_BYTES_MAX: usize;
    }
    crate::inbox {
        /// Payload buffers that came back and are kept, in bytes together.
        ///
        /// More are given back.
        SPARE_BYTES_MAX: usize;
    }
    crate::blocking {
        /// Largest buffer for encoded requests that is kept, in bytes.
        ///
        /// A larger one is given back.
        SCRATCH_BYTES_MAX: usize;
    }
    crate::ring {
        /// Bytes that shared memory holds in each direction.
        ///
        /// Who writes more waits until the other side has read some.
        RING_BYTES: usize;
    }
    crate::ring::spin {
        /// Longest time a side looks for its peer's bytes in shared memory.
        ///
        /// It sleeps until the peer wakes it.
        SPIN_TIME_MAX: Duration;
    }
    crate::link {
        /// Longest timeout that is asked of the system.
        ///
        /// A longer one is a wait without an end.
        SOCKET_TIMEOUT_MAX: Duration;
    }
}

/// The async client's row.
#[cfg(feature = "tokio")]
pub(crate) mod asynchronous {
    cell_abi::limits! {
        crate::tokio {
            /// Requests and cancels that may wait to be written: four for each call in flight.
            ///
            /// One more waits for its turn.
            QUEUE_MAX: usize;
        }
    }
}
