//! Two machines, and somebody in between.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use cell_abi::AccountId;
use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use super::*;
use crate::credentials::{CLOCKS_APART_S_MAX, VALID_S_MAX};
use crate::handshake::{HANDSHAKE_BYTES_MAX, builder};
use crate::session::{CONTENT_BYTES_MAX, REKEY_RECORDS};

const NOW: u64 = 1_800_000_000;

pub(crate) struct Node {
    pub(crate) account: AccountId,
    pub(crate) credentials: Credentials,
}

fn node(seed: u8) -> Node {
    node_at(seed, NOW)
}

/// One whose key was signed then.
pub(crate) fn node_at(seed: u8, now_s: u64) -> Node {
    let identity = SigningKey::from_bytes(&[seed; 32]);
    let account = AccountId::from_bytes(identity.verifying_key().to_bytes());
    Node { account, credentials: Credentials::new(&identity, now_s).unwrap() }
}

/// The content of the one record in these bytes.
fn record(bytes: &[u8]) -> Vec<u8> {
    let mut records = Records::default();
    records.room(bytes.len()).copy_from_slice(bytes);
    let record = records.next(usize::MAX).unwrap().expect("a record").to_vec();
    assert!(records.is_empty());
    record
}

fn reply(step: Result<Step, PeerError>) -> (Handshake, Vec<u8>) {
    match step {
        Ok(Step::Reply(handshake, bytes)) => (handshake, record(&bytes)),
        other => panic!("{other:?}"),
    }
}

