//! Random commands on both stores: the same answers, the same books, and books that add up after every batch.

use cell_abi::AccountId;
use proptest::prelude::*;

use crate::conformance::{ISSUER, hold, settle, transfer};
use crate::{Command, Hold, LedgerStore, MemoryStore, SessionId, SqliteStore};

/// Few accounts, ids and amounts, so that sequences meet each other: conflicts, repetitions, empty accounts.
fn account() -> impl Strategy<Value = AccountId> {
    (0_u8..4).prop_map(|byte| AccountId::from_bytes([byte; 32]))
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..100, 1 => Just(i64::MAX as u64), 1 => Just(u64::MAX)]
}

fn session(number: u8) -> SessionId {
    SessionId::derive("session", &[&[number]])
}

fn any_hold() -> impl Strategy<Value = Command> {
    (0_u64..12, account(), amount(), 0_u64..40, 0_u8..3, 1_000_u64..1_050).prop_map(
        |(number, account, amount, amount_min, in_session, expires_ms)| match hold(
            number, account, amount, amount_min,
        ) {
            Command::Hold(hold) => {
                Command::Hold(Hold { session: session(in_session), expires_ms, ..hold })
            }
            other => other,
        },
    )
}

fn command() -> impl Strategy<Value = Command> {
    let payments = prop::collection::vec((0_u64..40, account(), 0_u64..30), 0..3);
    prop_oneof![
        3 => (0_u64..40, account(), amount()).prop_map(|(number, credit, amount)| transfer(number, ISSUER, credit, amount)),
        4 => (0_u64..40, account(), account(), amount())
            .prop_map(|(number, debit, credit, amount)| transfer(number, debit, credit, amount)),
        5 => any_hold(),
        5 => (0_u64..12, payments, prop::option::of(any_hold()))
            .prop_map(|(number, payments, next)| settle(number, &payments, next)),
        1 => (0_u64..12).prop_map(|number| Command::Void { hold: crate::conformance::hold_id(number) }),
        1 => (0_u8..3).prop_map(|number| Command::VoidSession { session: session(number) }),
        1 => (990_u64..1_060).prop_map(|now_ms| Command::VoidExpired { now_ms }),
    ]
}

pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

pub(crate) fn batches() -> impl Strategy<Value = Vec<Vec<Command>>> {
    prop::collection::vec(prop::collection::vec(command(), 1..12), 1..10)
}

/// Both stores answer the same, have the same books, and add up after every batch.
pub(crate) fn agree(
    batches: &[Vec<Command>],
    store: &mut impl LedgerStore,
    memory: &mut MemoryStore,
) -> Result<(), TestCaseError> {
    for (position, batch) in batches.iter().enumerate() {
        // Every batch is asked twice: a repetition must be harmless whatever lies between.
        for now_ms in [1_000 + position as u64, 2_000] {
            prop_assert_eq!(store.apply(batch, now_ms), memory.apply(batch, now_ms));
        }
        let accounts = store.accounts().unwrap();
        let sum: i128 = accounts.iter().map(|(_, balance)| i128::from(balance.posted_nano)).sum();
        prop_assert_eq!(sum, 0);
        for (account, balance) in &accounts {
            let sound = i128::from(balance.held.0) <= i128::from(balance.posted_nano);
            prop_assert!(*account == ISSUER || sound, "{:?} has {:?}", account, balance);
        }
        prop_assert_eq!(accounts, memory.accounts().unwrap());
        prop_assert_eq!(store.holds(), memory.holds());
        prop_assert_eq!(store.history(None, None, 5), memory.history(None, None, 5));
        prop_assert_eq!(store.verify().unwrap(), memory.verify().unwrap());
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn both_stores_agree(batches in batches()) {
        let home = tempfile::tempdir().unwrap();
        let mut sqlite = SqliteStore::open_or_create(&home.path().join("ledger.db"), ISSUER).unwrap();
        agree(&batches, &mut sqlite, &mut MemoryStore::new(ISSUER))?;
    }
}
