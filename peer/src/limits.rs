//! This crate's limits, as rows of the one table.

cell_abi::limits! {
    crate::handshake {
        /// Longest message of a handshake between machines, in bytes.
        ///
        /// The connection is closed.
        HANDSHAKE_BYTES_MAX: usize;
    }
    crate::records {
        /// Longest record of a session between machines, in bytes.
        ///
        /// None longer can be announced; more bytes become more records.
        RECORD_BYTES_MAX: usize;
    }
    crate::session {
        /// Bytes of content in such a record.
        ///
        /// More become more records.
        CONTENT_BYTES_MAX: usize;
    }
    crate::request {
        /// Longest reason that a machine gives another for a refusal, in bytes.
        ///
        /// It is cut; a longer one that comes is no answer.
        REASON_BYTES_MAX: usize;
    }
    crate::wait {
        /// How long one side of a session, or of a connection that is passed on, may be silent when the other has ended, in seconds.
        ///
        /// The session is closed.
        LINGER_S_MAX: i64;
    }
    crate::splice {
        /// Bytes of one of two connected machines that wait at a relay until the other takes them.
        ///
        /// No more are read from it until then.
        SPLICE_BYTES_MAX: usize;
    }
    crate::credentials {
        /// How long the identity's word for a key of sessions holds, in seconds.
        ///
        /// Nobody believes it any more.
        VALID_S_MAX: u64;
        /// How far the clocks of two machines may be apart, in seconds.
        ///
        /// The proof of one has expired for the other.
        CLOCKS_APART_S_MAX: u64;
    }
}
