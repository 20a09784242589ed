//! A machine that listens, proves who it is, and then says whatever a test wants.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use cell_abi::AccountId;
use cell_peer::Request;
use ed25519_dalek::SigningKey;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::liar::accept;

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
                thread::spawn(move || {
                    if let Some((peer, request, socket)) = accept(stream.unwrap(), &key) {
                        says(&key, peer, request, socket);
                    }
                });
            }
        });
        Self { key, address }
    }

    pub(super) fn account(&self) -> AccountId {
        AccountId::from_bytes(self.key.verifying_key().to_bytes())
    }
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

    /// Says something, and waits for the answer.
    pub(super) fn hear_after(&mut self, message: &serde_json::Value) -> Option<serde_json::Value> {
        self.say(message);
        self.hear()
    }
}
