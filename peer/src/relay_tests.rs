//! Through another machine: what it passes on, and what it cannot do.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::dial::Route;
use crate::splice::SPLICE_BYTES_MAX;
use crate::tests::{Node, node_at};

const TIMEOUT: Duration = Duration::from_secs(20);

fn node(seed: u8) -> Node {
    node_at(seed, tunnel::now_s())
}

/// A connection that was accepted, up to what its initiator wants.
struct Accepted {
    stream: TcpStream,
    records: Records,
    session: Session,
    request: Request,
}

fn more(stream: &mut TcpStream, records: &mut Records) {
    let read = stream.read(records.room(1000)).unwrap();
    records.filled(1000 - read);
    assert!(read > 0, "it hung up");
}

fn accept(node: &Node, mut stream: TcpStream) -> Accepted {
    let mut records = Records::default();
    while records.take(PREFACE.len()).is_none() {
        more(&mut stream, &mut records);
    }
    let record = |stream: &mut TcpStream, records: &mut Records| loop {
        if let Some(record) = records.next(1000).unwrap() {
            return record.to_vec();
        }
        more(stream, records);
    };
    let mut handshake = Handshake::respond(&node.credentials, tunnel::now_s()).unwrap();
    let mut session = loop {
        let message = record(&mut stream, &mut records);
        match handshake.step(&message).unwrap() {
            Step::Reply(next, bytes) => {
                stream.write_all(&bytes).unwrap();
                handshake = next;
            }
            Step::Done(session, _) => break session,
        }
    };
    let mut content = Vec::new();
    session.open(&record(&mut stream, &mut records), &mut content).unwrap();
    let request = Request::decode(&content).unwrap();
    Accepted { stream, records, session, request }
}

impl Accepted {
    fn sealed(&mut self, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.session.seal(content, &mut bytes).unwrap();
        bytes
    }
}

/// A relay that passes bytes on in pieces of this size, its own answer included, to a machine that says yes to
/// a job and echoes; the relay's address, with its key.
fn relay(relay: u8, machine: u8, piece: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inner = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = inner.local_addr().unwrap();
    let address = format!("{}@{}", node(relay).account, listener.local_addr().unwrap());
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut outer = accept(&node(relay), stream);
        assert!(matches!(outer.request, Request::Through(_)));
        let mut far = TcpStream::connect(there).unwrap();
        far.set_nodelay(true).unwrap();
        for part in outer.sealed(&Answer::Yes.encode()).chunks(piece) {
            outer.stream.write_all(part).unwrap();
        }
        far.write_all(&outer.records.into_rest()).unwrap();
        let near = outer.stream;
        let pass = move |mut from: TcpStream, mut to: TcpStream| {
            let mut bytes = vec![0; piece];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                if to.write_all(&bytes[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        };
        let (near_again, far_again) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        thread::spawn(move || pass(near, far));
        pass(far_again, near_again);
    });
    thread::spawn(move || {
        let (stream, _) = inner.accept().unwrap();
        // One that speaks with nobody but whom it takes for the wanted one is hung up on.
        let Ok(mut inner) = thread::spawn(move || accept(&node(machine), stream)).join() else {
            return;
        };
        assert_eq!(inner.request, Request::Job);
        // The answer, and what follows it, at once.
        let mut bytes = inner.sealed(&Answer::Yes.encode());
        bytes.extend(inner.sealed(b"hello"));
        inner.stream.write_all(&bytes).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || tunnel::run(&inner.stream, inner.session, inner.records, &theirs));
        let (mut from, mut to) = (ours.try_clone().unwrap(), ours);
        std::io::copy(&mut from, &mut to).unwrap();
        to.shutdown(Shutdown::Write).unwrap();
    });
    address
}

#[test]
fn a_machine_is_reached_through_another() {
    let (us, machine) = (node(1), node(3));
    for piece in [1, 7, 100, 65_536] {
        let address = relay(2, 3, piece);
        let dialled =
            tunnel::dial(&address, &us.credentials, machine.account, &Request::Job, TIMEOUT);
        let mut socket = dialled.unwrap();
        let mut hello = [0; 5];
        socket.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        let content: Vec<_> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut writer, sent) = (socket.try_clone().unwrap(), content.clone());
        let writing = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        socket.read_to_end(&mut back).unwrap();
        writing.join().unwrap();
        assert!(back == content, "in pieces of {piece}");
    }
}

