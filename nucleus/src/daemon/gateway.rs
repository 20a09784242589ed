//! Other machines as the nucleus sees them: a process that speaks with them, and who among them is served.

use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::AccountId;
use cell_peer::{Credentials, tunnel};

use super::Event;
use crate::config::{Config, Trust};
use crate::home::Home;
use crate::link::Link;
use crate::link::gateway::{FromGateway, ToGateway};
use crate::peers::Peers;

/// How long after its end it is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How often it gets a new key; the last one is believed for a week.
const KEY_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How long the gateway may leave a message unread.
const SEND_TIME_MAX: Duration = Duration::from_secs(1);

/// The gateway, if this machine listens for others.
pub(super) struct Gateway {
    home: Home,
    trust: Trust,
    listener: TcpListener,
    events: Sender<Event>,
    running: Option<Running>,
    /// Tells a gateway from the ones before it.
    number: u64,
    restart_at: Option<Instant>,
}

struct Running {
    child: Child,
    link: Link,
    key_since: Instant,
}

impl Gateway {
    /// Starts one where the settings name an address.
    pub(super) fn start(
        home: &Home,
        config: &Config,
        events: &Sender<Event>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(address) = &config.peers.listen else { return Ok(None) };
        let listen = || -> anyhow::Result<TcpListener> {
            let listener = TcpListener::bind(address.as_str())?;
            // What accepts hands these on to its connections.
            tunnel::prepare(&listener)?;
            Ok(listener)
        };
        let listener =
            listen().with_context(|| format!("listen at {address}, as nucleus.toml says"))?;
        let mut this = Self {
            home: home.clone(),
            trust: config.peers.trust,
            listener,
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
        self.listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let (ours, theirs) = Link::pair().context("make the gateway's link")?;
        let child = Command::new(std::env::current_exe()?)
            .arg("gateway")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .spawn()
            .context("start the gateway")?;
        self.number += 1;
        let (number, events, reader) = (self.number, self.events.clone(), ours.try_clone()?);
        ours.limit_sending(SEND_TIME_MAX)?;
        thread::Builder::new().name("gateway".into()).spawn(move || {
            let mut buffer = Vec::new();
            while let Ok(Some((message, fds))) = reader.receive::<FromGateway>(&mut buffer) {
                if events.send(Event::Gateway(number, message, fds)).is_err() {
                    return;
                }
            }
            // The nucleus may have ended first.
            let _ = events.send(Event::GatewayGone(number));
        })?;
        let start = ToGateway::Start { credentials: self.credentials()? };
        ours.send(&start, &[self.listener.as_fd()]).context("start the gateway")?;
        self.running = Some(Running { child, link: ours, key_since: Instant::now() });
        Ok(())
    }

    fn credentials(&self) -> anyhow::Result<Vec<u8>> {
        Ok(Credentials::new(&self.home.key()?, tunnel::now_s())?.to_bytes().to_vec())
    }

    /// Whether a message is of the gateway that runs.
    pub(super) const fn is_current(&self, number: u64) -> bool {
        self.number == number
    }

    /// Whether the owner lets this machine call cells that are for other machines.
    pub(super) fn trusts(&self, peer: AccountId) -> Result<(), String> {
        if self.trust == Trust::AnyoneWhoPays {
            return Ok(());
        }
        match Peers::read(&self.home) {
            Ok(peers) if peers.knows(peer) => Ok(()),
            Ok(_) => Err(format!(
                "this machine does not know you; its owner may type: cell peer add {peer}"
            )),
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "read peers");
                Err("this machine cannot read whom it knows".into())
            }
        }
    }

    /// Answers what a peer asked.
    pub(super) fn answer(&mut self, id: u64, refused: Result<(), String>) {
        let message = match refused {
            Ok(()) => ToGateway::Served { id },
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
            self.restart_at = None;
            self.spawn()?;
        }
        if self.running.as_ref().is_some_and(|running| running.key_since.elapsed() >= KEY_EVERY) {
            let credentials = self.credentials()?;
            self.send(&ToGateway::Credentials(credentials));
            if let Some(running) = &mut self.running {
                running.key_since = Instant::now();
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
