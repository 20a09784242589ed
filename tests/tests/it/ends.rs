//! Every way a call or a connection can end, each with its own typed answer, at no lasting cost.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use cell_abi::frame::{Hello, PROTOCOL_VERSION};
use cell_abi::schema::encode;
use cell_abi::{CellName, Fingerprint, Flags, Fuel, Header, Kind, Open, ReceptorName, Status};
use cell_client::{CallOptions, Client, Config, Error};
use cell_tests::{Nucleus, Raw, eventually, frame, status, wat};
use crasher::Crash;

const FUEL: u64 = 100_000_000;

/// A nucleus with everything the table needs.
fn world() -> Nucleus {
    let nucleus = Nucleus::new();
    for name in ["hello", "crasher", "runaway", "worker"] {
        nucleus.put_sample(name);
    }
    let reject = r#"(import "cell_v1" "reject" (func $reject (param i32 i32 i32))) (data (i32.const 0) "no!")"#;
    let exit = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;
    let get = r#"(import "cell_v1" "kv_get" (func $get (param i32 i32) (result i64)))"#;
    let cells = [
        ("echo", wat::cell("", wat::ECHO)),
        ("trap", wat::cell("", "unreachable")),
        (
            "reject",
            wat::cell(
                reject,
                "(call $reject (i32.const 7) (i32.const 0) (i32.const 3)) (i64.const 0)",
            ),
        ),
        ("exit", wat::cell(exit, "(call $exit (i32.const 9)) unreachable")),
        ("badrequest", wat::cell("", "(i64.const -1)")),
        // 64 KiB at the last address of a memory of 256 KiB.
        ("liar", wat::cell("", "(i64.const 0x0001_0000_0003_ffff)")),
        ("boaster", wat::cell("", "(i64.const 0x7fff_ffff_0000_0000)")),
        (
            "greedy",
            wat::cell(get, "(drop (call $get (i32.const 0) (i32.const 100000))) (i64.const 0)"),
        ),
        ("spin", wat::cell("", wat::SPIN)),
    ];
    for (name, text) in &cells {
        nucleus.put(name, &wat::manifest(name, "call_ms_max = 300000"), &wat::compile(text));
    }
    for name in cells.iter().map(|(name, _)| *name).chain(["hello", "crasher", "runaway", "worker"])
    {
        nucleus.wait_for(name, "live");
    }
    nucleus
}

/// How a call ends, what its message holds, and what it is charged.
#[track_caller]
fn check_call(
    nucleus: &Nucleus,
    cell: &str,
    receptor: &str,
    request: &[u8],
    expect: Status,
    message: &str,
) {
    let (mut raw, number) = Raw::opened(&nucleus.socket(cell), cell, receptor);
    raw.call(number, 2, FUEL, request);
    let (header, payload) = raw.receive();
    let text = String::from_utf8_lossy(&payload);
    assert_eq!(
        (header.kind, header.request_id, status(&header)),
        (Kind::Reply, 2, expect),
        "{text}"
    );
    assert!(text.contains(message), "{cell}: {text:?} does not hold {message:?}");
    let free = matches!(expect, Status::NoJson | Status::HostFault);
    match expect {
        Status::OutOfFuel => assert_eq!(header.fuel, Fuel(FUEL), "{cell}"),
        _ if free => assert_eq!(header.fuel, Fuel::ZERO, "{cell}"),
        _ => assert!(
            header.fuel > Fuel::ZERO && header.fuel < Fuel(FUEL),
            "{cell} burned {}",
            header.fuel
        ),
    }
    // The connection outlives whatever became of the call.
    raw.expect_alive();
}

