//! Servers that die, lie or say nothing: always a typed error, never a hang.

use cell_abi::frame::PROTOCOL_VERSION;
use cell_abi::{FrameError, Header, Hello, Kind, Status};
use cell_client::{CallOptions, Client, Error, ProtocolError};

use crate::support::{Peer, Server, answer, frame, soon_config};

/// Opens a receptor; the script is all that the server does before it closes.
#[track_caller]
fn check_open(
    script: impl FnOnce(&mut Peer) + Send + 'static,
    expect: impl FnOnce(&Error) -> bool,
) {
    let server = Server::start(|mut peer| {
        script(&mut peer);
        // Whatever it did not read is lost, as when a process dies.
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let error = client.open_raw("echo").unwrap_err();
    assert!(expect(&error), "{error:?}");
    let again = client.open_raw("echo").unwrap_err();
    assert_eq!(again.to_string(), error.to_string(), "the reason stays");
}

/// Makes a call that the script does not answer as it should.
#[track_caller]
fn check_call(
    script: impl FnOnce(&mut Peer, Header) + Send + 'static,
    expect: impl FnOnce(&Error) -> bool,
) {
    let server = Server::start(|mut peer| {
        peer.open();
        let (header, _) = peer.expect(Kind::Call);
        script(&mut peer, header);
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    let error = client.call_raw(&slot, b"x", CallOptions::default()).unwrap_err();
    assert!(expect(&error), "{error:?}");
    let again = client.call_raw(&slot, b"x", CallOptions::default()).unwrap_err();
    assert_eq!(again.to_string(), error.to_string(), "the reason stays");
}

fn breaks(error: &Error, expect: impl Into<ProtocolError>) -> bool {
    matches!(error, Error::Protocol(found) if *found == expect.into())
}

#[test]
fn hellos() {
    check_open(
        |peer| peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        |error| breaks(error, FrameError::BadMagic(*b"HTTP")),
    );
    check_open(
        |peer| peer.write(&Hello { version: 9, features: 0 }.encode()),
        |error| {
            let text = error.to_string();
            matches!(error, Error::VersionMismatch { theirs: 9, ours: PROTOCOL_VERSION })
                && text.contains("version 9")
                && text.contains("version 1")
        },
    );
    check_open(
        |peer| peer.write(&Hello { version: 1, features: u32::MAX }.encode()[..15]),
        |error| matches!(error, Error::Disconnected { during: "before its hello" }),
    );
    check_open(|_| {}, |error| matches!(error, Error::Disconnected { during: "before its hello" }));
    check_open(
        |peer| peer.hello(),
        |error| matches!(error, Error::Disconnected { during: "before it answered" }),
    );
}

#[test]
fn a_server_that_never_says_hello() {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let server = Server::start(move |peer| {
        let _ = wait.recv();
        drop(peer);
    });
    let mut client = Client::connect_with(server.path(), "hello", soon_config()).unwrap();
    let error = client.open_raw("echo").unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error:?}");
    assert!(matches!(client.ping(), Err(Error::TimedOut)));
    drop(done);
}

#[test]
fn frames() {
    check_call(
        |peer, header| {
            let mut bytes = answer(&header, Kind::Reply).encode();
            bytes[..4].copy_from_slice(&(1u32 << 30).to_le_bytes());
            peer.write(&bytes);
        },
        |error| breaks(error, FrameError::PayloadTooLarge { claimed: 1 << 30, max: 16 << 20 }),
    );
    check_call(
        |peer, _| peer.write(&[0xee; 64]),
        |error| breaks(error, FrameError::UnknownKind(0xee)),
    );
    check_call(
        |peer, header| peer.send(answer(&header, Kind::Call), b""),
        |error| breaks(error, FrameError::WrongDirection(Kind::Call)),
    );
    check_call(
        |peer, header| peer.send(answer(&header, Kind::Pong), b""),
        |error| {
            breaks(error, ProtocolError::WrongAnswer { found: Kind::Pong, expected: Kind::Reply })
        },
    );
    check_call(
        |peer, _| peer.send(Header { request_id: 99, ..Header::new(Kind::Reply) }, b"?"),
        |error| breaks(error, ProtocolError::UnknownRequest(99)),
    );
    check_call(
        |peer, header| peer.send(Header { status: 9, ..answer(&header, Kind::Reply) }, b""),
        |error| breaks(error, ProtocolError::UnknownStatus(9)),
    );
}

#[test]
fn a_reply_comes_only_once() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (header, _) = peer.expect(Kind::Call);
        let reply = frame(answer(&header, Kind::Reply), b"once");
        peer.write(&[reply.clone(), reply].concat());
        assert!(peer.next().is_none() || peer.next().is_none());
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    assert_eq!(client.call_raw(&slot, b"", CallOptions::default()).unwrap().bytes(), b"once");
    let error = client.call_raw(&slot, b"", CallOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Protocol(ProtocolError::UnknownRequest(_))), "{error:?}");
}

#[test]
fn ends() {
    check_call(
        |_, _| {},
        |error| matches!(error, Error::Disconnected { during: "before it answered" }),
    );
    for cut in [1, 31, 32, 40, 1000] {
        check_call(
            move |peer, header| peer.write(&frame(answer(&header, Kind::Reply), &[1; 1000])[..cut]),
            |error| matches!(error, Error::Disconnected { during: "in the middle of a frame" }),
        );
    }
    check_call(
        |peer, _| {
            let status = Status::TooLarge.code();
            peer.send(Header { status, ..Header::new(Kind::Goaway) }, b"bye\x07");
        },
        |error| matches!(error, Error::Goaway { status: Status::TooLarge, message } if message == "bye\\u{7}"),
    );
}

/// A goaway with status 0 made an error whose status was `Ok`, and a program that ends with its
/// error's status ended as if all were done.
#[test]
fn a_goaway_is_never_a_success() {
    check_call(
        |peer, _| peer.send(Header::new(Kind::Goaway), b"all is well"),
        |error| error.status() == Some(Status::HostFault),
    );
}

/// The reason was sent before the socket was closed on us; a failed write must not hide it.
#[test]
fn a_goaway_is_found_behind_a_failed_write() {
    let (closed, wait) = std::sync::mpsc::channel();
    let server = Server::start(move |mut peer| {
        peer.open();
        let status = Status::BadFrame.code();
        peer.send(Header { status, ..Header::new(Kind::Goaway) }, b"enough");
        drop(peer);
        closed.send(()).unwrap();
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    wait.recv().unwrap();
    let error = client.call_raw(&slot, &vec![0; 1 << 20], CallOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Goaway { status: Status::BadFrame, .. }), "{error:?}");
}
