//! The async client.
//!
//! The driver runs on a thread of its own, since a server is waited for at the end of its test.

use std::sync::Arc;

use ::tokio::sync::oneshot;
use ::tokio::task::JoinSet;
use cell_abi::{Flags, FrameError, Header, Hello, Kind, Status};
use cell_client::tokio::{Client, TypedClient};
use cell_client::{CALLS_IN_FLIGHT_MAX, CallOptions, Config, Error, ProtocolError};

use crate::support::{Echo, Peer, Server, answer, failed, soon, soon_config};

const OPTIONS: CallOptions =
    CallOptions { fuel: cell_client::FUEL_DEFAULT, timeout: cell_client::TIMEOUT_DEFAULT };

fn echo_server() -> Server {
    Server::start(|mut peer| {
        peer.open();
        peer.echo();
    })
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn typed_raw_and_json() {
    fn shared<T: Clone + Send + Sync>(_: &T) {}
    let server = echo_server();
    let client = Client::connect(server.path(), "hello").await.unwrap();
    shared(&client);
    let slot = client.open::<Echo>().await.unwrap();
    for bytes in [0, 1, 64, 16_384, 16_385, 5_000_003, 3] {
        let sent = vec![3; bytes];
        let reply = client.call(&slot, &sent, OPTIONS).await.unwrap();
        assert!(reply.archived().as_slice() == sent, "{bytes} bytes");
    }
    let reply = client.call_raw(slot.raw(), b"raw", OPTIONS).await.unwrap();
    assert_eq!((reply.bytes(), reply.fuel().0), (&b"raw"[..], 3));
    let reply = client.call_json(slot.raw(), "[1]", OPTIONS).await.unwrap();
    assert_eq!(reply.text(), "[1]");
    client.ping().await.unwrap();
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_typed_client_sets_its_fuel() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (header, _) = peer.expect(Kind::Call);
        assert_eq!((header.slot, header.receptor, header.fuel.0), (5, 3, 9));
        assert_eq!(header.flags, Flags::NONE);
        peer.send(failed(&header, Status::OutOfFuel, 9), b"");
    });
    let client = TypedClient::<Echo>::connect(server.path(), "hello").await.unwrap();
    let error = client.with_fuel(cell_client::Fuel(9)).call(&vec![1]).await.unwrap_err();
    assert_eq!((error.status(), error.fuel().0), (Some(Status::OutOfFuel), 9));
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_large_calls_of_many_tasks() {
    let server = echo_server();
    let client = Client::connect(server.path(), "hello").await.unwrap();
    let slot = Arc::new(client.open_raw("echo").await.unwrap());
    let mut tasks = JoinSet::new();
    // More tasks than the window has places.
    for task in 0..400u32 {
        let (client, slot) = (client.clone(), slot.clone());
        tasks.spawn(async move {
            let mut request = vec![0; 64 << 10];
            for round in 0..25u32 {
                request[..8].copy_from_slice(&[task.to_le_bytes(), round.to_le_bytes()].concat());
                let reply = client.call_raw(&slot, &request, OPTIONS).await.unwrap();
                assert!(reply.bytes() == request);
            }
        });
    }
    tasks.join_all().await;
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_that_times_out_is_cancelled_and_its_late_reply_dropped() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (late, _) = peer.expect(Kind::Call);
        assert_eq!(peer.expect(Kind::Cancel).0.request_id, late.request_id);
        let (header, _) = peer.expect(Kind::Call);
        peer.send(answer(&late, Kind::Reply), b"late");
        peer.send(answer(&header, Kind::Reply), b"second");
    });
    let client = Client::connect(server.path(), "hello").await.unwrap();
    let slot = client.open_raw("echo").await.unwrap();
    let error = client.call_raw(&slot, b"first", soon()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error:?}");
    assert_eq!(client.call_raw(&slot, b"next", OPTIONS).await.unwrap().bytes(), b"second");
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn dropping_a_call_cancels_it() {
    let (started, start) = oneshot::channel();
    let (stopped, stop) = oneshot::channel();
    let server = Server::start(|mut peer| {
        peer.open();
        let (header, _) = peer.expect(Kind::Call);
        started.send(()).unwrap();
        assert_eq!(peer.expect(Kind::Cancel).0.request_id, header.request_id);
        stopped.send(()).unwrap();
        peer.send(failed(&header, Status::Cancelled, 1), b"");
        peer.echo();
    });
    let client = Client::connect(server.path(), "hello").await.unwrap();
    let slot = client.open_raw("echo").await.unwrap();
    let task = ::tokio::spawn({
        let (client, slot) = (client.clone(), slot.clone());
        async move { client.call_raw(&slot, b"", OPTIONS).await }
    });
    start.await.unwrap();
    task.abort();
    stop.await.unwrap();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(client.call_raw(&slot, b"next", OPTIONS).await.unwrap().bytes(), b"next");
}