fn calls(nucleus: &Nucleus) {
    let crash = |how: &Crash| encode(how).unwrap().to_vec();
    let trapped = |how: &Crash, message: &str| {
        check_call(nucleus, "crasher", "crash", &crash(how), Status::Trapped, message);
    };
    trapped(&Crash::Panic("boo".into()), "unreachable");
    trapped(&Crash::Unreachable, "unreachable");
    trapped(&Crash::OutOfBounds, "out of bounds");
    trapped(&Crash::StackOverflow, "");
    check_call(nucleus, "crasher", "crash", &crash(&Crash::Exit(3)), Status::Exited, "3");
    check_call(
        nucleus,
        "crasher",
        "crash",
        &crash(&Crash::Not("alive".into())),
        Status::Ok,
        "alive",
    );
    check_call(nucleus, "echo", "run", b"hi", Status::Ok, "hi");
    check_call(nucleus, "trap", "run", b"", Status::Trapped, "unreachable");
    check_call(nucleus, "reject", "run", b"", Status::Rejected, "\u{7}\0\0\0no!");
    check_call(nucleus, "exit", "run", b"", Status::Exited, "9");
    check_call(nucleus, "badrequest", "run", b"", Status::BadRequest, "");
    check_call(nucleus, "liar", "run", b"", Status::BadReply, "");
    check_call(nucleus, "boaster", "run", b"", Status::BadReply, "");
    check_call(nucleus, "greedy", "run", b"", Status::OverLimit, "");
    check_call(nucleus, "spin", "run", b"", Status::OutOfFuel, "");
    // More than the cell's mailbox takes: buffered, and read past.
    check_call(nucleus, "echo", "run", &[1; 131_073], Status::TooLarge, "");
    check_call(nucleus, "echo", "run", &vec![1; 4 << 20], Status::TooLarge, "");
    // Bytes that are no archive of the input type, of many lengths.
    for length in [0, 1, 7, 8, 15, 16, 33, 1000, 100_000] {
        check_call(nucleus, "hello", "greet", &vec![0xfe; length], Status::BadRequest, "");
        check_call(nucleus, "worker", "worker", &vec![0xfe; length], Status::BadRequest, "");
    }
}

fn opens(nucleus: &Nucleus) {
    let mut raw = Raw::greeted(&nucleus.socket("hello"));
    let mut refused = |cell, receptor, expect: Status, message: &str| {
        let (header, payload) = raw.open(cell, receptor, 5);
        let text = String::from_utf8_lossy(&payload);
        assert_eq!((status(&header), header.fuel), (expect, Fuel::ZERO), "{text}");
        assert!(text.contains(message), "{text:?} does not hold {message:?}");
    };
    refused("nosuch", "greet", Status::UnknownCell, "");
    // A cell that exists, but not behind this socket.
    refused("worker", "worker", Status::UnknownCell, "");
    refused("hello", "nosuch", Status::UnknownReceptor, "greet, shout");
    let typed = |fingerprint| {
        let (cell, receptor) =
            (CellName::parse("hello").unwrap(), ReceptorName::parse("greet").unwrap());
        Open { fingerprint, cell, receptor }.encode()
    };
    raw.send(
        Header { request_id: 6, ..Header::new(Kind::Open) },
        &typed(Fingerprint::from_bytes([9; 32])),
    );
    let (header, payload) = raw.receive();
    assert_eq!(status(&header), Status::SchemaMismatch);
    assert!(String::from_utf8_lossy(&payload).contains("struct Greet { name: String }"));
    // As many receptors as allowed, and one more.
    for slot in 0..256 {
        let (header, _) = raw.open("hello", "greet", slot);
        assert_eq!((status(&header), u64::from(header.slot)), (Status::Ok, slot));
    }
    let (header, payload) = raw.open("hello", "greet", 1000);
    assert_eq!(status(&header), Status::Busy, "{}", String::from_utf8_lossy(&payload));
    raw.expect_alive();
}

fn slots(nucleus: &Nucleus) {
    let mut raw = Raw::greeted(&nucleus.socket("hello"));
    let bad_slot = |raw: &mut Raw, slot, receptor, payload: &[u8]| {
        raw.send(
            Header { slot, receptor, fuel: Fuel(FUEL), request_id: 3, ..Header::new(Kind::Call) },
            payload,
        );
        let (header, _) = raw.receive();
        assert_eq!(
            (header.kind, status(&header), header.fuel),
            (Kind::Reply, Status::BadSlot, Fuel::ZERO)
        );
    };
    // Nothing is open yet; a large payload is read past.
    bad_slot(&mut raw, 0, 0, b"x");
    bad_slot(&mut raw, 0, 0, &vec![1; 1 << 20]);
    let (header, _) = raw.open("hello", "shout", 1);
    assert_eq!(header.receptor, 1);
    bad_slot(&mut raw, 0, 0, b"x");
    bad_slot(&mut raw, 1, 1, b"x");
    bad_slot(&mut raw, u32::MAX, u16::MAX, b"x");
    raw.expect_alive();
}

