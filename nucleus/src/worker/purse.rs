//! What each user's calls may still burn, and what they burned: plain integers, no I/O per call.
//!
//! A *purse* holds what the nucleus has set aside for one user. A call reserves its limit before
//! it starts, so calls in flight never add up to more than was set aside.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cell_abi::{CellName, Fuel};
use cell_host::{CallRecord, Outcome, Rates, Taken};
use tokio::sync::Notify;

use crate::link::records::{self, BODIES_BYTES_MAX, PENDING_MAX, Record};
use crate::link::{FromWorker, Link, UsageRow};

/// How much is asked for at once, in calls of the size that asks.
const CALLS_PER_HOLD: u64 = 64;
/// The most that is asked for ahead of need: 20 ATP.
pub(super) const AHEAD_MAX: u64 = 20_000_000_000;
/// A purse without calls for this long gives back what it has.
const IDLE: Duration = Duration::from_secs(2);
/// Rows of one report, so that it fits a packet of the link.
const ROWS_PER_REPORT: usize = 500;

/// Calls that one user may have in flight over all connections; one more answers `Busy`.
pub(super) const CALLS_PER_USER_MAX: usize = 8192;

/// All users' purses.
#[derive(Debug)]
pub(super) struct Purses {
    purses: Mutex<HashMap<u32, Arc<Purse>>>,
    link: Arc<Link>,
    sequence: AtomicU64,
    rates: Rates,
}

impl Purses {
    pub(super) fn new(link: Arc<Link>, rates: Rates) -> Self {
        Self { purses: Mutex::default(), link, sequence: AtomicU64::new(0), rates }
    }

    /// The purse of a user.
    pub(super) fn of(&self, uid: u32) -> Arc<Purse> {
        let mut purses = lock(&self.purses);
        let make = || {
            Arc::new(Purse {
                uid,
                link: Arc::clone(&self.link),
                state: Mutex::default(),
                changed: Notify::new(),
                calls: AtomicUsize::new(0),
            })
        };
        Arc::clone(purses.entry(uid).or_insert_with(make))
    }

    /// Takes the answer to a request for more.
    pub(super) fn grant(&self, uid: u32, amount: u64) {
        let purse = self.of(uid);
        let mut state = lock(&purse.state);
        state.granted = state.granted.saturating_add(amount);
        state.has_hold |= amount > 0;
        state.asked = false;
        state.exhausted = amount < state.asked_min;
        drop(state);
        purse.changed.notify_waiters();
    }

    /// Whether any call is in flight.
    pub(super) fn are_busy(&self) -> bool {
        lock(&self.purses).values().any(|purse| lock(&purse.state).reserved > 0)
    }

    /// Sends what was burned since the last report. Where nobody `may_call` any more, what is set aside goes
    /// back at once.
    pub(super) fn report(&self, may_call: bool) -> io::Result<()> {
        let purses: Vec<_> = lock(&self.purses).values().cloned().collect();
        for purse in purses {
            self.report_one(&purse, may_call)?;
        }
        Ok(())
    }

    fn report_one(&self, purse: &Purse, may_call: bool) -> io::Result<()> {
        // The lock is held while sending, so that reports and requests arrive in the order of
        // what they say.
        let mut state = lock(&purse.state);
        let usage = state.take_usage();
        // Not less than what the nucleus takes, which rounds over all calls at once.
        let cost = |row: &UsageRow| row.fuel.saturating_add(Taken(row.taken).cost(self.rates));
        let burned: u64 = usage.iter().map(|(row, _)| cost(row)).sum();
        state.granted = state.granted.saturating_sub(burned);
        let usage_of = |rows: Vec<UsageRow>| {
            let sequence = self.sequence.fetch_add(1, Relaxed);
            FromWorker::Usage { sequence, uid: purse.uid, rows }
        };
        let (plain, recorded): (Vec<_>, Vec<_>) =
            usage.into_iter().partition(|(_, records)| records.is_empty());
        let rows: Vec<_> = plain.into_iter().map(|(row, _)| row).collect();
        for rows in rows.chunks(ROWS_PER_REPORT) {
            self.link.send(&usage_of(rows.to_vec()), &[])?;
        }
        for (row, records) in recorded {
            let file = records::write(&records)?;
            self.link.send(&usage_of(vec![row]), &[file.as_fd()])?;
        }
        if state.has_hold
            && state.reserved == 0
            && !state.asked
            // What one large call asked for is not kept from everything else the account pays for.
            && (!may_call
                || state.granted > AHEAD_MAX
                || state.last_call.is_none_or(|at| at.elapsed() > IDLE))
        {
            (state.granted, state.has_hold) = (0, false);
            self.link.send(&FromWorker::Release { uid: purse.uid }, &[])?;
        }
        Ok(())
    }
}

