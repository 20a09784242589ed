//! What each dimension of a bill costs.

use std::collections::BTreeMap;

use cell_ledger::receipts::{FUEL, Rate};

/// The rate card of calls.
pub(crate) fn of_calls() -> BTreeMap<String, Rate> {
    BTreeMap::from([(FUEL.to_owned(), Rate { nano_atp: 1, per: 1 })])
}
