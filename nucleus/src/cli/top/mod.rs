//! `cell top`: a live table of the cells; without a terminal, the same figures as lines of JSON.

mod columns;
mod screen;
mod state;
mod view;

#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;

use super::{Exit, Global, Output, ps};
use crate::daemon::control::Snapshot;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Seconds between two looks.
    #[arg(long, default_value = "1", value_name = "S", value_parser = interval)]
    interval: Duration,
    /// End after so many looks; without a terminal, after one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    if !output.json() && std::io::stdout().is_terminal() {
        return screen::run(&home, arguments.interval, arguments.iterations);
    }
    let output = Output::new(true, true);
    for look in 0..arguments.iterations.unwrap_or(1) {
        if look > 0 {
            thread::sleep(arguments.interval);
        }
        let snapshot = ps::look(&home)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        output.result(&Look { at_ms, snapshot }, "");
    }
    Ok(Exit::Done)
}

/// One line of JSON.
#[derive(Serialize)]
struct Look {
    /// Milliseconds since 1970.
    at_ms: u64,
    #[serde(flatten)]
    snapshot: Snapshot,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number of seconds".to_owned())?;
    if (0.05..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("it must be between 0.05 and 3600 seconds".into())
    }
}
