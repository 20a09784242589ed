//! What a machine takes from another one before it knows who that is, and after.

use std::cell::RefCell;

use cell_abi::AccountId;
use cell_peer::credentials::{self, Credentials};
use cell_peer::{Answer, Handshake, PREFACE, Records, Request, Session, Step};
use ed25519_dalek::SigningKey;

const NOW_S: u64 = 1_800_000_000;
/// As a gateway takes them before there is a session.
const RECORD_BYTES_MAX: usize = 512;

thread_local! {
    /// A session whose peer has said nothing.
    static SESSION: RefCell<Session> = RefCell::new(session());
}

/// Reads the bytes as a stranger's connection, as requests, answers and proofs, and as records of a session
/// that is somebody else's.
pub fn peer(data: &[u8]) {
    connection(data);
    if let Ok(request) = Request::decode(data) {
        assert_eq!(request.encode(), data, "{request:?} is not what was read");
    }
    if let Ok(answer) = Answer::decode(data) {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
    assert!(credentials::check(data, &[9; 32], NOW_S).is_err(), "a proof of nobody's");
    SESSION.with_borrow_mut(|session| {
        let mut out = vec![1];
        assert!(session.open(data, &mut out).is_err(), "a record of nobody's");
        assert_eq!(out, [1]);
    });
}

/// A stranger's bytes, in pieces as long as the first of them says.
fn connection(data: &[u8]) {
    let Some((piece, data)) = data.split_first() else { return };
    let mut records = Records::default();
    let mut handshake = None;
    for piece in data.chunks(usize::from(*piece).max(1)) {
        records.room(piece.len()).copy_from_slice(piece);
        if handshake.is_none() {
            match records.take(PREFACE.len()) {
                None => continue,
                Some(preface) if preface == PREFACE => {
                    let ours = credentials(1);
                    handshake = Some(Handshake::respond(&ours, NOW_S).expect("a responder"));
                }
                Some(_) => return,
            }
        }
        while let Ok(Some(record)) = records.next(RECORD_BYTES_MAX) {
            let Some(waiting) = handshake.take() else { return };
            match waiting.step(record) {
                Ok(Step::Reply(next, _)) => handshake = Some(next),
                Ok(Step::Done(session, _)) => panic!("a session with {}", session.peer()),
                Err(_) => return,
            }
        }
    }
}

fn credentials(seed: u8) -> Credentials {
    Credentials::new(&SigningKey::from_bytes(&[seed; 32]), NOW_S).expect("credentials")
}

fn session() -> Session {
    let theirs = SigningKey::from_bytes(&[2; 32]).verifying_key().to_bytes();
    let (ours, first) =
        Handshake::initiate(&credentials(1), AccountId::from_bytes(theirs), NOW_S).expect("one");
    let responder = Handshake::respond(&credentials(2), NOW_S).expect("a responder");
    let record = |bytes: &[u8]| bytes.get(2..).expect("a record").to_vec();
    let first = record(first.get(PREFACE.len()..).expect("a preface"));
    let Ok(Step::Reply(_, second)) = responder.step(&first) else { panic!("no second message") };
    match ours.step(&record(&second)) {
        Ok(Step::Done(session, _)) => session,
        other => panic!("{other:?}"),
    }
}
