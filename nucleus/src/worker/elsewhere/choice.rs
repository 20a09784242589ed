//! Which of several machines gets the next call: the one that is expected to answer it soonest, for its
//! price.
//!
//! How a machine is reached is not known here.

use std::time::{Duration, Instant};

/// What one more answer weighs against all before it.
const WEIGHT: f64 = 0.2;
/// What is left of what a machine is thought to take with each call that goes to another one, so that one that
/// was slow once is asked again some time: one ten times as slow as another gets one call in a hundred.
const PASSED_OVER: f64 = 0.98;
/// So many answers until it is known how long a machine takes, which is the least of them: the first ones wait
/// for code to be loaded.
const ANSWERS_TO_KNOW: u32 = 3;
/// How long a machine rests that failed, and how long at most when it fails again and again.
const REST_MIN: Duration = Duration::from_secs(1);
pub(in crate::worker) const REST_MAX: Duration = Duration::from_secs(60);

/// How one machine fared.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    answered: Option<Answered>,
    in_flight: u32,
    /// In a row.
    failures: u32,
    rests_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Answered {
    /// From request to reply, in seconds.
    latency_s: f64,
    /// In nano-ATP.
    charge: f64,
    /// How many there were.
    count: u32,
    /// Calls that went to others since the last.
    passed_over: u32,
}

