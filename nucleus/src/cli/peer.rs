//! `cell peer`: the machines that this home's owner knows.

use std::fmt::Write as _;

use cell_abi::AccountId;
use clap::{Args, Subcommand};
use serde_json::json;

use super::output::escape;
use super::{Exit, Failure, Global, Output};
use crate::daemon::control;
use crate::peers::{Peer, Peers};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let a machine call this one's cells that say `peers = true`; or note where it listens.
    Add(AddArguments),
    /// Forget a machine. What it does at the moment goes on until it hangs up.
    Remove {
        /// Its name or key.
        peer: String,
    },
    /// Show the machines, and where this one listens.
    List,
}

#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// Its key: the `owner` that `cell id` prints there.
    #[arg(value_parser = parse_key)]
    key: AccountId,
    /// What to call it.
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,
    /// Where it listens.
    #[arg(long = "at", value_name = "HOST:PORT", value_parser = parse_address)]
    address: Option<String>,
}

fn parse_key(text: &str) -> Result<AccountId, String> {
    AccountId::parse(text).map_err(|error| error.to_string())
}

fn parse_name(text: &str) -> Result<String, String> {
    let fits = cell_abi::CellName::parse(text).is_ok();
    if fits {
        Ok(text.to_owned())
    } else {
        Err("write a name as cells have it, such as den".into())
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("write HOST:PORT, such as 192.168.1.7:7316".into()),
    }
}

pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    let mut peers = Peers::read(&home)?;
    match command {
        Command::Add(AddArguments { key, name, address }) => {
            let key = key.to_string();
            if let Some(name) = name
                && peers.find(name).is_some_and(|peer| peer.key != key)
            {
                let message = format!("another peer is called `{}`", escape(name));
                return Err(Failure::new(Exit::Failed, message).into());
            }
            peers.all.retain(|peer| peer.key != key);
            let peer = Peer { key, name: name.clone(), address: address.clone() };
            peers.all.push(peer.clone());
            peers.write(&home)?;
            output.result(&json!(peer), &format!("known: {}", peer.key));
        }
        Command::Remove { peer } => {
            let Some(key) = peers.find(peer).map(|peer| peer.key.clone()) else {
                let message = format!("no peer is called `{}`; see `cell peer list`", escape(peer));
                return Err(Failure::new(Exit::Failed, message).into());
            };
            peers.all.retain(|peer| peer.key != key);
            peers.write(&home)?;
            output.result(&json!({ "removed": key }), &format!("forgotten: {key}"));
        }
        Command::List => {
            let listens = match control::ask(&home, &control::Request::Status) {
                Ok(Some(control::Answer::Status(snapshot))) => {
                    snapshot.nucleus.and_then(|nucleus| nucleus.listens)
                }
                _ => None,
            };
            let mut text = match &listens {
                Some(address) => format!("this machine listens at {address}"),
                None => String::from("this machine does not listen for others"),
            };
            for Peer { key, name, address } in &peers.all {
                let name = name.as_deref().unwrap_or("-");
                // Writing to a String cannot fail.
                let _ =
                    write!(text, "\n{name:16} {key} {}", escape(address.as_deref().unwrap_or("-")));
            }
            output.result(&json!({ "listens": listens, "peers": peers.all }), &text);
        }
    }
    Ok(Exit::Done)
}
