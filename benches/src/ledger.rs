//! How fast the ledger is: durable transfers, one by one and many at once, in every store, and how
//! long it takes from a call's reply until its payment is on the disk.
//!
//! The floor is what the disk takes for as many bytes: rows of a journal's size appended to a file,
//! and one `fdatasync` for each transfer, or for each group.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cell_abi::{AccountId, NanoAtp};
use cell_client::{CallOptions, Client};
use cell_ledger::private_server::Server;
use cell_ledger::{
    Command, Ledger, LedgerError, LedgerOptions, LedgerStore, Outcome, PostgresStore, SqliteStore,
    SystemClock, Transfer, TransferId,
};

use crate::cli::Plan;
use crate::measure::{Repeated, Side, Tally, compare};
use crate::nucleus::Nucleus;
use crate::placement::{Cores, Mode};
use crate::report::Report;
use crate::row::{Row, Target, Unit};

const ISSUER: AccountId = AccountId::from_bytes([0; 32]);
const ALICE: AccountId = AccountId::from_bytes([1; 32]);
const BOB: AccountId = AccountId::from_bytes([2; 32]);
/// About what a transfer's journal row takes: ids, accounts, amount, two hashes.
const ROW: [u8; 256] = [7; 256];
/// Transfers in one commit, as the ledger groups them.
const GROUP: usize = 500;
/// Transfers that wait for their commit, so that the writer always finds a whole group.
const IN_FLIGHT: usize = 2_000;
const STORES: [&str; 2] = ["SQLite", "PostgreSQL"];

/// Measures what is wanted.
pub(crate) fn measure(plan: &Plan, cores: &Cores, report: &mut Report) -> anyhow::Result<()> {
    cores.pin_this_process(Mode::Plain)?;
    // On the disk that homes are on, unless TMPDIR says otherwise.
    let files = tempfile::Builder::new().prefix("cell-bench-").tempdir()?;
    let server = Server::start("the rows of PostgreSQL");
    for (store, name) in STORES.into_iter().enumerate() {
        let (single, many) =
            (format!("{name}: a durable transfer"), format!("{name}: durable transfers"));
        if !plan.wants(&single) && !plan.wants(&many) {
            continue;
        }
        let ledger = match (store, &server) {
            (0, _) => Ledger::open(&files.path().join("ledger.db"), ISSUER)?,
            (_, Some(server)) => {
                let store = PostgresStore::open_or_create(&server.database(), ISSUER, None)?;
                Ledger::start(store, SystemClock, LedgerOptions::default())?
            }
            (_, None) => continue,
        };
        let mut paying = Paying::new(ledger)?;
        let mut disk = Disk::new(files.path())?;
        if plan.wants(&single) {
            let floor = || disk.append(1).map_err(|error| error.to_string());
            let ours = || paying.pay_one().map_err(|error| error.to_string());
            let (mut floor, mut ours) =
                (Repeated { batch: 1, work: floor }, Repeated { batch: 1, work: ours });
            let (floor, ours) = compare(plan, &mut floor, &mut ours, || {})?;
            report.add(row(&single, Unit::Nanoseconds, floor, ours));
        }
        if plan.wants(&many) {
            let (floor, ours) = compare(plan, &mut disk, &mut paying, || {})?;
            report.add(row(&many, Unit::CallsPerSecond, floor, ours));
        }
        paying.check()?;
    }
    let durable = "from reply to durable";
    if plan.wants(durable) {
        let target = Target { text: "p99 ≤ 100 ms", is_met: |row| row.ours.p99 <= 100e6 };
        let nucleus = Nucleus::start()?;
        let mut disk = Disk::new(files.path())?;
        let floor = || disk.append(1).map_err(|error| error.to_string());
        let mut floor = Repeated { batch: 1, work: floor };
        let mut ours = Durable::new(&nucleus)?;
        let (floor, ours) = compare(plan, &mut floor, &mut ours, || {})?;
        report.add(row(durable, Unit::Nanoseconds, floor, ours).with_target(Some(target)));
    }
    Ok(())
}

fn row(work: &str, unit: Unit, floor: Tally, ours: Tally) -> Row {
    Row::new(work.to_owned(), Mode::Plain.to_string(), unit, floor, ours)
}

/// A file that only grows.
struct Disk(File);