/// Whoever is in between can be nobody else: neither the relay nor the machine behind it is believed.
#[test]
fn a_relay_cannot_pretend() {
    let (us, wanted, other) = (node(1), node(3), node(4));
    let dial = |address: &str| {
        let dialled =
            tunnel::dial(address, &us.credentials, wanted.account, &Request::Job, TIMEOUT);
        dialled.unwrap_err()
    };
    // The relay has another machine answer, or answers itself.
    for liar in [4, 2] {
        let found = node(liar).account;
        let expect = PeerError::WrongPeer { found, wanted: wanted.account };
        assert_eq!(dial(&relay(2, liar, 100)), expect);
    }
    // Another machine than the relay is where it should be.
    let address = relay(2, 3, 100);
    let (_, at) = address.split_once('@').unwrap();
    let why = PeerError::WrongPeer { found: node(2).account, wanted: other.account };
    let expect = PeerError::Through { relay: other.account, why: Box::new(why) };
    assert_eq!(dial(&format!("{}@{at}", other.account)), expect);
}

/// What is behind the relay's answer is the machine's, not the relay's.
#[test]
fn bytes_behind_the_answer_are_not_lost() {
    for (behind, expect) in [
        (&[0xff, 0xff][..], PeerError::RecordTooLong(65_535)),
        (&[&[0, 96], &[7; 96][..]].concat(), PeerError::Decrypt),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("{}@{}", node(2).account, listener.local_addr().unwrap());
        let behind = behind.to_vec();
        let relay = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut outer = accept(&node(2), stream);
            let bytes = [outer.sealed(&Answer::Yes.encode()), behind].concat();
            outer.stream.write_all(&bytes).unwrap();
            outer
        });
        let us = node(1);
        let dialled =
            tunnel::dial(&address, &us.credentials, node(3).account, &Request::Job, TIMEOUT);
        assert_eq!(dialled.unwrap_err(), expect);
        relay.join().unwrap();
    }
}

#[test]
fn a_relay_says_why_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("{}@{}", node(2).account, listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut outer = accept(&node(2), stream.unwrap());
            let answer = outer.sealed(&Answer::No("nobody waits".into()).encode());
            outer.stream.write_all(&answer).unwrap();
        }
    });
    let (us, relay, wanted) = (node(1), node(2).account, node(3).account);
    let why = Box::new(PeerError::Refused("nobody waits".into()));
    let expect = PeerError::Through { relay, why };
    let dialled = tunnel::dial(&address, &us.credentials, wanted, &Request::Job, TIMEOUT);
    assert_eq!(dialled.unwrap_err(), expect);
    assert_eq!(tunnel::knock(&address, &us.credentials, wanted, TIMEOUT), Err(expect));
}

#[test]
fn addresses_have_one_relay_at_most() {
    let key = node(2).account;
    assert_eq!(Route::parse("h:1"), Ok(Route { relay: None, at: "h:1" }));
    let through = format!("{key}@[::1]:7316");
    assert_eq!(Route::parse(&through), Ok(Route { relay: Some(key), at: "[::1]:7316" }));
    for wrong in ["@h:1", "12@h:1", &format!("{key}@{key}@h:1"), &format!("{key}@h:1@")] {
        assert!(matches!(Route::parse(wrong), Err(PeerError::Address(_))), "{wrong}");
    }
}

#[test]
fn who_answers_is_known() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (us, anybody) = (node(1), node(2).account);
    let address = listener.local_addr().unwrap().to_string();
    assert!(tunnel::knock(&address, &us.credentials, anybody, TIMEOUT).is_ok());
    drop(listener);
    assert!(tunnel::knock(&address, &us.credentials, anybody, TIMEOUT).is_err());
    let through = format!("{}@{}", node(2).account, relay(2, 3, 100).split_once('@').unwrap().1);
    assert!(tunnel::knock(&through, &us.credentials, node(3).account, TIMEOUT).is_ok());
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

