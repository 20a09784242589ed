//! Counts what a call burns: wasm fuel, host calls, and memory that grew.
//!
//! Wasmtime's fuel counter can be changed only while the store is at hand, that is before a call
//! and inside a host call. What is due in between (pages that grew) waits as *debt* in the
//! [`Gauge`]; the future that polls the guest adds it to the slices burned since and stops the
//! guest as soon as both together pass the limit. So a guest never works more than one slice
//! beyond what its caller pays.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use wasmtime::{AsContextMut, Caller};

use crate::error::Stop;
use crate::guest::Guest;
use crate::limits::SLICE_FUEL;
use crate::rates::{Extras, Rates};

/// How often a job that waits is looked at, where memory has a price.
const TICK: Duration = Duration::from_millis(20);

const RUNNING: u8 = 0;
const CANCELLED: u8 = 1;
const TIMED_OUT: u8 = 2;

/// Lets another part of the program stop a call; the call's future ends when it is polled next.
#[derive(Debug, Clone, Default)]
pub struct StopHandle(Arc<AtomicU8>);

impl StopHandle {
    /// A handle whose call runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the call with `Cancelled`.
    pub fn cancel(&self) {
        self.0.store(CANCELLED, Relaxed);
    }

    /// Ends the call with `TimedOut`.
    pub fn time_out(&self) {
        self.0.store(TIMED_OUT, Relaxed);
    }

    /// Makes the handle ready for another call.
    pub fn reset(&self) {
        self.0.store(RUNNING, Relaxed);
    }

    /// The status that a stopped call ends with; `None` while it may run.
    pub fn status(&self) -> Option<cell_abi::Status> {
        self.stopped().map(|stop| match stop {
            Stop::Cancelled => cell_abi::Status::Cancelled,
            _ => cell_abi::Status::TimedOut,
        })
    }

    pub(crate) fn stopped(&self) -> Option<Stop> {
        match self.0.load(Relaxed) {
            RUNNING => None,
            CANCELLED => Some(Stop::Cancelled),
            _ => Some(Stop::TimedOut),
        }
    }
}

/// How much a job may spend for now, of all that it may spend: it waits where that is used up, and goes on
/// when it is raised. Whoever pays by the slice raises it slice by slice.
///
/// A job that waits is not charged for the memory that it holds meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Allowance(Arc<Allowed>);

#[derive(Debug, Default)]
struct Allowed {
    nano_atp: AtomicU64,
    spent: AtomicU64,
    waiting: Mutex<Option<Waker>>,
}

/// What a job may spend between two looks at its allowance, at most, but for a single long host call.
const LOOK_FUEL: u64 = 2 * SLICE_FUEL;

impl Allowance {
    /// One of this much, in nano-ATP.
    pub fn new(nano_atp: u64) -> Self {
        let this = Self::default();
        this.raise(nano_atp);
        this
    }

    /// From now on it is this much, for everything since the start; never less than before.
    pub fn raise(&self, nano_atp: u64) {
        self.0.nano_atp.fetch_max(nano_atp, Relaxed);
        let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// What was spent when it was last looked at, in nano-ATP.
    pub fn spent(&self) -> u64 {
        self.0.spent.load(Relaxed)
    }

    /// Whether the job, which has spent this much, may be polled; if not it is woken when it is raised.
    fn lets_on(&self, spent: u64, cx: &Context<'_>) -> bool {
        self.0.spent.store(spent, Relaxed);
        let fits = || spent.saturating_add(LOOK_FUEL) <= self.0.nano_atp.load(Relaxed);
        if fits() {
            return true;
        }
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = Some(cx.waker().clone());
        // It may have been raised in between, when there was nobody to wake.
        fits()
    }
}

/// What the future that polls a guest shares with the guest's store.
///
/// Only one thread touches it at a time; the atomics make it shareable, not concurrent.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// Fuel in the store when it was last set.
    mark: AtomicU64,
    /// Fuel slices burned since then; each is at least [`SLICE_FUEL`].
    slices: AtomicU64,
    /// Fuel that is due but not yet taken from the store.
    debt: AtomicU64,
    /// Fuel burned by the guest in small steps between host calls since it last yielded.
    unyielded: AtomicU64,
    /// A host call is waiting, so a pending poll is not a burned slice.
    in_host: AtomicBool,
    /// The guest is not polled until its allowance is raised.
    is_held_back: AtomicBool,
    /// The guest lets others go on, which is no burned slice either.
    is_yielding: AtomicBool,
    /// The fuel it started with, and how much of that may be spent for now.
    allowance: Option<(u64, Allowance)>,
    /// What is taken besides fuel.
    pub(crate) extras: Extras,
}

