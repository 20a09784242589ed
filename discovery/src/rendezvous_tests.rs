use std::os::unix::fs::PermissionsExt as _;
use std::thread;

use super::*;
use crate::record::CLOCKS_APART_S_MAX;
use crate::testing::{NOW_S, key, offer, record};

fn rendezvous(path: &Path) -> Rendezvous {
    path.to_str().unwrap().parse().unwrap()
}

fn keys(reading: &Reading) -> Vec<cell_abi::AccountId> {
    let mut keys: Vec<_> = reading.records.iter().map(|record| record.key).collect();
    keys.sort();
    keys
}

#[track_caller]
fn check_place(text: &str, expect: Result<Place, DiscoveryError>) {
    let found = text.parse::<Rendezvous>();
    assert_eq!(found, expect.map(Rendezvous));
    let is_path = found.is_ok_and(|place| place.path().is_some());
    assert_eq!(is_path, matches!(text, "nodes.jsonl" | "file:///srv/nodes"), "{text}");
}

#[test]
fn places() {
    check_place("nodes.jsonl", Ok(Place::File("nodes.jsonl".into())));
    check_place("file:///srv/nodes", Ok(Place::File("/srv/nodes".into())));
    check_place("http://h/nodes", Ok(Place::Web("http://h/nodes".into())));
    check_place("https://h/nodes", Ok(Place::Web("https://h/nodes".into())));
    check_place("HTTPS://h/nodes", Ok(Place::Web("HTTPS://h/nodes".into())));
    for wrong in ["", "ftp://h/nodes", "file://h/nodes", "://"] {
        check_place(wrong, Err(DiscoveryError::Rendezvous(wrong.into())));
    }
}

#[test]
fn a_wrong_line_does_not_spoil_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nodes");
    let (first, last) = (record(1, 1, 60), record(2, 1, 60));
    let mut forged = record(3, 1, 60);
    forged.seq = 2;
    let gone = {
        let long_ago_s = NOW_S - CLOCKS_APART_S_MAX - 100;
        NodeRecord::sign(offer("h:1"), 1, long_ago_s, long_ago_s + 1, &key(4)).unwrap()
    };
    let first_json = format!("{}\r", first.to_json());
    let long = "[".repeat(100_000);
    let lines = ["", &first_json, "nonsense", &long, &forged.to_json(), &gone.to_json()];
    let text = [lines.join("\n").as_bytes(), b"\n\xff\xfe\n", last.to_json().as_bytes()].concat();
    fs::write(&path, text).unwrap();
    let reading = rendezvous(&path).read(NOW_S).unwrap();
    assert_eq!(reading.records, [first, last]);
    assert_eq!((reading.expired, reading.wrong), (1, 4));
    let (line, error) = reading.first_wrong.unwrap();
    assert_eq!(line, 3);
    assert!(matches!(error, DiscoveryError::Record(_)), "{error:?}");
}

#[test]
fn what_is_no_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, expect: ErrorKind| {
        let path = folder.path().join(name);
        let error = rendezvous(&path).read(NOW_S).unwrap_err();
        assert_eq!(error, DiscoveryError::File { path, kind: expect });
    };
    check("nothing", ErrorKind::NotFound);
    check(".", ErrorKind::InvalidInput);
    // Nobody writes into it; reading must not wait for that.
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    check("pipe", ErrorKind::InvalidInput);
}

#[test]
fn a_rendezvous_is_not_too_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nodes");
    let write = |bytes: u64| fs::write(&path, vec![b'\n'; bytes.try_into().unwrap()]).unwrap();
    write(FILE_BYTES_MAX);
    assert_eq!(rendezvous(&path).read(NOW_S), Ok(Reading::default()));
    write(FILE_BYTES_MAX + 1);
    assert_eq!(rendezvous(&path).read(NOW_S), Err(DiscoveryError::ListTooLong));
    assert_eq!(publish(&path, &record(1, 1, 60), NOW_S), Err(DiscoveryError::ListTooLong));
    // Full of what must stay: nothing is lost, and nothing more comes in.
    let full = "x".repeat(usize::try_from(FILE_BYTES_MAX).unwrap() - 1) + "\n";
    fs::write(&path, &full).unwrap();
    assert_eq!(publish(&path, &record(1, 1, 60), NOW_S), Err(DiscoveryError::ListTooLong));
    assert_eq!(fs::read_to_string(&path).unwrap(), full);
}

#[test]
fn a_record_takes_the_place_of_its_machines_older_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nodes");
    let publish = |record: &NodeRecord, now_s| publish(&path, record, now_s);
    publish(&record(1, 1, 60), NOW_S).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    publish(&record(2, 1, 6000), NOW_S).unwrap();
    publish(&record(1, 3, 600), NOW_S).unwrap();
    publish(&record(1, 3, 600), NOW_S).unwrap();
    let read = || rendezvous(&path).read(NOW_S).unwrap();
    assert_eq!(read().records, [record(2, 1, 6000), record(1, 3, 600)]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);

    // Neither an older word, nor another of the same number.
    for (seq, holds_s) in [(2, 600), (3, 601)] {
        let outdated = publish(&record(1, seq, holds_s), NOW_S);
        assert_eq!(outdated, Err(DiscoveryError::Outdated { seq: 3 }));
    }
    let mut forged = record(3, 1, 60);
    forged.seq = u64::MAX;
    assert_eq!(publish(&forged, NOW_S), Err(DiscoveryError::Signature(forged.key)));
    assert_eq!(read().records.len(), 2);

    // A forged line keeps nobody out; a line of another version stays; what has expired goes.
    let later = "{\"version\":2}";
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{later}\n{}", forged.to_json())).unwrap();
    // A crash left this behind.
    fs::write(beside(&path, ".new"), "half").unwrap();
    let now_s = NOW_S + 600 + CLOCKS_APART_S_MAX + 1;
    let third = NodeRecord::sign(offer("h:1"), 1, now_s, now_s + 1, &key(3)).unwrap();
    publish(&third, now_s).unwrap();
    let expect = [&record(2, 1, 6000).to_json(), later, &third.to_json(), ""].join("\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), expect);
    assert!(!beside(&path, ".new").exists());
}

#[test]
fn none_loses_anothers_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = &folder.path().join("nodes");
    thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                for seq in 1..=5 {
                    publish(path, &record(number, seq, 60), NOW_S).unwrap();
                    // Whoever writes, what is read is whole.
                    let reading = rendezvous(path).read(NOW_S).unwrap();
                    assert_eq!(reading.wrong, 0);
                    assert!(reading.records.contains(&record(number, seq, 60)));
                }
            });
        }
    });
    let mut expect: Vec<_> = (0..8).map(|number| record(number, 5, 60).key).collect();
    expect.sort();
    assert_eq!(keys(&rendezvous(path).read(NOW_S).unwrap()), expect);
}
