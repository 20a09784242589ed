//! Other machines as the nucleus sees them: a process that speaks with them, and who among them is served.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::AccountId;
use cell_peer::{Credentials, tunnel};

use super::Event;
use super::workers::Unheard;
use crate::config::{Config, Trust};
use crate::home::Home;
use crate::link::Link;
use crate::link::gateway::{FromGateway, ToGateway, Wanted};
use crate::peers::Peers;

/// How long after its end it is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How often it gets a new key; the last one is believed for a week.
const KEY_EVERY_S: u64 = 24 * 3600;
/// Messages of the gateway that the nucleus has not dealt with; one that sends more is ended.
pub(super) const UNHEARD_MAX: usize = 1024;
/// How long the gateway may leave a message unread.
pub(super) const SEND_TIME_MAX: Duration = Duration::from_secs(1);

/// The gateway, if this machine listens for others.
pub(super) struct Gateway {
    home: Home,
    trust: Trust,
    has_jobs: bool,
    has_channels: bool,
    has_escrow: bool,
    /// What others may take of the line, in KiB a second: always, and while this machine is lent.
    bandwidth_kb_s: [Option<u64>; 2],
    /// Made anew for each gateway: one that was taken over could have ruined it.
    listener: Option<TcpListener>,
    address: SocketAddr,
    events: Sender<Event>,
    running: Option<Running>,
    /// Tells a gateway from the ones before it.
    number: u64,
    restart_at: Option<Instant>,
}

struct Running {
    child: Child,
    link: Link,
    /// When its key was signed, in seconds since 1970: a machine may have slept meanwhile.
    key_since_s: u64,
}

impl Gateway {
    /// Starts one where the settings name an address.
    pub(super) fn start(
        home: &Home,
        config: &Config,
        events: &Sender<Event>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(address) = &config.peers.listen else { return Ok(None) };
        let (listener, address) = TcpListener::bind(address.as_str())
            .and_then(|listener| listener.local_addr().map(|address| (listener, address)))
            .with_context(|| format!("listen at {address}, as nucleus.toml says"))?;
        let mut this = Self {
            home: home.clone(),
            trust: config.peers.trust,
            has_jobs: config.peers.jobs,
            has_channels: !config.peers.ledgers.is_empty(),
            has_escrow: config.peers.escrow,
            bandwidth_kb_s: [config.peers.bandwidth_kb_s_max, None],
            listener: Some(listener),
            address,
            events: events.clone(),
            running: None,
            number: 0,
            restart_at: None,
        };
        this.spawn()?;
        tracing::info!(address = this.address(), "listens for other machines");
        Ok(Some(this))
    }

