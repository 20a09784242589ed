//! The time that a decision is made at. Whoever decides is told it, so that tests need not wait.

use jiff::ZonedDateTime;
use rustix::time::{ClockId, clock_gettime};

use crate::schedule::Weekday;

/// One instant, as a clock that is never set and as the owner's clock on the wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds since some fixed time. Sleep of the machine does not count: nothing is seen in it.
    pub monotonic_ms: u64,
    /// The local day.
    pub weekday: Weekday,
    /// Minutes since local midnight, as a clock on the wall shows them: 0 to 1439.
    pub minute_of_day: u16,
}

impl Moment {
    /// Now, in the time zone of `TZ` or else of `/etc/localtime`; in UTC where neither is known.
    pub fn now() -> Self {
        Self::at(monotonic_ms(), &ZonedDateTime::now())
    }

    fn at(monotonic_ms: u64, local: &ZonedDateTime) -> Self {
        let number = local.weekday().to_monday_zero_offset();
        let minutes = i32::from(local.hour()) * 60 + i32::from(local.minute());
        Self {
            monotonic_ms,
            weekday: Weekday::from_number(u16::try_from(number).unwrap_or_default()),
            minute_of_day: u16::try_from(minutes).unwrap_or_default(),
        }
    }
}

fn monotonic_ms() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let ms = time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000);
    u64::try_from(ms).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::*;

    #[track_caller]
    fn check(utc: &str, zone: &str, weekday: Weekday, hour: u16, minute: u16) {
        let zone = TimeZone::posix(zone).unwrap();
        let local = utc.parse::<Timestamp>().unwrap().to_zoned_datetime(zone);
        let expect = Moment { monotonic_ms: 7, weekday, minute_of_day: hour * 60 + minute };
        assert_eq!(Moment::at(7, &local), expect);
    }

    #[test]
    fn local_time() {
        const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";
        check("2026-01-05T00:00:00Z", "UTC0", Weekday::Mon, 0, 0);
        check("2026-01-04T23:30:00Z", BERLIN, Weekday::Mon, 0, 30);
        check("2026-07-05T22:30:59Z", BERLIN, Weekday::Mon, 0, 30);
        check("2026-07-05T21:59:59Z", BERLIN, Weekday::Sun, 23, 59);
        check("2026-01-05T03:15:00Z", "EST5", Weekday::Sun, 22, 15);
        // The hour that summer time leaves out, and the one that it has twice.
        check("2026-03-29T01:00:00Z", BERLIN, Weekday::Sun, 3, 0);
        check("2026-10-25T00:30:00Z", BERLIN, Weekday::Sun, 2, 30);
        check("2026-10-25T01:30:00Z", BERLIN, Weekday::Sun, 2, 30);
    }

    #[test]
    fn now_is_a_time_of_day() {
        let (first, second) = (Moment::now(), Moment::now());
        assert!(first.monotonic_ms <= second.monotonic_ms);
        assert!(first.minute_of_day < 1440);
    }
}
