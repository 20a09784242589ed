use proptest::prelude::*;

use super::*;
use crate::testing::{NOW_S, key, record};

/// A record with something in every place.
fn full() -> NodeRecord {
    let offer = Offer {
        addresses: vec!["den.example:7316".parse().unwrap(), "[::1]:7316".parse().unwrap()],
        serves: Serves {
            jobs: true,
            cells: ["hello", "add-2"].map(|name| CellName::parse(name).unwrap()).into(),
        },
        engine_id: Some(EngineId::from_bytes([0xab; 32])),
        rates: [("fuel".to_owned(), 3), ("memory".to_owned(), u64::MAX)].into(),
        ledgers: vec![format!("{}@h:1", "cd".repeat(32)).parse().unwrap()],
    };
    NodeRecord::sign(offer, 9, NOW_S, NOW_S + 60, &key(1)).unwrap()
}

/// Changes a right record, signs it again and reads it.
fn changed(change: impl FnOnce(&mut NodeRecord)) -> Result<NodeRecord, DiscoveryError> {
    let mut this = record(1, 1, 60);
    change(&mut this);
    this.signature.clear();
    this.signature = signed::sign(SIGNED, &this, &key(1));
    NodeRecord::parse(this.to_json().as_bytes())
}

#[test]
fn a_record_has_one_writing() {
    let record = full();
    let expect = format!(
        "{{\"version\":1,\"key\":\"{}\",\"addresses\":[\"den.example:7316\",\"[::1]:7316\"],\
         \"serves\":{{\"jobs\":true,\"cells\":[\"add-2\",\"hello\"]}},\"engine_id\":\"{}\",\
         \"rates\":{{\"fuel\":3,\"memory\":18446744073709551615}},\"ledgers\":[\"{}@h:1\"],\
         \"seq\":9,\"issued_s\":1800000000,\"expires_s\":1800000060,\"signature\":\"{}\"}}",
        record.key,
        "ab".repeat(32),
        "cd".repeat(32),
        record.signature
    );
    assert_eq!(record.to_json(), expect);
    assert_eq!(NodeRecord::parse(expect.as_bytes()), Ok(record.clone()));
    assert_eq!(record.check(NOW_S), Ok(()));
    assert!(!self::record(1, 1, 60).to_json().contains("engine_id"));
}

#[track_caller]
fn check_rewritten(from: &str, to: &str, expect: &str) {
    let json = full().to_json();
    let rewritten = json.replacen(from, to, 1);
    assert_ne!(json, rewritten, "{from} is not in it");
    let error = NodeRecord::parse(rewritten.as_bytes()).unwrap_err().to_string();
    assert!(error.contains(expect), "{to}: {error}");
    assert!(!error.contains(char::is_control), "{error:?}");
}

#[test]
fn other_writings_and_forms_are_refused() {
    let one_writing = "one writing";
    check_rewritten(":1,", ": 1,", one_writing);
    check_rewritten("{", " {", one_writing);
    check_rewritten("\"add-2\",\"hello\"", "\"hello\",\"add-2\"", one_writing);
    check_rewritten("\"add-2\"", "\"add-2\",\"add-2\"", one_writing);
    check_rewritten("\"fuel\":3", "\"fuel\":2,\"fuel\":3", one_writing);
    check_rewritten("abab", "ABab", one_writing);
    check_rewritten("hello", "h\\u0065llo", one_writing);
    check_rewritten("\"seq\":9,", "", "missing field `seq`");
    check_rewritten("\"seq\":9", "\"seq\":-9", "integer");
    check_rewritten("\"seq\":9", "\"seq\":18446744073709551616", "wrong");
    check_rewritten("\"version\":1", "\"version\":2", "version 2");
    check_rewritten("\"seq\":9", "\"seq\":9,\"age\":1", "unknown field `age`");
    check_rewritten("\"seq\":9", "\"seq\":9,\"\\u001b[2J\":1", "u{1b}[2J");
    check_rewritten("\"jobs\":true", "\"jobs\":true,\"age\":1", "unknown field");
    check_rewritten("den.example", "den\\nexample", "no HOST:PORT");
    check_rewritten("den.example", "\\u202edne.elpmaxe", "no HOST:PORT");
    check_rewritten("hello", "he\\u001bllo", "a name");
    check_rewritten("\"fuel\"", "\"fu\\u0007el\"", "no dimension");
    check_rewritten("\"fuel\"", "\"\"", "no dimension");
    check_rewritten("cdcd", "xdcd", "no KEY@HOST:PORT");
    check_rewritten("\"signature\":\"", "\"signature\":\"\\u0000", "128 hex");
}

#[track_caller]
fn check_limit(allowed: usize, change: impl Fn(&mut NodeRecord, usize)) {
    let read = |count| changed(|record| change(record, count));
    assert!(read(allowed).is_ok(), "{allowed}: {:?}", read(allowed));
    let error = read(allowed + 1).unwrap_err();
    assert!(matches!(error, DiscoveryError::Record(_)), "{error:?}");
}

