//! How much is passed on, and for whom.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use super::super::limits::{
    RELAYED_MAX, RELAYED_PER_MACHINE_MAX, RELAYED_PER_PEER_MAX, RELAYED_PER_STRANGER_MAX,
    STRANGER_RELAYED_MAX,
};
use super::super::testing::{Peer, peer};
use super::*;

/// A machine that waits, by its number.
fn machine(relay: &mut Relay, seed: u32) -> Peer {
    let (party, mut machine) = peer(seed);
    relay.wait(party);
    machine.is_served();
    machine
}

/// Asks for a machine; the asker, and whether it is under way.
fn ask(relay: &mut Relay, machine: &mut Peer, seed: u32, is_known: bool) -> (Peer, Option<Token>) {
    let (party, asker) = peer(seed);
    let before = relay.meetings.len();
    relay.through(machine.key, party, is_known);
    let told = relay.meetings.len() > before;
    let token = told.then(|| machine.hear().try_into().unwrap());
    (asker, token)
}

/// Asks, and has the machine come; the two ends of what became one connection.
fn meet(
    relay: &mut Relay,
    machine: (&mut Peer, u32),
    seed: u32,
    is_known: bool,
) -> Option<(Peer, Peer)> {
    let (mut asker, token) = ask(relay, machine.0, seed, is_known);
    let (party, mut comes) = peer(machine.1);
    relay.meet(&token?, party);
    asker.is_served();
    comes.is_served();
    Some((asker, comes))
}

#[test]
fn two_become_one() {
    let mut relay = Relay::new(Arc::default());
    let mut waiting = machine(&mut relay, 1);
    let (mut asker, token) = ask(&mut relay, &mut waiting, 2, true);
    let (mut party, mut comes) = peer(1);
    // What came behind the request is for the other one.
    let early = b"early";
    party.records.room(early.len()).copy_from_slice(early);
    relay.meet(&token.unwrap(), party);
    asker.is_served();
    comes.is_served();
    let mut bytes = [0; 5];
    asker.stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, early);
    asker.stream.write_all(b"hello").unwrap();
    asker.stream.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    comes.stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"hello");
    comes.stream.write_all(b"back").unwrap();
    drop(comes);
    let mut all = Vec::new();
    asker.stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"back");
}

#[test]
fn only_so_many_wait() {
    let mut relay = Relay::new(Arc::default());
    let most = u32::try_from(MACHINES_WAITING_MAX).unwrap();
    let mut all: Vec<_> = (1..=most).map(|seed| machine(&mut relay, seed)).collect();
    let (party, mut more) = peer(most + 1);
    relay.wait(party);
    more.is_refused("too many machines wait");
    // One that waits already may do so anew, and hears of askers there.
    let mut again = machine(&mut relay, 1);
    assert_eq!(all[0].stream.read(&mut [0]).unwrap(), 0, "the line before is closed");
    assert!(ask(&mut relay, &mut again, most + 2, true).1.is_some());
    relay.gone(again.key);
    machine(&mut relay, most + 1);
    // One that has something to say is not one that waits.
    let (mut party, mut talks) = peer(2);
    party.records.room(1).copy_from_slice(&[1]);
    relay.wait(party);
    assert_eq!(talks.stream.read(&mut [0]).unwrap(), 0);
}

