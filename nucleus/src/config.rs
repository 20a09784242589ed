//! `nucleus.toml`: what the operator of a nucleus decides. Everything has a default.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cell_discovery::{Address, LEDGERS_MAX, LedgerAt, Rendezvous};
use cell_donor::Settings;
use cell_donor::settings::{BANDWIDTH_KB_S_MAX, BANDWIDTH_KB_S_MIN};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::home::{Home, read_file};
use crate::prices::Prices;

/// Largest file, in bytes.
pub(crate) const FILE_BYTES_MAX: u64 = 64 << 10;

/// Linear memory and tables of all instances of a worker together, in MiB, unless the file says
/// otherwise.
pub(crate) const MEMORY_MB_MAX: u64 = 4096;

/// What is kept of calls that get receipts, in MiB, unless the file says otherwise.
pub(crate) const KEPT_MB_MAX: u64 = 256;

/// Memory of a job of another machine, in MiB, unless the file says otherwise.
pub(crate) const JOB_MEMORY_MB_MAX: u32 = 256;

/// How long such a job may take, in seconds, unless the file says otherwise.
pub(crate) const JOB_S_MAX: u64 = 3600;

/// How long a machine wants to be able to claim after a channel's end, in seconds, unless the file says otherwise.
pub(crate) const CLAIM_S: u64 = 3600;
/// Places where a machine says that it is there.
pub(crate) const ANNOUNCE_MAX: usize = 8;

/// Addresses that it says it has.
pub(crate) const ADDRESSES_MAX: usize = 8;

/// Relays at which it waits.
pub(crate) const RELAYS_MAX: usize = 4;

/// The file, checked.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Refuse to start where a wall around the worker is missing. Default: warn.
    pub(crate) require_walls: bool,
    /// A PostgreSQL database that keeps the ledger, such as `postgres://user@host/database`, which
    /// several nuclei may share. Default: `ledger.db` in the home.
    pub(crate) ledger: Option<String>,
    /// What all guests together may take.
    pub(crate) worker: Worker,
    /// Where metrics are served besides `metrics.sock`.
    pub(crate) metrics: Metrics,
    /// What is kept of calls that get receipts.
    pub(crate) receipts: Receipts,
    /// What is charged besides fuel.
    pub(crate) prices: Prices,
    /// Whether other machines may call cells here, and which.
    pub(crate) peers: Listening,
    /// What `cell donate` may do with this machine, and when.
    pub(crate) donate: Settings,
}

/// Whether other machines may call cells here, and which.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Listening {
    /// Where to listen for them, such as `0.0.0.0:7316`. Default: nowhere.
    pub(crate) listen: Option<String>,
    /// Relays at which to wait for them, as RELAYKEY@HOST:PORT: machines that listen, and pass connections on to
    /// this one, which needs no port of its own. Default: none.
    #[serde(deserialize_with = "relays")]
    pub(crate) through: Vec<Address>,
    /// Whether connections are passed on to machines that wait here. Default: no.
    pub(crate) relay: bool,
    /// Who is served. Default: those that `cell peer add` named.
    pub(crate) trust: Trust,
    /// Where this machine says that it is here: `"lan"`, files, or a list of both. Default: nowhere.
    pub(crate) announce: Announce,
    /// Where others reach it, as HOST:PORT or RELAYKEY@HOST:PORT. Default: `listen`, if that names an address,
    /// and `through`.
    #[serde(deserialize_with = "addresses")]
    pub(crate) addresses: Vec<Address>,
    /// What all their sessions together may take of the line in each direction, in KiB a second: 64 to 4,194,304.
    /// Default: no limit. While the machine is lent, the lower of this and `donate.bandwidth_kb_s_max` holds.
    pub(crate) bandwidth_kb_s_max: Option<u64>,
    /// Whether their jobs run here. Default: no.
    pub(crate) jobs: bool,
    /// Memory that one of those may have, in MiB: 1 to 4096. Default 256.
    pub(crate) job_memory_mb_max: u32,
    /// How long one may take, in seconds: 1 to 80,000, less than a hold lasts. Default 3600.
    pub(crate) job_s_max: u64,
    /// Ledgers whose money is taken for work, as KEY@HOST:PORT: machines that keep deposits of channels.
    /// Default: none, so a peer spends what it was granted here.
    #[serde(deserialize_with = "ledgers")]
    pub(crate) ledgers: Vec<LedgerAt>,
    /// How long after a channel's end this machine wants to be able to claim, in seconds: 1 to 604,800. Default
    /// 3600: it must be up and reach the ledger in that time.
    pub(crate) claim_s: u64,
    /// Whether this machine's ledger keeps deposits of channels, and pays them out. Default: no.
    pub(crate) escrow: bool,
}