/// What one user's calls may burn.
#[derive(Debug)]
pub(super) struct Purse {
    uid: u32,
    link: Arc<Link>,
    state: Mutex<State>,
    changed: Notify,
    /// Calls in flight, those that wait among them.
    calls: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Set aside by the nucleus, less what was reported as burned.
    granted: u64,
    /// Something was granted since the last release; rounding may leave the nucleus more of it.
    has_hold: bool,
    /// Limits of the calls in flight.
    reserved: u64,
    /// Burned and not yet reported.
    unreported: u64,
    meters: HashMap<CellName, Arc<Meter>>,
    /// Requests and tapes in records that wait.
    record_bytes: usize,
    /// A request for more is under way.
    asked: bool,
    asked_min: u64,
    /// The last request brought less than it needed.
    exhausted: bool,
    last_call: Option<Instant>,
}

/// What one user burned in one cell and has not been reported.
#[derive(Debug, Default)]
pub(super) struct Meter {
    fuel: AtomicU64,
    calls: AtomicU64,
    /// What has a price besides fuel.
    taken: Mutex<Taken>,
    /// Of a cell that keeps receipts: its calls, which count instead.
    records: Mutex<Vec<Record>>,
}

impl Meter {
    fn count(&self, fuel: u64, taken: Taken, calls: u64) {
        self.fuel.fetch_add(fuel, Relaxed);
        self.calls.fetch_add(calls, Relaxed);
        if taken != Taken::default() {
            lock(&self.taken).add(taken);
        }
    }

    /// Whether so many calls wait to be told that no more may be made.
    pub(super) fn is_full(&self) -> bool {
        lock(&self.records).len() >= PENDING_MAX
    }

    fn take(&self, cell: &CellName) -> Option<(UsageRow, Vec<Record>)> {
        let records = std::mem::take(&mut *lock(&self.records));
        let mut row = UsageRow {
            cell: cell.as_str().to_owned(),
            fuel: self.fuel.swap(0, Relaxed),
            calls: self.calls.swap(0, Relaxed),
            taken: std::mem::take(&mut *lock(&self.taken)).0,
        };
        if !records.is_empty() {
            let mut taken = Taken::default();
            records.iter().for_each(|record| taken.add(Taken(record.taken)));
            row.taken = taken.0;
            row.fuel = records.iter().map(|record| record.own_fuel).sum();
            row.calls = records.len() as u64;
        }
        (row.fuel > 0 || row.taken != [0; 3]).then_some((row, records))
    }
}

impl State {
    const fn free(&self) -> u64 {
        self.granted.saturating_sub(self.reserved).saturating_sub(self.unreported)
    }

    fn meter(&mut self, cell: &CellName) -> Arc<Meter> {
        Arc::clone(self.meters.entry(cell.clone()).or_default())
    }

    fn take_usage(&mut self) -> Vec<(UsageRow, Vec<Record>)> {
        if self.unreported == 0 {
            return Vec::new();
        }
        self.unreported = 0;
        self.record_bytes = 0;
        self.meters.iter().filter_map(|(cell, meter)| meter.take(cell)).collect()
    }
}

impl Purse {
    /// The meter for calls of this user to a cell.
    pub(super) fn meter(&self, cell: &CellName) -> Arc<Meter> {
        lock(&self.state).meter(cell)
    }