/// The three messages, as far as they get; who is in between may change each.
fn shake(
    a: &Node,
    b: &Node,
    wanted: AccountId,
    now_s: u64,
    mut change: impl FnMut(usize, &mut Vec<u8>),
) -> Result<(Session, Session), PeerError> {
    let (ours, first) = Handshake::initiate(&a.credentials, wanted, now_s)?;
    assert_eq!(&first[..PREFACE.len()], PREFACE);
    let mut message = record(&first[PREFACE.len()..]);
    change(1, &mut message);
    let theirs = Handshake::respond(&b.credentials, now_s)?;
    let (theirs, mut message) = match theirs.step(&message)? {
        Step::Reply(theirs, bytes) => (theirs, record(&bytes)),
        Step::Done(..) => panic!("done after one message"),
    };
    change(2, &mut message);
    let (ours, bytes) = match ours.step(&message)? {
        Step::Done(ours, bytes) => (ours, bytes),
        Step::Reply(..) => panic!("a fourth message"),
    };
    let mut message = record(&bytes);
    change(3, &mut message);
    match theirs.step(&message)? {
        Step::Done(theirs, bytes) if bytes.is_empty() => Ok((ours, theirs)),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn sessions() -> (Session, Session) {
    let (a, b) = (node(1), node(2));
    shake(&a, &b, b.account, NOW, |_, _| {}).unwrap()
}

fn send(from: &mut Session, to: &mut Session, content: &[u8]) {
    let (mut bytes, mut got) = (Vec::new(), Vec::new());
    from.seal(content, &mut bytes).unwrap();
    assert_eq!(to.open(&record(&bytes), &mut got), Ok(Opened::Data));
    assert_eq!(got, content);
}

#[test]
fn both_know_each_other() {
    let (a, b) = (node(1), node(2));
    let (mut ours, mut theirs) = shake(&a, &b, b.account, NOW, |_, _| {}).unwrap();
    assert_eq!((ours.peer(), theirs.peer()), (b.account, a.account));
    send(&mut ours, &mut theirs, b"hello");
    send(&mut theirs, &mut ours, b"yes");
    let credentials = Credentials::from_bytes(&a.credentials.to_bytes()).unwrap();
    let same = Node { account: a.account, credentials };
    assert_eq!(shake(&b, &same, a.account, NOW, |_, _| {}).unwrap().1.peer(), b.account);
}

#[test]
fn nobody_else_is_taken_for_who_is_wanted() {
    let (a, b, other) = (node(1), node(2), node(3));
    let found = shake(&a, &b, other.account, NOW, |_, _| {}).unwrap_err();
    assert_eq!(found, PeerError::WrongPeer { found: b.account, wanted: other.account });
    // Somebody's proof beside another key is no proof.
    let mut stolen = node(3);
    stolen.credentials.proof = b.credentials.proof;
    let found = shake(&a, &stolen, b.account, NOW, |_, _| {}).unwrap_err();
    assert_eq!(found, PeerError::Proof(b.account));
    let found = shake(&stolen, &a, a.account, NOW, |_, _| {}).unwrap_err();
    assert_eq!(found, PeerError::Proof(b.account));
    // So is a claim to be somebody whose signature is missing, in part or wholly.
    for at in [0, 31, 32, 39, 40, 103] {
        let mut forged = node(2);
        forged.credentials.proof[at] ^= 1;
        assert!(
            matches!(shake(&a, &forged, b.account, NOW, |_, _| {}), Err(PeerError::Proof(_))),
            "byte {at}"
        );
    }
}

#[test]
fn proofs_expire() {
    let (a, b) = (node(1), node(2));
    let last = NOW + VALID_S_MAX + CLOCKS_APART_S_MAX;
    shake(&a, &b, b.account, last, |_, _| {}).unwrap();
    let found = shake(&a, &b, b.account, last + 1, |_, _| {}).unwrap_err();
    assert_eq!(found, PeerError::Expired(b.account));
    // One that holds for longer than any may is no better.
    shake(&a, &b, b.account, NOW - CLOCKS_APART_S_MAX, |_, _| {}).unwrap();
    let found = shake(&a, &b, b.account, NOW - CLOCKS_APART_S_MAX - 1, |_, _| {}).unwrap_err();
    assert_eq!(found, PeerError::Expired(b.account));
}

/// Any changed bit of any message ends the handshake, or is one that both sides see differently.
#[test]
fn handshakes_cannot_be_changed() {
    let (a, b) = (node(1), node(2));
    for number in 1..=3 {
        for bit in [0, 7, 255, 256, 500, 800, 1000] {
            let ended = shake(&a, &b, b.account, NOW, |message, bytes| {
                let place = bit / 8 % bytes.len();
                if message == number {
                    bytes[place] ^= 1 << (bit % 8);
                }
            });
            assert!(
                matches!(ended, Err(PeerError::Decrypt)),
                "message {number}, bit {bit}: {ended:?}"
            );
        }
        for length in [0, 1, 31] {
            let ended = shake(&a, &b, b.account, NOW, |message, bytes| {
                if message == number {
                    bytes.truncate(length);
                }
            });
            assert!(ended.is_err(), "message {number}, {length} bytes");
        }
        let ended = shake(&a, &b, b.account, NOW, |message, bytes| {
            if message == number {
                bytes.resize(HANDSHAKE_BYTES_MAX + 1, 0);
            }
        });
        assert_eq!(ended.unwrap_err(), PeerError::RecordTooLong(HANDSHAKE_BYTES_MAX + 1));
    }
}

/// Another version's prologue, or none, is another protocol.
#[test]
fn there_is_no_way_back_to_another_version() {
    let (a, b) = (node(1), node(2));
    let mut older = builder()
        .unwrap()
        .local_private_key(&a.credentials.secret[..])
        .unwrap()
        .prologue(b"cell/noise/0\n")
        .unwrap()
        .build_initiator()
        .unwrap();
    let mut message = vec![0; 1000];
    let length = older.write_message(&[], &mut message).unwrap();
    let theirs = Handshake::respond(&b.credentials, NOW).unwrap();
    let (_, answer) = reply(theirs.step(&message[..length]));
    assert!(older.read_message(&answer, &mut message).is_err());
}

/// A recorded handshake, said again to the same machine, ends without a session.
#[test]
fn recorded_handshakes_are_worth_nothing() {
    let (a, b) = (node(1), node(2));
    let mut recorded = Vec::new();
    shake(&a, &b, b.account, NOW, |_, bytes| recorded.push(bytes.clone())).unwrap();
    let theirs = Handshake::respond(&b.credentials, NOW).unwrap();
    let (theirs, _) = reply(theirs.step(&recorded[0]));
    assert_eq!(theirs.step(&recorded[2]).unwrap_err(), PeerError::Decrypt);
    let (ours, _) = Handshake::initiate(&a.credentials, b.account, NOW).unwrap();
    assert_eq!(ours.step(&recorded[1]).unwrap_err(), PeerError::Decrypt);
}

#[test]
fn records_come_once_and_in_order() {
    let (mut ours, mut theirs) = sessions();
    let (mut first, mut second, mut got) = (Vec::new(), Vec::new(), Vec::new());
    ours.seal(b"one", &mut first).unwrap();
    ours.seal(b"two", &mut second).unwrap();
    let (first, second) = (record(&first), record(&second));
    assert_eq!(theirs.open(&second, &mut got), Err(PeerError::Decrypt), "out of order");
    theirs.open(&first, &mut got).unwrap();
    assert_eq!(theirs.open(&first, &mut got), Err(PeerError::Decrypt), "twice");
    assert_eq!(ours.open(&second, &mut got), Err(PeerError::Decrypt), "to its sender");
    theirs.open(&second, &mut got).unwrap();
    assert_eq!(got, b"onetwo");
    for bit in 0..second.len() * 8 {
        let mut changed = second.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(theirs.open(&changed, &mut got), Err(PeerError::Decrypt));
    }
    assert_eq!(theirs.open(&second[..15], &mut got), Err(PeerError::Decrypt));
    let (mut others, _) = sessions();
    assert_eq!(others.open(&second, &mut got), Err(PeerError::Decrypt), "of another session");
    assert_eq!(got, b"onetwo");
}

#[test]
fn an_end_is_an_end() {
    let (mut ours, mut theirs) = sessions();
    let (mut end, mut got) = (Vec::new(), Vec::new());
    ours.end(&mut end).unwrap();
    assert_eq!(theirs.open(&record(&end), &mut got), Ok(Opened::End));
    let mut more = Vec::new();
    ours.seal(b"more", &mut more).unwrap();
    assert!(matches!(theirs.open(&record(&more), &mut got), Err(PeerError::Unexpected(_))));
    send(&mut theirs, &mut ours, b"the other way goes on");
}

#[test]
fn keys_are_replaced() {
    let (mut ours, mut theirs) = sessions();
    for number in 0..2 * REKEY_RECORDS + 10 {
        send(&mut ours, &mut theirs, &number.to_le_bytes());
    }
    send(&mut theirs, &mut ours, b"its own count");
}

#[test]
fn long_content_is_several_records() {
    let (mut ours, mut theirs) = sessions();
    let content: Vec<_> = (0..CONTENT_BYTES_MAX * 2 + 5).map(|at| at.to_le_bytes()[0]).collect();
    let mut bytes = Vec::new();
    ours.seal(&content, &mut bytes).unwrap();
    let (mut records, mut got, mut count) = (Records::default(), Vec::new(), 0);
    for part in bytes.chunks(1000) {
        records.room(part.len()).copy_from_slice(part);
        while let Some(record) = records.next(65_535).unwrap() {
            theirs.open(record, &mut got).unwrap();
            count += 1;
        }
    }
    assert!(records.is_empty() && got == content);
    assert_eq!(count, 3);
}

#[test]
fn requests_and_answers() {
    let name = cell_abi::CellName::parse("hello").unwrap();
    let paid = Request::PaidCell([7; 32], name.clone());
    let request = Request::Cell(name);
    let through =
        [Request::Wait, Request::Through(node(1).account), Request::Meet([9; TOKEN_BYTES])];
    let all = [request, paid, Request::Job, Request::Channel, Request::Escrow];
    for request in all.into_iter().chain(through) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    for wrong in
        [&b""[..], b"\x02more", b"\x03 ", b"\x09", b"\x01", b"\x08short", b"\x01../x", b"\x01\xff"]
    {
        assert!(Request::decode(wrong).is_err(), "{wrong:?}");
    }
    for (kind, lengths) in [(5, [1, 16, 32]), (6, [0, 31, 33]), (7, [0, 15, 17])] {
        for length in lengths {
            let wrong = [&[kind], &vec![7; length][..]].concat();
            assert!(Request::decode(&wrong).is_err(), "{wrong:?}");
        }
    }
    for answer in [Answer::Yes, Answer::No("no such cell".into()), Answer::No(String::new())] {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
    let long = Answer::No("\u{e9}".repeat(400));
    assert!(matches!(Answer::decode(&long.encode()), Ok(Answer::No(text)) if text.len() == 512));
    let quiet = Answer::decode(b"\x01a\x1b[31mb\n").unwrap();
    assert_eq!(quiet, Answer::No("a[31mb".into()));
    for wrong in [&b""[..], b"\x00more", b"\x02", &[&b"\x01"[..], &[b'a'; 513]].concat()] {
        assert!(Answer::decode(wrong).is_err(), "{wrong:?}");
    }
}

type Running = JoinHandle<Result<(), PeerError>>;

/// Two local sockets with a session over loopback TCP between them, and what carries their bytes.
fn tunnelled() -> (UnixStream, UnixStream, TcpStream, [Running; 2]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    let cable = near.try_clone().unwrap();
    let (ours, theirs) = sessions();
    let mut locals = Vec::new();
    let running = [(near, ours), (far, theirs)].map(|(stream, session)| {
        let (local, other) = UnixStream::pair().unwrap();
        locals.push(local);
        thread::spawn(move || tunnel::run(&stream, session, Records::default(), &other))
    });
    let theirs = locals.pop().unwrap();
    (locals.pop().unwrap(), theirs, cable, running)
}

/// A tunnel whose one side had said all waited for ever, and its session with it.
#[test]
fn a_tunnel_carries_both_ends() {
    let (mut ours, mut theirs, _, running) = tunnelled();
    let content: Vec<_> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let echo = thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        theirs.write_all(&all).unwrap();
    });
    ours.write_all(&content).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    ours.read_to_end(&mut back).unwrap();
    assert!(back == content);
    echo.join().unwrap();
    for side in running {
        assert_eq!(side.join().unwrap(), Ok(()));
    }
}

#[test]
fn a_tunnel_ends_with_either_side() {
    // Nothing was said at all.
    let (ours, mut theirs, _, running) = tunnelled();
    drop(ours);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    drop(theirs);
    running.into_iter().for_each(|side| assert_eq!(side.join().unwrap(), Ok(())));
    // One side is gone while the other still speaks.
    let (ours, mut theirs, _, running) = tunnelled();
    drop(ours);
    while theirs.write_all(&[7; 65_536]).is_ok() {}
    drop(theirs);
    for side in running {
        // What was under way when it went may have been reset.
        let ended = side.join().unwrap();
        assert!(
            matches!(ended, Ok(()) | Err(PeerError::Connection(_) | PeerError::Truncated)),
            "{ended:?}"
        );
    }
    // The cable is cut: that is no end.
    let (mut ours, mut theirs, cable, running) = tunnelled();
    ours.write_all(b"hello").unwrap();
    theirs.read_exact(&mut [0; 5]).unwrap();
    cable.shutdown(Shutdown::Both).unwrap();
    for side in running {
        assert_eq!(side.join().unwrap(), Err(PeerError::Truncated));
    }
    assert_eq!((ours.read(&mut [0]).unwrap(), theirs.read(&mut [0]).unwrap()), (0, 0));
}

proptest! {
    /// Whatever comes, in whatever pieces, ends in an error or waits for more, within its bound.
    #[test]
    fn any_bytes_may_come(bytes in proptest::collection::vec(any::<u8>(), 0..600), piece in 1usize..50) {
        let b = node(2);
        let mut records = Records::default();
        let mut handshake = Some(Handshake::respond(&b.credentials, NOW).unwrap());
        for part in bytes.chunks(piece) {
            records.room(part.len()).copy_from_slice(part);
            while let Ok(Some(message)) = records.next(HANDSHAKE_BYTES_MAX) {
                match handshake.take().map(|handshake| handshake.step(message)) {
                    Some(Ok(Step::Reply(next, _))) => handshake = Some(next),
                    Some(Ok(Step::Done(..))) => panic!("a session with nobody"),
                    Some(Err(_)) | None => return Ok(()),
                }
            }
        }
        let _ = Request::decode(&bytes);
        let _ = Answer::decode(&bytes);
        let _ = Credentials::from_bytes(&bytes);
    }
}
