//! One call at a time.

use std::os::unix::net::{UnixListener, UnixStream};

use cell_abi::{Fingerprint, Flags, Header, Kind, Reject, Status, schema};
use cell_client::{CallOptions, Client, Config, Error, Fuel, Receptor, TypedClient};
use rkyv::util::AlignedVec;

use crate::support::{Echo, Peer, Server, answer, failed, soon, soon_config};

const OPTIONS: CallOptions = CallOptions { fuel: Fuel(77), timeout: cell_client::TIMEOUT_DEFAULT };

#[test]
fn a_typed_call_goes_to_its_slot_and_says_what_it_burned() {
    let server = Server::start(|mut peer| {
        let open = peer.open();
        assert_eq!(open.cell.as_str(), "hello");
        assert_eq!(open.receptor.as_str(), "echo");
        assert_eq!(open.fingerprint, Fingerprint::of_schema(Echo::SCHEMA));
        let (header, payload) = peer.expect(Kind::Call);
        assert_eq!((header.slot, header.receptor, header.fuel), (5, 3, Fuel(77)));
        assert_eq!((header.status, header.flags), (0, Flags::NONE));
        assert_eq!(payload, schema::encode(&vec![1u8, 2, 3]).unwrap().to_vec());
        let reply = schema::encode(&vec![9u8; 40]).unwrap();
        peer.send(Header { fuel: Fuel(12), ..answer(&header, Kind::Reply) }, &reply);
    });
    let mut echo =
        TypedClient::<Echo>::connect(server.path(), "hello").unwrap().with_fuel(Fuel(77));
    let reply = echo.call(&vec![1, 2, 3]).unwrap();
    assert_eq!(reply.archived().as_slice(), [9; 40]);
    assert_eq!(reply.fuel(), Fuel(12));
    assert_eq!(reply.to_owned().unwrap(), [9; 40]);
    assert_eq!(reply.into_owned().unwrap(), [9; 40]);
}

#[test]
fn many_typed_calls_of_all_sizes() {
    let server = Server::start(|mut peer| {
        peer.open();
        peer.echo();
    });
    let mut echo = TypedClient::<Echo>::connect(server.path(), "hello").unwrap();
    for bytes in [0, 1, 15, 16, 17, 64, 16_300, 16_384, 16_385, 70_001, 5_000_003, 64, 0] {
        let sent = (0..=250).cycle().take(bytes).collect::<Vec<u8>>();
        let reply = echo.call(&sent).unwrap();
        assert!(reply.archived().as_slice() == sent, "{bytes} bytes");
        echo.recycle(reply);
    }
}