impl Gauge {
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            mark: AtomicU64::default(),
            slices: AtomicU64::default(),
            debt: AtomicU64::default(),
            unyielded: AtomicU64::default(),
            in_host: AtomicBool::default(),
            is_held_back: AtomicBool::default(),
            is_yielding: AtomicBool::default(),
            allowance: None,
            extras: Extras::new(rates),
        }
    }

    /// One that may spend so much of all that it starts with for now.
    pub(crate) fn with_allowance(self, granted: u64, allowance: Option<Allowance>) -> Self {
        Self { allowance: allowance.map(|allowance| (granted, allowance)), ..self }
    }

    /// Whether the guest waits for more allowance; it is woken then.
    fn is_held_back(&self, cx: &Context<'_>) -> bool {
        let Some((granted, allowance)) = &self.allowance else { return false };
        let is_held_back = !allowance.lets_on(self.spent(*granted), cx);
        if self.is_held_back.swap(is_held_back, Relaxed) && !is_held_back {
            self.extras.skip();
        }
        is_held_back
    }

    /// Starts a call whose store holds `fuel`.
    pub(crate) fn begin(&self, fuel: u64) {
        self.mark(fuel);
        self.debt.store(0, Relaxed);
        self.unyielded.store(0, Relaxed);
        self.in_host.store(false, Relaxed);
        self.extras.begin();
    }

    /// Adds what is due; `false` if it alone passes all the fuel there is.
    pub(crate) fn owe(&self, fuel: u64) -> bool {
        let debt = self.debt.load(Relaxed).saturating_add(fuel);
        self.debt.store(debt, Relaxed);
        debt < self.mark.load(Relaxed)
    }

    /// What a call that started with so much fuel has spent, up to the slice it is in.
    fn spent(&self, granted: u64) -> u64 {
        let left = self.mark.load(Relaxed);
        let burned = self.slices.load(Relaxed).saturating_mul(SLICE_FUEL);
        granted
            .saturating_sub(left)
            .saturating_add(burned)
            .saturating_add(self.debt.load(Relaxed))
            .saturating_add(self.extras.cost())
    }

    /// What is due and not yet taken.
    pub(crate) fn debt(&self) -> u64 {
        self.debt.load(Relaxed)
    }

    fn mark(&self, fuel: u64) {
        self.mark.store(fuel, Relaxed);
        self.slices.store(0, Relaxed);
    }

    fn is_overdrawn(&self) -> bool {
        let burned = self.slices.load(Relaxed).saturating_mul(SLICE_FUEL);
        let due = self.debt.load(Relaxed).saturating_add(self.extras.cost());
        burned.saturating_add(due) >= self.mark.load(Relaxed)
    }

    /// Waits until what is taken besides fuel passes what there is, however long the guest waits.
    pub(crate) async fn overdrawn(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.is_overdrawn() {
            ticks.tick().await;
            // Who waits for its payer does not pay for that.
            match self.is_held_back.load(Relaxed) {
                true => self.extras.skip(),
                false => self.extras.tick(),
            }
        }
    }
}

