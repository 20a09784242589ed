//! What other machines ask for, and who gets it.

use std::os::fd::OwnedFd;

use cell_abi::AccountId;
use cell_ledger::ContentHash;
use cell_peer::{credentials, tunnel};

use super::jobs::Kind;
use super::{Nucleus, gateway};
use crate::cli::channel::account_of;
use crate::link::gateway::{FromGateway, Wanted};

impl Nucleus {
    pub(super) fn gateway_says(&mut self, number: u64, message: FromGateway, fds: Vec<OwnedFd>) {
        if !self.gateway.as_ref().is_some_and(|gateway| gateway.is_current(number)) {
            return;
        }
        match message {
            FromGateway::Ready { walls } => {
                for wall in walls.iter().filter(|wall| !wall.stands) {
                    let (wall, why) = (&wall.name, &wall.detail);
                    tracing::warn!(wall, why, "a wall around the gateway is missing");
                }
                if let Some(missing) = walls.iter().find(|w| !w.stands && self.require_walls) {
                    tracing::error!(wall = missing.name, "the gateway is ended: require_walls");
                    self.gateway = None;
                    self.reach.refuse();
                    self.give_up_reaching(true);
                }
            }
            FromGateway::Dial { id, way } => {
                if let Some(gateway) = &self.gateway {
                    gateway.dial(id, way);
                }
            }
            FromGateway::Waits { way, why_not } => {
                if let Some(gateway) = &mut self.gateway {
                    gateway.waits(way, why_not);
                }
            }
            FromGateway::Reached { id } => {
                let socket = fds.into_iter().next().ok_or_else(|| "no socket came".into());
                self.reached(id, socket);
            }
            FromGateway::NotReached { id, why } => self.reached(id, Err(why)),
            FromGateway::Connect { id, proof, public, wanted } => {
                let served = self.serve_peer((&proof, &public), wanted, fds);
                if let Some(gateway) = &mut self.gateway {
                    gateway.answer(id, served);
                }
            }
        }
    }

    /// Hands a peer's connection to the worker of that peer, and says whether the owner has named it; or
    /// why it is not served. The gateway's word for who it is does not count.
    fn serve_peer(
        &mut self,
        (proof, public): (&[u8], &[u8]),
        wanted: Wanted,
        fds: Vec<OwnedFd>,
    ) -> Result<bool, String> {
        let Some(gateway) = &self.gateway else { return Err("nobody listens".into()) };
        let peer = credentials::check(proof, public, tunnel::now_s());
        let peer = peer.map_err(|error| error.to_string())?;
        let is_own = peer == self.holds.bank().accounts.owner;
        match wanted {
            Wanted::Wait => return gateway.relays(peer, is_own, None),
            // Bytes that are passed on to another machine cost nobody's money, so the owner may ask as well.
            Wanted::Through(to) => {
                return gateway.relays(peer, is_own, Some(AccountId::from_bytes(to)));
            }
            _ => {}
        }
        if is_own {
            // Its proof is the gateway's own, and its money is spent on this machine only.
            return Err("this machine does not call itself".into());
        }
        let may_be_paid_so = matches!(wanted, Wanted::Job | Wanted::PaidCell { .. });
        let by_channel = may_be_paid_so && self.jobs.has_channel(peer);
        let can_pay = || self.holds.can_pay(peer) || by_channel;
        let is_known = gateway.trusts(peer, &wanted, can_pay)?;
        if matches!(wanted, Wanted::Cell(_) | Wanted::PaidCell { .. } | Wanted::Job) {
            self.donation.serves()?;
        }
        let connection = gateway::connection(fds)?;
        let (cell, payer) = match wanted {
            Wanted::Cell(cell) => (cell, peer),
            Wanted::PaidCell { channel, cell } => {
                if !by_channel {
                    return Err("that channel has no session here; open one first".into());
                }
                let channel = ContentHash::from_bytes(channel).to_string();
                let account = account_of(&self.home, peer, &channel);
                let account = account.map_err(|error| format!("{error:#}"))?;
                if !self.holds.can_pay(account) {
                    return Err("nothing is agreed to by that channel".into());
                }
                (cell, account)
            }
            Wanted::Job => {
                if !self.donation.is_lent() {
                    gateway.serves_jobs()?;
                }
                if !can_pay() {
                    return Err(format!("the account {peer} has nothing to spend on this machine"));
                }
                let who = (peer, is_known);
                return self.jobs.start(Kind::Job, who, connection).map(|()| is_known);
            }
            Wanted::Channel | Wanted::Escrow => {
                gateway.serves_money(&wanted)?;
                let kind = if wanted == Wanted::Escrow { Kind::Escrow } else { Kind::Channel };
                return self.jobs.start(kind, (peer, is_known), connection).map(|()| is_known);
            }
            Wanted::Wait | Wanted::Through(_) => return Err("this was answered".into()),
        };
        self.cells.serves_peers(&cell)?;
        match self.workers.connect_peer((peer, payer), is_known, cell, connection) {
            Ok(Ok(uid)) => {
                self.holds.name_peer(uid, payer);
                Ok(is_known)
            }
            Ok(Err(why)) => Err(why.into()),
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "pass a peer on");
                Err("this machine cannot serve you now; try again later".into())
            }
        }
    }
}
