//! The store on a real server: the rules, other writers, and servers and writers that die.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use cell_abi::{AccountId, NanoAtp};

use super::{PostgresStore, ServerClock, schema};
use crate::conformance::{self, ISSUER, hold, transfer};
use crate::private_server::Server;
use crate::{
    Clock as _, Command, Ledger, LedgerError, LedgerOptions, LedgerStore, MemoryStore, Outcome,
    SessionId, SystemClock, Transfer, TransferId, model_tests,
};

const ALICE: AccountId = AccountId::from_bytes([1; 32]);
const BOB: AccountId = AccountId::from_bytes([2; 32]);

fn open(url: &str, session: Option<SessionId>) -> PostgresStore {
    PostgresStore::open_or_create(url, ISSUER, session).unwrap()
}

fn session(name: &str) -> SessionId {
    SessionId::derive("session", &[name.as_bytes()])
}

fn one(store: &mut PostgresStore, command: Command) -> Result<Outcome, LedgerError> {
    store.apply(&[command], 1_000).map(|mut results| results.remove(0))?
}

#[test]
fn every_rule_holds() {
    let Some(server) = Server::start("postgres::every_rule_holds") else { return };
    conformance::run(|issuer| {
        Box::new(PostgresStore::open_or_create(&server.database(), issuer, None).unwrap())
    });
}

/// Random batches: the same answers and the same books as in memory.
#[test]
fn it_agrees_with_the_model() {
    let Some(server) = Server::start("postgres::it_agrees_with_the_model") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(model_tests::config(24));
    runner
        .run(&model_tests::batches(), |batches| {
            let mut store = open(&server.database(), None);
            model_tests::agree(&batches, &mut store, &mut MemoryStore::new(ISSUER))
        })
        .unwrap();
}

/// Two nuclei want the last unit again and again; each unit is paid exactly once.
#[test]
fn one_writer_wins_the_last_unit() {
    let Some(server) = Server::start("postgres::one_writer_wins_the_last_unit") else { return };
    race(&server.database(), 60);
}