impl Default for Listening {
    fn default() -> Self {
        Self {
            listen: None,
            through: Vec::new(),
            relay: false,
            trust: Trust::default(),
            announce: Announce::default(),
            addresses: Vec::new(),
            bandwidth_kb_s_max: None,
            jobs: false,
            job_memory_mb_max: JOB_MEMORY_MB_MAX,
            job_s_max: JOB_S_MAX,
            ledgers: Vec::new(),
            claim_s: CLAIM_S,
            escrow: false,
        }
    }
}

impl Listening {
    /// Whether others can reach this machine, by an address of its own or through a relay.
    pub(crate) const fn is_reachable(&self) -> bool {
        self.listen.is_some() || !self.through.is_empty()
    }

    /// What one key says of another.
    fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.is_reachable() || !self.announce.is_wanted(),
            "peers.announce needs peers.listen or peers.through: nobody could connect"
        );
        anyhow::ensure!(
            self.listen.is_some() || !self.announce.lan,
            "peers.announce = \"lan\" needs peers.listen: neighbours are told a port"
        );
        anyhow::ensure!(
            self.listen.is_some() || !self.relay,
            "peers.relay needs peers.listen: nobody could connect"
        );
        Ok(())
    }
}

/// Where a machine says that it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "OneOrMany")]
pub(crate) struct Announce {
    /// In the local network.
    pub(crate) lan: bool,
    /// In files that others read, or a web server serves.
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Announce {
    /// Whether anything is to be said.
    pub(crate) const fn is_wanted(&self) -> bool {
        self.lan || !self.files.is_empty()
    }
}

impl TryFrom<OneOrMany> for Announce {
    type Error = String;

    fn try_from(given: OneOrMany) -> Result<Self, String> {
        let places = match given {
            OneOrMany::One(place) => vec![place],
            OneOrMany::Many(places) => places,
        };
        if places.len() > ANNOUNCE_MAX {
            return Err(format!(
                "peers.announce has {} places, and {ANNOUNCE_MAX} is the most",
                places.len()
            ));
        }
        let mut this = Self::default();
        for place in places {
            if place == "lan" {
                this.lan = true;
                continue;
            }
            let rendezvous: Rendezvous = place.parse().map_err(|error| format!("{error}"))?;
            match rendezvous.path().filter(|path| path.is_absolute()) {
                Some(path) => this.files.push(path.to_owned()),
                None => {
                    return Err(format!(
                        "peers.announce = {place:?} must be \"lan\" or the whole path of a file; a web server can serve that file"
                    ));
                }
            }
        }
        Ok(this)
    }
}

fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Address>, D::Error> {
    texts(from, "peers.addresses", ADDRESSES_MAX, str::parse)
}

fn relays<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Address>, D::Error> {
    let all = texts(from, "peers.through", RELAYS_MAX, |text| match text.parse::<Address>() {
        Ok(address) if address.relay().is_some() => Ok(address),
        _ => Err(format!(
            "peers.through: `{text}` must be RELAYKEY@HOST:PORT: the `owner` of `cell id` on the relay, and where that machine listens"
        )),
    })?;
    let keys: BTreeSet<_> = all.iter().map(Address::relay).collect();
    if keys.len() < all.len() {
        return Err(D::Error::custom(
            "peers.through names a relay twice; one address of it is enough",
        ));
    }
    Ok(all)
}

fn ledgers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<LedgerAt>, D::Error> {
    texts(from, "peers.ledgers", LEDGERS_MAX, |text| {
        text.parse().map_err(|_| {
            format!("peers.ledgers: `{text}` must be KEY@HOST:PORT: the `owner` of `cell id` there, and where that machine listens")
        })
    })
}

/// Reads texts that stand for something, at most so many.
fn texts<'de, D: Deserializer<'de>, T, E: Display>(
    from: D,
    key: &str,
    most: usize,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    if texts.len() > most {
        return Err(D::Error::custom(format!("{key} has {}, and {most} is the most", texts.len())));
    }
    texts.iter().map(|text| parse(text).map_err(D::Error::custom)).collect()
}

/// Which other machines are served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trust {
    /// Those that the owner named.
    #[default]
    Listed,
    /// Every one whose account here can pay.
    AnyoneWhoPays,
}