fn json(nucleus: &Nucleus) {
    let mut client = nucleus.client("hello");
    let slot = client.open_raw("greet").unwrap();
    for text in ["", "{", "{\"name\":7}", "{\"nam\":\"x\"}", "[]", "\u{0}", "null"] {
        let error = client.call_json(&slot, text, CallOptions::default()).unwrap_err();
        assert_eq!(error.status(), Some(Status::BadRequest), "{text:?}: {error}");
        assert!(error.fuel() > Fuel::ZERO, "{text:?}: {error}");
    }
    // Not even UTF-8.
    let (mut raw, number) = Raw::opened(&nucleus.socket("hello"), "hello", "greet");
    let header = Header {
        flags: Flags::JSON,
        receptor: number,
        fuel: Fuel(FUEL),
        ..Header::new(Kind::Call)
    };
    raw.send(header, b"{\"name\":\"\xff\"}");
    assert_eq!(status(&raw.receive().0), Status::BadRequest);
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    let error = client.call_json(&slot, "{}", CallOptions::default()).unwrap_err();
    assert_eq!((error.status(), error.fuel()), (Some(Status::NoJson), Fuel::ZERO), "{error}");
}

/// What is not the protocol: a goaway that says why, then the end.
fn frames(nucleus: &Nucleus) {
    let socket = nucleus.socket("hello");
    let check = |bytes: &[u8], expect: Status| {
        let mut raw = Raw::greeted(&socket);
        raw.write(bytes);
        raw.expect_goaway(expect);
    };
    let claim = |kind: u8, bytes: u32| {
        let mut header = Header::new(Kind::Ping).encode();
        header[..4].copy_from_slice(&bytes.to_le_bytes());
        header[4] = kind;
        header
    };
    for claimed in [(16 << 20) + 1, 1 << 30, u32::MAX] {
        check(&claim(3, claimed), Status::TooLarge);
    }
    check(&claim(1, 257), Status::TooLarge);
    check(&claim(5, 1), Status::TooLarge);
    check(&claim(6, 1), Status::TooLarge);
    for kind in [0, 11, 255] {
        check(&claim(kind, 0), Status::BadFrame);
    }
    // Kinds that only a server sends, or nobody on a local socket.
    for kind in [2, 4, 7, 8, 9, 10] {
        check(&claim(kind, 0), Status::BadFrame);
    }
    let mut flagged = claim(6, 0);
    flagged[5] = 2;
    check(&flagged, Status::BadFrame);
    check(&[0xff; 64], Status::BadFrame);
    // Opens that are malformed: too short, names that are none, bytes behind the end.
    for payload in
        [vec![], vec![0; 31], vec![0; 34], [vec![0; 32], vec![255; 10]].concat(), vec![0; 256]]
    {
        check(&frame(Header::new(Kind::Open), &payload), Status::BadFrame);
    }
    // No hello at all: the server's own comes first, so that both can name both versions.
    for bytes in [*b"GET / HTTP/1.1\r\n", [0; 16], [0xff; 16]] {
        let mut raw = Raw::silent(&socket);
        raw.write(&bytes);
        let mut hello = [0; 16];
        raw.stream.read_exact(&mut hello).unwrap();
        assert_eq!(Hello::decode(&hello), Ok(Hello::CURRENT));
        raw.expect_goaway(Status::BadFrame);
    }
    let mut raw = Raw::silent(&socket);
    raw.write(&Hello { version: PROTOCOL_VERSION + 1, features: 0 }.encode());
    let mut hello = [0; 16];
    raw.stream.read_exact(&mut hello).unwrap();
    assert_eq!(Hello::decode(&hello), Ok(Hello::CURRENT));
}

