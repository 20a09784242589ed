//! Where this machine says that it serves others: its signed record in files, and its port in the local network.
//!
//! A thread of its own does it, for a file may be slow and a network silent. What fails is logged with what to
//! do; the nucleus goes on, for whoever knows the address needs no announcement.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use cell_abi::CellName;
use cell_discovery::{Address, NodeRecord, Offer, Serves, lan, publish};
use cell_host::Sandbox;
use cell_peer::tunnel;
use ed25519_dalek::SigningKey;

use crate::config::Config;
use crate::home::Home;
use crate::prices::rates_of;

/// How often a record is signed anew.
const EVERY: Duration = Duration::from_secs(3600);
/// How long one holds, in seconds: a machine that is gone is not found for longer.
const HOLDS_S: u64 = 24 * 3600;
/// How often it is looked whether other cells are for peers than before.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Cells that a machine says it has for others.
pub(super) const CELLS_TOLD_MAX: usize = 64;

/// The thread, as the deciding one sees it.
pub(super) struct Announcer {
    told: Option<BTreeSet<CellName>>,
    looked: Option<Instant>,
    thread: Sender<BTreeSet<CellName>>,
}

impl Announcer {
    /// Starts one where the settings say that this machine is to be found.
    pub(super) fn start(
        home: &Home,
        config: &Config,
        listens: Option<SocketAddr>,
    ) -> anyhow::Result<Option<Self>> {
        let announce = &config.peers.announce;
        if !announce.is_wanted() {
            return Ok(None);
        }
        let mut addresses = config.peers.addresses.clone();
        if addresses.is_empty() {
            let own = listens.filter(|listens| !listens.ip().is_unspecified());
            let own = own.map(|listens| listens.to_string().parse::<Address>()).transpose()?;
            addresses.extend(own.into_iter().chain(config.peers.through.iter().cloned()));
        }
        if addresses.is_empty() && !announce.files.is_empty() {
            tracing::warn!(
                "this machine is not announced in files: nucleus.toml says no peers.addresses, and peers.listen names none that others can reach"
            );
        }
        let rates = rates_of(config.prices.rates());
        let offer = Offer {
            addresses,
            serves: Serves { jobs: config.peers.jobs, cells: BTreeSet::new() },
            engine_id: Some(Sandbox::engine_id()),
            rates: rates.into_iter().map(|(name, rate)| (name, rate.nano_atp)).collect(),
            ledgers: config.peers.ledgers.clone(),
        };
        let (thread, inbox) = mpsc::channel();
        let speaker = Speaker { key: home.key()?, offer, files: announce.files.clone(), seq: 0 };
        let lan = listens.filter(|_| announce.lan).map(|listens| listens.port());
        thread::Builder::new()
            .name("announce".into())
            .spawn(move || speaker.run(lan, &inbox))
            .context("start the thread that announces this machine")?;
        Ok(Some(Self { told: None, looked: None, thread }))
    }

    /// Has it told what this machine serves, if that is known and is not what was told last.
    pub(super) fn tick(&mut self, cells: impl FnOnce() -> Option<BTreeSet<CellName>>) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let Some(cells) = cells().filter(|cells| self.told.as_ref() != Some(cells)) else { return };
        // A thread that has ended has logged why.
        let _ = self.thread.send(cells.clone());
        self.told = Some(cells);
    }
}

/// What the thread has.
struct Speaker {
    key: SigningKey,
    offer: Offer,
    files: Vec<PathBuf>,
    seq: u64,
}

impl Speaker {
    fn run(mut self, lan_port: Option<u16>, inbox: &Receiver<BTreeSet<CellName>>) {
        let key = cell_ledger::signed::node(&self.key);
        let announced = lan_port.map(|port| lan::announce(key, port));
        // It is announced for as long as this is kept.
        let _announcement = announced.and_then(|announced| {
            let told = |error: &_| tracing::warn!(%error, "this machine is not announced in the local network; is multicast allowed here?");
            announced.inspect_err(told).ok()
        });
        let mut is_known = false;
        loop {
            match inbox.recv_timeout(EVERY) {
                Ok(cells) => {
                    // Of several, the last counts.
                    let cells = inbox.try_iter().last().unwrap_or(cells);
                    if cells.len() > CELLS_TOLD_MAX {
                        tracing::warn!(
                            cells = cells.len(),
                            "of the cells that are for peers, only {CELLS_TOLD_MAX} are announced"
                        );
                    }
                    self.offer.serves.cells = cells.into_iter().take(CELLS_TOLD_MAX).collect();
                    is_known = true;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if is_known && !self.offer.addresses.is_empty() {
                self.publish();
            }
        }
    }

    fn publish(&mut self) {
        let now_s = tunnel::now_s();
        // Also where the clock was put back while this runs.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.seq = (self.seq + 1).max(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let expires_s = now_s + HOLDS_S;
        let record = NodeRecord::sign(self.offer.clone(), self.seq, now_s, expires_s, &self.key);
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(%error, "this machine's record is not signed");
                return;
            }
        };
        for file in &self.files {
            match publish(file, &record, now_s) {
                Ok(()) => tracing::info!(file = %file.display(), "announced"),
                Err(error) => tracing::warn!(
                    %error, file = %file.display(),
                    "this machine is not announced there; it is tried again in an hour, or when the nucleus comes up"
                ),
            }
        }
    }
}