#[test]
fn raw_calls_reuse_the_callers_buffer() {
    let server = Server::start(|mut peer| {
        assert_eq!(peer.open().fingerprint, Fingerprint::UNTYPED);
        peer.echo();
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    assert_eq!(slot.schema(), Echo::SCHEMA);
    let mut reply = AlignedVec::with_capacity(128);
    let memory = reply.as_ptr();
    for round in 0..100u8 {
        let fuel = client.call_raw_into(&slot, &[round; 64], OPTIONS, &mut reply).unwrap();
        assert_eq!((reply.as_slice(), fuel), (&[round; 64][..], Fuel(64)));
        assert_eq!(reply.as_ptr(), memory);
    }
    client.ping().unwrap();
}

#[test]
fn json_is_flagged_and_must_come_back_as_text() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (header, payload) = peer.expect(Kind::Call);
        assert_eq!((header.flags, payload.as_slice()), (Flags::JSON, &b"{\"a\":1}"[..]));
        peer.send(
            Header { flags: Flags::JSON, fuel: Fuel(3), ..answer(&header, Kind::Reply) },
            b"[2]",
        );
        let (header, _) = peer.expect(Kind::Call);
        peer.send(Header { fuel: Fuel(4), ..answer(&header, Kind::Reply) }, b"\xff");
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    let reply = client.call_json(&slot, "{\"a\":1}", OPTIONS).unwrap();
    assert_eq!((reply.text(), reply.fuel()), ("[2]", Fuel(3)));
    let error = client.call_json(&slot, "1", OPTIONS).unwrap_err();
    assert!(matches!(error, Error::InvalidReply { fuel: Fuel(4) }), "{error:?}");
}

/// Makes one typed call that the script answers; the next call must work whatever came before.
#[track_caller]
fn check_reply(
    config: Config,
    reply: impl FnOnce(&mut Peer, Header) + Send + 'static,
    expect: impl FnOnce(&Error) -> bool,
) -> Error {
    let server = Server::start(|mut peer| {
        peer.open();
        let (header, _) = peer.expect(Kind::Call);
        reply(&mut peer, header);
        peer.echo();
    });
    let mut client = Client::connect_with(server.path(), "hello", config).unwrap();
    let slot = client.open::<Echo>().unwrap();
    let error = client.call(&slot, &vec![1], OPTIONS).unwrap_err();
    assert!(expect(&error), "{error:?}");
    assert_eq!(client.call(&slot, &vec![2], OPTIONS).unwrap().into_owned().unwrap(), [2]);
    error
}

#[test]
fn errors_carry_status_and_fuel() {
    let error = check_reply(
        Config::default(),
        |peer, header| {
            let reject = Reject::new(7, "no\x1b[31m such name");
            peer.send(failed(&header, Status::Rejected, 10), &reject.encode());
        },
        |error| matches!(error, Error::Rejected { reject, .. } if reject.code == 7),
    );
    assert_eq!((error.status(), error.fuel()), (Some(Status::Rejected), Fuel(10)));
    assert_eq!(error.to_string(), "rejected with code 7: no\\u{1b}[31m such name (10 fuel)");

    let error = check_reply(
        Config::default(),
        |peer, header| peer.send(failed(&header, Status::OutOfFuel, 77), b""),
        |error| matches!(error, Error::Failed { status: Status::OutOfFuel, .. }),
    );
    assert_eq!((error.status(), error.fuel()), (Some(Status::OutOfFuel), Fuel(77)));
    assert_eq!(error.to_string(), "out of fuel: it burned all it was given (77 fuel)");

    let error = check_reply(
        Config::default(),
        |peer, header| peer.send(failed(&header, Status::Trapped, 5), &vec![b'x'; 1 << 20]),
        |error| matches!(error, Error::Failed { status: Status::Trapped, .. }),
    );
    let Error::Failed { message, .. } = error else { unreachable!() };
    assert_eq!(message, "x".repeat(1024), "a message is cut");

    check_reply(
        Config::default(),
        |peer, header| peer.send(failed(&header, Status::Rejected, 5), b"abc"),
        |error| matches!(error, Error::InvalidReply { fuel: Fuel(5) }),
    );
    check_reply(
        Config::default(),
        |peer, header| {
            peer.send(Header { fuel: Fuel(6), ..answer(&header, Kind::Reply) }, &[0xff; 24])
        },
        |error| matches!(error, Error::InvalidReply { fuel: Fuel(6) }),
    );
}

#[test]
fn a_reply_over_the_limit_is_dropped_and_charged() {
    let error = check_reply(
        Config { reply_bytes_max: 1000, ..Config::default() },
        |peer, header| {
            peer.send(Header { fuel: Fuel(8), ..answer(&header, Kind::Reply) }, &[1; 500_001]);
        },
        |error| matches!(error, Error::ReplyTooLarge { bytes: 500_001, max: 1000, .. }),
    );
    assert_eq!(error.fuel(), Fuel(8));
}

/// A late reply must not be taken for the answer to the next call.
#[test]
fn a_call_that_times_out_is_cancelled_and_its_late_reply_dropped() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (late, _) = peer.expect(Kind::Call);
        let (cancel, _) = peer.expect(Kind::Cancel);
        assert_eq!(cancel.request_id, late.request_id);
        let (header, _) = peer.expect(Kind::Call);
        peer.send(answer(&late, Kind::Reply), &[1; 100_000]);
        peer.send(answer(&header, Kind::Reply), b"second");
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    let error = client.call_raw(&slot, b"first", soon()).unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error:?}");
    assert_eq!(error.status(), Some(Status::TimedOut));
    assert_eq!(client.call_raw(&slot, b"next", OPTIONS).unwrap().bytes(), b"second");
}

#[test]
fn a_server_that_drips_cannot_extend_the_deadline() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (header, _) = peer.expect(Kind::Call);
        let payload_bytes = 1 << 20;
        peer.write(&Header { payload_bytes, ..answer(&header, Kind::Reply) }.encode());
        // Paces the drip; ends when the client has closed.
        while std::io::Write::write_all(&mut peer.stream, &[0]).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    for _ in 0..2 {
        let error = client.call_raw(&slot, b"", soon()).unwrap_err();
        assert!(matches!(error, Error::TimedOut), "{error:?}");
    }
}

