//! The one place of this program that prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is this module's job")]

use std::time::{Duration, Instant};

/// Prints a line.
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// Prints what a command printed, set in.
pub(crate) fn quote(text: &str) {
    for line in text.lines() {
        println!("    {line}");
    }
}

pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// Prints a step's name, does it, and prints how long it took.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    println!("==> {name}");
    let started = Instant::now();
    let result = work().map_err(|error| error.context(format!("step `{name}`")))?;
    println!("    {name}: {}", seconds(started.elapsed()));
    Ok(result)
}

/// Says by name what is not done, and why.
pub(crate) fn skip(name: &str, why: &str) {
    println!("==> {name}: skipped: {why}");
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
