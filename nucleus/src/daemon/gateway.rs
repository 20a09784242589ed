//! Other machines as the nucleus sees them: a process that speaks with them, and who among them is served.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::AccountId;
use cell_peer::{Credentials, tunnel};

use super::Event;
use super::ways::{WayRow, Ways};
use crate::config::{Config, Listening, Trust};
use crate::counted::Counted;
use crate::home::Home;
use crate::link::Link;
use crate::link::gateway::{FromGateway, Reach, ToGateway, Wanted};
use crate::peers::Peers;

/// How long after its end it is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How often it gets a new key; the last one is believed for a week.
const KEY_EVERY_S: u64 = 24 * 3600;
/// Messages of the gateway that the nucleus has not dealt with; one that sends more is ended.
pub(super) const UNHEARD_MAX: usize = 1024;
/// How long the gateway may leave a message unread.
pub(super) const SEND_TIME_MAX: Duration = Duration::from_secs(1);
/// The number of the gateway that started last.
static LAST: AtomicU64 = AtomicU64::new(0);

/// The gateway, if others can reach this machine.
pub(super) struct Gateway {
    home: Home,
    trust: Trust,
    has_jobs: bool,
    has_channels: bool,
    has_escrow: bool,
    /// What others may take of the line, in KiB a second: always, and while this machine is lent.
    bandwidth_kb_s: [Option<u64>; 2],
    is_relay: bool,
    /// Made anew for each gateway: one that was taken over could have ruined it.
    listener: Option<TcpListener>,
    /// Where it listens, if it does.
    address: Option<SocketAddr>,
    relays: Vec<[u8; 32]>,
    ways: Ways,
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
    /// Starts one where the settings name an address or a relay.
    pub(super) fn start(
        home: &Home,
        config: &Config,
        events: &Sender<Event>,
    ) -> anyhow::Result<Option<Self>> {
        let peers = &config.peers;
        if !peers.is_reachable() {
            return Ok(None);
        }
        let bind = |address: &String| {
            TcpListener::bind(address.as_str())
                .and_then(|listener| listener.local_addr().map(|address| (listener, address)))
                .with_context(|| format!("listen at {address}, as nucleus.toml says"))
        };
        let (listener, address) = peers.listen.as_ref().map(bind).transpose()?.unzip();
        let mut this = Self::new(home, peers, (listener, address), events);
        this.spawn()?;
        if let Some(address) = this.address {
            tracing::info!(%address, "listens for other machines");
        }
        Ok(Some(this))
    }

    fn new(
        home: &Home,
        peers: &Listening,
        (listener, address): (Option<TcpListener>, Option<SocketAddr>),
        events: &Sender<Event>,
    ) -> Self {
        let relays = peers.through.iter().filter_map(cell_discovery::Address::relay);
        Self {
            home: home.clone(),
            trust: peers.trust,
            has_jobs: peers.jobs,
            has_channels: !peers.ledgers.is_empty(),
            has_escrow: peers.escrow,
            bandwidth_kb_s: [peers.bandwidth_kb_s_max, None],
            is_relay: peers.relay,
            listener,
            address,
            relays: relays.map(|relay| *relay.as_bytes()).collect(),
            ways: Ways::new(&peers.through),
            events: events.clone(),
            running: None,
            number: 0,
            restart_at: None,
        }
    }

    /// Starts one that nobody comes to, where cells here call cells elsewhere and the settings name neither.
    pub(super) fn start_outward(home: &Home, events: &Sender<Event>) -> anyhow::Result<Self> {
        let mut this = Self::new(home, &Listening::default(), (None, None), events);
        this.spawn()?;
        Ok(this)
    }