impl Disk {
    fn new(directory: &Path) -> anyhow::Result<Self> {
        Ok(Self(File::create(directory.join("floor"))?))
    }

    fn append(&mut self, rows: usize) -> std::io::Result<()> {
        self.0.write_all(&ROW.repeat(rows))?;
        self.0.sync_data()
    }
}

impl Side for Disk {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let started = Instant::now();
        let mut rows = 0;
        while started.elapsed() < length {
            if let Err(error) = self.append(GROUP) {
                return tally.error(error);
            }
            rows += GROUP as u64;
        }
        tally.record_rate(rows, started.elapsed());
    }
}

type Answer = Result<Outcome, LedgerError>;

/// A payer with many transfers in flight.
struct Paying {
    ledger: Ledger,
    paid: u64,
    answers: (Sender<Answer>, Receiver<Answer>),
}

impl Paying {
    fn new(ledger: Ledger) -> anyhow::Result<Self> {
        let this = Self { ledger, paid: 0, answers: channel() };
        let issue = Transfer {
            id: TransferId::derive("issue", &[]),
            debit: ISSUER,
            credit: ALICE,
            amount: NanoAtp(1 << 50),
            memo: String::new(),
        };
        this.ledger.transfer(issue)?;
        Ok(this)
    }

    fn next(&mut self) -> Transfer {
        self.paid += 1;
        Transfer {
            id: TransferId::derive("pay", &[&self.paid.to_le_bytes()]),
            debit: ALICE,
            credit: BOB,
            amount: NanoAtp(1),
            memo: String::new(),
        }
    }

    fn pay_one(&mut self) -> Result<(), LedgerError> {
        let transfer = self.next();
        self.ledger.transfer(transfer).map(drop)
    }

    fn submit(&mut self) -> Result<(), LedgerError> {
        let (command, answer) = (Command::Transfer(self.next()), self.answers.0.clone());
        // Nobody is gone before the answer is.
        self.ledger.submit(command, move |result| drop(answer.send(result)))
    }

    /// Every transfer is in the books, once.
    fn check(&self) -> anyhow::Result<()> {
        let balance = self.ledger.balance(BOB)?;
        ensure!(balance.posted_nano == i64::try_from(self.paid)?, "the books do not add up");
        Ok(())
    }
}

impl Side for Paying {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let started = Instant::now();
        let (mut sent, mut answered) = (0_usize, 0_usize);
        while started.elapsed() < length || answered < sent {
            while sent - answered < IN_FLIGHT && started.elapsed() < length {
                if let Err(error) = self.submit() {
                    return tally.error(error);
                }
                sent += 1;
            }
            match self.answers.1.recv() {
                Ok(Ok(_)) => answered += 1,
                Ok(Err(error)) => return tally.error(error),
                Err(error) => return tally.error(error),
            }
        }
        tally.record_rate(answered as u64, started.elapsed());
    }
}

/// A call, and the time from its reply until another process finds it paid.
struct Durable {
    client: Client,
    slot: cell_client::RawSlot,
    books: SqliteStore,
    last: u64,
}

impl Durable {
    fn new(nucleus: &Nucleus) -> anyhow::Result<Self> {
        let mut client = Client::connect(nucleus.socket(), "echo")?;
        let slot = client.open_raw("echo")?;
        let books = SqliteStore::open(&nucleus.ledger()).context("open the ledger")?;
        let mut this = Self { client, slot, books, last: 0 };
        // The first calls also set money aside.
        for _ in 0..3 {
            this.once()?;
        }
        Ok(this)
    }

    /// The newest entry that pays for calls.
    fn newest(&self) -> anyhow::Result<u64> {
        let entries = self.books.history(None, None, 4)?;
        let pays = |entry: &&cell_ledger::Entry| matches!(&entry.command, Command::Settle(settle) if !settle.payments.is_empty());
        Ok(entries.iter().find(pays).map_or(self.last, |entry| entry.seq))
    }

    fn once(&mut self) -> anyhow::Result<Duration> {
        self.last = self.newest()?;
        self.client.call_raw(&self.slot, &[7; 64], CallOptions::default())?;
        let replied = Instant::now();
        while self.newest()? == self.last {
            ensure!(replied.elapsed() < Duration::from_secs(10), "a call is not paid");
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(replied.elapsed())
    }
}

impl Side for Durable {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            if !tally.take(self.once()) {
                return;
            }
        }
    }
}