    /// Counts a call for as long as the result lives; `None` when the user has too many.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Reservation> {
        let entered = self.calls.fetch_add(1, Relaxed) < CALLS_PER_USER_MAX;
        let this = Reservation { purse: Arc::clone(self), limit: 0 };
        entered.then_some(this)
    }

    /// Takes records of calls until they are reported.
    fn keep(&self, calls: Vec<CallRecord>) {
        for call in calls {
            let bytes = call.input.len() + call.tape.len();
            let mut state = lock(&self.state);
            let fits = state.record_bytes.saturating_add(bytes) <= BODIES_BYTES_MAX;
            state.record_bytes += if fits { bytes } else { 0 };
            let meter = state.meter(&call.cell);
            drop(state);
            // Hashing takes its time, and nobody waits for it.
            let record = Record::of(call, fits);
            lock(&meter.records).push(record);
        }
    }

    async fn wait(&self, limit: Fuel, now: Instant, mut asked: bool) -> Result<(), Fuel> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change is missed in between.
            changed.as_mut().enable();
            match self.try_reserve(limit, now, &mut asked) {
                Try::Reserved => return Ok(()),
                Try::Refused(free) => return Err(Fuel(free)),
                Try::Wait => changed.await,
            }
        }
    }

    fn try_reserve(&self, limit: Fuel, now: Instant, asked: &mut bool) -> Try {
        let mut state = lock(&self.state);
        let free = state.free();
        if free >= limit.0 {
            state.reserved += limit.0;
            state.last_call = Some(now);
            return Try::Reserved;
        }
        if state.asked {
            return Try::Wait;
        }
        if *asked && state.exhausted {
            // Calls in flight may give back what they do not burn.
            return if state.reserved == 0 { Try::Refused(free) } else { Try::Wait };
        }
        let missing = limit.0 - free;
        let ahead = limit.0.saturating_mul(CALLS_PER_HOLD).min(AHEAD_MAX);
        let request =
            FromWorker::NeedHold { uid: self.uid, amount_min: missing, amount: missing.max(ahead) };
        if self.link.send(&request, &[]).is_err() {
            // The nucleus is gone, and this process ends any moment: that is what the caller shall see.
            return Try::Wait;
        }
        state.asked = true;
        state.asked_min = missing;
        *asked = true;
        Try::Wait
    }

    fn release(&self, limit: u64, burned: u64) {
        let mut state = lock(&self.state);
        state.reserved = state.reserved.saturating_sub(limit);
        state.unreported = state.unreported.saturating_add(burned);
        let waited_for = state.exhausted;
        drop(state);
        if waited_for {
            self.changed.notify_waiters();
        }
    }
}

enum Try {
    Reserved,
    Refused(u64),
    Wait,
}

/// One call in flight, and what is set aside for it until it is paid or was not run.
#[derive(Debug)]
pub(super) struct Reservation {
    purse: Arc<Purse>,
    limit: u64,
}

impl Reservation {
    /// Waits until the purse covers this limit, asking the nucleus for more if need be.
    ///
    /// Refused when the account cannot cover it even after all other calls have ended; the error
    /// is what it could cover.
    pub(super) async fn reserve(&mut self, limit: Fuel, now: Instant) -> Result<(), Fuel> {
        let mut asked = false;
        match self.purse.try_reserve(limit, now, &mut asked) {
            Try::Reserved => {}
            Try::Refused(free) => return Err(Fuel(free)),
            // Seldom, so that what waiting takes is not a part of every call.
            Try::Wait => Box::pin(self.purse.wait(limit, now, asked)).await?,
        }
        self.limit = limit.0;
        Ok(())
    }

    /// Books what the call burned: in its own cell, and in the cells it called. Those that keep receipts
    /// are paid by the records of their calls.
    pub(super) fn pay(&mut self, (own, is_recorded): (&Meter, bool), outcome: &mut Outcome) {
        let mut rest = outcome.fuel.0.min(self.limit);
        let burned = outcome.charge().0.min(self.limit);
        let records = std::mem::take(&mut outcome.records);
        if !records.is_empty() {
            self.purse.keep(records);
        }
        for share in &outcome.callees {
            let burned = share.fuel.0.min(rest);
            rest -= burned;
            if share.cell.is_recorded() {
                continue;
            }
            let meter = self.purse.meter(share.cell.name());
            meter.count(burned, share.taken, share.calls);
        }
        if !is_recorded {
            own.count(rest, outcome.taken(), 1);
        }
        let limit = std::mem::take(&mut self.limit);
        self.purse.release(limit, burned);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.limit > 0 {
            self.purse.release(self.limit, 0);
        }
        self.purse.calls.fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