/// Connections that keep the server waiting; each must be let go in the end.
fn stalled(nucleus: &Nucleus) -> Vec<(&'static str, Raw)> {
    let socket = nucleus.socket("worker");
    let greeted = |bytes: &[u8]| {
        let mut raw = Raw::greeted(&socket);
        raw.write(bytes);
        raw
    };
    let mut half_hello = Raw::silent(&socket);
    half_hello.write(&Hello::CURRENT.encode()[..7]);
    let (mut half_call, receptor) = Raw::opened(&socket, "worker", "worker");
    let header =
        Header { payload_bytes: 1 << 20, receptor, fuel: Fuel(FUEL), ..Header::new(Kind::Call) };
    half_call.write(&header.encode());
    half_call.write(&[1; 1000]);
    vec![
        ("nothing", Raw::silent(&socket)),
        ("half a hello", half_hello),
        ("half a header", greeted(&Header::new(Kind::Ping).encode()[..13])),
        (
            "half an open",
            greeted(&Header { payload_bytes: 100, ..Header::new(Kind::Open) }.encode()),
        ),
        ("half a large call", half_call),
    ]
}

/// A client that asks and asks and takes no answer is held, and then let go.
fn never_reads(nucleus: &Nucleus) -> (&'static str, Raw) {
    let (mut raw, receptor) = Raw::opened(&nucleus.socket("echo"), "echo", "run");
    raw.stream.set_nonblocking(true).unwrap();
    let header = Header { receptor, fuel: Fuel(FUEL), ..Header::new(Kind::Call) };
    let bytes = frame(header, &[5; 60_000]);
    let mut sent = 0;
    let mut silent = 0;
    // Held for as long as twenty looks in a row find no room.
    while silent < 20 {
        match raw.stream.write(&bytes[sent % bytes.len()..]) {
            Ok(wrote) => {
                (sent, silent) = (sent + wrote, 0);
                assert!(
                    sent < 64 << 20,
                    "the server takes calls without end from who reads no reply"
                );
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                silent += 1;
                thread::sleep(Duration::from_millis(20));
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
            {
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent > bytes.len(), "not even one call was taken");
    raw.stream.set_nonblocking(false).unwrap();
    ("replies that nobody reads", raw)
}

/// The server let go of it: reading comes to an end.
fn expect_let_go(what: &str, raw: &mut Raw) {
    let mut rest = vec![0; 1 << 16];
    loop {
        match raw.stream.read(&mut rest) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{what}: the server holds on to it: {error}"),
        }
    }
}

fn instances(nucleus: &Nucleus, cell: &str) -> u64 {
    nucleus.row(cell).unwrap()["stats"]["instances"].as_u64().unwrap()
}

#[track_caller]
fn wait_for_instances(nucleus: &Nucleus, cell: &str, expect: u64) {
    eventually(&format!("{cell} has {expect} instances"), || {
        (instances(nucleus, cell) == expect).then_some(())
    });
}

/// A call that is cancelled ends soon, says so, and costs what it burned until then.
fn cancels(nucleus: &Nucleus) {
    let mut client = nucleus.client("spin");
    let slot = client.open_raw("run").unwrap();
    let options = CallOptions { fuel: Fuel(50_000_000_000), ..CallOptions::default() };
    let calls: Vec<_> = (0..3).map(|_| client.send_raw(&slot, b"", options).unwrap()).collect();
    client.flush().unwrap();
    wait_for_instances(nucleus, "spin", 3);
    for call in &calls {
        client.cancel(*call).unwrap();
    }
    for _ in &calls {
        let error = client.receive().unwrap().1.unwrap_err();
        assert_eq!(error.status(), Some(Status::Cancelled), "{error}");
        assert!(error.fuel() > Fuel::ZERO && error.fuel() < options.fuel, "{error}");
    }
    wait_for_instances(nucleus, "spin", 0);
    // One that is over, and one that never was: nothing happens.
    let (mut raw, _) = Raw::opened(&nucleus.socket("echo"), "echo", "run");
    raw.send(Header { request_id: 12345, ..Header::new(Kind::Cancel) }, &[]);
    raw.expect_alive();
}

/// A client that goes away in the middle of its calls: they stop.
fn disconnects(nucleus: &Nucleus) {
    let (mut raw, receptor) = Raw::opened(&nucleus.socket("spin"), "spin", "run");
    for id in 0..4 {
        raw.call(receptor, id, 50_000_000_000, b"");
    }
    wait_for_instances(nucleus, "spin", 4);
    drop(raw);
    wait_for_instances(nucleus, "spin", 0);
    // In the middle of a large request, too.
    let (mut raw, receptor) = Raw::opened(&nucleus.socket("worker"), "worker", "worker");
    let header =
        Header { payload_bytes: 10 << 20, receptor, fuel: Fuel(FUEL), ..Header::new(Kind::Call) };
    raw.write(&header.encode());
    raw.write(&vec![3; 1 << 20]);
    drop(raw);
}

/// A deadline of the client's own: a typed error, and the connection goes on.
fn deadlines(nucleus: &Nucleus) {
    let mut client =
        Client::connect_with(nucleus.socket("spin"), "spin", Config::default()).unwrap();
    let slot = client.open_raw("run").unwrap();
    let options = CallOptions { fuel: Fuel(50_000_000_000), timeout: Duration::from_millis(50) };
    let error = client.call_raw(&slot, b"", options).unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error}");
    client.ping().unwrap();
    wait_for_instances(nucleus, "spin", 0);
}

fn neighbour_answers(nucleus: &Nucleus) {
    let mut client = nucleus.client("hello");
    let slot = client.open_raw("greet").unwrap();
    let reply = client.call_json(&slot, "{\"name\":\"Ada\"}", CallOptions::default()).unwrap();
    assert_eq!(reply.text(), "{\"text\":\"Hello, Ada!\"}");
}

/// The whole table, again and again: each answer as promised, and no memory kept.
#[test]
fn every_end_is_typed_and_leaves_nothing() {
    let nucleus = world();
    let worker = nucleus.worker();
    let table = || {
        calls(&nucleus);
        opens(&nucleus);
        slots(&nucleus);
        json(&nucleus);
        frames(&nucleus);
        cancels(&nucleus);
        disconnects(&nucleus);
        deadlines(&nucleus);
        neighbour_answers(&nucleus);
    };
    // Each cell has its instances and each loop its buffers after the first round.
    table();
    let before = worker.resident_kib();
    for _ in 0..4 {
        table();
    }
    let mut idle = Raw::greeted(&nucleus.socket("hello"));
    let mut waiting: Vec<_> = (0..3).map(|_| never_reads(&nucleus)).collect();
    waiting.extend((0..8).flat_map(|_| stalled(&nucleus)));
    neighbour_answers(&nucleus);
    for (what, raw) in &mut waiting {
        expect_let_go(what, raw);
    }
    // Who said hello and then nothing is idle, not stalled.
    idle.expect_alive();
    neighbour_answers(&nucleus);
    let after = worker.resident_kib();
    println!("worker: {before} KiB after one round, {after} KiB after all");
    assert!(after < before + (32 << 10), "the worker grew from {before} to {after} KiB");
    assert_eq!(nucleus.worker(), worker, "the worker was replaced");
    nucleus.down();
}

/// A thousand headers that claim a gigabyte each, at once, cost nothing.
#[test]
fn claims_take_no_memory() {
    let nucleus = Nucleus::new();
    nucleus.deploy("hello");
    let worker = nucleus.worker();
    let hello = nucleus.socket("hello");
    neighbour_answers(&nucleus);
    let before = worker.resident_kib();
    let (mut held, mut refused) = (Vec::new(), 0);
    for round in 0..600_u32 {
        // Half claim what is allowed and send none of it.
        let allowed = round % 2 == 0;
        let mut raw = Raw::greeted(&hello);
        let mut header = Header::new(Kind::Call).encode();
        header[..4].copy_from_slice(&(if allowed { 16_u32 << 20 } else { 1 << 30 }).to_le_bytes());
        raw.write(&header);
        if allowed {
            // It never opened a slot, so it learns that at once.
            assert_eq!(status(&raw.receive().0), Status::BadSlot);
            held.push(raw);
        } else {
            raw.expect_goaway(Status::TooLarge);
            refused += 1;
        }
    }
    let after = worker.resident_kib();
    assert_eq!((held.len(), refused), (300, 300));
    assert!(after < before + (32 << 10), "the worker grew from {before} to {after} KiB");
    neighbour_answers(&nucleus);
}

/// Garbage of every length from a seeded generator, hello or no hello: nobody else notices.
#[test]
fn garbage_hurts_nobody() {
    let nucleus = Nucleus::new();
    nucleus.deploy("hello");
    let worker = nucleus.worker();
    let mut random = cell_tests::Random::new(0xbad);
    for round in 0..400 {
        let length = usize::try_from(random.below(300)).unwrap();
        let mut bytes: Vec<u8> =
            (0..length).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        if round % 2 == 0 {
            // Behind a good hello, frames that are nearly right.
            bytes.splice(..0, Hello::CURRENT.encode());
            if let Some(kind) = bytes.get_mut(20) {
                *kind %= 12;
            }
        }
        let stream = UnixStream::connect(nucleus.socket("hello")).unwrap();
        // The server may have closed before all is written.
        let _ = (&stream).write_all(&bytes);
        if round % 3 == 0 {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            stream.set_read_timeout(Some(cell_tests::GUARD)).unwrap();
            let ended = (&stream).read_to_end(&mut Vec::new()).map_err(|error| error.kind());
            assert!(
                matches!(ended, Ok(_) | Err(ErrorKind::ConnectionReset)),
                "round {round}: {ended:?}"
            );
        }
    }
    neighbour_answers(&nucleus);
    assert_eq!(nucleus.worker(), worker, "the worker was replaced");
}

/// Sends or takes a little at a time, without end, until it is let go or told to stop.
fn drip(
    stop: &Arc<AtomicBool>,
    mut step: impl FnMut() -> bool + Send + 'static,
) -> thread::JoinHandle<()> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        while !stop.load(Relaxed) && step() {
            thread::sleep(Duration::from_millis(20));
        }
    })
}

