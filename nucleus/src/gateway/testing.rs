//! Machines for tests: sessions with this one, over loopback.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};

use cell_abi::AccountId;
use cell_peer::{Answer, Credentials, Handshake, PREFACE, Records, Session, Step, tunnel};
use ed25519_dalek::SigningKey;

use super::relay::Party;

/// This machine's key, as `seed` of [`credentials`].
pub(super) const OURS: u32 = 0;

pub(super) fn credentials(seed: u32) -> (AccountId, Credentials) {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let identity = SigningKey::from_bytes(&bytes);
    let account = AccountId::from_bytes(identity.verifying_key().to_bytes());
    (account, Credentials::new(&identity, tunnel::now_s()).unwrap())
}

pub(super) fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nodelay(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

/// The one record of these bytes.
pub(super) fn record(bytes: &[u8]) -> Vec<u8> {
    let mut records = Records::default();
    records.room(bytes.len()).copy_from_slice(bytes);
    records.next(1000).unwrap().unwrap().to_vec()
}

/// A peer's end of a session with this machine.
pub(super) struct Peer {
    pub(super) key: AccountId,
    pub(super) stream: TcpStream,
    session: Session,
}

/// A peer that has shaken hands, and its end.
pub(super) fn peer(seed: u32) -> (Party, Peer) {
    let ((ours, our_credentials), (key, their_credentials)) =
        (credentials(OURS), credentials(seed));
    let now = tunnel::now_s();
    let (theirs, first) = Handshake::initiate(&their_credentials, ours, now).unwrap();
    let respond = Handshake::respond(&our_credentials, now).unwrap();
    let Step::Reply(respond, second) = respond.step(&record(&first[PREFACE.len()..])).unwrap()
    else {
        panic!("no second message");
    };
    let Step::Done(theirs, third) = theirs.step(&record(&second)).unwrap() else {
        panic!("no third message");
    };
    let Step::Done(session, _) = respond.step(&record(&third)).unwrap() else {
        panic!("no session");
    };
    let (stream, far) = pair();
    let party = Party { stream: far, session, records: Records::default() };
    (party, Peer { key, stream, session: theirs })
}

impl Peer {
    /// What the next record holds; nothing behind it is read.
    pub(super) fn hear(&mut self) -> Vec<u8> {
        let mut length = [0; 2];
        self.stream.read_exact(&mut length).unwrap();
        let mut record = vec![0; usize::from(u16::from_be_bytes(length))];
        self.stream.read_exact(&mut record).unwrap();
        let mut content = Vec::new();
        self.session.open(&record, &mut content).unwrap();
        content
    }

    #[track_caller]
    pub(super) fn is_served(&mut self) {
        assert_eq!(Answer::decode(&self.hear()), Ok(Answer::Yes));
    }

    #[track_caller]
    pub(super) fn is_refused(&mut self, expect: &str) {
        match Answer::decode(&self.hear()) {
            Ok(Answer::No(why)) => assert!(why.contains(expect), "{expect}: {why}"),
            other => panic!("{expect}: {other:?}"),
        }
    }
}
