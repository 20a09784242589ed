//! Class I: what comes over a socket.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use cell_abi::frame::Hello;
use cell_abi::{Fuel, Header, Kind, Status};

use super::cpu::SLEEP;
use super::guest::{echo, forever, handler, reply};
use super::world::answered;
use super::{Bill, Row, Seen, World};
use crate::{Raw, frame, status};

/// Fuel of a call that is not about fuel.
const FUEL: u64 = 1_000_000;
/// Connections that a worker takes at once; `docs/PROTOCOL.md`.
const CONNECTIONS_MAX: usize = 4096;

pub(super) fn rows() -> Vec<Row> {
    [stalls(), frames(), floods(), ends()].into_iter().flatten().collect()
}

fn echo_socket(world: &World) -> PathBuf {
    world.home().socket("echo")
}

/// The server must let go of it, sooner or later.
fn let_go(mut raw: Raw) -> Seen {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match raw.stream.read(&mut buffer) {
            Ok(0) => return Seen::said("let go"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return Seen::said("let go");
            }
            Err(error) => return Seen::said(format!("held: {error}")),
        }
    }
}

/// The same of one that reads nothing: what it writes is taken only as long as it is not let go.
fn let_go_unread(raw: &Raw) -> Seen {
    raw.stream.set_nonblocking(true).unwrap();
    crate::eventually("it is let go", || match (&raw.stream).write(&[0]) {
        Ok(_) => None,
        Err(error) => (error.kind() != ErrorKind::WouldBlock).then_some(()),
    });
    Seen::said("let go")
}

/// A client that stalls; whether it was let go is looked at when the other rows are through.
fn stall(name: &'static str, begin: fn(&Path, &str) -> Raw) -> Row {
    stall_until(name, begin, let_go)
}

fn stall_until(name: &'static str, begin: fn(&Path, &str) -> Raw, end: fn(Raw) -> Seen) -> Row {
    let act = move |world: &World| {
        // A cell of its own: who keeps its instances keeps them from its callers.
        let cell = world.live("", &echo().text());
        let raw = begin(&world.home().socket(&cell), &cell);
        Seen { later: Some(Box::new(move |_: &World| end(raw))), ..Seen::default() }
    };
    Row::of("I1", name, act, "let go", Bill::None)
}

fn stalls() -> Vec<Row> {
    vec![
        stall("a client that says nothing", |socket, _| Raw::silent(socket)),
        stall("half a hello", |socket, _| {
            let mut raw = Raw::silent(socket);
            raw.write(&Hello::CURRENT.encode()[..7]);
            raw
        }),
        stall("half a header", |socket, _| {
            let mut raw = Raw::greeted(socket);
            raw.write(&Header::new(Kind::Ping).encode()[..31]);
            raw
        }),
        stall("half a small call", |socket, cell| {
            let (mut raw, receptor) = Raw::opened(socket, cell, "run");
            raw.write(
                &Header {
                    payload_bytes: 1000,
                    receptor,
                    fuel: Fuel(FUEL),
                    ..Header::new(Kind::Call)
                }
                .encode(),
            );
            raw
        }),
        stall("half a large call, which has an instance", |socket, cell| {
            let (mut raw, receptor) = Raw::opened(socket, cell, "run");
            raw.write(
                &Header {
                    payload_bytes: 100_000,
                    receptor,
                    fuel: Fuel(FUEL),
                    ..Header::new(Kind::Call)
                }
                .encode(),
            );
            raw.write(&[1; 40_000]);
            raw
        }),
        stall("half a refused call of 16 MiB", |socket, _| {
            let mut raw = Raw::greeted(socket);
            raw.write(&Header { payload_bytes: 16 << 20, ..Header::new(Kind::Call) }.encode());
            raw.write(&[1; 1000]);
            raw
        }),
        stall_until("replies that nobody reads", never_reads, |raw| let_go_unread(&raw)).growth(32),
        stall_until("pongs that nobody reads", unread_pongs, |raw| let_go_unread(&raw)).growth(32),
    ]
}

fn unread_pongs(socket: &Path, _: &str) -> Raw {
    let raw = Raw::greeted(socket);
    write_until_full(&raw, &frame(Header::new(Kind::Ping), &[]));
    raw
}

