//! Jobs of other machines: a process for each, only so many at once.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use cell_abi::AccountId;
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::LEDGER_VARIABLE;
use crate::home::Home;

/// Jobs of all other machines at once.
pub(super) const JOBS_MAX: usize = 4;
/// Jobs of one other machine at once.
pub(super) const JOBS_PER_PEER_MAX: usize = 2;

/// Jobs of those machines that nobody has named, at once; each may have one.
pub(super) const STRANGER_JOBS_MAX: usize = 2;

/// Those that run.
pub(super) struct Jobs {
    home: Home,
    running: Vec<Running>,
}

struct Running {
    peer: AccountId,
    is_known: bool,
    child: Child,
}

impl Jobs {
    pub(super) fn new(home: &Home) -> Self {
        Self { home: home.clone(), running: Vec::new() }
    }

    /// Starts a process that takes a peer's job from this connection; or says why not.
    pub(super) fn start(
        &mut self,
        (peer, is_known): (AccountId, bool),
        connection: OwnedFd,
    ) -> Result<(), String> {
        self.reap();
        let of_peer = self.running.iter().filter(|running| running.peer == peer).count();
        let of_strangers = self.running.iter().filter(|running| !running.is_known).count();
        let fits = match is_known {
            true => of_peer < JOBS_PER_PEER_MAX,
            false => of_peer == 0 && of_strangers < STRANGER_JOBS_MAX,
        };
        if !fits || self.running.len() >= JOBS_MAX {
            return Err("too many jobs run here already; try again later".into());
        }
        match self.spawn(peer, connection) {
            Ok(child) => {
                self.running.push(Running { peer, is_known, child });
                Ok(())
            }
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "start a peer's job");
                Err("this machine cannot run your job now; try again later".into())
            }
        }
    }

    fn spawn(&self, peer: AccountId, connection: OwnedFd) -> anyhow::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer-job").arg(peer.to_string()).arg("--home").arg(self.home.root());
        command.env_clear().current_dir("/").stdin(Stdio::from(connection)).stdout(Stdio::null());
        if let Some(url) = self.home.ledger_url() {
            command.env(LEDGER_VARIABLE, url);
        }
        command.spawn().context("start the job's process")
    }

    /// Forgets those that have ended.
    pub(super) fn reap(&mut self) {
        self.running.retain_mut(|running| matches!(running.child.try_wait(), Ok(None)));
    }

    /// Has every job end, and pay for what it did.
    pub(super) fn shut_down(&self) {
        for Running { child, .. } in &self.running {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // One that has ended needs no signal.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
    }

    /// Whether any is left.
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
    }
}
