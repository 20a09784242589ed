//! What runs for other machines beside calls: jobs, and the tellers of channels. A process for each, only so
//! many at once.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::AccountId;
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::LEDGER_VARIABLE;
use crate::config::Config;
use crate::home::Home;

/// Jobs of all other machines at once.
pub(super) const JOBS_MAX: usize = 4;
/// Jobs of one other machine at once.
pub(super) const JOBS_PER_PEER_MAX: usize = 2;

/// Jobs of those machines that nobody has named, at once; each may have one.
pub(super) const STRANGER_JOBS_MAX: usize = 2;
/// Sessions about channels or deposits, of all other machines at once, of each of the two kinds.
pub(super) const TELLERS_MAX: usize = 8;
/// The same of one other machine.
pub(super) const TELLERS_PER_PEER_MAX: usize = 2;
/// The same of all machines that nobody has named; each may have one.
pub(super) const STRANGER_TELLERS_MAX: usize = 4;

/// How often what is owed is claimed, if that failed when it was due.
const CLAIM_EVERY: Duration = Duration::from_secs(600);

/// What a process does for another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It runs a job.
    Job,
    /// It is paid by a channel.
    Channel,
    /// It answers about deposits in the ledger.
    Escrow,
}

impl Kind {
    /// How many there may be at once: in all, of one peer, of strangers.
    const fn limits(self) -> (usize, usize, usize) {
        match self {
            Self::Job => (JOBS_MAX, JOBS_PER_PEER_MAX, STRANGER_JOBS_MAX),
            Self::Channel | Self::Escrow => {
                (TELLERS_MAX, TELLERS_PER_PEER_MAX, STRANGER_TELLERS_MAX)
            }
        }
    }

    const fn plural(self) -> &'static str {
        match self {
            Self::Job => "jobs run",
            Self::Channel | Self::Escrow => "such sessions are",
        }
    }

    const fn command(self) -> &'static str {
        match self {
            Self::Job => "peer-job",
            Self::Channel => "peer-channel",
            Self::Escrow => "peer-escrow",
        }
    }
}

/// Those that run.
pub(super) struct Jobs {
    home: Home,
    /// What one may have, in MiB, unless less is lent.
    job_memory_mb_max: u32,
    running: Vec<Running>,
    claimed: Option<Instant>,
    claiming: Option<Child>,
    lent: Option<Lent>,
}

/// What a machine that is lent has for jobs.
struct Lent {
    memory_mb: u64,
    disk_mb: u64,
}

struct Running {
    kind: Kind,
    peer: AccountId,
    is_known: bool,
    child: Child,
}

impl Jobs {
    pub(super) fn new(home: &Home, config: &Config) -> Self {
        Self {
            home: home.clone(),
            job_memory_mb_max: config.peers.job_memory_mb_max,
            running: Vec::new(),
            claimed: None,
            claiming: None,
            lent: None,
        }
    }

    /// From now on jobs have so much memory together, and so much disk for their modules.
    pub(super) fn lend(&mut self, memory_mb: u64, disk_mb: u64) {
        self.lent = Some(Lent { memory_mb, disk_mb });
    }

    /// Has everything claimed that other machines owe, by a process of its own, now and then.
    pub(super) fn claim(&mut self) {
        if self.claiming.is_some() || self.claimed.is_some_and(|at| at.elapsed() < CLAIM_EVERY) {
            return;
        }
        self.claimed = Some(Instant::now());
        if !self.home.root().join("channels").is_dir() {
            return;
        }
        match self.command("channel").and_then(|mut command| {
            let command = command.arg("claim").arg("--quiet").stdin(Stdio::null());
            command.spawn().context("start what claims")
        }) {
            Ok(child) => self.claiming = Some(child),
            Err(error) => tracing::error!(error = %format!("{error:#}"), "claim"),
        }
    }