impl Record {
    pub(super) const fn began(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    pub(super) const fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// It answered, be it with a no of the cell's.
    pub(super) fn answered(&mut self, took: Duration, charge: u64) {
        (self.failures, self.rests_until) = (0, None);
        #[expect(clippy::cast_precision_loss, reason = "an average")]
        self.learn(took.as_secs_f64(), charge as f64);
    }

    /// Nobody waited for its answer any longer than this.
    pub(super) fn gave_up(&mut self, waited: Duration) {
        let (latency_s, charge) =
            self.answered.map_or((0.0, 0.0), |old| (old.latency_s, old.charge));
        self.learn(waited.as_secs_f64().max(latency_s), charge);
    }

    fn learn(&mut self, took_s: f64, charge: f64) {
        let mix = |old: f64, new: f64| old + (new - old) * WEIGHT;
        let (latency_s, charge) = match self.answered {
            Some(old) if old.count >= ANSWERS_TO_KNOW => {
                (mix(old.latency_s, took_s), mix(old.charge, charge))
            }
            Some(old) => (old.latency_s.min(took_s), charge),
            None => (took_s, charge),
        };
        let count = self.answered.map_or(0, |old| old.count).saturating_add(1);
        self.answered = Some(Answered { latency_s, charge, count, passed_over: 0 });
    }

    /// It could not be reached, or went away, or does not serve: it rests for a while. What failed along with it,
    /// and is heard of while it rests, counts as one failure.
    pub(super) fn failed(&mut self, now: Instant) {
        if self.rest(now).is_some() {
            return;
        }
        let rest = REST_MIN.saturating_mul(1 << self.failures.min(10)).min(REST_MAX);
        self.failures = self.failures.saturating_add(1);
        self.rests_until = Some(now + rest);
    }

    /// How long it still rests.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        self.rests_until?.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// What a call that it gets now is expected to take, in seconds, and what such a call costs.
    fn expected(&self) -> Option<(f64, f64)> {
        let known = self.answered.filter(|answered| answered.count >= ANSWERS_TO_KNOW);
        let Answered { latency_s, charge, passed_over, .. } = known?;
        let aged = latency_s * PASSED_OVER.powf(passed_over.into());
        Some((aged * f64::from(self.in_flight + 1), charge.max(1.0)))
    }
}

/// The best of those that neither rest nor were tried: the least product of expected time and price. One
/// that is not known yet is asked before any other, but by one call at a time where others are known.
pub(super) fn choose(records: &mut [Record], tried: &[bool], now: Instant) -> Option<usize> {
    let chosen = best(records, tried, now);
    for (at, record) in records.iter_mut().enumerate() {
        if Some(at) != chosen
            && let Some(answered) = &mut record.answered
        {
            answered.passed_over = answered.passed_over.saturating_add(1);
        }
    }
    chosen
}

fn best(records: &[Record], tried: &[bool], now: Instant) -> Option<usize> {
    let is_open = |(at, record): &(usize, &Record)| {
        record.rest(now).is_none() && tried.get(*at) == Some(&false)
    };
    let known = || records.iter().filter_map(|record| record.expected());
    let slowest = known().map(|(time, _)| time).fold(0.0, f64::max);
    let cheapest = known().map(|(_, charge)| charge).fold(f64::INFINITY, f64::min);
    let cost = |record: &Record| match record.expected() {
        Some((time, charge)) => time * charge / cheapest,
        None if record.in_flight == 0 => -1.0,
        None => (slowest + 1.0) * f64::from(record.in_flight),
    };
    let open = records.iter().enumerate().filter(is_open);
    open.map(|(at, record)| (at, cost(record))).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Records of machines that are known, answer in so many ms and at such a price, and have calls in flight.
    fn records(of: &[Option<(u64, u64, u32)>]) -> Vec<Record> {
        let record = |of: &Option<(u64, u64, u32)>| {
            let mut record = Record::default();
            if let Some((took, charge, in_flight)) = *of {
                (0..ANSWERS_TO_KNOW).for_each(|_| record.answered(ms(took), charge));
                record.in_flight = in_flight;
            }
            record
        };
        of.iter().map(record).collect()
    }

    #[track_caller]
    fn check(of: &[Option<(u64, u64, u32)>], expect: usize) {
        let now = Instant::now();
        let mut records = records(of);
        let tried = vec![false; of.len()];
        assert_eq!(choose(&mut records, &tried, now), Some(expect), "{of:?}");
    }

    #[test]
    fn the_soonest_for_its_price_is_chosen() {
        check(&[Some((10, 100, 0)), Some((5, 100, 0))], 1);
        // One that is twice as far away gets a call when the near one has two.
        check(&[Some((10, 100, 0)), Some((5, 100, 1))], 0);
        check(&[Some((11, 100, 0)), Some((5, 100, 1))], 1);
        // Twice as dear must be twice as fast.
        check(&[Some((10, 100, 0)), Some((6, 200, 0))], 0);
        check(&[Some((10, 100, 0)), Some((4, 200, 0))], 1);
        // Who was never asked is.
        check(&[Some((1, 1, 0)), None, None], 1);
        check(&[None, None], 0);
        // A call that cost nothing makes nobody infinitely dear.
        check(&[Some((10, 0, 0)), Some((9, 1, 0))], 1);
    }

    #[test]
    fn a_machine_that_never_answered_gets_one_call_at_a_time() {
        let now = Instant::now();
        let mut records = records(&[Some((10, 100, 0)), None, None]);
        let mut chosen = Vec::new();
        for _ in 0..4 {
            let at = choose(&mut records, &[false; 3], now).unwrap();
            records[at].began();
            chosen.push(at);
        }
        assert_eq!(chosen, [1, 2, 0, 0]);
        // Where nothing is known of anybody, all get as many.
        let mut records = vec![Record::default(), Record::default()];
        for _ in 0..10 {
            let at = choose(&mut records, &[false; 2], now).unwrap();
            records[at].began();
        }
        assert_eq!((records[0].in_flight, records[1].in_flight), (5, 5));
    }

    #[test]
    fn who_fails_rests_longer_and_longer() {
        let now = Instant::now();
        let mut records = records(&[Some((1, 100, 0)), Some((50, 100, 0))]);
        let choose = |records: &mut [Record], now| choose(records, &[false; 2], now);
        let (mut rests, mut now) = (Vec::new(), now);
        for _ in 0..9 {
            // Several calls were under way.
            (0..5).for_each(|_| records[0].failed(now));
            assert_eq!(choose(&mut records, now), Some(1));
            let rest = records[0].rest(now).unwrap();
            now += rest;
            assert_eq!(choose(&mut records, now), Some(0));
            rests.push(rest.as_secs());
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        records[0].failed(now);
        records[1].failed(now);
        assert_eq!(choose(&mut records, now), None, "both rest");
        records[0].answered(ms(1), 100);
        assert_eq!(records[0].rest(now), None);
        records[0].failed(now);
        assert_eq!(records[0].rest(now), Some(REST_MIN), "one success, and it starts over");
    }

    /// One that was slow once was never asked again, however fast it had become; and of two that are as good,
    /// one got all calls.
    #[test]
    fn who_was_passed_over_is_asked_again() {
        #[track_caller]
        fn check(slower: u64, calls: u32, expect: std::ops::Range<u32>) {
            let now = Instant::now();
            let mut records = records(&[Some((10, 100, 0)), Some((slower, 100, 0))]);
            let took = [ms(10), ms(slower)];
            let mut asked = 0;
            for _ in 0..calls {
                let at = choose(&mut records, &[false; 2], now).unwrap();
                records[at].answered(took[at], 100);
                asked += u32::try_from(at).unwrap();
            }
            assert!(expect.contains(&asked), "{slower} ms: {asked} of {calls}");
        }
        check(10, 1000, 450..551);
        check(20, 1000, 20..40);
        check(100, 1000, 7..11);
        check(10_000, 1000, 1..4);
    }

    /// A first answer that had to wait for a process and its code kept a machine out for a minute.
    #[test]
    fn a_cold_start_says_nothing() {
        let now = Instant::now();
        let mut records = records(&[Some((1, 100, 0)), None]);
        for took in [500, 20] {
            assert_eq!(choose(&mut records, &[false; 2], now), Some(1), "it is not known yet");
            records[1].answered(ms(took), 100);
        }
        records[1].answered(Duration::from_micros(900), 100);
        assert_eq!(choose(&mut records, &[false; 2], now), Some(1), "it is, and is faster");
        records[1].began();
        assert_eq!(choose(&mut records, &[false; 2], now), Some(0));
    }

    /// One that had been the fastest, and does not answer any more, got every call.
    #[test]
    fn who_hangs_is_left() {
        let now = Instant::now();
        let mut records = records(&[Some((1, 100, 0)), Some((10, 100, 0))]);
        assert_eq!(choose(&mut records, &[false; 2], now), Some(0));
        records[0].gave_up(ms(1000));
        assert_eq!(choose(&mut records, &[false; 2], now), Some(1));
        // Who is given up sooner than it would have answered is no worse for that.
        records[1].gave_up(ms(1));
        assert_eq!(records[1].expected().map(|(s, _)| s), Some(0.01));
    }

    #[test]
    fn who_was_tried_is_not_tried_again() {
        let now = Instant::now();
        let mut records = records(&[Some((1, 1, 0)), Some((2, 1, 0))]);
        assert_eq!(choose(&mut records, &[true, false], now), Some(1));
        assert_eq!(choose(&mut records, &[true, true], now), None);
        assert_eq!(choose(&mut [], &[], now), None);
    }
}
