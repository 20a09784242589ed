//! Figures and strangers' words as a screen shows them: short, and of one line.

/// A time given in microseconds, in four or five characters; `-` for none.
pub(super) fn time(micros: u64) -> String {
    let scaled = |value: u64, unit: u64, name: &str| {
        let tenths = value.saturating_mul(10) / unit;
        if tenths < 100 {
            format!("{}.{}{name}", tenths / 10, tenths % 10)
        } else {
            format!("{}{name}", tenths / 10)
        }
    };
    match micros {
        0 => "-".into(),
        1..1_000 => format!("{micros}us"),
        1_000..1_000_000 => scaled(micros, 1_000, "ms"),
        _ => scaled(micros, 1_000_000, "s"),
    }
}

/// A number of bytes, in four to six characters; `-` for none.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0 => "-".into(),
        1..1_024 => format!("{bytes}B"),
        1_024..1_048_576 => format!("{}K", bytes >> 10),
        1_048_576..1_073_741_824 => tenths(bytes, 20, "M"),
        _ => tenths(bytes, 30, "G"),
    }
}

fn tenths(bytes: u64, shift: u32, unit: &str) -> String {
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{}{unit}", tenths / 10, tenths % 10)
}

/// A rate or a large count, in at most six characters.
pub(super) fn count(value: f64) -> String {
    match value {
        v if v <= 0.0 || v.is_nan() => "0".into(),
        v if v < 9.95 => format!("{v:.1}"),
        v if v < 9_999.5 => format!("{v:.0}"),
        v if v < 999_500.0 => format!("{:.1}k", v / 1e3),
        v if v < 999_500_000.0 => format!("{:.1}M", v / 1e6),
        v if v < 999_500_000_000.0 => format!("{:.1}G", v / 1e9),
        v => format!("{:.1}T", v / 1e12),
    }
}

/// An exact count as one that may be rounded.
#[expect(clippy::cast_precision_loss, reason = "a screen shows three digits")]
pub(super) fn rough(value: u64) -> f64 {
    value as f64
}

/// Fuel as the ATP that it earns at the base price.
pub(super) fn atp(fuel: f64) -> String {
    let atp = fuel / 1e9;
    match atp {
        v if v >= 9_999.5 => count(v),
        v if v >= 99.95 => format!("{v:.1}"),
        v if v > 0.0 => format!("{v:.4}"),
        _ => "0".into(),
    }
}

/// A time given in seconds, as its two largest units.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Strangers' words on one line, with nothing in them that steers a terminal: neither control
/// characters nor marks that turn the direction of writing.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => line.push(' '),
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{61c}'
            | '\u{feff}' => line.extend(c.escape_unicode()),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_figures() {
        let times = [0, 7, 999, 1_000, 9_990, 10_000, 999_999, 1_500_000, 3_600_000_000];
        let shown = ["-", "7us", "999us", "1.0ms", "9.9ms", "10ms", "999ms", "1.5s", "3600s"];
        assert_eq!(times.map(time), shown);
        let sizes = [0, 1, 1 << 10, 65_536, 1 << 20, 3 << 19, 5 << 30, u64::MAX];
        let shown = ["-", "1B", "1K", "64K", "1.0M", "1.5M", "5.0G", "17179869183.9G"];
        assert_eq!(sizes.map(bytes), shown);
        let counts = [0.0, -1.0, f64::NAN, 0.25, 9.94, 9.96, 9_999.0, 12_345.0, 2e6, 3e9, 4e13];
        let shown = ["0", "0", "0", "0.2", "9.9", "10", "9999", "12.3k", "2.0M", "3.0G", "40.0T"];
        assert_eq!(counts.map(count), shown);
        assert_eq!(
            [0.0, 1e6, 5e8, 2.5e11, 2e14].map(atp),
            ["0", "0.0010", "0.5000", "250.0", "200.0k"]
        );
        assert_eq!([5, 65, 3_700, 90_000].map(age), ["5s", "1m05s", "1h01m", "1d01h"]);
    }

    #[test]
    fn words_do_not_steer() {
        assert_eq!(one_line("a\x1b[2J\nb\t\u{9b}c\u{202e}d"), "a\\u{1b}[2J b \\u{9b}c\\u{202e}d");
    }
}
