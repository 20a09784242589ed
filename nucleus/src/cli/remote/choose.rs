//! Which machines are asked to run a job, and in which order.
//!
//! Those that were named are asked as they were named. For `any` those that the home knows are tried all at once
//! and ordered: who has been right before comes first, then who is near, then who is cheap.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use cell_abi::AccountId;
use cell_discovery::{Directory, NodeRecord};
use cell_host::Sandbox;
use cell_host::rates::Dimension;
use cell_peer::{Credentials, tunnel};

use crate::cli::output::escape;
use crate::cli::{Exit, Failure, Output};
use crate::found;
use crate::home::Home;
use crate::peers::{Machine, Peers};
use crate::reputation::{PROVEN_AFTER, Reputation, Standing};

/// How long machines may take to accept a connection, all at once.
pub(super) const PROBE_TIME_MAX: Duration = Duration::from_secs(2);
/// Machines that are tried for one job.
pub(super) const CANDIDATES_MAX: usize = 64;

/// What `--on` takes for any machine.
pub(crate) const ANY: &str = "any";

/// A machine that may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// For people.
    pub(super) name: String,
    pub(super) machine: Machine,
}

/// Those with these names, in this order, each once.
pub(super) fn named(names: &str, peers: &Peers) -> anyhow::Result<Vec<Candidate>> {
    let mut all = Vec::<Candidate>::new();
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let machine = Machine::parse(name, peers)
            .map_err(|error| Failure::new(Exit::Usage, format!("--on: {error:#}")))?;
        if all.iter().all(|known| known.machine.peer != machine.peer) {
            all.push(Candidate { name: named_as(machine.peer, peers), machine });
        }
        if all.len() > CANDIDATES_MAX {
            let message = format!("--on: at most {CANDIDATES_MAX} machines");
            return Err(Failure::new(Exit::Usage, message).into());
        }
    }
    if all.is_empty() {
        return Err(Failure::new(Exit::Usage, "--on: no machine is named").into());
    }
    Ok(all)
}

/// What people know it by.
fn named_as(key: AccountId, peers: &Peers) -> String {
    let name = peers.find(&key.to_string()).and_then(|peer| peer.name.as_deref());
    name.map_or_else(|| key.short(), escape)
}

/// A machine before it is tried.
#[derive(Debug, Clone)]
struct Known {
    key: AccountId,
    addresses: Vec<String>,
    /// For a start and a second with the memory that the job may have, if its record says so.
    price: Option<u64>,
}

/// Those that the home knows, and those whose records are at these places, the best first.
pub(super) fn any(
    home: &Home,
    (peers, from): (&Peers, &[String]),
    memory_mb: u32,
    output: &Output,
) -> anyhow::Result<Vec<Candidate>> {
    let now_s = tunnel::now_s();
    let mut directory = found::read(home, now_s);
    let strangers = strangers(home, &mut directory, from, now_s)?;
    let reputation = Reputation::read(home)?;
    let own = home.key()?.verifying_key().to_bytes();
    let mut known = Vec::new();
    for peer in &peers.all {
        let key = AccountId::parse(&peer.key)?;
        let record = directory.find(key, now_s);
        let found = record.into_iter().flat_map(|record| &record.addresses);
        let addresses = peer.address.iter().cloned().chain(found.map(ToString::to_string));
        let addresses = addresses.collect();
        known.push(Known { key, addresses, price: record.map(|of| price(of, memory_mb)) });
    }
    for record in strangers {
        if known.iter().all(|known| known.key != record.key) {
            let addresses = record.addresses.iter().map(ToString::to_string).collect();
            known.push(Known {
                key: record.key,
                addresses,
                price: Some(price(&record, memory_mb)),
            });
        }
    }
    known.retain(|known| !known.addresses.is_empty() && known.key.as_bytes() != &own);
    known.retain(|known| {
        let standing = reputation.of(&known.key.to_string());
        let is_distrusted = standing.is_some_and(|standing| standing.is_distrusted);
        if is_distrusted {
            let name = named_as(known.key, peers);
            output.note(&format!("{name} is not asked: it has lied; see `cell peer list`"));
        }
        !is_distrusted
    });
    let rank = |known: &Known| rank(reputation.of(&known.key.to_string()));
    known.sort_by_key(rank);
    known.truncate(CANDIDATES_MAX);
    let mut tried = probe(&known, Credentials::new(&home.key()?, now_s)?)?;
    tried.sort_by_key(|(known, _, time)| (rank(known), nearness(*time), known.price));
    let candidate = |(known, address, _): (Known, String, Duration)| Candidate {
        name: named_as(known.key, peers),
        machine: Machine { peer: known.key, address },
    };
    Ok(tried.into_iter().map(candidate).collect())
}

/// Machines at these places that say that they run jobs. What is read there is only believed for this command.
fn strangers(
    home: &Home,
    directory: &mut Directory,
    from: &[String],
    now_s: u64,
) -> anyhow::Result<Vec<NodeRecord>> {
    let mut keys = Vec::new();
    for place in from {
        let looked = found::look(place, directory, now_s)?;
        looked.note(home)?;
        keys.extend(looked.keys);
    }
    let records = keys.into_iter().filter_map(|key| directory.find(key, now_s));
    Ok(records.filter(|record| record.serves.jobs).cloned().collect())
}

