use super::*;
use crate::record::Offer;
use crate::testing::{NOW_S, key, offer, record};

fn from(address: &str, seq: u64) -> NodeRecord {
    NodeRecord::sign(offer(address), seq, NOW_S, NOW_S + 60, &key(1)).unwrap()
}

#[test]
fn the_highest_number_wins() {
    let mut directory = Directory::default();
    let mut check = |record: NodeRecord, expect: Added, shown: &NodeRecord| {
        assert_eq!(directory.add(record, NOW_S), Ok(expect));
        assert_eq!(directory.find(shown.key, NOW_S), Some(shown));
    };
    let (old, first, second) = (from("old:1", 4), from("first:1", 5), from("second:1", 5));
    check(first.clone(), Added::New, &first);
    check(first.clone(), Added::Same, &first);
    check(old, Added::Older, &first);
    check(second, Added::Equivocation(Box::new(first.clone())), &first);
    let new = from("new:1", 6);
    check(new.clone(), Added::Newer, &new);
    let other = record(2, 1, 60);
    assert_eq!(directory.add(other.clone(), NOW_S), Ok(Added::New));
    let mut shown = vec![&new, &other];
    shown.sort_by_key(|record| record.key);
    assert_eq!(directory.current(NOW_S).collect::<Vec<_>>(), shown);
}

#[test]
fn what_is_not_its_machines_word_is_not_taken() {
    let mut directory = Directory::default();
    let mut forged = record(1, 1, 60);
    forged.seq = 2;
    assert_eq!(directory.add(forged, NOW_S), Err(DiscoveryError::Signature(record(1, 1, 60).key)));
    let late_s = NOW_S + 60 + CLOCKS_APART_S_MAX + 1;
    let late = directory.add(record(1, 1, 60), late_s);
    assert_eq!(late, Err(DiscoveryError::Expired(record(1, 1, 60).key)));
    assert_eq!(directory.current(NOW_S).count(), 0);
}

/// A machine says that it goes, in a word that holds briefly; its older word, which would hold for days,
/// lies in another rendezvous and must not bring it back.
#[test]
fn an_expired_word_still_hides_older_ones() {
    let (lasting, brief) = (record(1, 1, VALID_S_MAX), record(1, 2, 1));
    let mut directory = Directory::default();
    assert_eq!(directory.add(brief.clone(), NOW_S), Ok(Added::New));
    let later_s = NOW_S + CLOCKS_APART_S_MAX + 2;
    assert_eq!(directory.find(brief.key, later_s), None);
    assert_eq!(directory.current(later_s).count(), 0);
    directory.forget(later_s);
    assert_eq!(directory.add(lasting.clone(), later_s), Ok(Added::Older));
    let last_s = NOW_S + VALID_S_MAX + CLOCKS_APART_S_MAX;
    directory.forget(last_s);
    assert_eq!(directory.add(lasting.clone(), last_s), Ok(Added::Older));
    directory.forget(last_s + 1);
    assert!(directory.records.is_empty());
    assert_eq!(directory.add(lasting, last_s + 1), Err(DiscoveryError::Expired(brief.key)));
}

/// A full directory, without the cost of signing it all.
fn full() -> Directory {
    let unsigned = record(0, 1, 600);
    let record = |number: usize| {
        let mut bytes = [0xee; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let key = AccountId::from_bytes(bytes);
        (key, NodeRecord { key, ..unsigned.clone() })
    };
    Directory { records: (0..RECORDS_MAX).map(record).collect() }
}

#[test]
fn the_first_to_expire_makes_room() {
    let mut directory = full();
    assert_eq!(directory.add(record(1, 1, 599), NOW_S), Ok(Added::NoRoom));
    assert_eq!(directory.records.len(), RECORDS_MAX);
    assert_eq!(directory.find(record(1, 1, 599).key, NOW_S), None);
    let lowest = *directory.records.keys().next().unwrap();
    assert_eq!(directory.add(record(1, 2, 601), NOW_S), Ok(Added::New));
    assert_eq!(directory.records.len(), RECORDS_MAX);
    assert!(directory.find(record(1, 1, 1).key, NOW_S).is_some());
    assert_eq!(directory.find(lowest, NOW_S), None);
    // Who is known needs no room.
    assert_eq!(directory.add(record(1, 3, 1), NOW_S), Ok(Added::Newer));
    // The longest forgotten go all at once.
    let later_s = NOW_S + VALID_S_MAX + CLOCKS_APART_S_MAX + 1;
    let later = NodeRecord::sign(
        Offer { addresses: vec!["h:1".parse().unwrap()], ..Offer::default() },
        1,
        later_s,
        later_s + 1,
        &key(2),
    );
    assert_eq!(directory.add(later.unwrap(), later_s), Ok(Added::New));
    assert_eq!(directory.records.len(), 1);
}
