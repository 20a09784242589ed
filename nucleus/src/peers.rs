//! Other machines: those that this home's owner knows, and how a command names one.
//!
//! `peers.toml` is written by `cell peer` and read whenever a peer comes; it may be edited by hand.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use cell_abi::{AccountId, CellName};
use cell_peer::{Credentials, Request, tunnel};
use serde::{Deserialize, Serialize};

use crate::home::{Home, read_file, replace_file};

/// Peers that a home may know.
pub(crate) const PEERS_MAX: usize = 1024;
/// Largest `peers.toml`, in bytes.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;

/// How a URL of a cell on another machine begins.
pub(crate) const SCHEME: &str = "cell://";

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    /// Its identity: the `owner` that `cell id` prints there.
    pub(crate) key: String,
    /// What it is called here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Where it is reached, if it is: HOST:PORT where it listens, or RELAYKEY@HOST:PORT where it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
}

/// All of them, as the file has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peers {
    #[serde(default, rename = "peer")]
    pub(crate) all: Vec<Peer>,
}

impl Peers {
    /// Those of a home; none where there is no file.
    pub(crate) fn read(home: &Home) -> anyhow::Result<Self> {
        let path = path(home);
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = String::from_utf8(read_file(&path, FILE_BYTES_MAX)?).context("it is not text");
        text.and_then(|text| Self::parse(&text)).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let this: Self = toml::from_str(text)?;
        if this.all.len() > PEERS_MAX {
            bail!("there are {} peers, and {PEERS_MAX} is the most", this.all.len());
        }
        for peer in &this.all {
            AccountId::parse(&peer.key).with_context(|| format!("the key `{}`", peer.key))?;
        }
        Ok(this)
    }

    /// Replaces the file, wholly or not at all.
    pub(crate) fn write(&self, home: &Home) -> anyhow::Result<()> {
        home.create()?;
        if self.all.len() > PEERS_MAX {
            bail!("a home knows at most {PEERS_MAX} peers; remove one with `cell peer remove`");
        }
        let text = toml::to_string(self).context("write peers")?;
        replace_file(&path(home), text.as_bytes())
    }

    /// Whether this one is known.
    pub(crate) fn knows(&self, account: AccountId) -> bool {
        self.all.iter().any(|peer| AccountId::parse(&peer.key).ok() == Some(account))
    }

    /// The one with this name, or this key.
    pub(crate) fn find(&self, named: &str) -> Option<&Peer> {
        self.all.iter().find(|peer| peer.name.as_deref() == Some(named) || peer.key == named)
    }
}

fn path(home: &Home) -> PathBuf {
    home.root().join("peers.toml")
}

/// Another machine, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) peer: AccountId,
    /// HOST:PORT, or RELAYKEY@HOST:PORT.
    pub(crate) address: String,
}

impl Machine {
    /// Reads KEY@HOST:PORT, KEY@RELAYKEY@HOST:PORT, or the name of a peer that has an address.
    pub(crate) fn parse(text: &str, peers: &Peers) -> anyhow::Result<Self> {
        let how = "write KEY@HOST:PORT, or the name of a peer from `cell peer list`";
        if let Some((key, address)) = text.split_once('@') {
            let peer = AccountId::parse(key).with_context(|| format!("the key `{key}`; {how}"))?;
            return Ok(Self { peer, address: address.to_owned() });
        }
        let known = peers.find(text);
        let known = known.with_context(|| format!("no peer is called `{text}`; {how}"))?;
        let address = known.address.clone().with_context(|| {
            format!("`{text}` has no address; add it again with --at HOST:PORT, or --at RELAYKEY@HOST:PORT")
        })?;
        Ok(Self { peer: AccountId::parse(&known.key)?, address })
    }

    /// Connects as this home: what comes back is the socket of what was asked for.
    pub(crate) fn connect(
        &self,
        home: &Home,
        request: &Request,
        timeout: Duration,
    ) -> anyhow::Result<UnixStream> {
        home.create()?;
        let credentials = Credentials::new(&home.key()?, tunnel::now_s())?;
        tunnel::dial(&self.address, &credentials, self.peer, request, timeout)
            .with_context(|| format!("connect to {} at {}", self.peer.short(), self.address))
    }
}

/// A cell on another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) machine: Machine,
    pub(crate) cell: CellName,
}

impl Remote {
    /// Reads `cell://MACHINE/CELL`, with the machine as [`Machine::parse`] takes it.
    pub(crate) fn parse(url: &str, peers: &Peers) -> anyhow::Result<Self> {
        let how = "write cell://KEY@HOST:PORT/CELL, or cell://NAME/CELL";
        let (machine, cell) =
            url.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).context(how)?;
        let cell = CellName::parse(cell).with_context(|| format!("the cell `{cell}`"))?;
        Ok(Self { machine: Machine::parse(machine, peers)?, cell })
    }

    /// A cell as a manifest's `at` has it: a machine where it has the same name, or `cell://MACHINE/CELL`.
    pub(crate) fn of_manifest(named: &str, cell: &str, peers: &Peers) -> anyhow::Result<Self> {
        if named.starts_with(SCHEME) {
            return Self::parse(named, peers);
        }
        Ok(Self { machine: Machine::parse(named, peers)?, cell: CellName::parse(cell)? })
    }

    /// Connects as this home: what comes back is a socket of that cell.
    pub(crate) fn connect(&self, home: &Home, timeout: Duration) -> anyhow::Result<UnixStream> {
        self.machine.connect(home, &Request::Cell(self.cell.clone()), timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let key = "ab".repeat(32);
        let peers = Peers {
            all: vec![
                Peer { key: key.clone(), name: Some("den".into()), address: Some("h:1".into()) },
                Peer { key: "cd".repeat(32), name: Some("quiet".into()), address: None },
            ],
        };
        let remote = Remote::parse(&format!("cell://{key}@[::1]:7316/hello"), &peers).unwrap();
        let address = remote.machine.address.as_str();
        assert_eq!((address, remote.cell.as_str()), ("[::1]:7316", "hello"));
        let through = format!("cell://{key}@{}@h:1/hello", "cd".repeat(32));
        let through = Remote::parse(&through, &peers).unwrap().machine;
        assert_eq!(through.address, format!("{}@h:1", "cd".repeat(32)));
        assert_eq!(through.peer, remote.machine.peer);
        let named = Remote::parse("cell://den/hello", &peers).unwrap();
        let address = named.machine.address.as_str();
        assert_eq!((named.machine.peer, address), (remote.machine.peer, "h:1"));
        for (wrong, expect) in [
            ("cell://den", "write cell://"),
            ("cell://nobody/hello", "no peer is called"),
            ("cell://quiet/hello", "has no address"),
            ("cell://den/../x", "the cell"),
            ("cell://12@h:1/hello", "the key"),
            ("http://den/hello", "write cell://"),
        ] {
            let error = format!("{:#}", Remote::parse(wrong, &peers).unwrap_err());
            assert!(error.contains(expect), "{wrong}: {error}");
        }
        for (named, cell) in [("den", "hello"), ("cell://den/hi", "hi")] {
            let remote = Remote::of_manifest(named, "hello", &peers).unwrap();
            assert_eq!((remote.machine.address.as_str(), remote.cell.as_str()), ("h:1", cell));
        }
        let text = toml::to_string(&peers).unwrap();
        assert_eq!(Peers::parse(&text).unwrap(), peers);
        assert!(Peers::parse("[[peer]]\nkey = \"12\"").is_err());
        assert!(Peers::parse("[[peer]]\nkey = \"12\"\nage = 3").is_err());
    }
}