/// A record's price for a start and a second with this much memory, in nano-ATP.
fn price(record: &NodeRecord, memory_mb: u32) -> u64 {
    let rate = |dimension: Dimension| record.rates.get(dimension.name()).copied().unwrap_or(0);
    let memory = rate(Dimension::Memory).saturating_mul(u64::from(memory_mb)) >> 10;
    rate(Dimension::Start).saturating_add(memory)
}

/// The lower the earlier: machines that were right often, machines that were right, those of which nothing is
/// known, those of which the last word is bad.
fn rank(standing: Option<&Standing>) -> u8 {
    let Some(standing) = standing else { return 2 };
    match standing.valid(Sandbox::engine_id()) {
        _ if standing.last_problem.is_some() => 3,
        0 => 2,
        1..PROVEN_AFTER => 1,
        _ => 0,
    }
}

/// Times that are about the same are the same: within a factor of two.
fn nearness(time: Duration) -> u32 {
    u128::BITS - (time.as_micros() / 500).leading_zeros()
}

/// Tries all of them at once; those that accept a connection, where and after how long. One behind a relay
/// does when it has come.
fn probe(
    known: &[Known],
    credentials: Credentials,
) -> anyhow::Result<Vec<(Known, String, Duration)>> {
    let ((sender, tried), credentials) = (mpsc::channel(), Arc::new(credentials));
    let started = Instant::now();
    for (at, machine) in known.iter().enumerate() {
        for address in &machine.addresses {
            let (address, sender, key) = (address.clone(), sender.clone(), machine.key);
            let credentials = Arc::clone(&credentials);
            // A name that takes long to look up is not waited for; its thread ends with the lookup.
            thread::Builder::new().name("probe".into()).spawn(move || {
                if let Ok(time) = tunnel::knock(&address, &credentials, key, PROBE_TIME_MAX) {
                    // The one that waits may have enough.
                    let _ = sender.send((at, address, time));
                }
            })?;
        }
    }
    drop(sender);
    let mut found = Vec::<(usize, String, Duration)>::new();
    loop {
        let left = PROBE_TIME_MAX.saturating_sub(started.elapsed());
        let Ok(answer) = tried.recv_timeout(left) else { break };
        // The first of a machine's addresses that answers is taken.
        if found.iter().all(|(at, ..)| *at != answer.0) {
            found.push(answer);
        }
    }
    let full = |(at, address, time)| Some((known.get::<usize>(at)?.clone(), address, time));
    Ok(found.into_iter().filter_map(full).collect())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::peers::Peer;
    use crate::reputation::{OfEngine, Problem};

    #[test]
    fn who_was_right_comes_first() {
        let engine_id = Sandbox::engine_id().to_string();
        let standing = |valid: u64, is_bad: bool| Standing {
            engines: vec![OfEngine { engine_id: engine_id.clone(), valid, ..OfEngine::default() }],
            last_problem: is_bad.then(|| Problem { at_s: 1, text: "lost".into() }),
            ..Standing::default()
        };
        for (standing, expect) in [
            (None, 2),
            (Some(standing(0, false)), 2),
            (Some(standing(9, false)), 1),
            (Some(standing(10, false)), 0),
            (Some(standing(100, true)), 3),
        ] {
            assert_eq!(rank(standing.as_ref()), expect, "{standing:?}");
        }
        let near = |micros| nearness(Duration::from_micros(micros));
        assert!(near(100) == near(400) && near(400) < near(5000) && near(5000) < near(90_000));
        assert_eq!(near(5000), near(6000));
    }

    #[test]
    fn each_is_named_once() {
        let peers = Peers {
            all: vec![Peer {
                key: "ab".repeat(32),
                name: Some("den".into()),
                address: Some("h:1".into()),
            }],
        };
        let names = |text: &str| {
            let all = named(text, &peers).map_err(|error| error.to_string())?;
            Ok::<_, String>(all.into_iter().map(|one| one.name).collect::<Vec<_>>())
        };
        assert_eq!(names("den").unwrap(), ["den"]);
        let (same, other) =
            (format!("{}@g:2", "ab".repeat(32)), format!("{}@g:2", "cd".repeat(32)));
        assert_eq!(names(&format!("den, {same},{other}")).unwrap(), ["den", "cdcdcdcd"]);
        assert!(names(",").unwrap_err().contains("no machine"));
        assert!(names("den,nobody").unwrap_err().contains("no peer"));
    }

    /// One that is not there does not keep the others waiting for ever.
    #[test]
    fn who_does_not_answer_is_left_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let known = |number: u8, addresses: &[&str]| Known {
            key: AccountId::from_bytes([number; 32]),
            addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
            price: None,
        };
        let all = [known(1, &["127.0.0.1:1"]), known(2, &["127.0.0.1:1", &address])];
        let identity = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
        let ours = Credentials::new(&identity, tunnel::now_s()).unwrap();
        let found = probe(&all, ours).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.key, &found[0].1), (all[1].key, &address));
    }
}