/// A flood for one machine leaves room for others, and a flood of one peer leaves room at the machine.
#[test]
fn few_wait_for_a_machine() {
    let mut relay = Relay::new(Arc::default());
    let mut waiting: Vec<_> = (1..=9).map(|seed| machine(&mut relay, seed)).collect();
    let mut kept = Vec::new();
    let mut fill = |relay: &mut Relay, machine: &mut Peer, seed: u32, is_known: bool| {
        let mut count = 0;
        loop {
            let (mut asker, token) = ask(relay, machine, seed, is_known);
            if token.is_none() {
                asker.is_refused("too many wait for that machine");
                return count;
            }
            count += 1;
            kept.push(asker);
        }
    };
    let first = &mut waiting[0];
    assert_eq!(fill(&mut relay, first, 100, true), MEETINGS_PER_PAIR_MAX);
    assert_eq!(fill(&mut relay, first, 101, false), MEETINGS_PER_PAIR_MAX);
    let strangers = STRANGER_MEETINGS_PER_MACHINE_MAX - MEETINGS_PER_PAIR_MAX;
    assert_eq!(fill(&mut relay, first, 102, false), strangers);
    assert_eq!(fill(&mut relay, first, 103, false), 0);
    let left = MEETINGS_PER_MACHINE_MAX - MEETINGS_PER_PAIR_MAX - STRANGER_MEETINGS_PER_MACHINE_MAX;
    assert_eq!(fill(&mut relay, first, 104, true), left);
    assert_eq!(fill(&mut relay, first, 105, true), 0);
    // The same for every machine, until there are too many in all.
    for machine in &mut waiting[1..] {
        for seed in 200..205 {
            fill(&mut relay, machine, seed, true);
        }
    }
    assert_eq!(relay.meetings.len(), MEETINGS_MAX);
    let (mut asker, token) = ask(&mut relay, &mut waiting[8], 300, true);
    assert!(token.is_none());
    asker.is_refused("too many wait");
    // Nobody came for them: each is told so, and there is room again.
    let first = relay.meetings.values().map(|meeting| meeting.since).min().unwrap();
    relay.tick(first + MEETING_TIME_MAX - Duration::from_millis(1));
    assert_eq!(relay.meetings.len(), MEETINGS_MAX);
    relay.tick(Instant::now() + MEETING_TIME_MAX);
    assert!(relay.meetings.is_empty());
    for asker in &mut kept {
        asker.is_refused("did not come");
    }
    assert!(ask(&mut relay, &mut waiting[0], 100, true).1.is_some());
}

#[test]
fn few_connections_are_passed_on() {
    let mut relay = Relay::new(Arc::default());
    let mut waiting: Vec<_> = (1..=8).map(|seed| machine(&mut relay, seed)).collect();
    let mut kept = Vec::new();
    let mut fill = |relay: &mut Relay, machine: usize, seed: u32, is_known: bool| {
        let number = u32::try_from(machine).unwrap() + 1;
        let before = kept.len();
        let machine = &mut waiting[machine];
        kept.extend(std::iter::from_fn(|| meet(relay, (machine, number), seed, is_known)));
        kept.len() - before
    };
    // Of one peer, whatever it asks for, and to one machine, whoever asks.
    assert_eq!(fill(&mut relay, 0, 100, true), RELAYED_PER_PEER_MAX);
    assert_eq!(fill(&mut relay, 1, 100, true), 0);
    let left = RELAYED_PER_MACHINE_MAX - RELAYED_PER_PEER_MAX;
    assert!(left > 0, "one peer leaves room at a machine");
    assert_eq!(fill(&mut relay, 0, 101, true), left);
    assert_eq!(fill(&mut relay, 0, 102, true), 0);
    // Of strangers, together and each.
    let mut strangers = 0;
    for seed in 200..210 {
        let more = fill(&mut relay, 1, seed, false);
        assert!(more <= RELAYED_PER_STRANGER_MAX);
        assert_eq!(fill(&mut relay, 2, seed, false), 0);
        strangers += more;
    }
    assert_eq!(strangers, STRANGER_RELAYED_MAX);
    // All of them at one machine leave room there for who was named.
    let left = RELAYED_PER_MACHINE_MAX - STRANGER_RELAYED_MAX;
    assert_eq!(fill(&mut relay, 1, 103, true), left);
    for seed in 104..109 {
        fill(&mut relay, 2 + usize::from(seed > 105) + usize::from(seed > 107), seed, true);
    }
    assert_eq!(kept.len(), RELAYED_MAX);
    let (mut asker, token) = ask(&mut relay, &mut waiting[7], 109, true);
    assert!(token.is_none());
    asker.is_refused("too many connections are passed on");
    // Those that have ended make room.
    drop(kept);
    let left = || relay.askers.enter(asker.key, true).is_none();
    while left() {
        thread::yield_now();
    }
}

/// A machine that takes nothing of what it is told waits no more, and keeps nothing.
#[test]
fn a_machine_that_does_not_listen_waits_no_more() {
    let mut relay = Relay::new(Arc::default());
    let waiting = machine(&mut relay, 1);
    // Its line has no room left.
    let stream = &relay.machines[&waiting.key].stream;
    while (&mut &*stream).write(&[0; 65_536]).is_ok() {}
    let (party, mut asker) = peer(2);
    relay.through(waiting.key, party, true);
    asker.is_refused("does not wait here now");
    assert!(relay.machines.is_empty() && relay.meetings.is_empty());
}
