//! The hours in which a machine may work. They are the owner's clock on the wall, not points in time.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::clock::Moment;
use crate::settings::SettingsError;

/// Most spans of a schedule.
pub const SPANS_MAX: usize = 32;

const DAY_MINUTES: u16 = 24 * 60;

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Weekday {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Weekday {
    const ALL: [(Self, &str); 7] = [
        (Self::Mon, "mon"),
        (Self::Tue, "tue"),
        (Self::Wed, "wed"),
        (Self::Thu, "thu"),
        (Self::Fri, "fri"),
        (Self::Sat, "sat"),
        (Self::Sun, "sun"),
    ];

    /// So many days after a Monday.
    pub(crate) fn from_number(days: u16) -> Self {
        Self::ALL.get(usize::from(days % 7)).map_or(Self::Mon, |(day, _)| *day)
    }

    fn number(self) -> u16 {
        self as u16
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| text.eq_ignore_ascii_case(name)).map(|(day, _)| *day)
    }
}

impl fmt::Display for Weekday {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(day, _)| day == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

/// Days and hours, such as `mon-fri 18:00-08:00`, `sat,sun` or `22:00-06:00`.
///
/// A span that passes midnight belongs to the day that it begins on: the first of these ends on Saturday
/// morning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// One bit for each day; Monday's is the lowest.
    days: u8,
    begin_minute: u16,
    /// The first minute outside; not after `begin_minute` where the span passes midnight.
    end_minute: u16,
}

impl Span {
    fn begins_on(self, day: u16) -> bool {
        self.days & (1 << (day % 7)) != 0
    }

    fn contains(self, day: u16, minute: u16) -> bool {
        let past_midnight = self.end_minute <= self.begin_minute;
        let today = minute >= self.begin_minute && (past_midnight || minute < self.end_minute);
        let since_yesterday = past_midnight && minute < self.end_minute;
        today && self.begins_on(day) || since_yesterday && self.begins_on(day + 6)
    }

    /// Minutes until it begins again.
    fn begins_in(self, day: u16, minute: u16) -> Option<u16> {
        (0..=7)
            .filter(|ahead| self.begins_on(day + ahead))
            .map(|ahead| ahead * DAY_MINUTES + self.begin_minute)
            .find_map(|begin| begin.checked_sub(minute).filter(|wait| *wait > 0))
    }
}

impl FromStr for Span {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::Span(text.into());
        let words: Vec<&str> = text.split_whitespace().collect();
        let (days, hours) = match words.as_slice() {
            [days, hours] => (parse_days(days), parse_hours(hours)),
            [hours] if hours.contains(':') => (Some(0x7f), parse_hours(hours)),
            [days] => (parse_days(days), Some((0, DAY_MINUTES))),
            _ => (None, None),
        };
        let (begin_minute, end_minute) = hours.ok_or_else(wrong)?;
        if begin_minute == end_minute {
            return Err(SettingsError::SpanEmpty(text.into()));
        }
        Ok(Self { days: days.ok_or_else(wrong)?, begin_minute, end_minute })
    }
}

/// `mon`, `mon-fri`, `sat-mon` and lists of them.
fn parse_days(text: &str) -> Option<u8> {
    text.split(',').try_fold(0, |days, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (Weekday::parse(first)?.number(), Weekday::parse(last)?.number());
        let length = (last + 7 - first) % 7;
        Some((first..=first + length).fold(days, |days, day| days | 1 << (day % 7)))
    })
}

/// `18:00-08:00`. A day ends at `24:00` or `00:00`, and begins at `00:00` only.
fn parse_hours(text: &str) -> Option<(u16, u16)> {
    let (begin, end) = text.split_once('-')?;
    let (begin, end) = (parse_minute(begin)?, parse_minute(end)?);
    (begin < DAY_MINUTES).then_some((begin, end))
}

fn parse_minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !matches!(hour.len(), 1 | 2) || minute.len() != 2 || !digits(hour) || !digits(minute) {
        return None;
    }
    let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
    let minutes = hour * 60 + minute;
    (minute < 60 && minutes <= DAY_MINUTES).then_some(minutes)
}

/// Spans of which one must hold. Without any, every hour will do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Schedule {
    spans: Vec<Span>,
}

impl Schedule {
    /// When it begins again; `None` where it holds now.
    pub fn opening(&self, now: Moment) -> Option<Opening> {
        let (day, minute) = (now.weekday.number(), now.minute_of_day.min(DAY_MINUTES - 1));
        if self.spans.is_empty() || self.spans.iter().any(|span| span.contains(day, minute)) {
            return None;
        }
        let wait = self.spans.iter().filter_map(|span| span.begins_in(day, minute)).min();
        let at = minute + wait.unwrap_or_default();
        let weekday = Weekday::from_number(day + at / DAY_MINUTES);
        let is_far = wait.is_some_and(|wait| wait >= DAY_MINUTES);
        Some(Opening { weekday: is_far.then_some(weekday), minute_of_day: at % DAY_MINUTES })
    }
}

