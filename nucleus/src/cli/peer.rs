//! `cell peer`: the machines that this home's owner knows.

use std::fmt::Write as _;

use cell_abi::AccountId;
use cell_discovery::Address;
use cell_host::Sandbox;
use clap::{Args, Subcommand};
use serde_json::json;

use super::output::escape;
use super::remote::ANY;
use super::{Exit, Failure, Global, Output, find};
use crate::daemon::control;
use crate::daemon::ways::WayRow;
use crate::home::Home;
use crate::peers::{Peer, Peers};
use crate::reputation::{Reputation, Standing};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let a machine call this one's cells that say `peers = true`; or note where it listens.
    Add(AddArguments),
    /// Forget a machine, and what was found out about it. What it does at the moment goes on until it hangs up.
    Remove {
        /// Its name or key.
        peer: String,
    },
    /// Show the machines, how they fared with jobs from here, and where others reach this one.
    List,
    /// Look for machines: in the local network, and where signed records lie.
    Find(find::Arguments),
}

#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// Its key: the `owner` that `cell id` prints there.
    #[arg(value_parser = parse_key)]
    key: AccountId,
    /// What to call it.
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,
    /// Where it listens; RELAYKEY@HOST:PORT for one that waits at a relay.
    #[arg(long = "at", value_name = "HOST:PORT", value_parser = parse_address)]
    address: Option<String>,
}

pub(super) fn parse_key(text: &str) -> Result<AccountId, String> {
    AccountId::parse(text).map_err(|error| error.to_string())
}

pub(super) fn parse_name(text: &str) -> Result<String, String> {
    match cell_abi::CellName::parse(text) {
        Ok(_) if text == ANY => Err("`any` means whichever machine; take another name".into()),
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("write a name as cells have it, such as den".into()),
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    match text.parse::<Address>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) => Err("write HOST:PORT, such as 192.168.1.7:7316, or RELAYKEY@HOST:PORT for a machine behind a relay".into()),
    }
}

pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    let mut peers = Peers::read(&home)?;
    match command {
        Command::Add(AddArguments { key, name, address }) => {
            let key = key.to_string();
            let peer = Peer { key, name: name.clone(), address: address.clone() };
            add(&home, &mut peers, &peer)?;
            output.result(&json!(peer), &format!("known: {}", peer.key));
        }
        Command::Remove { peer } => remove(&home, peers, peer, output)?,
        Command::List => list(&home, &peers, output)?,
        Command::Find(arguments) => find::run(&home, peers, arguments, output)?,
    }
    Ok(Exit::Done)
}

/// Knows a machine, in place of what was known of it.
pub(super) fn add(home: &Home, peers: &mut Peers, peer: &Peer) -> anyhow::Result<()> {
    if let Some(name) = &peer.name
        && peers.find(name).is_some_and(|known| known.key != peer.key)
    {
        let message = format!("another peer is called `{}`", escape(name));
        return Err(Failure::new(Exit::Failed, message).into());
    }
    peers.all.retain(|known| known.key != peer.key);
    peers.all.push(peer.clone());
    peers.write(home)
}

/// Forgets a machine, and what was found out about it.
fn remove(home: &Home, mut peers: Peers, named: &str, output: &Output) -> anyhow::Result<()> {
    let known = peers.find(named).map(|peer| peer.key.clone());
    let key = known.clone().unwrap_or_else(|| named.to_owned());
    let had_reputation = Reputation::forget(home, &key)?;
    if known.is_none() && !had_reputation {
        let message = format!("no peer is called `{}`; see `cell peer list`", escape(named));
        return Err(Failure::new(Exit::Failed, message).into());
    }
    if known.is_some() {
        peers.all.retain(|peer| peer.key != key);
        peers.write(home)?;
    }
    output.result(&json!({ "removed": key }), &format!("forgotten: {key}"));
    Ok(())
}

fn list(home: &Home, peers: &Peers, output: &Output) -> anyhow::Result<()> {
    let nucleus = match control::ask(home, &control::Request::Status) {
        Ok(Some(control::Answer::Status(snapshot))) => snapshot.nucleus,
        _ => None,
    };
    let (listens, through) = nucleus.map_or((None, Vec::new()), |row| (row.listens, row.through));
    let reputation = Reputation::read(home)?;
    let mut text = match &listens {
        Some(address) => format!("this machine listens at {address}"),
        None => String::from("this machine does not listen for others"),
    };
    for WayRow { address, why_not, .. } in &through {
        // Writing to a String cannot fail.
        let _ = match why_not {
            None => write!(text, "\nothers reach it through {address}"),
            Some(why) => write!(text, "\nnot through {address}: {}", escape(why)),
        };
    }
    let mut rows = Vec::new();
    for peer in &peers.all {
        let Peer { key, name, address } = peer;
        let name = name.as_deref().unwrap_or("-");
        let standing = reputation.of(key);
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{name:16} {key} {}", escape(address.as_deref().unwrap_or("-")));
        let _ = write!(text, "{}", standing.map(told).unwrap_or_default());
        let mut row = json!(peer);
        if let (Some(row), Some(standing)) = (row.as_object_mut(), standing) {
            row.insert("reputation".into(), json!(standing));
        }
        rows.push(row);
    }
    let is_stranger = |machine: &&Standing| peers.find(&machine.key).is_none();
    let strangers: Vec<_> = reputation.all().iter().filter(is_stranger).collect();
    for machine in &strangers {
        let _ = write!(text, "\n{:16} {} -{}", "-", escape(&machine.key), told(machine));
    }
    let value =
        json!({ "listens": listens, "through": through, "peers": rows, "strangers": strangers });
    output.result(&value, &text);
    Ok(())
}

/// What was found out about a machine, in a line below it.
fn told(standing: &Standing) -> String {
    let mut text = format!(
        "\n  {} jobs, {} right in a row, {} lost",
        standing.jobs(),
        standing.valid(Sandbox::engine_id()),
        standing.lost
    );
    if standing.is_distrusted {
        text.push_str(", distrusted: `cell peer remove` forgives");
    }
    if let Some(problem) = &standing.last_problem {
        // On the one line, whatever is in it.
        text = text + "; last: " + &escape(&problem.text).replace(['\n', '\t'], " ");
    }
    text
}