#[test]
fn limits_of_a_record() {
    check_limit(ADDRESSES_MAX, |record, count| {
        record.addresses = vec!["h:1".parse().unwrap(); count];
    });
    assert!(changed(|record| record.addresses.clear()).is_err());
    check_limit(CELLS_MAX, |record, count| {
        let name = |number| CellName::parse(&format!("cell{number}")).unwrap();
        record.serves.cells = (0..count).map(name).collect();
    });
    check_limit(RATES_MAX, |record, count| {
        record.rates = (0..count).map(|number| (format!("rate_{number}"), 1)).collect();
    });
    check_limit(LEDGERS_MAX, |record, count| {
        let ledger: LedgerAt = format!("{}@h:1", record.key).parse().unwrap();
        record.ledgers = vec![ledger; count];
    });
    check_limit(NAME_BYTES_MAX, |record, bytes| {
        record.rates = [("a".repeat(bytes), 1)].into();
    });
    check_limit(VALID_S_MAX.try_into().unwrap(), |record, holds_s| {
        record.expires_s = record.issued_s + holds_s as u64;
    });
    assert!(changed(|record| record.expires_s = record.issued_s).is_err());
    assert!(changed(|record| record.expires_s = record.issued_s - 1).is_err());
}

#[test]
fn a_record_that_is_too_long_is_neither_signed_nor_read() {
    let host = "h".repeat(250);
    let name = |number| CellName::parse(&format!("c{number:063}")).unwrap();
    let long = Offer {
        addresses: vec![format!("{host}:80").parse().unwrap(); ADDRESSES_MAX],
        serves: Serves { jobs: true, cells: (0..CELLS_MAX).map(name).collect() },
        ledgers: vec![format!("{}@{host}:80", "cd".repeat(32)).parse().unwrap(); LEDGERS_MAX],
        ..Offer::default()
    };
    let error = NodeRecord::sign(long, 1, NOW_S, NOW_S + 60, &key(1)).unwrap_err();
    assert!(matches!(error, DiscoveryError::RecordTooLong(_)), "{error:?}");
    let padded =
        |bytes| NodeRecord::parse(&[full().to_json().as_bytes(), &vec![b' '; bytes]].concat());
    let left = RECORD_BYTES_MAX - full().to_json().len();
    assert!(matches!(padded(left), Err(DiscoveryError::Record(_))));
    assert_eq!(padded(left + 1), Err(DiscoveryError::RecordTooLong(RECORD_BYTES_MAX + 1)));
}

#[track_caller]
fn check_time(now_s: u64, expect: fn(AccountId) -> Result<(), DiscoveryError>) {
    let record = record(1, 1, 60);
    assert_eq!(record.check(now_s), expect(record.key), "{now_s}");
}

#[test]
fn a_record_holds_for_its_time_and_a_little_more() {
    check_time(NOW_S, |_| Ok(()));
    check_time(NOW_S - CLOCKS_APART_S_MAX, |_| Ok(()));
    check_time(NOW_S - CLOCKS_APART_S_MAX - 1, |key| Err(DiscoveryError::Early(key)));
    check_time(NOW_S + 60 + CLOCKS_APART_S_MAX, |_| Ok(()));
    check_time(NOW_S + 60 + CLOCKS_APART_S_MAX + 1, |key| Err(DiscoveryError::Expired(key)));
    check_time(0, |key| Err(DiscoveryError::Early(key)));
    check_time(u64::MAX, |key| Err(DiscoveryError::Expired(key)));
}

#[test]
fn only_its_machine_signs_a_record() {
    let mut forged = record(1, 1, 60);
    forged.signature.clear();
    forged.signature = signed::sign(SIGNED, &forged, &key(2));
    assert_eq!(forged.check(NOW_S), Err(DiscoveryError::Signature(forged.key)));
    // What is signed as something else is no record.
    let mut other = record(1, 1, 60);
    other.signature.clear();
    other.signature = signed::sign("cell/receipt/v1", &other, &key(1));
    assert_eq!(other.check(NOW_S), Err(DiscoveryError::Signature(other.key)));
}

/// For these keys a lenient check believes signatures that nobody made.
#[test]
fn a_key_of_small_order_signs_nothing() {
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut weak = record(1, 1, 60);
    weak.key = AccountId::from_bytes(identity);
    // R is the identity, s is zero: the equation holds for every message.
    weak.signature = format!("01{}", "00".repeat(63));
    let read = NodeRecord::parse(weak.to_json().as_bytes()).unwrap();
    assert_eq!(read.check(NOW_S), Err(DiscoveryError::Signature(weak.key)));
}

#[test]
fn every_flipped_bit_is_refused() {
    let json = &full().to_json().into_bytes();
    let check = |place: usize, bit: u8| {
        let mut flipped = json.clone();
        flipped[place] ^= 1 << bit;
        let read = NodeRecord::parse(&flipped).and_then(|record| record.check(NOW_S));
        assert!(read.is_err(), "bit {bit} of {place}: {}", String::from_utf8_lossy(&flipped));
    };
    std::thread::scope(|scope| {
        for bit in 0..8 {
            scope.spawn(move || (0..json.len()).for_each(|place| check(place, bit)));
        }
    });
}

/// What is read is written the same, and errors are fit to be shown.
fn check_any(bytes: &[u8]) {
    match NodeRecord::parse(bytes) {
        Ok(record) => assert_eq!(record.to_json().as_bytes(), bytes),
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error:?}"),
    }
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        check_any(&bytes);
    }

    /// A right record with a piece in the middle replaced by another.
    #[test]
    fn any_piece(at in 0..1000_usize, gone in 0..40_usize, piece in "[\\PC\\n\"\\\\:,{}\\[\\]0-9]{0,20}") {
        let json = full().to_json();
        let at = at % json.len();
        let end = (at + gone).min(json.len());
        let bytes = [&json.as_bytes()[..at], piece.as_bytes(), &json.as_bytes()[end..]].concat();
        check_any(&bytes);
        if bytes != json.as_bytes() {
            let read = NodeRecord::parse(&bytes).and_then(|record| record.check(NOW_S));
            prop_assert!(read.is_err());
        }
    }
}
