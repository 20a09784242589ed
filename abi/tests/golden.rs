//! Pins the bytes of the wire protocol.
//!
//! A change here breaks every peer that is already out there: bump the protocol version first,
//! then run with `BLESS=1` to write the files anew.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, also in the functions that tests share"
)]

use std::path::Path;

use cell_abi::frame::{Flags, Header, Hello, Kind};
use cell_abi::{CellName, Fingerprint, Fuel, Open, ReceptorName, Reject, Status};

#[track_caller]
fn check(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let hex: String = bytes
        .chunks(16)
        .map(|line| {
            line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ") + "\n"
        })
        .collect();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &hex).unwrap();
    }
    let golden =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(hex, golden, "{name} changed");
}

#[test]
fn hello() {
    check("hello.hex", &Hello::CURRENT.encode());
    assert_eq!(Hello::decode(&Hello::CURRENT.encode()), Ok(Hello::CURRENT));
}

#[test]
fn headers() {
    let call = Header {
        payload_bytes: 0x0102_0304,
        flags: Flags::JSON,
        receptor: 0x0506,
        request_id: 0x0708_090a_0b0c_0d0e,
        slot: 0x0f10_1112,
        status: 0,
        fuel: Fuel(0x1314_1516_1718_191a),
        ..Header::new(Kind::Call)
    };
    // 0x01020304 bytes is more than a frame may have, so this one is only encoded.
    check("call.hex", &call.encode());
    let call = Header { payload_bytes: 1 << 20, ..call };
    assert_eq!(Header::decode(&call.encode()), Ok(call));
    let reply = Header { kind: Kind::Reply, status: Status::OutOfFuel.code(), ..call };
    check("reply.hex", &reply.encode());
    assert_eq!(Header::decode(&reply.encode()), Ok(reply));
    let kinds: Vec<u8> = [
        Kind::Open,
        Kind::Opened,
        Kind::Call,
        Kind::Reply,
        Kind::Cancel,
        Kind::Ping,
        Kind::Pong,
        Kind::Voucher,
        Kind::Receipt,
        Kind::Goaway,
    ]
    .into_iter()
    .map(|kind| kind as u8)
    .collect();
    check("kinds.hex", &kinds);
}

#[test]
fn payloads() {
    let open = Open {
        fingerprint: Fingerprint::of_schema("receptor greet(String) -> String\n"),
        cell: CellName::parse("hello").unwrap(),
        receptor: ReceptorName::parse("greet").unwrap(),
    };
    check("open.hex", &open.encode());
    check("reject.hex", &Reject::new(404, "no such name").encode());
    let statuses: Vec<u8> = Status::ALL.iter().flat_map(|s| s.code().to_le_bytes()).collect();
    check("statuses.hex", &statuses);
}