/// A client that sends its request, or takes its reply, byte by byte keeps making progress and is
/// never stalled. The one instance of a cell must not be its own for as long as it likes.
#[test]
fn who_drips_does_not_keep_an_instance() {
    let nucleus = Nucleus::new();
    // The reply is four mebibytes, which no socket's buffer holds.
    let large = wat::cell("", "(i64.const 0x0040_0000_0000_0000)")
        .replace("\"memory\") 4", "\"memory\") 64");
    nucleus.deploy_wat("large", &large, "replicas_max = 1\ncall_ms_max = 500");
    let stop = Arc::new(AtomicBool::new(false));
    let victim = |what: &str| {
        let mut client = nucleus.client("large");
        let slot = client.open_raw("run").unwrap();
        let options = CallOptions { timeout: cell_tests::GUARD, ..CallOptions::default() };
        eventually(&format!("another client is served beside one that {what}"), || {
            match client.call_raw(&slot, b"", options) {
                Ok(reply) => {
                    assert_eq!(reply.bytes().len(), 4 << 20);
                    Some(())
                }
                Err(error) => {
                    assert_eq!(error.status(), Some(Status::TimedOut), "{error}");
                    None
                }
            }
        });
    };
    let (mut sender, receptor) = Raw::opened(&nucleus.socket("large"), "large", "run");
    let header =
        Header { payload_bytes: 100_000, receptor, fuel: Fuel(FUEL), ..Header::new(Kind::Call) };
    sender.write(&header.encode());
    let sending = drip(&stop, move || sender.stream.write_all(b"x").is_ok());
    wait_for_instances(&nucleus, "large", 1);
    victim("sends byte by byte");
    let (mut taker, receptor) = Raw::opened(&nucleus.socket("large"), "large", "run");
    taker.call(receptor, 1, FUEL, b"");
    taker.receive_some();
    let taking = drip(&stop, move || taker.receive_some() > 0);
    victim("takes byte by byte");
    stop.store(true, Relaxed);
    sending.join().unwrap();
    taking.join().unwrap();
    nucleus.down();
}