/// What is kept of calls that get receipts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Receipts {
    /// Leaves, requests and tapes together, in MiB: 1 to 1,048,576. Default 256. Beyond it the oldest go,
    /// and their calls cannot be checked any more; receipts themselves stay.
    pub(crate) kept_mb_max: u64,
}

impl Default for Receipts {
    fn default() -> Self {
        Self { kept_mb_max: KEPT_MB_MAX }
    }
}

/// Where metrics are served.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// A port of 127.0.0.1, where every user of this machine can read them: 1 to 65535. Default: none.
    pub(crate) port: Option<NonZeroU16>,
}

/// What one worker process may take.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Worker {
    /// Linear memory and tables of all instances together, in MiB: 64 to 1,048,576. Default 4096.
    ///
    /// Not counted: compiled code, stacks and the host's own tables. A guest that would grow past it
    /// gets -1 from `memory.grow`; a call that needs a new instance then is answered `Busy`.
    pub(crate) memory_mb_max: u64,
    /// Processor time, in cores: 0.01 to 1024. Default: all there are. Holds only where the nucleus has
    /// a control group of its own with the `cpu` controller.
    pub(crate) cores_max: Option<f64>,
}

impl Default for Worker {
    fn default() -> Self {
        Self { memory_mb_max: MEMORY_MB_MAX, cores_max: None }
    }
}

impl Config {
    /// Reads the file of a home; without one everything is as by default.
    pub(crate) fn read(home: &Home) -> anyhow::Result<Self> {
        let path = home.root().join("nucleus.toml");
        if !path.exists() {
            return Ok(Self::default());
        }
        Self::read_file(&path).with_context(|| format!("in {}", path.display()))
    }

