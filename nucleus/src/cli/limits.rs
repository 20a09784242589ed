//! `cell inspect --limits`: the one table of limits, and the command line's own rows of it.

use std::fmt::Write as _;

use cell_abi::{Amount, Limit};
use serde_json::{Value, json};

use super::Output;

cell_abi::limits! {
    crate::cli::daemon {
        /// How long a nucleus may take to come up.
        ///
        /// `cell up` and what needs it fail.
        UP_TIME_MAX: Duration;
        /// How long a nucleus may take to go down.
        ///
        /// `cell down` fails and names the process.
        DOWN_TIME_MAX: Duration;
    }
    crate::cli::job_funds {
        /// How long a job that is paid by slices waits for its payer to agree to another one.
        ///
        /// It ends, and what it did is paid.
        STARVED_TIME_MAX: Duration;
    }
    crate::cli::find {
        /// How long machines of the local network have to answer.
        ///
        /// `cell peer find --lan` does not show them.
        LAN_TIME_MAX: Duration;
    }
    crate::cli::donate {
        /// How long a nucleus may take to go down with the `cell donate` that started it.
        ///
        /// It is killed.
        DOWN_TIME_MAX: Duration;
    }
    crate::cli::donate::end {
        /// How long a nucleus may take to answer that a lending ends.
        ///
        /// Its jobs of other machines are told to end, and pay, without it.
        ANSWER_TIME_MAX: Duration;
        /// How long anything may run for others when a lending ends.
        ///
        /// It is killed, and not paid.
        RUN_ON_TIME_MAX: Duration;
        /// How long jobs may take to pay when a lending ends and the nucleus does not answer.
        ///
        /// What was set aside for them goes back.
        PAY_TIME_MAX: Duration;
    }
    crate::cli::donate::earned {
        /// Entries of the journal that are read to tell what a lent machine earned.
        ///
        /// What lies further back is not counted.
        ENTRIES_MAX: usize;
    }
    crate::cli::verify {
        /// Largest file with a receipt that `cell verify` reads, in bytes.
        ///
        /// It fails.
        RECEIPT_BYTES_MAX: u64;
    }
    crate::cli::build {
        /// Longest `make` of `cell build`, in seconds.
        ///
        /// It is ended, and the build fails.
        MAKE_S_MAX: u64;
        /// Largest module that `cell build` takes from a compiler, in bytes; what can be deployed
        /// is the gate's to say.
        ///
        /// The build fails.
        WASM_BYTES_MAX: u64;
    }
}

/// Prints the table: a section of Markdown for each room, or JSON.
pub(super) fn print(output: &Output) {
    let rows: Vec<Value> = crate::limits::all().map(row).collect();
    output.result(&rows, &table());
}

fn row(limit: &Limit) -> Value {
    json!({
        "module": limit.module, "name": limit.name, "value": limit.value(), "unit": limit.unit(),
        "limits": line(limit.limits()), "seen": line(limit.seen()), "changed": line(limit.changed()),
    })
}

fn table() -> String {
    let mut text = String::new();
    let mut module = "";
    for limit in crate::limits::all() {
        if limit.module != module {
            module = limit.module;
            let gap = if text.is_empty() { "" } else { "\n" };
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "{gap}### `{module}`\n\n| limit | value | of what | when it is passed |\n|---|---|---|---|\n"
            );
        }
        let changed = match line(limit.changed()) {
            changed if changed.is_empty() => String::new(),
            changed => format!(" {changed}"),
        };
        let (value, what, seen) = (value(limit), line(limit.limits()), line(limit.seen()));
        let _ = writeln!(text, "| `{}` | {value} | {what} | {seen}{changed} |", limit.name);
    }
    text.truncate(text.trim_end().len());
    text
}

/// A paragraph of documentation as one line, without the links that only its own page has.
fn line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // [`a`](b) and [`a`] both become `a`.
    let mut plain = String::new();
    let mut rest = words.as_str();
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((name, after)) = link.split_once("`]") else { break };
        let target = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        plain.push_str(before);
        plain.push('`');
        plain.push_str(name);
        plain.push('`');
        rest = target.map_or(after, |(_, after)| after);
    }
    plain + rest
}

/// The value as people read it.
fn value(limit: &Limit) -> String {
    let unit = limit.unit();
    match limit.amount {
        Amount::Time(time) if time.subsec_millis() == 0 => format!("{} s", grouped(time.as_secs())),
        Amount::Time(time) => format!("{} ms", time.as_millis()),
        Amount::Count(bytes) if unit.starts_with("bytes") && bytes >= 1024 => {
            let rate = unit.strip_prefix("bytes").unwrap_or_default();
            match bytes.trailing_zeros() {
                30.. => format!("{} GiB{rate}", grouped(bytes >> 30)),
                20.. => format!("{} MiB{rate}", grouped(bytes >> 20)),
                10.. => format!("{} KiB{rate}", grouped(bytes >> 10)),
                _ => format!("{} {unit}", grouped(bytes)),
            }
        }
        Amount::Count(count) => format!("{} {unit}", grouped(count)).trim_end().to_owned(),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_links() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(line("a [`B`](c::d) and\n [`e`], f"), "a `B` and `e`, f");
        assert_eq!(line("a [`b"), "a [`b");
    }

    #[test]
    fn every_row_says_what_and_what_then() {
        for limit in crate::limits::all() {
            let told = (limit.limits(), limit.seen());
            assert!(told.0.len() > 10 && told.1.len() > 5, "{limit:?}");
            assert!(!row(limit).to_string().contains("[`"), "{limit:?}");
        }
    }
}
