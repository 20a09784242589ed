//! Writes receipts for calls of cells that keep them.
//!
//! A receipt is on the disk before its calls are paid: a payer may hold a receipt for more than it paid,
//! never the other way round.

use cell_abi::{AccountId, CellHash};
use cell_host::rates::Dimension;
use cell_host::{Rates, Sandbox};
use cell_ledger::ContentHash;
use cell_ledger::receipts::{
    Counters, FUEL, KeptCall, Leaf, Receipt, ReceiptStore, StoreError, Terms,
};
use ed25519_dalek::SigningKey;

use crate::home::Home;
use crate::link::records::Record;
use crate::prices::rates_of;

/// Signs receipts, and keeps them.
pub(super) struct Book {
    key: SigningKey,
    home: Home,
    bytes_max: u64,
    rates: Rates,
    /// Open once a cell keeps receipts.
    store: Option<ReceiptStore>,
}

impl Book {
    pub(super) fn new(home: &Home, bytes_max: u64, rates: Rates) -> anyhow::Result<Self> {
        Ok(Self { key: home.key()?, home: home.clone(), bytes_max, rates, store: None })
    }

    pub(super) const fn key(&self) -> &SigningKey {
        &self.key
    }

    pub(super) const fn rates(&self) -> Rates {
        self.rates
    }

    /// Signs and keeps a receipt for these calls; returns what they cost, in nano-ATP.
    pub(super) fn issue(
        &mut self,
        payer: AccountId,
        (cell, payee): (&str, AccountId),
        records: Vec<Record>,
    ) -> anyhow::Result<u64> {
        let terms = Terms {
            payer,
            cell: cell.to_owned(),
            payee,
            engine_id: Sandbox::engine_id(),
            rates: rates_of(self.rates),
        };
        let store = open(&mut self.store, &self.home, self.bytes_max)?;
        let last = store.last(&terms)?;
        let first_call = last.as_ref().map_or(1, |last| last.last_call + 1);
        let calls: Vec<_> = (first_call..)
            .zip(records)
            .map(|(call, record)| kept(call, record, self.rates))
            .collect();
        let leaves: Vec<_> = calls.iter().map(|call| call.leaf.clone()).collect();
        let receipt = Receipt::issue(&terms, last.as_ref(), &leaves, &self.key)?;
        store.append(&receipt, &calls)?;
        let before = last.map_or(0, |last| last.charge_nano_atp);
        Ok(receipt.charge_nano_atp.saturating_sub(before))
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

fn kept(call: u64, record: Record, rates: Rates) -> KeptCall {
    let not_kept = || (record.input.is_none() || record.tape.is_none()).then(|| "not_kept".into());
    let mut billed = Counters::from([(FUEL.to_owned(), record.own_fuel)]);
    for (dimension, count) in Dimension::ALL.into_iter().zip(record.taken) {
        if count > 0 && rates.of(dimension) > 0 {
            billed.insert(dimension.name().to_owned(), count);
        }
    }
    let leaf = Leaf {
        call,
        cell_hash: CellHash::from_bytes(record.cell_hash),
        receptor: record.receptor,
        json: record.json,
        memory_bytes_max: record.memory_bytes_max,
        state_bytes_max: record.state_bytes_max,
        fuel_max: record.fuel_max,
        fuel: record.fuel,
        billed,
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