pub(super) fn never_reads(socket: &Path, cell: &str) -> Raw {
    let (raw, receptor) = Raw::opened(socket, cell, "run");
    let header = Header { receptor, fuel: Fuel(FUEL), ..Header::new(Kind::Call) };
    write_until_full(&raw, &frame(header, &[5; 60_000]));
    raw
}

/// Writes the same again and again until the server takes no more for a while.
fn write_until_full(raw: &Raw, bytes: &[u8]) {
    raw.stream.set_write_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let (mut at, mut sent) = (0, 0_usize);
    loop {
        match (&raw.stream).write(&bytes[at..]) {
            Ok(wrote) => {
                at = (at + wrote) % bytes.len();
                sent += wrote;
                assert!(sent < 256 << 20, "taken without end from who reads no reply");
            }
            Err(_) => return,
        }
    }
}

fn goaway(name: &'static str, class: &'static str, bytes: Vec<u8>, answer: &'static str) -> Row {
    let act = move |world: &World| {
        let mut raw = Raw::greeted(&echo_socket(world));
        raw.write(&bytes);
        let (header, _) = raw.receive();
        assert_eq!(header.kind, Kind::Goaway);
        raw.expect_closed();
        Seen::charged(format!("goaway {:?}", status(&header)), header.fuel.0)
    };
    Row::of(class, name, act, answer, Bill::Nothing)
}

fn claim(kind: u8, bytes: u32, flags: u8) -> Vec<u8> {
    let mut header = Header::new(Kind::Ping).encode().to_vec();
    header[..4].copy_from_slice(&bytes.to_le_bytes());
    header[4] = kind;
    header[5] = flags;
    header
}

fn frames() -> Vec<Row> {
    let hello = |name, bytes: &'static [u8]| {
        let act = move |world: &World| {
            let mut raw = Raw::silent(&echo_socket(world));
            raw.write(bytes);
            raw.stream.read_exact(&mut [0; 16]).unwrap();
            let (header, _) = raw.receive();
            raw.expect_closed();
            Seen::charged(format!("goaway {:?}", status(&header)), header.fuel.0)
        };
        Row::of("I1", name, act, "goaway BadFrame", Bill::Nothing)
    };
    vec![
        goaway("a frame of 4 GiB", "I2", claim(3, u32::MAX, 0), "goaway TooLarge"),
        goaway(
            "a frame of 16 MiB and a byte",
            "I2",
            claim(3, (16 << 20) + 1, 0),
            "goaway TooLarge",
        ),
        goaway("a ping with a payload", "I2", claim(6, 1, 0), "goaway TooLarge"),
        goaway("an open of 64 KiB", "I2", claim(1, 65_536, 0), "goaway TooLarge"),
        goaway("a frame of no kind", "I2", claim(0, 0, 0), "goaway BadFrame"),
        goaway("a frame of kind 255", "I2", claim(255, 0, 0), "goaway BadFrame"),
        goaway("a frame with a flag of the future", "I2", claim(6, 0, 0x80), "goaway BadFrame"),
        goaway("a reply from the client", "I2", claim(4, 0, 0), "goaway BadFrame"),
        goaway("a voucher on a local socket", "I2", claim(8, 0, 0), "goaway BadFrame"),
        goaway(
            "an open whose names are none",
            "I2",
            frame(Header::new(Kind::Open), &[0xff; 200]),
            "goaway BadFrame",
        ),
        goaway(
            "an open with a name past its end",
            "I2",
            frame(Header::new(Kind::Open), &[&[0; 32][..], &[255, b'a']].concat()),
            "goaway BadFrame",
        ),
        hello("a browser", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        hello("a hello of zeros", &[0; 64]),
        Row::of(
            "I2",
            "a slot and a receptor that are not there",
            bad_slot,
            "BadSlot",
            Bill::Nothing,
        ),
        Row::of("I3", "two calls of one number at once", same_number, "two replies", Bill::None),
        Row::of(
            "I3",
            "the cancel of a call that is over, and of none",
            cancel_of_none,
            "alive",
            Bill::None,
        ),
    ]
}

fn bad_slot(world: &World) -> Seen {
    let (mut raw, _) = Raw::opened(&echo_socket(world), "echo", "run");
    raw.send(
        Header { slot: u32::MAX, receptor: u16::MAX, fuel: Fuel(FUEL), ..Header::new(Kind::Call) },
        b"x",
    );
    let (header, payload) = raw.receive();
    raw.expect_alive();
    answered(&header, &payload)
}

