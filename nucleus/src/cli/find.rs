//! `cell peer find`: machines that say where they are.
//!
//! What is found is kept for `cell run --on any`. A record proves who wrote it, a neighbour in the local network
//! not even that: whoever is connected to proves its key then.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use cell_abi::{AccountId, NanoAtp};
use cell_discovery::{NodeRecord, lan};
use cell_peer::tunnel;
use clap::Args;
use serde_json::{Value, json};

use super::output::escape;
use super::peer::{add, parse_key, parse_name};
use super::{Exit, Failure, Output};
use crate::found;
use crate::home::Home;
use crate::peers::{Peer, Peers};

/// How long neighbours have to answer.
pub(super) const LAN_TIME_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Ask the local network.
    #[arg(long)]
    lan: bool,
    /// Read the signed records at this place: a file, https://HOST/PATH or http://HOST/PATH.
    #[arg(long, value_name = "PLACE")]
    from: Vec<String>,
    /// Know this one of those that are found, as `cell peer add` does.
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    add: Option<AccountId>,
    /// What to call it.
    #[arg(long, requires = "add", value_parser = parse_name)]
    name: Option<String>,
}

/// One machine.
#[derive(Debug, Default)]
struct Row {
    addresses: Vec<String>,
    /// What it signed, unless only a neighbour spoke of it.
    record: Option<NodeRecord>,
}

pub(super) fn run(
    home: &Home,
    mut peers: Peers,
    arguments: &Arguments,
    output: &Output,
) -> anyhow::Result<()> {
    let now_s = tunnel::now_s();
    let mut directory = found::read(home, now_s);
    for place in &arguments.from {
        let looked = found::look(place, &mut directory, now_s)?;
        looked.note(home)?;
        if let Some((wrong, line, why)) = &looked.wrong {
            let text = format!("{wrong} lines are no records; line {line}: {why}");
            output.note(&escape(&text));
        }
        for key in &looked.two_faced {
            output.note(&format!("{key} signed two records of itself as one; it is distrusted"));
        }
    }
    if !arguments.from.is_empty() {
        found::write(home, &directory, now_s)?;
    }
    let mut rows = BTreeMap::<AccountId, Row>::new();
    for record in directory.current(now_s) {
        let addresses = record.addresses.iter().map(ToString::to_string).collect();
        rows.insert(record.key, Row { addresses, record: Some(record.clone()) });
    }
    if arguments.lan {
        neighbours(&mut rows, output)?;
    }
    rows.remove(&AccountId::from_bytes(home.key()?.verifying_key().to_bytes()));
    if let Some(key) = arguments.add {
        let address = rows.get(&key).and_then(|row| row.addresses.first());
        let Some(address) = address else {
            let message = format!("{key} was not found; see `cell peer find`");
            return Err(Failure::new(Exit::Failed, message).into());
        };
        let (key, name) = (key.to_string(), arguments.name.clone());
        add(home, &mut peers, &Peer { key, name, address: Some(address.clone()) })?;
    }
    show(&rows, &peers, output);
    Ok(())
}

/// Adds who answers in the local network; what is said there is nobody's signed word.
fn neighbours(rows: &mut BTreeMap<AccountId, Row>, output: &Output) -> anyhow::Result<()> {
    let bar = output.progress("asking the local network");
    let found = lan::find(LAN_TIME_MAX);
    bar.finish_and_clear();
    for neighbour in found? {
        let row = rows.entry(neighbour.key).or_default();
        // What is near comes first.
        let near = neighbour.addresses.iter().map(ToString::to_string);
        let far = std::mem::take(&mut row.addresses);
        row.addresses = near.collect();
        row.addresses.extend(far);
    }
    Ok(())
}

fn show(rows: &BTreeMap<AccountId, Row>, peers: &Peers, output: &Output) {
    let mut text = String::new();
    let mut values = Vec::new();
    for (key, row) in rows {
        let known = peers.find(&key.to_string());
        let name = known.and_then(|peer| peer.name.clone());
        values.push(json!({
            "key": key.to_string(),
            "name": name,
            "is_known": known.is_some(),
            "addresses": row.addresses,
            "record": row.record.as_ref().map_or(Value::Null, |record| json!(record)),
        }));
        let gap = if text.is_empty() { "" } else { "\n" };
        let name = name.unwrap_or_else(|| if known.is_some() { "known" } else { "-" }.into());
        // Writing to a String cannot fail.
        let _ = write!(text, "{gap}{name:16} {key} {}", row.addresses.join(" "));
        let _ = write!(text, "\n  {}", told(row.record.as_ref()));
    }
    if text.is_empty() {
        text = "no machine is found; look with --lan, or --from a file or URL".into();
    }
    output.result(&values, &escape(&text));
}

/// What a machine serves, and for how much.
fn told(record: Option<&NodeRecord>) -> String {
    let Some(record) = record else { return "says nothing of what it serves".into() };
    let mut served: Vec<_> = record.serves.cells.iter().map(ToString::to_string).collect();
    if record.serves.jobs {
        served.insert(0, "jobs".into());
    }
    let served = if served.is_empty() { "nothing".into() } else { served.join(" ") };
    let prices = record.rates.iter().filter(|(_, price)| **price > 0);
    let prices: Vec<_> =
        prices.map(|(name, price)| format!("{name} {} ATP", NanoAtp(*price))).collect();
    let prices = if prices.is_empty() { String::new() } else { format!("; {}", prices.join(", ")) };
    format!("serves {served}{prices}")
}
