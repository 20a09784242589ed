//! Many calls in flight on one blocking connection.

use std::collections::HashMap;

use cell_abi::{Kind, Status};
use cell_client::{CALLS_IN_FLIGHT_MAX, CallOptions, Client, Error};

use crate::support::{Server, answer, failed, soon};

/// Both sides write more than the socket holds: who only writes would wait for the other for ever.
#[test]
fn ten_thousand_large_calls_do_not_lock_up() {
    let server = Server::start(|mut peer| {
        peer.open();
        peer.echo();
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    let mut request = vec![0; 64 << 10];
    let mut marks = HashMap::new();
    let receive = |client: &mut Client, marks: &mut HashMap<_, u32>| {
        let (id, reply) = client.receive().unwrap();
        let reply = reply.unwrap();
        assert_eq!(reply.bytes().len(), 64 << 10);
        assert_eq!(reply.bytes()[..4], marks.remove(&id).unwrap().to_le_bytes());
        client.recycle(reply);
    };
    for mark in 0..10_000u32 {
        request[..4].copy_from_slice(&mark.to_le_bytes());
        let id = loop {
            match client.send_raw(&slot, &request, CallOptions::default()) {
                Ok(id) => break id,
                Err(Error::WindowFull) => receive(&mut client, &mut marks),
                Err(error) => panic!("{error}"),
            }
        };
        marks.insert(id, mark);
    }
    while !marks.is_empty() {
        receive(&mut client, &mut marks);
    }
}

#[test]
fn ten_thousand_small_calls_in_any_order() {
    let server = Server::start(|mut peer| {
        peer.open();
        loop {
            let batch = (0..100).map_while(|_| peer.next()).collect::<Vec<_>>();
            if batch.is_empty() {
                break;
            }
            for (header, payload) in batch.iter().rev() {
                peer.send(answer(header, Kind::Reply), payload);
            }
        }
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    for round in 0..100u32 {
        let mut marks = HashMap::new();
        for at in 0..100u32 {
            let mark = (round * 100 + at).to_le_bytes();
            let id = client.send_raw(&slot, &mark, CallOptions::default()).unwrap();
            marks.insert(id, mark);
        }
        for _ in 0..100 {
            let (id, reply) = client.receive().unwrap();
            assert_eq!(reply.unwrap().bytes(), marks.remove(&id).unwrap());
        }
    }
    assert!(matches!(client.receive(), Err(Error::NothingInFlight)));
}

#[test]
fn a_plain_call_among_pipelined_ones() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (a, _) = peer.expect(Kind::Call);
        let (b, _) = peer.expect(Kind::Call);
        let (c, _) = peer.expect(Kind::Call);
        peer.send(answer(&b, Kind::Reply), b"b");
        peer.send(answer(&c, Kind::Reply), b"c");
        peer.send(failed(&a, Status::Busy, 0), b"later");
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    let a = client.send_raw(&slot, b"", CallOptions::default()).unwrap();
    let b = client.send_raw(&slot, b"", CallOptions::default()).unwrap();
    assert_eq!(client.call_raw(&slot, b"", CallOptions::default()).unwrap().bytes(), b"c");
    let (id, reply) = client.receive().unwrap();
    assert_eq!((id, reply.unwrap().bytes()), (b, &b"b"[..]));
    let (id, reply) = client.receive().unwrap();
    assert_eq!(id, a);
    assert_eq!(reply.unwrap_err().status(), Some(Status::Busy));
}

#[test]
fn the_window_is_full_until_a_reply_is_taken() {
    let server = Server::start(|mut peer| {
        peer.open();
        peer.echo();
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    for _ in 0..CALLS_IN_FLIGHT_MAX {
        client.send_raw(&slot, b"", CallOptions::default()).unwrap();
    }
    client.flush().unwrap();
    let full = client.send_raw(&slot, b"", CallOptions::default());
    assert!(matches!(full, Err(Error::WindowFull)));
    assert!(matches!(client.call_raw(&slot, b"", soon()), Err(Error::WindowFull)));
    client.receive().unwrap().1.unwrap();
    client.send_raw(&slot, b"", CallOptions::default()).unwrap();
}

#[test]
fn each_pipelined_call_has_its_own_deadline() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (slow, _) = peer.expect(Kind::Call);
        let (patient, _) = peer.expect(Kind::Call);
        assert_eq!(peer.expect(Kind::Cancel).0.request_id, slow.request_id);
        peer.send(answer(&slow, Kind::Reply), b"late");
        peer.send(answer(&patient, Kind::Reply), b"in time");
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    let slow = client.send_raw(&slot, b"", soon()).unwrap();
    let patient = client.send_raw(&slot, b"", CallOptions::default()).unwrap();
    let (id, reply) = client.receive().unwrap();
    assert_eq!(id, slow);
    assert!(matches!(reply, Err(Error::TimedOut)));
    let (id, reply) = client.receive().unwrap();
    assert_eq!((id, reply.unwrap().bytes()), (patient, &b"in time"[..]));
    assert!(matches!(client.receive(), Err(Error::NothingInFlight)));
}

#[test]
fn a_cancelled_call_still_ends_with_a_reply() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (header, _) = peer.expect(Kind::Call);
        assert_eq!(peer.expect(Kind::Cancel).0.request_id, header.request_id);
        peer.send(failed(&header, Status::Cancelled, 40), b"");
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    let call = client.send_raw(&slot, b"", CallOptions::default()).unwrap();
    client.cancel(call).unwrap();
    let (id, reply) = client.receive().unwrap();
    let error = reply.unwrap_err();
    assert_eq!((id, error.status(), error.fuel().0), (call, Some(Status::Cancelled), 40));
}

#[test]
fn calls_that_ended_are_given_out_before_the_end_of_the_connection() {
    let server = Server::start(|mut peer| {
        peer.open();
        let (header, _) = peer.expect(Kind::Call);
        peer.expect(Kind::Call);
        peer.send(answer(&header, Kind::Reply), b"made it");
    });
    let mut client = Client::connect(server.path(), "hello").unwrap();
    let slot = client.open_raw("echo").unwrap();
    client.send_raw(&slot, b"", CallOptions::default()).unwrap();
    client.send_raw(&slot, b"", CallOptions::default()).unwrap();
    assert_eq!(client.receive().unwrap().1.unwrap().bytes(), b"made it");
    assert!(matches!(client.receive(), Err(Error::Disconnected { .. })));
}