type Splicing = thread::JoinHandle<Result<(), PeerError>>;

fn spliced(of_one: &[u8], of_other: &[u8]) -> (TcpStream, TcpStream, Splicing) {
    paced(of_one, of_other, &Arc::default())
}

/// The same at a pace.
fn paced(of_one: &[u8], of_other: &[u8], pace: &Arc<Pace>) -> (TcpStream, TcpStream, Splicing) {
    let pace = Arc::clone(pace);
    let ((ours, one), (theirs, other)) = (pair(), pair());
    let (of_one, of_other) = (of_one.to_vec(), of_other.to_vec());
    let running = thread::spawn(move || splice::run((&one, of_one), (&other, of_other), &pace));
    (ours, theirs, running)
}

#[test]
fn a_splice_carries_both_ways_and_half_closes() {
    let (mut ours, mut theirs, running) = spliced(b"before", b"earlier");
    let content: Vec<_> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let (mut writer, sent) = (ours.try_clone().unwrap(), content.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut came = Vec::new();
    theirs.read_to_end(&mut came).unwrap();
    writing.join().unwrap();
    assert!(came.strip_prefix(b"before") == Some(&content[..]));
    // The other way is open still.
    theirs.write_all(b" and after").unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let mut back = String::new();
    ours.read_to_string(&mut back).unwrap();
    assert_eq!(back, "earlier and after");
    assert_eq!(running.join().unwrap(), Ok(()));
}

/// Connections that are passed on share the pace of sessions, each way, and give it back when they end.
#[test]
fn a_splice_keeps_its_pace() {
    const RATE: u64 = 1 << 20;
    const BYTES: usize = 1 << 18;
    let pace = Arc::<Pace>::default();
    pace.set(NonZeroU64::new(RATE));
    let start = Instant::now();
    let both = [(); 2].map(|()| {
        let (mut ours, mut theirs, running) = paced(b"", b"", &pace);
        thread::spawn(move || {
            ours.write_all(&[7; BYTES]).unwrap();
            ours.shutdown(Shutdown::Write).unwrap();
            let mut came = Vec::new();
            theirs.read_to_end(&mut came).unwrap();
            assert_eq!(came, vec![7; BYTES]);
            drop((ours, theirs));
            let _ = running.join().unwrap();
        })
    });
    both.into_iter().for_each(|one| one.join().unwrap());
    // Half a second, but for what may go at once: a tenth of a second, and a turn of each.
    assert!(start.elapsed() > Duration::from_millis(250), "{:?}", start.elapsed());
    pace.set(None);
    let (mut ours, mut theirs, running) = paced(b"", b"", &pace);
    let writing = thread::spawn(move || ours.write_all(&vec![7; 8 << 20]));
    let mut came = Vec::new();
    theirs.read_to_end(&mut came).unwrap();
    assert_eq!(came.len(), 8 << 20);
    writing.join().unwrap().unwrap();
    drop(theirs);
    let _ = running.join().unwrap();
}

/// One side that takes nothing is not read for: what waits is bounded, wherever it waits.
#[test]
fn a_splice_holds_little() {
    let (mut ours, theirs, running) = spliced(b"", b"");
    ours.set_nonblocking(true).unwrap();
    let mut written = 0_usize;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(500) {
        match ours.write(&[7; 4096]) {
            Ok(more) => (written, last) = (written + more, Instant::now()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    // Two pairs of the kernel's buffers, and one of ours.
    assert!((SPLICE_BYTES_MAX..64 << 20).contains(&written), "{written}");
    drop((ours, theirs));
    assert!(running.join().unwrap().is_err());
}

#[test]
fn a_splice_ends_with_who_is_gone() {
    let (ours, theirs, running) = spliced(b"", b"");
    // What was not read makes its end a reset.
    (&theirs).write_all(b"unread").unwrap();
    ours.peek(&mut [0]).unwrap();
    drop(ours);
    let mut bytes = Vec::new();
    let _ = (&theirs).read_to_end(&mut bytes);
    drop(theirs);
    assert!(matches!(running.join().unwrap(), Err(PeerError::Connection(_))));
}
