//! Who gets an instance next: callers take turns, and none may have them all.
//!
//! It counts permits, one for each instance that may exist; it knows no instance.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::limits::{CALLS_WAITING_MAX, REPLICAS_PER_RESERVED};

/// The permits of one cell.
#[derive(Debug)]
pub(crate) struct Turns {
    total: usize,
    /// The most that one caller may have.
    share: usize,
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    taken: usize,
    /// Callers with permits, and how many each has; never more than there are permits.
    by_caller: Vec<(u64, usize)>,
    /// Callers that wait, in the order of their turns.
    callers: VecDeque<(u64, VecDeque<oneshot::Sender<Permit>>)>,
    /// Places in the queue, those of calls that were dropped meanwhile among them.
    places: usize,
}

/// The right to have one instance.
#[derive(Debug)]
pub(crate) struct Permit {
    turns: Arc<Turns>,
    caller: u64,
}

impl Turns {
    pub(crate) fn new(total: usize) -> Arc<Self> {
        let total = total.max(1);
        Arc::new(Self {
            total,
            share: total - total / REPLICAS_PER_RESERVED,
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
        })
    }

    /// Takes a permit at once, or in turn; `None` when too many calls wait already.
    pub(crate) async fn acquire(self: &Arc<Self>, caller: u64) -> Option<Permit> {
        let (_waiting, permit) = {
            let mut queue = self.queue();
            if queue.taken < self.total && queue.count(caller) < self.share {
                return Some(self.grant(&mut queue, caller));
            }
            let waiting = Waiting::enter(&self.waiting)?;
            let (sender, permit) = oneshot::channel();
            queue.push(caller, sender, self.waiting.load(Relaxed));
            (waiting, permit)
        };
        permit.await.ok()
    }

    /// Whether this caller would have to wait.
    pub(crate) fn is_full(&self, caller: u64) -> bool {
        let queue = self.queue();
        queue.taken >= self.total || queue.count(caller) >= self.share
    }

