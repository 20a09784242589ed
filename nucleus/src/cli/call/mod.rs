//! `cell call`: one call, with JSON in and out.

use std::io::Read as _;
use std::time::Duration;

use cell_abi::{Fuel, NanoAtp, Status};
use cell_client::{CallOptions, Client, Error};
use clap::Args;
use serde_json::{Value, json};

use super::output::escape;
use super::{Exit, Failure, Global, Output};
use crate::cli::daemon::{is_up, not_up};
use crate::home::Home;
use crate::peers::SCHEME;
use line::Wanted;

mod line;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// CELL.RECEPTOR, such as hello.greet; on another machine cell://KEY@HOST:PORT/hello.greet, or
    /// cell://NAME/hello.greet for a peer that `cell peer list` shows with an address.
    target: String,
    /// The request as JSON; `-` reads it from standard input.
    #[arg(default_value = "null")]
    request: String,
    /// Send the request's bytes as they are and print the reply's, for cells without JSON.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    budget: Budget,
    /// Pay a cell of another machine by a channel on a ledger that both accept: `here`, or a peer that
    /// keeps it. Default: this home's account there pays.
    #[arg(long, value_name = "LEDGER")]
    pay_by: Option<String>,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS")]
    timeout: f64,
}

/// The most a call or job may cost.
#[derive(Debug, Args)]
pub(crate) struct Budget {
    /// The most it may cost, in ATP; a job's module is compiled besides, once.
    #[arg(long, value_name = "ATP", value_parser = NanoAtp::parse_atp, conflicts_with = "fuel")]
    budget: Option<NanoAtp>,
    /// The most it may burn, in fuel; one fuel costs one nano-ATP.
    #[arg(long, value_name = "N")]
    fuel: Option<u64>,
}

impl Budget {
    /// The limit in fuel, or the default in ATP.
    pub(crate) fn fuel_or(&self, default: NanoAtp) -> Fuel {
        let budget = self.budget.unwrap_or(default).fuel_at_base_price();
        self.fuel.map_or(budget, Fuel)
    }

    /// Whether the user said anything.
    pub(crate) const fn is_given(&self) -> bool {
        self.budget.is_some() || self.fuel.is_some()
    }
}

/// Reads a duration in seconds; at most a year.
pub(crate) fn seconds(value: f64) -> anyhow::Result<Duration> {
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if value > 0.0 && value <= 31_536_000.0 => Ok(duration),
        _ => Err(Failure::new(
            Exit::Usage,
            "--timeout takes seconds, more than 0 and at most a year, such as 2.5",
        )
        .into()),
    }
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    let (machine, target) = match arguments.target.rsplit_once('/') {
        Some((machine, target)) if machine.starts_with(SCHEME) => (Some(machine), target),
        _ => (None, arguments.target.as_str()),
    };
    let Some((cell, receptor)) = target.split_once('.') else {
        let message = format!(
            "`{}` names no receptor; write CELL.RECEPTOR, such as hello.greet",
            arguments.target
        );
        return Err(Failure::new(Exit::Usage, message).into());
    };
    let request = request(&arguments.request, arguments.raw)?;
    let options = CallOptions {
        fuel: arguments.budget.fuel_or(NanoAtp(1_000_000_000)),
        timeout: seconds(arguments.timeout)?,
    };
    let limit = options.fuel;
    let (pay_by, timeout) = (arguments.pay_by.as_deref(), options.timeout);
    let wanted = Wanted { machine, cell, timeout, limit, pay_by };
    let mut ended = None;
    let called = wanted.connect(&home)?.and_then(|mut line| {
        let called = ask(&mut line.client, receptor, &request, arguments.raw, options);
        let cost = match &called {
            Ok((_, fuel)) => Some(*fuel),
            // What the other machine said of the call, or before it.
            Err(error @ (Error::Rejected { .. } | Error::Failed { .. })) => Some(error.fuel()),
            Err(error @ (Error::ReplyTooLarge { .. } | Error::InvalidReply { .. })) => {
                Some(error.fuel())
            }
            Err(Error::SchemaMismatch { .. } | Error::InvalidName { .. }) => Some(Fuel::ZERO),
            // The call may have gone on, and was charged then.
            Err(_) => None,
        };
        ended = Some(line.end(cost, limit));
        called
    });
    let shown = told(called, arguments.raw, &home, cell, output);
    match ended.transpose() {
        Ok(settled) => settled.flatten().iter().for_each(|settled| settled.tell(output)),
        Err(error) => {
            shown?;
            return Err(error);
        }
    }
    shown
}

