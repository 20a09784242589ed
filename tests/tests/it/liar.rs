//! A machine that has jobs run by an honest one, and tells something else: signed by itself, and consistent.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use cell_abi::AccountId;
use cell_ledger::receipts::content_hash;
use cell_ledger::signed;
use cell_peer::{Answer, Credentials, Handshake, PREFACE, Records, Request, Session, Step, tunnel};
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};

use crate::frames::{receive, send};
use crate::peers::Donor;

/// What it changes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// The first byte of the output.
    Output,
    /// It burned more fuel, and charges for it.
    Fuel,
    /// It hangs up when the job has run.
    Silence,
}

/// One that listens for as long as the test runs.
pub(crate) struct Liar {
    pub(crate) key: String,
    pub(crate) address: String,
}

impl Liar {
    pub(crate) fn new(donor: &Donor, seed: u8, lie: Lie) -> Self {
        let identity = SigningKey::from_bytes(&[seed; 32]);
        let key = signed::node(&identity).to_string();
        donor.nucleus.cell(["peer", "add", &key]).expect(0);
        donor.nucleus.cell(["ledger", "grant", "50", &key]).expect(0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let honest = (donor.address.clone(), AccountId::parse(&donor.key).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (identity, honest) = (identity.clone(), honest.clone());
                // One that only knocks is no job.
                thread::spawn(move || serve(stream, &identity, honest, lie));
            }
        });
        Self { key, address }
    }
}

fn serve(
    stream: TcpStream,
    identity: &SigningKey,
    (address, honest): (String, AccountId),
    lie: Lie,
) -> Option<()> {
    let (consumer, request, mut ours) = accept(stream, identity)?;
    assert_eq!(request, Request::Job);
    let timeout = Duration::from_secs(20);
    let credentials = Credentials::new(identity, tunnel::now_s()).unwrap();
    let up = tunnel::dial(&address, &credentials, honest, &Request::Job, timeout).unwrap();
    let (mut from, mut to) = (ours.try_clone().unwrap(), up.try_clone().unwrap());
    thread::spawn(move || std::io::copy(&mut from, &mut to));
    relay(up, &mut ours, (identity, consumer), lie)
}

/// Proves to who connects that it is this key, and says yes to whatever that wants: who it is, what it
/// wants, and a socket to it. `None` if it only knocks.
pub(crate) fn accept(
    mut stream: TcpStream,
    identity: &SigningKey,
) -> Option<(AccountId, Request, UnixStream)> {
    let credentials = Credentials::new(identity, tunnel::now_s()).unwrap();
    let mut records = Records::default();
    let mut session = shake(&mut stream, &mut records, &credentials)?;
    let mut request = Vec::new();
    session.open(&next(&mut stream, &mut records)?, &mut request).ok()?;
    let mut answer = Vec::new();
    session.seal(&Answer::Yes.encode(), &mut answer).ok()?;
    stream.write_all(&answer).ok()?;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = session.peer();
    // The other side may end as it likes.
    thread::spawn(move || drop(tunnel::run(&stream, session, records, &theirs)));
    Some((peer, Request::decode(&request).unwrap(), ours))
}

fn shake(
    stream: &mut TcpStream,
    records: &mut Records,
    credentials: &Credentials,
) -> Option<Session> {
    while records.take(PREFACE.len()).is_none() {
        read(stream, records)?;
    }
    let mut handshake = Handshake::respond(credentials, tunnel::now_s()).ok()?;
    loop {
        let message = next(stream, records)?;
        match handshake.step(&message).ok()? {
            Step::Reply(next, bytes) => {
                handshake = next;
                stream.write_all(&bytes).ok()?;
            }
            Step::Done(session, _) => return Some(session),
        }
    }
}

fn next(stream: &mut TcpStream, records: &mut Records) -> Option<Vec<u8>> {
    loop {
        if let Some(record) = records.next(usize::MAX).ok()? {
            return Some(record.to_vec());
        }
        read(stream, records)?;
    }
}

fn read(stream: &mut TcpStream, records: &mut Records) -> Option<()> {
    let read = stream.read(records.room(4096)).ok()?;
    records.filled(4096 - read);
    (read > 0).then_some(())
}

/// Passes what the honest machine says on, and changes what it lies about.
fn relay(
    mut up: UnixStream,
    to: &mut UnixStream,
    (identity, consumer): (&SigningKey, AccountId),
    lie: Lie,
) -> Option<()> {
    let (mut output, mut receipt) = (Vec::new(), Vec::new());
    loop {
        let (kind, mut content) = receive(&mut up)?;
        match kind {
            18 => {
                if lie == Lie::Output && output.is_empty() && !content.is_empty() {
                    content[0] ^= 1;
                }
                output.extend_from_slice(&content);
                send(to, 18, &content)?;
            }
            20 => receipt.extend_from_slice(&content),
            21 if lie == Lie::Silence => return to.shutdown(std::net::Shutdown::Both).ok(),
            21 => {
                if !receipt.is_empty() {
                    let honest: Value = serde_json::from_slice(&receipt).unwrap();
                    let forged = forge(honest, (identity, consumer), lie, &output).to_string();
                    forged.as_bytes().chunks(60_000).try_for_each(|part| send(to, 20, part))?;
                }
                send(to, 21, &content)?;
            }
            kind => send(to, kind, &content)?,
        }
    }
}

fn forge(
    mut receipt: Value,
    (identity, consumer): (&SigningKey, AccountId),
    lie: Lie,
    output: &[u8],
) -> Value {
    receipt["node"] = json!(signed::node(identity).to_string());
    receipt["payer"] = json!(consumer.to_string());
    receipt["output_hash"] = json!(content_hash(output).to_string());
    if lie == Lie::Fuel {
        for pointer in ["/fuel", "/counters/fuel", "/charge_nano_atp"] {
            let place = receipt.pointer_mut(pointer).unwrap();
            *place = json!(place.as_u64().unwrap() + 1000);
        }
    }
    receipt.as_object_mut().unwrap().remove("signature");
    receipt["signature"] = json!(signed::sign("cell/job-receipt/v1", &receipt, identity));
    receipt
}