    /// Whether a machine has a channel open here, from which it can pay.
    pub(super) fn has_channel(&self, peer: AccountId) -> bool {
        self.running.iter().any(|running| running.kind == Kind::Channel && running.peer == peer)
    }

    /// Starts a process that serves a peer over this connection; or says why not.
    pub(super) fn start(
        &mut self,
        kind: Kind,
        (peer, is_known): (AccountId, bool),
        connection: OwnedFd,
    ) -> Result<(), String> {
        self.reap();
        let like = || self.running.iter().filter(|running| running.kind == kind);
        let of_peer = like().filter(|running| running.peer == peer).count();
        let of_strangers = like().filter(|running| !running.is_known).count();
        let (all_max, of_peer_max, of_strangers_max) = kind.limits();
        let fits = match is_known {
            true => of_peer < of_peer_max,
            false => of_peer == 0 && of_strangers < of_strangers_max,
        };
        let all_max = if kind == Kind::Job { self.at_once() } else { all_max };
        if !fits || like().count() >= all_max {
            return Err(format!("too many {} here already; try again later", kind.plural()));
        }
        match self.spawn(kind, peer, connection) {
            Ok(child) => {
                self.running.push(Running { kind, peer, is_known, child });
                Ok(())
            }
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "start what serves a peer");
                Err("this machine cannot serve you now; try again later".into())
            }
        }
    }

    /// As many as may run: each may take all the memory that one may have.
    fn at_once(&self) -> usize {
        let Some(Lent { memory_mb, .. }) = self.lent else { return JOBS_MAX };
        let of_one = u64::from(self.memory_mb_max(memory_mb));
        usize::try_from(memory_mb.checked_div(of_one).unwrap_or(1))
            .unwrap_or(JOBS_MAX)
            .clamp(1, JOBS_MAX)
    }

    fn memory_mb_max(&self, lent_mb: u64) -> u32 {
        self.job_memory_mb_max.min(u32::try_from(lent_mb).unwrap_or(u32::MAX))
    }

    fn spawn(&self, kind: Kind, peer: AccountId, connection: OwnedFd) -> anyhow::Result<Child> {
        let mut command = self.command(kind.command())?;
        if let (Kind::Job, Some(Lent { memory_mb, disk_mb })) = (kind, &self.lent) {
            command.args(["--memory-max", &self.memory_mb_max(*memory_mb).to_string()]);
            command.args(["--disk-max", &disk_mb.to_string()]);
        }
        command.arg(peer.to_string()).stdin(Stdio::from(connection));
        command.spawn().context("start its process")
    }

    /// This program, for this home.
    fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env_clear().current_dir("/").stdout(Stdio::null());
        command.arg(name).arg("--home").arg(self.home.root());
        if let Some(url) = self.home.ledger_url() {
            command.env(LEDGER_VARIABLE, url);
        }
        Ok(command)
    }

    /// Forgets those that have ended.
    pub(super) fn reap(&mut self) {
        self.running.retain_mut(|running| matches!(running.child.try_wait(), Ok(None)));
        if self.claiming.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
            self.claiming = None;
        }
    }

    /// Has every job end, and pay for what it did.
    pub(super) fn end_jobs(&self) {
        self.tell_to_end(|kind| kind == Kind::Job);
    }

    /// The same, and every teller.
    pub(super) fn shut_down(&self) {
        self.tell_to_end(|_| true);
    }

    fn tell_to_end(&self, which: impl Fn(Kind) -> bool) {
        for Running { child, .. } in self.running.iter().filter(|running| which(running.kind)) {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // One that has ended needs no signal.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
    }

    /// How many jobs run.
    pub(super) fn count(&mut self) -> usize {
        self.reap();
        self.running.iter().filter(|running| running.kind == Kind::Job).count()
    }

    /// Whether anything is left.
    pub(super) fn are_running(&mut self) -> bool {
        self.reap();
        !self.running.is_empty()
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        for Running { child, .. } in &mut self.running {
            // It has ended, or does not end; its hold is void with it.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(child) = &mut self.claiming {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