fn race(url: &str, rounds: u64) {
    one(&mut open(url, None), transfer(0, ISSUER, ALICE, rounds * 3 / 2)).unwrap();
    let won = AtomicU64::new(0);
    thread::scope(|scope| {
        for writer in 0..2_u64 {
            let won = &won;
            scope.spawn(move || {
                let mut store = open(url, Some(session(&writer.to_string())));
                for round in 0..rounds {
                    match one(&mut store, transfer(1 + 2 * round + writer, ALICE, BOB, 1)) {
                        Ok(Outcome::Posted { .. }) => drop(won.fetch_add(1, Relaxed)),
                        Err(LedgerError::InsufficientFunds { .. }) => {}
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    let store = open(url, None);
    assert_eq!(won.load(Relaxed), rounds * 3 / 2);
    assert_eq!(store.balance(ALICE).unwrap().posted_nano, 0);
    assert_eq!(store.verify().unwrap().entries, rounds * 3 / 2 + 1);
}

/// Who is fenced loses its holds, and what it asks for later is refused, even what it began before;
/// who wrote in between is spared.
#[test]
fn the_silent_are_fenced() {
    let Some(server) = Server::start("postgres::the_silent_are_fenced") else { return };
    let url = server.database();
    let (silent, alive) = (session("silent"), session("alive"));
    let (mut gone, mut store) = (open(&url, Some(silent)), open(&url, Some(alive)));
    one(&mut gone, transfer(0, ISSUER, ALICE, 100)).unwrap();
    let Command::Hold(held) = hold(1, ALICE, 60, 60) else { unreachable!() };
    one(&mut gone, Command::Hold(crate::Hold { session: silent, ..held })).unwrap();
    let seen = store.sessions().unwrap();
    assert_eq!(seen.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>(), [silent, alive].into());

    // What changes nothing is a beat too.
    one(&mut store, Command::VoidExpired { now_ms: 0 }).unwrap();
    assert_eq!(store.fence(&seen).unwrap(), [silent], "only who was silent, and it has open holds");
    let refused = LedgerError::Fenced { session: silent };
    assert_eq!(one(&mut gone, transfer(2, ALICE, BOB, 1)), Err(refused.clone()));
    // Told again until the holds are released, for who released them may have died before.
    assert_eq!(store.fence(&[]), Ok(vec![silent]));
    one(&mut store, Command::VoidSession { session: silent }).unwrap();
    assert_eq!(store.fence(&[]), Ok(Vec::new()));
    assert_eq!(store.balance(ALICE).unwrap().available(), NanoAtp(100));
    // Forgotten is fenced as well.
    assert_eq!(store.sessions().unwrap().len(), 1);
    assert_eq!(one(&mut gone, transfer(2, ALICE, BOB, 1)), Err(refused));

    // The handle that a program shares stops for good.
    let late = open(&url, Some(session("late")));
    let ledger = Ledger::start(late, SystemClock, LedgerOptions::default()).unwrap();
    store.fence(&[(session("late"), 0)]).unwrap();
    for _ in 0..2 {
        let error = ledger.apply(transfer(3, ALICE, BOB, 1)).unwrap_err();
        assert!(matches!(&error, LedgerError::Stopped { reason } if reason.contains("taken over")));
    }
}

/// A database that was set up for something else: commits that do not wait for the disk, and
/// snapshots that are older than the lock that was waited for.
#[test]
fn the_servers_settings_are_not_trusted() {
    let Some(server) = Server::start("postgres::the_servers_settings_are_not_trusted") else {
        return;
    };
    let url = server.database();
    let name = url.rsplit('/').next().unwrap();
    let mut client = server.client(name);
    for setting in ["synchronous_commit = off", "default_transaction_isolation = 'serializable'"] {
        client.batch_execute(&format!("ALTER DATABASE {name} SET {setting}")).unwrap();
    }
    let store = open(&url, None);
    let commit: String = store
        .run(|client| Ok(client.query_one("SHOW synchronous_commit", &[])?.try_get(0)?))
        .unwrap();
    assert_eq!(commit, "on");
    race(&url, 60);
}

/// The time of day of this machine has no say in what expires.
#[test]
fn the_clock_is_the_servers() {
    let Some(server) = Server::start("postgres::the_clock_is_the_servers") else { return };
    let store = open(&server.database(), None);
    let clock = ServerClock::at(store.now_ms().unwrap());
    let shown = clock.now_ms();
    assert!(shown.abs_diff(store.now_ms().unwrap()) < 60_000);
    let clone = clock.clone();
    clock.set(5_000);
    assert!((5_000..65_000).contains(&clone.now_ms()));
}

/// A server that is killed again and again under four writers: what was acknowledged is there, and
/// what was asked for again is there once.
#[test]
fn what_was_acknowledged_survives_the_servers_death() {
    let name = "postgres::what_was_acknowledged_survives_the_servers_death";
    let Some(mut server) = Server::start(name) else { return };
    let url = server.database();
    one(&mut open(&url, None), transfer(0, ISSUER, ALICE, 1_000_000)).unwrap();
    let (paid, unavailable) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let (url, paid, unavailable) = (url.clone(), paid.clone(), unavailable.clone());
            thread::spawn(move || {
                let store = open(&url, Some(session(&writer.to_string())));
                let ledger = Ledger::start(store, SystemClock, LedgerOptions::default()).unwrap();
                for number in 0..150_u64 {
                    let parts: [&[u8]; 2] = [&writer.to_le_bytes(), &number.to_le_bytes()];
                    let transfer = Transfer {
                        id: TransferId::derive("pay", &parts),
                        debit: ALICE,
                        credit: BOB,
                        amount: NanoAtp(3),
                        memo: String::new(),
                    };
                    // The same id until it is acknowledged: the answer is lost, the money is not.
                    loop {
                        match ledger.transfer(transfer.clone()) {
                            Ok(Outcome::Posted { .. }) => break,
                            Err(LedgerError::Unavailable { .. } | LedgerError::Busy) => {
                                unavailable.fetch_add(1, Relaxed);
                                thread::sleep(Duration::from_millis(5));
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                    paid.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    // Somewhere in the middle of the work, wherever that is on this machine.
    for wanted in [60, 180, 300, 420] {
        while paid.load(Relaxed) < wanted {
            thread::yield_now();
        }
        server.kill();
        server.restart();
    }
    for writer in writers {
        writer.join().unwrap();
    }
    let store = open(&url, None);
    assert_eq!(store.verify().unwrap().transfers, 601);
    assert_eq!(store.balance(BOB).unwrap().posted_nano, 1800);
    assert!(unavailable.load(Relaxed) > 0, "the server died while nobody asked for anything");
}

#[test]
fn what_is_not_a_ledger_is_refused() {
    let Some(server) = Server::start("postgres::what_is_not_a_ledger_is_refused") else { return };
    let mistyped = "postgresq://u:secret@h/d?sslmode=disable";
    for bad in ["postgres", "http://x", "postgres://u:secret@h/d?sslmode=require", mistyped] {
        let error = PostgresStore::open_or_create(bad, ISSUER, None).unwrap_err();
        assert!(matches!(error, LedgerError::BadUrl { .. }), "{bad}: {error}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
    let nobody = PostgresStore::open_or_create(&server.url("nothing"), ISSUER, None).unwrap_err();
    assert!(matches!(&nobody, LedgerError::Unavailable { reason } if reason.contains("nothing")));

    let url = server.database();
    drop(open(&url, None));
    // Whoever comes second finds the first one's issuer.
    let other = PostgresStore::open_or_create(&url, ALICE, None).unwrap();
    assert_eq!(other.issuer(), ISSUER);
    let mut client = server.client(url.rsplit('/').next().unwrap());
    client.execute("UPDATE cell_ledger.ledger SET version = 99", &[]).unwrap();
    let newer = PostgresStore::open_or_create(&url, ISSUER, None).unwrap_err();
    assert_eq!(newer, LedgerError::NewerSchema { found: 99, known: 2 });
}

/// A database of version 1 told when a session wrote last, and had no checkpoints.
#[test]
fn an_older_database_is_brought_to_this_version() {
    let name = "postgres::an_older_database_is_brought_to_this_version";
    let Some(server) = Server::start(name) else { return };
    let url = server.database();
    let mut client = server.client(url.rsplit('/').next().unwrap());
    client.batch_execute("SET search_path = cell_ledger").unwrap();
    schema::open_at(&mut client, ISSUER, 1).unwrap();
    client.batch_execute("SELECT seen FROM cell_ledger.sessions").unwrap();
    let older: Vec<_> = (0..3).map(|n| open(&url, Some(session(&n.to_string())))).collect();
    assert_eq!(older[0].sessions().unwrap().len(), 3);
    let mut store = open(&url, None);
    one(&mut store, transfer(0, ISSUER, ALICE, 100)).unwrap();
    assert_eq!((store.verify().unwrap().entries, store.checkpoints().unwrap()), (1, vec![]));
}

/// The tables say what the journal says, or the audit names the row; history cannot be rewritten by mistake.
#[test]
fn tampering_is_named() {
    let Some(server) = Server::start("postgres::tampering_is_named") else { return };
    let url = server.database();
    let mut store = open(&url, None);
    one(&mut store, transfer(0, ISSUER, ALICE, 100)).unwrap();
    one(&mut store, transfer(1, ALICE, BOB, 30)).unwrap();
    let mut client = server.client(url.rsplit('/').next().unwrap());
    for forbidden in ["DELETE FROM cell_ledger.journal", "TRUNCATE cell_ledger.transfers"] {
        assert!(client.batch_execute(forbidden).is_err(), "{forbidden}");
    }
    let cases = [
        ("UPDATE cell_ledger.accounts SET posted = posted + 1 WHERE posted = 30", "account"),
        (
            "UPDATE cell_ledger.accounts SET posted = 30 WHERE posted = 31; DELETE FROM cell_ledger.touched WHERE seq = 2",
            "touched",
        ),
        (
            "ALTER TABLE cell_ledger.journal DISABLE TRIGGER ALL; UPDATE cell_ledger.journal SET time_ms = 5 WHERE seq = 1",
            "journal entry 1",
        ),
    ];
    for (change, expect) in cases {
        client.batch_execute(change).unwrap();
        let error = store.verify().unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
}