    /// Where it listens, if it does.
    pub(super) const fn listens(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The relays at which this machine waits.
    pub(super) fn ways(&self) -> Vec<WayRow> {
        self.ways.rows().to_vec()
    }

    /// Where others reach this machine: where it listens, or else at a relay.
    pub(super) fn reached(&self) -> Option<String> {
        let listens = self.address.map(|address| address.to_string());
        listens.or_else(|| self.ways.rows().first().map(|row| row.address.clone()))
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let listener = match (self.listener.take(), self.address) {
            (None, Some(address)) => {
                Some(TcpListener::bind(address).context("listen for other machines again")?)
            }
            (listener, _) => listener,
        };
        if let Some(listener) = &listener {
            // What accepts hands these on to its connections.
            tunnel::prepare(listener)?;
        }
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
        // Of all that there ever were: what one says that has ended is not taken for another's.
        self.number = LAST.fetch_add(1, Relaxed) + 1;
        let (number, events, reader) = (self.number, self.events.clone(), ours.try_clone()?);
        ours.limit_sending(SEND_TIME_MAX)?;
        thread::Builder::new().name("gateway".into()).spawn(move || {
            let (mut buffer, all) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
            while let Ok(Some((message, fds))) = reader.receive::<FromGateway>(&mut buffer) {
                let unheard = Counted::new(&all, 1);
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
        let (credentials, relays) = (self.credentials()?, self.relays.clone());
        let fds: Vec<_> = listener.iter().map(|listener| listener.as_fd()).collect();
        let start = ToGateway::Start { credentials, relays };
        ours.send(&start, &fds).context("start the gateway")?;
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
            self.send(&self.pace(), None);
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
            Ok(_) => Err(is_not_known(peer)),
            Err(error) => Err(cannot_read(&error)),
        }
    }

    /// Whether a machine may wait here, or be connected to one that does; and whether the owner has named it.
    pub(super) fn relays(
        &self,
        peer: AccountId,
        is_own: bool,
        to: Option<AccountId>,
    ) -> Result<bool, String> {
        if !self.is_relay {
            return Err(
                "this machine passes no connections on: its nucleus.toml has no peers.relay = true"
                    .into(),
            );
        }
        let peers = Peers::read(&self.home).map_err(|error| cannot_read(&error))?;
        let is_known = is_own || peers.knows(peer);
        match to {
            None if is_own => Err("this machine does not wait at itself".into()),
            None if !is_known => Err(is_not_known(peer)),
            Some(_) if !is_known && self.trust == Trust::Listed => Err(is_not_known(peer)),
            Some(to) if !peers.knows(to) => Err(format!(
                "this machine does not know {to}; its owner may type: cell peer add {to}"
            )),
            _ => Ok(is_known),
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
        self.send(&message, None);
    }

    /// Has it ask for something over this connection; `false` if it is not there to do so.
    pub(super) fn reach(&mut self, reach: Reach, stream: &TcpStream) -> bool {
        self.send(&ToGateway::Reach(reach), Some(stream));
        self.running.is_some()
    }

    /// How it fares at a relay.
    pub(super) fn waits(&mut self, way: u32, why_not: Option<String>) {
        self.ways.says(way, why_not);
    }

    /// Connects to a relay, as the gateway asks.
    pub(super) fn dial(&self, id: u64, way: u32) {
        self.ways.dial(self.number, (id, way), &self.events);
    }

    /// Hands a connection to a relay over, or why there is none.
    pub(super) fn dialled(&mut self, id: u64, stream: Result<TcpStream, String>) {
        // Behind its walls the gateway cannot ask where a connection goes.
        let connected = stream.and_then(|stream| match stream.peer_addr() {
            Ok(address) => Ok((stream, address.ip())),
            Err(error) => Err(error.to_string()),
        });
        match connected {
            Ok((stream, at)) => self.send(&ToGateway::Dialled { id, at }, Some(&stream)),
            Err(why) => self.send(&ToGateway::NotDialled { id, why }, None),
        }
    }

    fn send(&mut self, message: &ToGateway, stream: Option<&TcpStream>) {
        let fds: Vec<_> = stream.iter().map(|stream| stream.as_fd()).collect();
        if let Some(running) = &mut self.running
            && let Err(error) = running.link.send(message, &fds)
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
            // Until the next one has asked them, it waits nowhere.
            self.ways.begin_anew();
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
            self.send(&ToGateway::Credentials(credentials), None);
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

fn is_not_known(peer: AccountId) -> String {
    format!("this machine does not know you; its owner may type: cell peer add {peer}")
}

fn cannot_read(error: &anyhow::Error) -> String {
    tracing::error!(error = %format!("{error:#}"), "read peers");
    "this machine cannot read whom it knows".into()
}

/// The one descriptor that comes with a peer's connection.
pub(super) fn connection(fds: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    fds.into_iter().next().ok_or_else(|| "the connection is lost".into())
}