/// Every place in the window is taken by a call that was given up, and is free again afterwards.
#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn cancelled_calls_give_their_places_back() {
    let server = Server::start(|mut peer| {
        peer.open();
        while let Some((header, _)) = peer.next() {
            if header.kind == Kind::Cancel {
                peer.send(failed(&header, Status::Cancelled, 0), b"");
            }
        }
    });
    let client = Client::connect(server.path(), "hello").await.unwrap();
    let slot = client.open_raw("echo").await.unwrap();
    for _ in 0..3 {
        let mut calls = JoinSet::new();
        for _ in 0..CALLS_IN_FLIGHT_MAX {
            let (client, slot) = (client.clone(), slot.clone());
            calls.spawn(async move { client.call_raw(&slot, b"", soon()).await });
        }
        for ended in calls.join_all().await {
            assert!(matches!(ended, Err(Error::TimedOut)), "{ended:?}");
        }
    }
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn all_pending_calls_end_with_the_server() {
    const CALLS: usize = CALLS_IN_FLIGHT_MAX + 10;
    let server = Server::start(|mut peer| {
        peer.open();
        for _ in 0..CALLS_IN_FLIGHT_MAX {
            peer.expect(Kind::Call);
        }
    });
    let client = Client::connect(server.path(), "hello").await.unwrap();
    let slot = client.open_raw("echo").await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let (client, slot) = (client.clone(), slot.clone());
        calls.spawn(async move {
            let forever = CallOptions { timeout: std::time::Duration::MAX, ..OPTIONS };
            client.call_raw(&slot, b"", forever).await
        });
    }
    let ended = calls.join_all().await;
    assert_eq!(ended.len(), CALLS);
    for ended in ended {
        assert!(matches!(ended, Err(Error::Disconnected { .. })), "{ended:?}");
    }
    let later = client.call_raw(&slot, b"", OPTIONS).await;
    assert!(
        matches!(later, Err(Error::Disconnected { during: "before it answered" })),
        "{later:?}"
    );
}

async fn check(
    script: impl FnOnce(&mut Peer) + Send + 'static,
    expect: impl FnOnce(&Error) -> bool,
) {
    let server = Server::start(|mut peer| script(&mut peer));
    let client = Client::connect(server.path(), "hello").await.expect("connect");
    let error = client.open_raw("echo").await.expect_err("a broken server");
    assert!(expect(&error), "{error:?}");
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn broken_servers() {
    check(|_| {}, |error| matches!(error, Error::Disconnected { .. })).await;
    check(
        |peer| peer.write(b"GET / HTTP/1.1\r\n"),
        |error| matches!(error, Error::Protocol(ProtocolError::Frame(FrameError::BadMagic(_)))),
    )
    .await;
    check(
        |peer| peer.write(&Hello { version: 7, features: 0 }.encode()),
        |error| matches!(error, Error::VersionMismatch { theirs: 7, ours: 1 }),
    )
    .await;
    check(
        |peer| {
            peer.hello();
            let status = Status::Busy.code();
            peer.send(Header { status, ..Header::new(Kind::Goaway) }, b"full");
        },
        |error| matches!(error, Error::Goaway { status: Status::Busy, message } if message == "full"),
    ).await;
    check(
        |peer| {
            peer.hello();
            peer.expect(Kind::Open);
            let mut bytes = Header::new(Kind::Opened).encode();
            bytes[..4].copy_from_slice(&(1u32 << 30).to_le_bytes());
            peer.write(&bytes);
        },
        |error| {
            let large = FrameError::PayloadTooLarge { claimed: 1 << 30, max: 64 << 10 };
            matches!(error, Error::Protocol(ProtocolError::Frame(found)) if *found == large)
        },
    )
    .await;
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_never_says_hello() {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let server = Server::start(move |peer| {
        let _ = wait.recv();
        drop(peer);
    });
    let client = Client::connect_with(server.path(), "hello", soon_config()).await.unwrap();
    assert!(matches!(client.open_raw("echo").await, Err(Error::TimedOut)));
    drop(done);
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reply_over_the_limit_is_dropped() {
    let server = echo_server();
    let config = Config { reply_bytes_max: 100, ..Config::default() };
    let client = Client::connect_with(server.path(), "hello", config).await.unwrap();
    let slot = client.open_raw("echo").await.unwrap();
    let error = client.call_raw(&slot, &[0; 200_000], OPTIONS).await.unwrap_err();
    assert!(matches!(error, Error::ReplyTooLarge { bytes: 200_000, max: 100, .. }), "{error:?}");
    assert_eq!(client.call_raw(&slot, b"next", OPTIONS).await.unwrap().bytes(), b"next");
}

#[::tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::connect(dir.path().join("x.sock"), "hello").await.unwrap_err();
    assert!(error.to_string().contains("is the nucleus up?"), "{error}");
}