/// Takes the price of a host call from the caller's fuel before the host works.
///
/// Yields to the other calls of this thread when the guest has burned a slice in many small steps,
/// which fuel alone does not notice because setting it starts a new slice.
pub(crate) async fn charge(caller: &mut Caller<'_, Guest>, price: u64) -> wasmtime::Result<()> {
    let gauge = Arc::clone(&caller.data().gauge);
    let left = caller.get_fuel()?;
    let due = price.saturating_add(gauge.debt.swap(0, Relaxed));
    if left <= due {
        caller.as_context_mut().set_fuel(0)?;
        gauge.mark(0);
        return Err(Stop::OutOfFuel.into());
    }
    let burned = gauge.mark.load(Relaxed).saturating_sub(left).saturating_add(due);
    caller.as_context_mut().set_fuel(left - due)?;
    gauge.mark(left - due);
    if left - due <= gauge.extras.cost() {
        return Err(Stop::OutOfFuel.into());
    }
    let unyielded = gauge.unyielded.load(Relaxed).saturating_add(burned);
    if unyielded < SLICE_FUEL {
        gauge.unyielded.store(unyielded, Relaxed);
    } else {
        gauge.unyielded.store(0, Relaxed);
        gauge.is_yielding.store(true, Relaxed);
        yield_now().await;
        gauge.is_yielding.store(false, Relaxed);
    }
    if gauge.allowance.is_some() {
        // A guest that often asks the host for something is seldom seen between two polls.
        std::future::poll_fn(|cx| match gauge.is_held_back(cx) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
    }
    Ok(())
}

/// Takes fuel that was burned elsewhere, by a call to another cell.
pub(crate) fn deduct(caller: &mut Caller<'_, Guest>, fuel: u64) -> wasmtime::Result<()> {
    let left = caller.get_fuel()?.saturating_sub(fuel);
    caller.as_context_mut().set_fuel(left)?;
    let gauge = &caller.data().gauge;
    gauge.mark(left);
    // The callee counted its slices for itself; the next charge here yields if they add up to one.
    let unyielded = gauge.unyielded.load(Relaxed).saturating_add(fuel);
    gauge.unyielded.store(unyielded, Relaxed);
    Ok(())
}

/// Awaits something of the host's, so that the guest's meter does not take the pause for work.
pub(crate) async fn wait<F: Future>(gauge: &Gauge, future: F) -> F::Output {
    gauge.in_host.store(true, Relaxed);
    let output = future.await;
    gauge.in_host.store(false, Relaxed);
    output
}

async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Polls a guest and ends it when it was stopped or has spent more than it was given.
pub(crate) struct Metered<'a, F> {
    pub(crate) guest: Pin<&'a mut F>,
    pub(crate) gauge: &'a Gauge,
    pub(crate) stop: &'a StopHandle,
}

impl<T, F: Future<Output = wasmtime::Result<T>>> Future for Metered<'_, F> {
    type Output = wasmtime::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stopped = self.stop.stopped();
        // A guest that waits for another cell is polled once more: the callee sees the same stop,
        // ends, and its fuel comes onto the bill.
        if let Some(stop) = stopped
            && !self.gauge.in_host.load(Relaxed)
        {
            return Poll::Ready(Err(stop.into()));
        }
        // A guest that waits for the host spends nothing, and may.
        let in_host = self.gauge.in_host.load(Relaxed);
        if stopped.is_none() && !in_host && self.gauge.is_held_back(cx) {
            return Poll::Pending;
        }
        let polled = self.guest.as_mut().poll(cx);
        if let Some(stop) = stopped
            && polled.is_pending()
        {
            return Poll::Ready(Err(stop.into()));
        }
        let is_idle = [&self.gauge.in_host, &self.gauge.is_yielding, &self.gauge.is_held_back];
        if polled.is_pending() && !is_idle.into_iter().any(|flag| flag.load(Relaxed)) {
            self.gauge.slices.fetch_add(1, Relaxed);
            self.gauge.extras.tick();
            if self.gauge.is_overdrawn() {
                return Poll::Ready(Err(Stop::OutOfFuel.into()));
            }
        }
        polled
    }
}