    /// Where it listens.
    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(super) const fn listens(&self) -> SocketAddr {
        self.address
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => TcpListener::bind(self.address).context("listen for other machines again")?,
        };
        // What accepts hands these on to its connections.
        tunnel::prepare(&listener)?;
        let (ours, theirs) = Link::pair().context("make the gateway's link")?;
        let child = Command::new(std::env::current_exe()?)
            .arg("gateway")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .spawn()
            .context("start the gateway")?;
        // Whatever fails from here on, it ends with this.
        let mut running = Running { child, link: ours, key_since_s: tunnel::now_s() };
        let ours = &mut running.link;
        self.number += 1;
        let (number, events, reader) = (self.number, self.events.clone(), ours.try_clone()?);
        ours.limit_sending(SEND_TIME_MAX)?;
        thread::Builder::new().name("gateway".into()).spawn(move || {
            let (mut buffer, all) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
            while let Ok(Some((message, fds))) = reader.receive::<FromGateway>(&mut buffer) {
                let unheard = Unheard::new(&all, 1);
                if all.load(Relaxed) > UNHEARD_MAX {
                    tracing::error!("the gateway says more than is heard; it is ended");
                    break;
                }
                if events.send(Event::Gateway(number, message, fds, unheard)).is_err() {
                    return;
                }
            }
            // The nucleus may have ended first.
            let _ = events.send(Event::GatewayGone(number));
        })?;
        let start = ToGateway::Start { credentials: self.credentials()? };
        ours.send(&start, &[listener.as_fd()]).context("start the gateway")?;
        ours.send(&self.pace(), &[]).context("start the gateway")?;
        self.running = Some(running);
        Ok(())
    }

    /// What others may take of the line while this machine is lent, in KiB a second; `None` when it is not, or where
    /// that is no limit.
    pub(super) fn lend(&mut self, bandwidth_kb_s: Option<u64>) {
        let [_, lent] = &mut self.bandwidth_kb_s;
        if *lent != bandwidth_kb_s {
            *lent = bandwidth_kb_s;
            self.send(&self.pace());
        }
    }

    /// The lower of what holds.
    fn pace(&self) -> ToGateway {
        let kb_s = self.bandwidth_kb_s.into_iter().flatten().min();
        let bytes_per_s = kb_s.and_then(|kb_s| NonZeroU64::new(kb_s.saturating_mul(1024)));
        ToGateway::Pace { bytes_per_s }
    }

    fn credentials(&self) -> anyhow::Result<Vec<u8>> {
        Ok(Credentials::new(&self.home.key()?, tunnel::now_s())?.to_bytes().to_vec())
    }

    /// Whether a message is of the gateway that runs.
    pub(super) const fn is_current(&self, number: u64) -> bool {
        self.number == number
    }

    /// Whether the owner lets this machine call cells that are for other machines; and whether that is
    /// because it was named.
    pub(super) fn trusts(
        &self,
        peer: AccountId,
        wanted: &Wanted,
        can_pay: impl FnOnce() -> bool,
    ) -> Result<bool, String> {
        match Peers::read(&self.home) {
            Ok(peers) if peers.knows(peer) => Ok(true),
            // Both parties of a channel come to its ledger, whoever they are.
            Ok(_) if *wanted == Wanted::Escrow => Ok(false),
            // This is how strangers come to be able to pay.
            Ok(_) if *wanted == Wanted::Channel && self.trust == Trust::AnyoneWhoPays => Ok(false),
            Ok(_) if self.trust == Trust::AnyoneWhoPays => match can_pay() {
                true => Ok(false),
                false => Err(format!("the account {peer} has nothing to spend on this machine")),
            },
            Ok(_) => Err(format!(
                "this machine does not know you; its owner may type: cell peer add {peer}"
            )),
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "read peers");
                Err("this machine cannot read whom it knows".into())
            }
        }
    }

    /// Whether other machines' jobs run here.
    pub(super) fn serves_jobs(&self) -> Result<(), String> {
        let refused =
            "this machine runs no jobs of others: its nucleus.toml has no peers.jobs = true";
        if self.has_jobs { Ok(()) } else { Err(refused.into()) }
    }

    /// Whether channels, or deposits of channels, are served here.
    pub(super) fn serves_money(&self, wanted: &Wanted) -> Result<(), String> {
        match wanted {
            Wanted::Escrow if !self.has_escrow => {
                Err("this machine keeps no deposits: its nucleus.toml has no peers.escrow = true"
                    .into())
            }
            Wanted::Channel if !self.has_channels => {
                Err("this machine takes no channels: its nucleus.toml has no peers.ledgers".into())
            }
            _ => Ok(()),
        }
    }

    /// Answers what a peer asked.
    pub(super) fn answer(&mut self, id: u64, served: Result<bool, String>) {
        let message = match served {
            Ok(is_known) => ToGateway::Served { id, is_known },
            Err(why) => ToGateway::Refused { id, why },
        };
        self.send(&message);
    }

    fn send(&mut self, message: &ToGateway) {
        if let Some(running) = &mut self.running
            && let Err(error) = running.link.send(message, &[])
        {
            tracing::error!(%error, "the gateway does not take a message; it is ended");
            let _ = running.child.kill();
        }
    }

    /// Its end was seen; another one follows.
    pub(super) fn gone(&mut self) {
        if let Some(mut running) = self.running.take() {
            tracing::warn!("the gateway is gone; another one starts");
            running.end();
            self.restart_at = Some(Instant::now() + RESTART_AFTER);
        }
    }

    /// Starts it again, or gives it a new key, when it is time.
    pub(super) fn tick(&mut self) -> anyhow::Result<()> {
        if self.restart_at.is_some_and(|at| Instant::now() >= at) {
            self.restart_at = self.spawn().err().map(|error| {
                tracing::error!(error = %format!("{error:#}"), "the gateway does not start");
                Instant::now() + RESTART_AFTER
            });
        }
        let now_s = tunnel::now_s();
        let is_old = |running: &Running| now_s.abs_diff(running.key_since_s) >= KEY_EVERY_S;
        if self.running.as_ref().is_some_and(is_old) {
            let credentials = self.credentials()?;
            self.send(&ToGateway::Credentials(credentials));
            if let Some(running) = &mut self.running {
                running.key_since_s = now_s;
            }
        }
        Ok(())
    }
}

impl Running {
    fn end(&mut self) {
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "wait for the gateway");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// The one descriptor that comes with a peer's connection.
pub(super) fn connection(fds: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    fds.into_iter().next().ok_or_else(|| "the connection is lost".into())
}
