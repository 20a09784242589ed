//! Writes receipts for calls of cells that keep them.
//!
//! A receipt is on the disk before its calls are paid: a payer may hold a receipt for more than it paid,
//! never the other way round.

use std::collections::BTreeMap;

use cell_abi::{AccountId, CellHash};
use cell_host::Sandbox;
use cell_ledger::ContentHash;
use cell_ledger::receipts::{
    Counters, FUEL, KeptCall, Leaf, Rate, Receipt, ReceiptStore, StoreError, Terms,
};
use ed25519_dalek::SigningKey;

use crate::home::Home;
use crate::link::records::Record;

/// Signs receipts, and keeps them.
pub(super) struct Book {
    key: SigningKey,
    home: Home,
    bytes_max: u64,
    /// Open once a cell keeps receipts.
    store: Option<ReceiptStore>,
}

impl Book {
    pub(super) fn new(home: &Home, bytes_max: u64) -> anyhow::Result<Self> {
        Ok(Self { key: home.key()?, home: home.clone(), bytes_max, store: None })
    }

    pub(super) const fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Signs and keeps a receipt for these calls.
    pub(super) fn issue(
        &mut self,
        payer: AccountId,
        (cell, payee): (&str, AccountId),
        records: Vec<Record>,
    ) -> anyhow::Result<()> {
        let terms = Terms {
            payer,
            cell: cell.to_owned(),
            payee,
            engine_id: Sandbox::engine_id(),
            rates: BTreeMap::from([(FUEL.to_owned(), Rate { nano_atp: 1, per: 1 })]),
        };
        let store = open(&mut self.store, &self.home, self.bytes_max)?;
        let last = store.last(&terms)?;
        let first_call = last.as_ref().map_or(1, |last| last.last_call + 1);
        let calls: Vec<_> =
            (first_call..).zip(records).map(|(call, record)| kept(call, record)).collect();
        let leaves: Vec<_> = calls.iter().map(|call| call.leaf.clone()).collect();
        let receipt = Receipt::issue(&terms, last.as_ref(), &leaves, &self.key)?;
        Ok(store.append(&receipt, &calls)?)
    }
}

fn open<'a>(
    store: &'a mut Option<ReceiptStore>,
    home: &Home,
    bytes_max: u64,
) -> Result<&'a mut ReceiptStore, StoreError> {
    match store {
        Some(store) => Ok(store),
        None => Ok(store.insert(ReceiptStore::open(&home.receipts(), bytes_max)?)),
    }
}

fn kept(call: u64, record: Record) -> KeptCall {
    let not_kept = || (record.input.is_none() || record.tape.is_none()).then(|| "not_kept".into());
    let leaf = Leaf {
        call,
        cell_hash: CellHash::from_bytes(record.cell_hash),
        receptor: record.receptor,
        json: record.json,
        memory_bytes_max: record.memory_bytes_max,
        state_bytes_max: record.state_bytes_max,
        fuel_max: record.fuel_max,
        fuel: record.fuel,
        billed: Counters::from([(FUEL.to_owned(), record.own_fuel)]),
        status: record.status,
        input_bytes: record.input_bytes,
        input_hash: ContentHash::from_bytes(record.input_hash),
        output_bytes: record.output_bytes,
        output_hash: ContentHash::from_bytes(record.output_hash),
        tape_bytes: record.tape_bytes,
        tape_hash: ContentHash::from_bytes(record.tape_hash),
        not_checkable: record.flaw.clone().or_else(not_kept),
    };
    KeptCall { leaf, input: record.input, tape: record.tape }
}