/// Opens the receptor and calls it: the reply's bytes, and what they cost.
fn ask(
    client: &mut Client,
    receptor: &str,
    request: &[u8],
    raw: bool,
    options: CallOptions,
) -> Result<(Vec<u8>, Fuel), Error> {
    let slot = client.open_raw(receptor)?;
    if raw {
        let reply = client.call_raw(&slot, request, options)?;
        return Ok((reply.bytes().to_vec(), reply.fuel()));
    }
    let reply = client.call_json(&slot, &String::from_utf8_lossy(request), options)?;
    Ok((reply.text().as_bytes().to_vec(), reply.fuel()))
}

/// Shows the reply, or says what went wrong.
fn told(
    called: Result<(Vec<u8>, Fuel), Error>,
    raw: bool,
    home: &Home,
    cell: &str,
    output: &Output,
) -> anyhow::Result<Exit> {
    match called {
        Ok((reply, fuel)) => {
            show(&reply, fuel, raw, output)?;
            output.note(&bill(fuel));
            Ok(Exit::Done)
        }
        Err(Error::Connect { .. }) if !is_up(home) => Err(not_up(home)),
        Err(Error::Connect { .. }) if !home.cell(cell).is_dir() => {
            let message = format!("there is no cell `{}`; `cell ps` lists them", escape(cell));
            Err(Failure::new(Exit::Failed, message).into())
        }
        Err(error) => {
            if error.fuel() > Fuel::ZERO {
                output.note(&bill(error.fuel()));
            }
            let exit = match &error {
                Error::TimedOut => Exit::TimedOut,
                Error::Disconnected { .. } => Exit::NucleusFault,
                Error::Rejected { .. } => Exit::Failed,
                _ => error.status().map_or(Exit::Failed, Exit::of_status),
            };
            let hint = match error.status() {
                Some(Status::NoJson) => "; call it with --raw",
                _ => "",
            };
            Err(Failure::new(exit, format!("{error}{hint}")).into())
        }
    }
}

fn show(reply: &[u8], fuel: Fuel, raw: bool, output: &Output) -> anyhow::Result<()> {
    if raw && !output.json() {
        return output.bytes(reply);
    }
    let value: Value = if raw {
        reply.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
    } else {
        serde_json::from_slice(reply).map_err(|e| {
            Failure::new(Exit::Trapped, format!("the cell's reply is not JSON: {e}"))
        })?
    };
    let result = if output.json() {
        json!({ "reply": value, "fuel": fuel.0, "charge_nano_atp": fuel.at_base_price().0 })
    } else {
        value
    };
    output.result(&result, &escape(&result.to_string()));
    Ok(())
}

/// The one line that says what something cost.
pub(crate) fn bill(fuel: Fuel) -> String {
    format!("bill: {} ATP for {fuel} fuel", fuel.at_base_price())
}

fn request(given: &str, raw: bool) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if given == "-" {
        std::io::stdin()
            .take(u64::from(cell_abi::limits::FRAME_PAYLOAD_BYTES_MAX) + 1)
            .read_to_end(&mut bytes)?;
    } else {
        bytes.extend_from_slice(given.as_bytes());
    }
    if !raw {
        // A typing error is told here, before it costs anything.
        serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).map_err(|e| {
            Failure::new(
                Exit::Usage,
                format!("the request is not JSON: {e}; for text write '\"text\"'"),
            )
        })?;
    }
    Ok(bytes)
}