    fn read_file(path: &Path) -> anyhow::Result<Self> {
        let text = String::from_utf8(read_file(path, FILE_BYTES_MAX)?).context("it is not text")?;
        Self::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        let memory = config.worker.memory_mb_max;
        anyhow::ensure!(
            (64..=1 << 20).contains(&memory),
            "worker.memory_mb_max = {memory} must be between 64 and 1048576"
        );
        let kept = config.receipts.kept_mb_max;
        anyhow::ensure!(
            (1..=1 << 20).contains(&kept),
            "receipts.kept_mb_max = {kept} must be between 1 and 1048576"
        );
        let memory = config.peers.job_memory_mb_max;
        anyhow::ensure!(
            (1..=4096).contains(&memory),
            "peers.job_memory_mb_max = {memory} must be between 1 and 4096"
        );
        let bandwidth = config.peers.bandwidth_kb_s_max.unwrap_or(BANDWIDTH_KB_S_MAX);
        anyhow::ensure!(
            (BANDWIDTH_KB_S_MIN..=BANDWIDTH_KB_S_MAX).contains(&bandwidth),
            "peers.bandwidth_kb_s_max = {bandwidth} must be between {BANDWIDTH_KB_S_MIN} and {BANDWIDTH_KB_S_MAX}"
        );
        let seconds = config.peers.job_s_max;
        anyhow::ensure!(
            (1..=80_000).contains(&seconds),
            "peers.job_s_max = {seconds} must be between 1 and 80000"
        );
        let seconds = config.peers.claim_s;
        anyhow::ensure!(
            (1..=604_800).contains(&seconds),
            "peers.claim_s = {seconds} must be between 1 and 604800"
        );
        config.peers.check()?;
        let cores = config.worker.cores_max.unwrap_or(1.0);
        anyhow::ensure!(
            (0.01..=1024.0).contains(&cores),
            "worker.cores_max = {cores} must be between 0.01 and 1024"
        );
        config.donate.check().map_err(|error| anyhow::anyhow!("in [donate]: {error}"))?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert!(Config::parse("require_walls = true").unwrap().require_walls);
        let port = Config::parse("[metrics]\nport = 9187").unwrap().metrics.port;
        assert_eq!(port.map(NonZeroU16::get), Some(9187));
        let peers = "[peers]\nlisten = \"[::]:1\"\n";
        let announce = |text: &str| Config::parse(&format!("{peers}announce = {text}"));
        let found = announce("[\"lan\", \"/srv/nodes.jsonl\"]").unwrap().peers.announce;
        assert_eq!(found, Announce { lan: true, files: vec!["/srv/nodes.jsonl".into()] });
        assert!(announce("\"lan\"").unwrap().peers.announce.lan);
        for (text, expect) in [
            ("\"nodes.jsonl\"", "whole path"),
            ("\"http://h/nodes.jsonl\"", "whole path"),
            ("\"https://h/nodes.jsonl\"", "https"),
            ("\"lan\"\naddresses = [\"h\"]", "HOST:PORT"),
            (&format!("{:?}", ["lan"; ANNOUNCE_MAX + 1]), "is the most"),
            (&format!("\"lan\"\naddresses = {:?}", ["h:1"; ADDRESSES_MAX + 1]), "is the most"),
        ] {
            let error = format!("{:#}", announce(text).unwrap_err());
            assert!(error.contains(expect), "{text}: {error}");
        }
        let (one, other) = (format!("{}@h:1", "ab".repeat(32)), format!("{}@h:1", "cd".repeat(32)));
        let through = |text: &str| Config::parse(&format!("[peers]\nthrough = {text}"));
        let found = through(&format!("{:?}\nannounce = \"/srv/nodes.jsonl\"", [&one, &other]));
        assert_eq!(found.unwrap().peers.through.len(), 2);
        for (text, expect) in [
            ("[\"h:1\"]", "RELAYKEY@HOST:PORT"),
            (&format!("[\"{one}\", \"{one}0\"]"), "twice"),
            (&format!("{:?}", vec![&one; RELAYS_MAX + 1]), "is the most"),
            (&format!("[\"{one}\"]\nannounce = \"lan\""), "needs peers.listen"),
        ] {
            let error = format!("{:#}", through(text).unwrap_err());
            assert!(error.contains(expect), "{text}: {error}");
        }
        for (text, expect) in [
            ("[peers]\nannounce = \"lan\"", "needs peers.listen"),
            ("[peers]\nbandwidth_kb_s_max = 63", "= 63 must be between 64 and 4194304"),
            ("[peers]\nbandwidth_kb_s_max = 4194305", "between 64"),
            ("[peers]\nrelay = true", "peers.relay needs peers.listen"),
            ("require_wall = true", "require_wall"),
            ("[worker]\nmemory_mb_max = 1", "between 64"),
            ("[worker]\nmemory_gb_max = 1", "memory_gb_max"),
            ("[worker]\ncores_max = 0", "between 0.01"),
            ("[worker]\ncores_max = nan", "between 0.01"),
            ("[receipts]\nkept_mb_max = 0", "between 1"),
            ("[donate]\nidle_s = 0", "in [donate]: idle_s = 0 must be between 1 and 86400"),
            ("[donate]\nschedule = [\"x\"]", "write days, hours or both"),
            ("[metrics]\nport = 0", "port"),
            ("[metrics]\nport = 65536", "port"),
            ("[metrics]\naddress = \"0.0.0.0\"", "address"),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(expect), "{error}");
        }
    }
}
