//! How many parts there are, of whom, and what becomes of the others.

use tempfile::TempDir;

use super::*;
use crate::peers::Peer;

const MUCH: u64 = 1 << 40;

fn place() -> (TempDir, Parts) {
    let directory = tempfile::tempdir().unwrap();
    let parts = Parts::open(directory.path(), 1 << 30);
    (directory, parts)
}

fn peer(number: u8) -> AccountId {
    AccountId::from_bytes([number; 32])
}

fn hash(number: u8) -> CellHash {
    CellHash::of(&[number])
}

fn named(numbers: &[u8]) -> Peers {
    let named = |number: &u8| Peer { key: peer(*number).to_string(), name: None, address: None };
    Peers { all: numbers.iter().map(named).collect() }
}

/// Has a peer send this much of a module, which has 100 bytes, and says how much was there before.
fn send(parts: &Parts, (number, peers): (u8, &Peers), module: u8, content: &[u8]) -> usize {
    let mut upload = parts.upload((peer(number), peers), hash(module), 100);
    let before = upload.wasm.len();
    upload.add(content);
    before
}

/// Whose parts there are, and of what, in the order of the peers.
fn kept(parts: &Parts) -> Vec<(u8, u8)> {
    let all = (0..50).flat_map(|number| (0..50).map(move |module| (number, module)));
    all.filter(|(number, module)| parts.path(peer(*number), hash(*module)).exists()).collect()
}

