//! This crate's limits, as rows of the one table.

cell_abi::limits! {
    crate::record {
        /// Longest record of a machine, in bytes.
        ///
        /// It is refused; in a rendezvous, its line is skipped.
        RECORD_BYTES_MAX: usize;
        /// Addresses that a machine has in its record.
        ///
        /// A record with more is refused; of a neighbour, the others are left out.
        ADDRESSES_MAX: usize;
        /// Cells that a machine names in its record.
        ///
        /// A record with more is refused.
        CELLS_MAX: usize;
        /// Dimensions that a machine's record has prices for.
        ///
        /// A record with more is refused.
        RATES_MAX: usize;
        /// Ledgers in which a machine can be paid.
        ///
        /// A record with more is refused.
        LEDGERS_MAX: usize;
        /// How long a machine's record holds, in seconds.
        ///
        /// One that says longer is refused.
        VALID_S_MAX: u64;
        /// How far the clocks of a record's writer and reader may be apart, in seconds.
        ///
        /// The record has expired, or is from the future.
        CLOCKS_APART_S_MAX: u64;
    }
    crate::address {
        /// Longest HOST:PORT in a record, in bytes, without a relay's key.
        ///
        /// A record with a longer one is refused.
        ADDRESS_BYTES_MAX: usize;
    }
    crate::directory {
        /// Machines in a directory.
        ///
        /// The one whose record expires first makes room; the new one, if that is it.
        RECORDS_MAX: usize;
    }
    crate::rendezvous {
        /// Largest rendezvous, in bytes.
        ///
        /// It is not read, and nothing more is published there.
        FILE_BYTES_MAX: u64;
    }
    crate::web {
        /// How long reading a rendezvous on the web may take.
        ///
        /// It is not read.
        FETCH_TIME_MAX: Duration;
        /// How often the server of a rendezvous may send elsewhere.
        ///
        /// It is not read.
        REDIRECTS_MAX: u32;
        /// Longest header of such a server's answer, in bytes.
        ///
        /// It is not read.
        HEADER_BYTES_MAX: usize;
    }
    crate::lan {
        /// Machines that one look into the local network finds.
        ///
        /// The search ends with these.
        LAN_NODES_MAX: usize;
    }
}
