//! Machines in the same local network, by multicast DNS.
//!
//! Nothing there is signed: anybody in the network can answer for any key. What is found is an address
//! to try; the session that is opened there proves the key, or fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use cell_abi::AccountId;
use mdns_sd::{ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};

use crate::error::{DiscoveryError, printable};
use crate::record::ADDRESSES_MAX;

/// What such machines are called in DNS.
const SERVICE: &str = "_cell._tcp.local.";
/// The version of what is said here.
const VERSION: &str = "1";
/// How long the goodbye may take that tells the others to forget this machine.
const GOODBYE: Duration = Duration::from_secs(1);

/// Machines that are found at once.
pub(crate) const LAN_NODES_MAX: usize = 256;

/// A machine in the local network, as somebody there says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Neighbour {
    /// Whose address this is said to be.
    pub key: AccountId,
    /// At least one; what other machines than this one can reach comes first.
    pub addresses: Vec<SocketAddr>,
}

/// As long as this lives, neighbours find this machine.
#[must_use = "the machine is announced until this is dropped"]
pub struct Announcement {
    daemon: ServiceDaemon,
    name: String,
}

impl std::fmt::Debug for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Announcement").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        // Who does not hear the goodbye forgets this machine a little later.
        if let Ok(done) = self.daemon.unregister(&self.name) {
            let _ = done.recv_timeout(GOODBYE);
        }
        stop(&self.daemon);
    }
}

/// Tells the neighbours that the machine with this key listens at this port of all its addresses.
pub fn announce(key: AccountId, port: u16) -> Result<Announcement, DiscoveryError> {
    // A name in DNS has at most 63 bytes, and the key as text has 64.
    let name = key.to_string().chars().take(32).collect::<String>();
    let host = format!("cell-{name}.local.");
    let said = [("key", key.to_string()), ("v", VERSION.into())];
    let service = ServiceInfo::new(SERVICE, &name, &host, "", port, &said[..]).map_err(failed)?;
    let service = service.enable_addr_auto();
    let daemon = ServiceDaemon::new().map_err(failed)?;
    let this = Announcement { daemon, name: service.get_fullname().to_owned() };
    this.daemon.register(service).map_err(failed)?;
    Ok(this)
}

/// The neighbours that answer in this time, in the order of their keys; this machine may be one.
pub fn find(time_limit: Duration) -> Result<Vec<Neighbour>, DiscoveryError> {
    let found = browse(time_limit, None)?;
    Ok(found.into_iter().map(|(key, addresses)| neighbour(key, &addresses)).collect())
}

/// The neighbour with this key, as soon as somebody answers for it; `None` if nobody does in this time.
pub fn find_key(key: AccountId, time_limit: Duration) -> Result<Option<Neighbour>, DiscoveryError> {
    let found = browse(time_limit, Some(key))?;
    Ok(found.get(&key).map(|addresses| neighbour(key, addresses)))
}

type Found = BTreeMap<AccountId, BTreeSet<SocketAddr>>;

/// Everybody, or only one and no longer than until it is found: a crowd does not hide it.
fn browse(time_limit: Duration, wanted: Option<AccountId>) -> Result<Found, DiscoveryError> {
    let start = Instant::now();
    let daemon = ServiceDaemon::new().map_err(failed)?;
    let answers = daemon.browse(SERVICE).map_err(failed)?;
    let mut found = Found::new();
    let most = if wanted.is_some() { 1 } else { LAN_NODES_MAX };
    while found.len() < most {
        let left = time_limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            break;
        }
        // A second at a time, because the end of a very long time has no name.
        match answers.recv_timeout(left.min(Duration::from_secs(1))) {
            Ok(ServiceEvent::ServiceResolved(service)) => {
                if let Some(key) = key(&service).filter(|key| wanted.is_none_or(|one| one == *key))
                {
                    take(&mut found, key, addresses(&service));
                }
            }
            Err(_) if answers.is_disconnected() => break,
            _ => {}
        }
    }
    stop(&daemon);
    Ok(found)
}

fn key(service: &ResolvedService) -> Option<AccountId> {
    let said = |name| service.get_property_val_str(name);
    said("v").filter(|version| *version == VERSION)?;
    AccountId::parse(said("key")?).ok()
}

/// Those that one can connect to.
fn addresses(service: &ResolvedService) -> impl Iterator<Item = SocketAddr> {
    let address = |ip: &ScopedIp| match ip {
        // Which network an address of this network only belongs to.
        ScopedIp::V6(v6) if v6.addr().is_unicast_link_local() => {
            SocketAddrV6::new(*v6.addr(), service.port, 0, v6.scope_id().index).into()
        }
        other => SocketAddr::new(other.to_ip_addr(), service.port),
    };
    let is_one = |address: &SocketAddr| {
        let ip = address.ip();
        !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast(ip) && address.port() != 0
    };
    service.addresses.iter().map(address).filter(is_one)
}

fn is_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
}

/// Adds what there is room for: who says much takes no more memory than this.
fn take(found: &mut Found, key: AccountId, addresses: impl Iterator<Item = SocketAddr>) {
    if found.len() >= LAN_NODES_MAX && !found.contains_key(&key) {
        return;
    }
    for address in addresses {
        let known = found.entry(key).or_default();
        if known.len() < ADDRESSES_MAX {
            known.insert(address);
        }
    }
}

fn neighbour(key: AccountId, addresses: &BTreeSet<SocketAddr>) -> Neighbour {
    let mut addresses: Vec<_> = addresses.iter().copied().collect();
    addresses.sort_by_key(|address| address.ip().is_loopback());
    Neighbour { key, addresses }
}

/// Ends the daemon's thread, which would go on without its handle.
fn stop(daemon: &ServiceDaemon) {
    if let Ok(done) = daemon.shutdown() {
        let _ = done.recv_timeout(GOODBYE);
    }
}

fn failed(error: mdns_sd::Error) -> DiscoveryError {
    DiscoveryError::Lan(printable(error))
}

#[cfg(test)]
#[path = "lan_tests.rs"]
mod tests;