    /// Calls that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    fn grant(self: &Arc<Self>, queue: &mut Queue, caller: u64) -> Permit {
        queue.taken += 1;
        match queue.by_caller.iter_mut().find(|(other, _)| *other == caller) {
            Some((_, count)) => *count += 1,
            None => queue.by_caller.push((caller, 1)),
        }
        Permit { turns: Arc::clone(self), caller }
    }

    fn release(self: &Arc<Self>, caller: u64) {
        let next = {
            let mut queue = self.queue();
            queue.taken -= 1;
            let mut counts = queue.by_caller.iter_mut().enumerate();
            if let Some((at, (_, count))) = counts.find(|(_, (other, _))| *other == caller) {
                *count -= 1;
                if *count == 0 {
                    queue.by_caller.swap_remove(at);
                }
            }
            let next = queue.next(self.share);
            next.map(|(caller, sender)| (sender, self.grant(&mut queue, caller)))
        };
        // Outside the lock: a permit whose call is gone comes back here as it is dropped.
        if let Some((sender, permit)) = next {
            drop(sender.send(permit));
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn count(&self, caller: u64) -> usize {
        let of = self.by_caller.iter().find(|(other, _)| *other == caller);
        of.map_or(0, |(_, count)| *count)
    }

    fn push(&mut self, caller: u64, sender: oneshot::Sender<Permit>, waiting: usize) {
        if self.places > 2 * waiting + 16 {
            for (_, senders) in &mut self.callers {
                senders.retain(|sender| !sender.is_closed());
            }
            self.callers.retain(|(_, senders)| !senders.is_empty());
            self.places = self.callers.iter().map(|(_, senders)| senders.len()).sum();
        }
        self.places += 1;
        match self.callers.iter_mut().find(|(other, _)| *other == caller) {
            Some((_, senders)) => senders.push_back(sender),
            None => self.callers.push_back((caller, VecDeque::from([sender]))),
        }
    }

    /// The call whose turn it is: of the caller that waited longest for one and is below its share.
    fn next(&mut self, share: usize) -> Option<(u64, oneshot::Sender<Permit>)> {
        for _ in 0..self.callers.len() {
            let (caller, mut senders) = self.callers.pop_front()?;
            let mut next = None;
            if self.count(caller) < share {
                while let Some(sender) = senders.pop_front() {
                    self.places -= 1;
                    if !sender.is_closed() {
                        next = Some(sender);
                        break;
                    }
                }
            }
            if !senders.is_empty() {
                self.callers.push_back((caller, senders));
            }
            if let Some(sender) = next {
                return Some((caller, sender));
            }
        }
        None
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.turns.release(self.caller);
    }
}

/// Counts one waiting call for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(waiting: &'a AtomicUsize) -> Option<Self> {
        let entered = waiting.fetch_add(1, Relaxed) < CALLS_WAITING_MAX;
        let this = Self(waiting);
        entered.then_some(this)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[track_caller]
    fn take(turns: &Arc<Turns>, caller: u64) -> Permit {
        match poll(pin!(turns.acquire(caller))) {
            Poll::Ready(Some(permit)) => permit,
            other => panic!("no permit at once: {other:?}"),
        }
    }

    /// One caller asked for everything; others are served without waiting, and then take turns.
    #[test]
    fn nobody_takes_all() {
        let turns = Turns::new(16);
        let greedy: Vec<_> = (0..14).map(|_| take(&turns, 1)).collect();
        assert!(turns.is_full(1) && !turns.is_full(2));
        let mut waits: Vec<_> = (0..20).map(|_| Box::pin(turns.acquire(1))).collect();
        assert!(waits.iter_mut().all(|wait| poll(wait.as_mut()).is_pending()));
        let (second, _third) = (take(&turns, 2), take(&turns, 3));
        assert!(turns.is_full(2));
        let mut other = Box::pin(turns.acquire(2));
        assert!(poll(other.as_mut()).is_pending());
        assert_eq!(turns.waiting(), 21);
        // What caller 2 gives back goes to caller 2: caller 1 has its share.
        drop(second);
        assert!(poll(other.as_mut()).is_ready());
        drop(greedy);
        let served: Vec<_> = waits
            .iter_mut()
            .filter_map(|wait| match poll(wait.as_mut()) {
                Poll::Ready(permit) => permit,
                Poll::Pending => None,
            })
            .collect();
        assert_eq!(served.len(), 14);
    }

    #[test]
    fn callers_take_turns() {
        let turns = Turns::new(1);
        let mut held = Some(take(&turns, 0));
        let mut waits: Vec<_> = [1, 1, 1, 2, 3, 2]
            .into_iter()
            .map(|caller| (caller, Box::pin(turns.acquire(caller))))
            .collect();
        for (_, wait) in &mut waits {
            assert!(poll(wait.as_mut()).is_pending());
        }
        let mut served = Vec::new();
        while !waits.is_empty() {
            drop(held.take());
            let mut at = 0;
            while at < waits.len() {
                match poll(waits[at].1.as_mut()) {
                    Poll::Ready(permit) => {
                        held = permit;
                        served.push(waits.remove(at).0);
                        break;
                    }
                    Poll::Pending => at += 1,
                }
            }
        }
        assert_eq!(served, [1, 2, 3, 1, 2, 1]);
    }

    /// Calls that are dropped while they wait leave no place behind, and no permit is lost to them.
    #[test]
    fn who_leaves_the_queue_is_forgotten() {
        let turns = Turns::new(1);
        let held = take(&turns, 0);
        for _ in 0..10_000 {
            assert!(poll(pin!(turns.acquire(1))).is_pending());
        }
        assert!(turns.queue().places < 100 && turns.waiting() == 0);
        let mut kept = Box::pin(turns.acquire(2));
        assert!(poll(kept.as_mut()).is_pending());
        drop(held);
        assert!(poll(kept.as_mut()).is_ready());
        drop(kept);
        take(&turns, 3);
    }

    #[test]
    fn too_many_are_told() {
        let turns = Turns::new(1);
        let _held = take(&turns, 0);
        let mut waits: Vec<_> =
            (0..CALLS_WAITING_MAX).map(|_| Box::pin(turns.acquire(1))).collect();
        assert!(waits.iter_mut().all(|wait| poll(wait.as_mut()).is_pending()));
        assert!(matches!(poll(pin!(turns.acquire(2))), Poll::Ready(None)));
        assert_eq!(turns.waiting(), CALLS_WAITING_MAX);
    }
}
