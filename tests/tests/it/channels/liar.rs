//! A machine that listens, proves who it is, and then says whatever a test wants.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use cell_abi::AccountId;
use cell_peer::{Answer, Credentials, Handshake, PREFACE, Records, Request, Step, tunnel};
use ed25519_dalek::SigningKey;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// It answers each session on a thread of its own, until the test's process ends.
pub(super) struct Liar {
    pub(super) key: SigningKey,
    pub(super) address: String,
}

impl Liar {
    pub(super) fn new(
        number: u8,
        says: impl Fn(&SigningKey, AccountId, Request, UnixStream) + Send + Sync + 'static,
    ) -> Self {
        let key = SigningKey::from_bytes(&[number; 32]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (theirs, says) = (key.clone(), Arc::new(says));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (key, says) = (theirs.clone(), Arc::clone(&says));
                thread::spawn(move || answer(&key, stream.unwrap(), &*says));
            }
        });
        Self { key, address }
    }

    pub(super) fn account(&self) -> AccountId {
        AccountId::from_bytes(self.key.verifying_key().to_bytes())
    }
}

fn answer(
    key: &SigningKey,
    mut stream: TcpStream,
    says: &impl Fn(&SigningKey, AccountId, Request, UnixStream),
) {
    let mut records = Records::default();
    let mut more = |records: &mut Records, stream: &mut TcpStream| {
        let read = stream.read(records.room(4096)).unwrap();
        records.filled(4096 - read);
        assert!(read > 0, "the other machine hung up");
    };
    while records.take(PREFACE.len()).is_none() {
        more(&mut records, &mut stream);
    }
    let credentials = Credentials::new(key, tunnel::now_s()).unwrap();
    let mut handshake = Handshake::respond(&credentials, tunnel::now_s()).unwrap();
    let mut session = loop {
        let Some(record) = records.next(65_535).unwrap().map(<[u8]>::to_vec) else {
            more(&mut records, &mut stream);
            continue;
        };
        match handshake.step(&record).unwrap() {
            Step::Reply(next, reply) => {
                stream.write_all(&reply).unwrap();
                handshake = next;
            }
            Step::Done(session, reply) => {
                stream.write_all(&reply).unwrap();
                break session;
            }
        }
    };
    let request = loop {
        if let Some(record) = records.next(65_535).unwrap() {
            let mut content = Vec::new();
            session.open(record, &mut content).unwrap();
            break Request::decode(&content).unwrap();
        }
        more(&mut records, &mut stream);
    };
    let mut yes = Vec::new();
    session.seal(&Answer::Yes.encode(), &mut yes).unwrap();
    stream.write_all(&yes).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = session.peer();
    // The other side may end as it likes.
    thread::spawn(move || drop(tunnel::run(&stream, session, records, &theirs)));
    says(key, peer, request, ours);
}

/// One end of a conversation in lines of JSON.
pub(super) struct Lines {
    from: BufReader<UnixStream>,
    to: UnixStream,
}

impl Lines {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { from: BufReader::new(socket.try_clone().unwrap()), to: socket }
    }

    /// Says something; a peer that is gone does not hear it.
    pub(super) fn say(&mut self, message: impl Serialize) {
        let line = serde_json::to_string(&message).unwrap() + "\n";
        let _ = self.to.write_all(line.as_bytes());
    }

    /// What comes next; `None` at the end.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> Option<T> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(1..) => Some(serde_json::from_str(&line).unwrap()),
            _ => None,
        }
    }
}
