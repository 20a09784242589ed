//! This crate's limits, as rows of the one table.

cell_abi::limits! {
    crate::escrow {
        /// How often a channel may be claimed from, or asked to close, at its ledger.
        ///
        /// Further claims are refused: each takes a row of the journal for ever.
        CLAIMS_MAX: u64;
    }
    crate::payee {
        /// How long a channel may last, its time for disputes included, in seconds.
        ///
        /// The payee does not accept it: what is set aside would be out of reach for longer.
        LIFE_S_MAX: u64;
        /// Longest memo of a payment in a receipt's account, in bytes.
        ///
        /// The payer does not take the receipt.
        LEAF_MEMO_BYTES_MAX: usize;
    }
}