fn same_number(world: &World) -> Seen {
    let cell = world.live("call_ms_max = 100", &reply(SLEEP).text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    raw.call(receptor, 7, FUEL, b"");
    raw.call(receptor, 7, FUEL, b"");
    let both: Vec<_> = (0..2).map(|_| raw.receive().0).collect();
    raw.expect_alive();
    let right =
        both.iter().all(|header| header.request_id == 7 && status(header) == Status::TimedOut);
    Seen::said(if right { "two replies".into() } else { format!("{both:?}") })
}

fn cancel_of_none(world: &World) -> Seen {
    let (mut raw, receptor) = Raw::opened(&echo_socket(world), "echo", "run");
    raw.call(receptor, 1, FUEL, b"x");
    raw.receive();
    for id in [1, 2, u64::MAX] {
        raw.send(Header { request_id: id, ..Header::new(Kind::Cancel) }, &[]);
    }
    raw.expect_alive();
    Seen::said("alive")
}

fn floods() -> Vec<Row> {
    vec![
        Row::of(
            "I2",
            "a thousand opens on one connection",
            opens,
            "256 open, 744 Busy",
            Bill::None,
        ),
        Row::of(
            "I2",
            "a hundred thousand cancels",
            |world| flood(world, Kind::Cancel),
            "alive",
            Bill::None,
        ),
        Row::of(
            "I2",
            "a thousand calls at once on one connection",
            thousand,
            "1000 answered",
            Bill::None,
        ),
        Row::of(
            "I1",
            "five thousand connections",
            connections,
            "at most 4096 held, served again",
            Bill::None,
        )
        .growth(160),
        Row::of(
            "I1",
            "a client beside two that do not read their replies",
            unread,
            "Ok 7",
            Bill::call(4_000),
        )
        .growth(24),
        Row::of(
            "I6",
            "two hundred clients that hang up in their calls",
            hang_ups,
            "no instance is left",
            Bill::None,
        )
        .growth(48),
        Row::of(
            "I6",
            "two hundred clients that hang up in large requests",
            half_requests,
            "served",
            Bill::None,
        )
        .growth(48),
    ]
}

fn opens(world: &World) -> Seen {
    let mut raw = Raw::greeted(&echo_socket(world));
    let all: Vec<_> = (0..1000).map(|id| status(&raw.open("echo", "run", id).0)).collect();
    let count = |wanted| all.iter().filter(|status| **status == wanted).count();
    raw.expect_alive();
    Seen::said(format!("{} open, {} Busy", count(Status::Ok), count(Status::Busy)))
}

fn flood(world: &World, kind: Kind) -> Seen {
    let mut raw = Raw::greeted(&echo_socket(world));
    let many = frame(Header::new(kind), &[]).repeat(1000);
    (0..100).for_each(|_| raw.write(&many));
    raw.expect_alive();
    Seen::said("alive")
}

fn thousand(world: &World) -> Seen {
    let (mut raw, receptor) = Raw::opened(&echo_socket(world), "echo", "run");
    let mut writer = Raw { stream: raw.stream.try_clone().unwrap() };
    let sender = std::thread::spawn(move || {
        (0..1000).for_each(|id| writer.call(receptor, id, FUEL, b"four"))
    });
    let answered = (0..1000).filter(|_| raw.receive().1 == b"four").count();
    sender.join().unwrap();
    Seen::said(format!("{answered} answered"))
}

fn connections(world: &World) -> Seen {
    raise_descriptor_limit();
    let socket = echo_socket(world);
    let mut held = 0;
    let mut streams = Vec::new();
    for _ in 0..5000 {
        // A full backlog is a refusal too.
        let Ok(stream) = UnixStream::connect(&socket) else { continue };
        stream.set_read_timeout(Some(crate::GUARD)).unwrap();
        if (&stream).write_all(&Hello::CURRENT.encode()).is_ok() {
            streams.push(stream);
        }
    }
    for mut stream in &streams {
        // Those that were taken are greeted, the others hung up on.
        held += usize::from(stream.read_exact(&mut [0; 16]).is_ok());
    }
    drop(streams);
    let served = crate::eventually("there is room again", || {
        let mut client = world.home().client("echo");
        let slot = client.open_raw("run").ok()?;
        client.call_raw(&slot, b"x", cell_client::CallOptions::default()).ok()
    });
    assert_eq!(served.bytes(), b"x");
    println!("{held} of 5000 connections were taken");
    // Some, and the neighbour's.
    let some = (1000..CONNECTIONS_MAX).contains(&held);
    Seen::said(if some { "at most 4096 held, served again".into() } else { format!("{held} held") })
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

fn hang_ups(world: &World) -> Seen {
    let cell = world.live("", &forever("").text());
    for _ in 0..200 {
        let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
        raw.call(receptor, 1, 1_000_000_000, b"");
    }
    world.wait_for(&cell, "instances", 0);
    Seen::said("no instance is left")
}

fn half_requests(world: &World) -> Seen {
    let cell = world.live("replicas_max = 1", &echo().text());
    for _ in 0..200 {
        let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
        raw.write(
            &Header {
                payload_bytes: 100_000,
                receptor,
                fuel: Fuel(FUEL),
                ..Header::new(Kind::Call)
            }
            .encode(),
        );
        raw.write(&[3; 40_000]);
    }
    let seen = world.call(&cell, b"four", FUEL);
    Seen::said(if seen.answer.starts_with("Ok") { "served".into() } else { seen.answer })
}

/// Those two have every instance of the cell, until their replies are moved out of the way.
fn unread(world: &World) -> Seen {
    let cell = world.live("call_ms_max = 2000", &echo().text());
    let socket = world.home().socket(&cell);
    let silent: Vec<_> = (0..2).map(|_| never_reads(&socket, &cell)).collect();
    let seen = world.call(&cell, &7_u32.to_le_bytes(), 1_000_000);
    drop(silent);
    seen
}

fn ends() -> Vec<Row> {
    vec![
        Row::of(
            "I6",
            "a client that stops sending and waits",
            half_closed,
            "hung up on",
            Bill::None,
        ),
        Row::of(
            "I6",
            "a reply of 8 MiB to a client that is gone",
            gone_before_reply,
            "served",
            Bill::None,
        )
        .growth(48),
        Row::of("I6", "a cell removed while its calls run", removed, "it is told", Bill::None),
        Row::of(
            "I6",
            "a cell replaced while its calls run",
            swapped,
            "TimedOut | Ok 2",
            Bill::None,
        ),
    ]
}

/// Who closes one way is taken for gone, as `docs/PROTOCOL.md` says of who closes.
fn half_closed(world: &World) -> Seen {
    let cell = world.live("", &reply(SLEEP).text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    raw.call(receptor, 1, FUEL, b"");
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    raw.expect_closed();
    Seen::said("hung up on")
}

fn gone_before_reply(world: &World) -> Seen {
    let cell =
        world.live("replicas_max = 1", &handler("##0x0080000000000000").memory("200").text());
    for _ in 0..10 {
        let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
        raw.call(receptor, 1, 50_000_000, b"");
        raw.receive_some();
    }
    let seen = world.call(&cell, b"", 50_000_000);
    Seen::said(if seen.answer == "Ok, 8388608 bytes" { "served".into() } else { seen.answer })
}

fn removed(world: &World) -> Seen {
    let cell = world.live("call_ms_max = 1500", &reply(SLEEP).text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    raw.call(receptor, 1, FUEL, b"");
    world.wait_for(&cell, "instances", 1);
    world.clean();
    let answered = match raw.try_receive() {
        Ok((header, _)) => {
            matches!(status(&header), Status::TimedOut | Status::Cancelled | Status::Gone)
        }
        Err(_) => true,
    };
    Seen::said(if answered { "it is told" } else { "something else" })
}

fn swapped(world: &World) -> Seen {
    let cell = world.live("call_ms_max = 1500", &reply(SLEEP).text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    raw.call(receptor, 1, FUEL, b"");
    world.wait_for(&cell, "instances", 1);
    let next = crate::wat::compile(&reply("#2").text());
    world.home().replace_wasm(&cell, &next);
    world.settle(&cell, &next).unwrap();
    raw.call(receptor, 2, FUEL, b"");
    let mut both: Vec<_> = (0..2).map(|_| raw.receive()).collect();
    both.sort_by_key(|(header, _)| header.request_id);
    let answers: Vec<_> =
        both.iter().map(|(header, payload)| answered(header, payload).answer).collect();
    Seen::said(answers.join(" | "))
}