/// Makes a part older than all others.
fn age(parts: &Parts, (number, module): (u8, u8), by: Duration) {
    let file = File::options().write(true).open(parts.path(peer(number), hash(module))).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

#[test]
fn the_rest_is_for_its_sender() {
    let (_directory, parts) = place();
    let none = Peers::default();
    assert_eq!(send(&parts, (1, &none), 7, b"0123"), 0);
    assert_eq!(send(&parts, (1, &none), 7, b"45"), 4);
    assert_eq!(send(&parts, (1, &none), 7, b""), 6);
    assert_eq!(send(&parts, (1, &none), 8, b""), 0, "another module");
    assert_eq!(send(&parts, (2, &none), 7, b"xx"), 0, "of another machine");
    let upload = parts.upload((peer(1), &none), hash(7), 100);
    assert_eq!(upload.wasm, b"012345");
    parts.forget(peer(1), hash(7));
    assert_eq!(send(&parts, (1, &none), 7, b""), 0);
}

#[test]
fn what_is_wrong_is_dropped() {
    let (_directory, parts) = place();
    let none = Peers::default();
    send(&parts, (1, &none), 7, &[b'x'; 50]);
    // The module is said to be shorter than what is there.
    let mut upload = parts.upload((peer(1), &none), hash(7), 49);
    assert!(upload.wasm.is_empty() && kept(&parts).is_empty());
    upload.add(b"anew");
    assert_eq!((upload.wasm.as_slice(), kept(&parts)), (&b"anew"[..], vec![]));
    send(&parts, (1, &none), 7, b"x");
    let mut upload = parts.upload((peer(1), &none), hash(7), 49);
    upload.discard();
    assert!(upload.wasm.is_empty() && kept(&parts).is_empty());
}

/// Two connections, of which one began when the other had half of it.
#[test]
fn two_at_once() {
    let (_directory, parts) = place();
    let none = Peers::default();
    let whole: Vec<u8> = (0..100).collect();
    let mut first = parts.upload((peer(1), &none), hash(7), 100);
    first.add(&whole[..40]);
    let mut second = parts.upload((peer(1), &none), hash(7), 100);
    assert_eq!(second.wasm.len(), 40);
    second.add(&whole[40..70]);
    first.add(&whole[40..50]);
    let third = parts.upload((peer(1), &none), hash(7), 100);
    assert_eq!(third.wasm, &whole[..70]);
    first.add(&whole[50..]);
    assert_eq!(first.wasm, whole);
    assert_eq!(parts.upload((peer(1), &none), hash(7), 100).wasm, whole);
    // One that finds it wrong takes nothing of the other.
    first.discard();
    second.add(&whole[70..]);
    assert_eq!(second.wasm, whole);
}

#[test]
fn one_machine_has_few() {
    let (_directory, parts) = place();
    let none = Peers::default();
    let modules = 0..u8::try_from(PARTS_PER_PEER_MAX).unwrap() + 1;
    for module in modules.clone() {
        send(&parts, (1, &none), module, b"x");
        age(&parts, (1, module), Duration::from_secs(100 - u64::from(module)));
    }
    send(&parts, (2, &none), 0, b"x");
    let last = modules.end - 1;
    assert_eq!(kept(&parts), [(1, last - 1), (1, last), (2, 0)]);
}

/// However many come that nobody named, who was named keeps what it sent.
#[test]
fn all_have_few_and_strangers_go_first() {
    let (_directory, parts) = place();
    let peers = named(&[1, 2]);
    send(&parts, (1, &peers), 0, b"x");
    age(&parts, (1, 0), Duration::from_secs(1000));
    let strangers = 10..10 + u8::try_from(PARTS_MAX).unwrap();
    for stranger in strangers.clone() {
        send(&parts, (stranger, &peers), 0, b"x");
        age(&parts, (stranger, 0), Duration::from_secs(200 - u64::from(stranger)));
    }
    let found = kept(&parts);
    assert_eq!(found.len(), PARTS_MAX);
    assert!(found.contains(&(1, 0)) && !found.contains(&(strangers.start, 0)), "{found:?}");
    // Where all were named, one that was not has none.
    let all: Vec<u8> = (10..40).collect();
    let peers = named(&all);
    for number in 10..10 + u8::try_from(PARTS_MAX).unwrap() {
        send(&parts, (number, &peers), 0, b"x");
    }
    let before = kept(&parts);
    let mut stranger = parts.upload((peer(49), &peers), hash(0), 100);
    stranger.add(b"x");
    assert_eq!((stranger.wasm.as_slice(), kept(&parts)), (&b"x"[..], before));
}

#[test]
fn old_ones_go_and_a_full_disk_has_none() {
    let (_directory, parts) = place();
    let none = Peers::default();
    for module in 0..2 {
        send(&parts, (1, &none), module, b"x");
    }
    age(&parts, (1, 0), PART_TIME_MAX + Duration::from_secs(60));
    age(&parts, (1, 1), PART_TIME_MAX - Duration::from_secs(60));
    parts.tidy(&none, MUCH).unwrap();
    assert_eq!(kept(&parts), [(1, 1)]);
    parts.tidy(&none, FREE_BYTES_MIN).unwrap();
    assert_eq!(kept(&parts), [(1, 1)]);
    parts.tidy(&none, FREE_BYTES_MIN - 1).unwrap();
    assert_eq!(kept(&parts), []);
}

/// Modules of others beside them are none of them, and a machine that lends little keeps none.
#[test]
fn what_is_lent_has_room_for_modules() {
    let (directory, parts) = place();
    assert_eq!(parts.bytes_max(), 256 << 20);
    let module = directory.path().join(format!("{}.wasm", hash(0)));
    fs::write(&module, b"x").unwrap();
    let little = Parts::open(directory.path(), 64 << 20);
    assert_eq!(little.bytes_max(), 0);
    let none = Peers::default();
    assert_eq!(send(&little, (1, &none), 0, b"x"), 0);
    assert_eq!((kept(&little), module.exists()), (vec![], true));
    assert_eq!(Parts::open(directory.path(), u64::MAX).bytes_max(), 256 << 20);
}

/// What is old goes though nobody sends anything; so does what is of the future, which would not become old.
#[test]
fn the_old_go_by_themselves() {
    let (_directory, parts) = place();
    let none = Peers::default();
    for number in [1, 2, 3] {
        send(&parts, (number, &none), 7, b"x");
    }
    age(&parts, (1, 7), PART_TIME_MAX + Duration::from_secs(1));
    let file = File::options().write(true).open(parts.path(peer(2), hash(7))).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
    parts.renew(&none);
    assert_eq!(kept(&parts).len(), 1);
    assert!(parts.path(peer(3), hash(7)).exists());
}