/// The frame has begun when its time is up, so it has to be finished before anything else is sent.
#[test]
fn a_request_that_times_out_half_written_leaves_the_stream_whole() {
    let (go, wait) = std::sync::mpsc::channel();
    let server = Server::start(move |mut peer| {
        peer.open();
        wait.recv().unwrap();
        let (header, payload) = peer.expect(Kind::Call);
        assert!(payload == vec![7; 8_000_001]);
        assert_eq!(peer.expect(Kind::Cancel).0.request_id, header.request_id);
        peer.send(failed(&header, Status::Cancelled, 1), b"");
        peer.echo();
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    let error = client.call_raw(&slot, &vec![7; 8_000_001], soon()).unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error:?}");
    // Nothing more fits behind it, and nothing more is taken on.
    let error = client.call_raw(&slot, b"not sent", soon()).unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error:?}");
    go.send(()).unwrap();
    assert_eq!(client.call_raw(&slot, b"next", OPTIONS).unwrap().bytes(), b"next");
}

#[test]
fn a_schema_mismatch_shows_both_schemas() {
    let server = Server::start(|mut peer| {
        peer.hello();
        let (header, _) = peer.expect(Kind::Open);
        let status = Status::SchemaMismatch.code();
        peer.send(
            Header { status, ..answer(&header, Kind::Opened) },
            b"receptor echo(Vec<u16>) -> Vec<u8>\n\x1b]0;owned\x07\n",
        );
    });
    let error = TypedClient::<Echo>::connect(server.path(), "hello").unwrap_err();
    assert_eq!(error.status(), Some(Status::SchemaMismatch));
    assert_eq!(
        error.to_string(),
        "receptor `echo` of cell `hello` has other types than this program was built against; \
         they first differ in line 1:\n  \
           this program:\n  \
           > receptor echo(Vec<u8>) -> Vec<u8>\n  \
           the cell:\n  \
           > receptor echo(Vec<u16>) -> Vec<u8>\n    \
             \\u{1b}]0;owned\\u{7}\n\
         rebuild this program against the cell's crate, or deploy the cell again"
    );
}

#[test]
fn a_failed_open_leaves_the_connection_usable() {
    let server = Server::start(|mut peer| {
        peer.hello();
        let (header, _) = peer.expect(Kind::Open);
        let status = Status::UnknownReceptor.code();
        peer.send(Header { status, ..answer(&header, Kind::Opened) }, b"only `echo`");
        let (header, _) = peer.expect(Kind::Open);
        peer.send(answer(&header, Kind::Opened), b"");
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let error = client.open_raw("eco").unwrap_err();
    assert!(
        matches!(&error, Error::Failed { status: Status::UnknownReceptor, message, .. } if message == "only `echo`")
    );
    client.open_raw("echo").unwrap();
}

#[test]
fn misuse_is_refused_before_anything_is_sent() {
    let server = Server::start(|mut peer| {
        peer.open();
        assert!(peer.next().is_none(), "nothing else may come");
    });
    assert!(matches!(Client::connect(server.path(), "../x"), Err(Error::InvalidName { .. })));
    let mut client = Client::connect(server.path(), "hello").unwrap();
    assert!(matches!(client.receive(), Err(Error::NothingInFlight)));
    assert!(matches!(client.open_raw("No"), Err(Error::InvalidName { .. })));
    let slot = client.open_raw("echo").unwrap();
    let large = vec![0; (16 << 20) + 1];
    let error = client.call_raw(&slot, &large, OPTIONS).unwrap_err();
    assert!(matches!(error, Error::RequestTooLarge { bytes: 16_777_217 }), "{error:?}");

    let (stream, _other) = UnixStream::pair().unwrap();
    let mut other = Client::from_stream(stream, "hello", Config::default()).unwrap();
    assert!(matches!(other.call_raw(&slot, b"", OPTIONS), Err(Error::ForeignSlot)));
}

#[test]
fn connect_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cell.sock");
    let error = Client::connect(&path, "hello").unwrap_err();
    assert!(error.to_string().contains("no such cell socket"), "{error}");
    assert!(error.to_string().contains("start it with `cell up`"), "{error}");

    drop(UnixListener::bind(&path).unwrap());
    let error = Client::connect(&path, "hello").unwrap_err();
    assert!(error.to_string().contains("the nucleus isn't running"), "{error}");
}

/// A nucleus that hangs with a full backlog must not hang its callers.
#[test]
fn connect_has_a_deadline() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cell.sock");
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        match Client::connect_with(&path, "hello", soon_config()) {
            Ok(client) => waiting.push(client),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("takes no more connections"), "{error}");
}