impl TryFrom<Vec<String>> for Schedule {
    type Error = SettingsError;

    fn try_from(spans: Vec<String>) -> Result<Self, SettingsError> {
        if spans.len() > SPANS_MAX {
            return Err(SettingsError::TooMany { key: "schedule", most: SPANS_MAX });
        }
        let spans = spans.iter().map(|span| span.parse()).collect::<Result<_, _>>()?;
        Ok(Self { spans })
    }
}

/// When a schedule begins: `18:00`, or `sat 18:00` where that is a day or more away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The day, where the time alone would mean another one.
    pub weekday: Option<Weekday>,
    /// Minutes since local midnight.
    pub minute_of_day: u16,
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(weekday) = self.weekday {
            write!(f, "{weekday} ")?;
        }
        write!(f, "{:02}:{:02}", self.minute_of_day / 60, self.minute_of_day % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> Moment {
        let (day, time) = text.split_once(' ').unwrap();
        let weekday = Weekday::parse(day).unwrap();
        Moment { monotonic_ms: 0, weekday, minute_of_day: parse_minute(time).unwrap() }
    }

    /// `expect` is when it begins; empty where it holds.
    #[track_caller]
    fn check(spans: &[&str], now: &str, expect: &str) {
        let spans: Vec<String> = spans.iter().map(ToString::to_string).collect();
        let opening = Schedule::try_from(spans).unwrap().opening(moment(now));
        assert_eq!(opening.map(|opening| opening.to_string()).unwrap_or_default(), expect);
    }

    #[test]
    fn hours() {
        check(&[], "wed 03:00", "");
        check(&["mon-fri 18:00-08:00"], "mon 17:59", "18:00");
        check(&["mon-fri 18:00-08:00"], "mon 18:00", "");
        check(&["mon-fri 18:00-08:00"], "tue 07:59", "");
        check(&["mon-fri 18:00-08:00"], "tue 08:00", "18:00");
        // Friday's night ends on Saturday; Sunday's does not begin.
        check(&["mon-fri 18:00-08:00"], "sat 07:59", "");
        check(&["mon-fri 18:00-08:00"], "sat 08:00", "mon 18:00");
        check(&["mon-fri 18:00-08:00"], "sun 20:00", "18:00");
        check(&["mon-fri 18:00-08:00"], "mon 07:00", "18:00");
        check(&["sun 22:00-06:00"], "mon 05:59", "");
        check(&["sun 22:00-06:00"], "mon 06:00", "sun 22:00");
        check(&["sun 22:00-06:00"], "sun 05:00", "22:00");
        check(&["sat,sun"], "sat 00:00", "");
        check(&["sat,sun"], "sun 23:59", "");
        check(&["sat,sun"], "fri 23:59", "00:00");
        check(&["sat,sun"], "mon 00:00", "sat 00:00");
        check(&["Sat-Mon"], "mon 12:00", "");
        check(&["sat-mon"], "tue 12:00", "sat 00:00");
        check(&["mon-sun"], "thu 12:00", "");
        check(&["22:00-06:00"], "thu 05:59", "");
        check(&["22:00-06:00"], "thu 12:00", "22:00");
        check(&["9:00-17:00"], "thu 17:00", "09:00");
        check(&["tue 20:00-00:00"], "tue 23:59", "");
        check(&["tue 20:00-00:00"], "wed 00:00", "tue 20:00");
        check(&["tue 20:00-24:00"], "tue 23:59", "");
        check(&["tue 20:00-24:00"], "wed 00:00", "tue 20:00");
        // The same minute tomorrow, and in a week.
        check(&["wed 10:00-11:00"], "tue 10:00", "wed 10:00");
        check(&["wed 10:00-11:00"], "tue 10:01", "10:00");
        check(&["tue 20:00-20:01"], "tue 20:01", "tue 20:00");
        check(&["mon-fri 18:00-08:00", "sat,sun"], "sat 12:00", "");
        check(&["wed 10:00-11:00", "mon-tue 1:00-2:00"], "mon 03:00", "01:00");
        check(&["  mon-wed,fri   10:00-12:00 "], "fri 11:00", "");
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "  ",
            "weekend",
            "mon-",
            "-mon",
            "mon,",
            "mon 8-10",
            "mon 08:00",
            "mon 08:00-",
            "mon 8:0-9:00",
            "mon 24:00-08:00",
            "mon 08:60-09:00",
            "mon 08:00-24:01",
            "mon mon 08:00-09:00",
            "08:00-09:00 mon",
            "mon +8:00-09:00",
            "mon 008:00-09:00",
            "mon 08:00–09:00",
            "mon - fri",
            "mon 99999999:00-09:00",
            "\0",
        ] {
            assert_eq!(text.parse::<Span>(), Err(SettingsError::Span(text.into())), "{text}");
        }
        for text in ["mon 08:00-08:00", "00:00-00:00"] {
            assert_eq!(text.parse::<Span>(), Err(SettingsError::SpanEmpty(text.into())), "{text}");
        }
    }
}
