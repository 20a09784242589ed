//! Clients that hang up, or stop in the middle, leave nothing behind in the worker.

use std::fs;

use cell_abi::frame::{Hello, Kind};
use cell_abi::{Fuel, Header};
use cell_tests::{Nucleus, Raw, eventually, wat};

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Bytes and the end of the stream came in one event; the end was never read, so the connection
/// stayed for ever, and 4096 of them shut everybody else out.
#[test]
fn bytes_with_an_end_behind_them() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let worker = nucleus.worker().pid;
    let before = descriptors(worker);
    let mut farewell = Hello::CURRENT.encode().to_vec();
    farewell.extend_from_slice(&Header::new(Kind::Cancel).encode());
    for _ in 0..50 {
        Raw::silent(&nucleus.socket("echo")).write(&farewell);
    }
    eventually("every connection is closed", || (descriptors(worker) <= before).then_some(()));
    nucleus.down();
}

/// A header whose payload did not come was looked at again and again, at the cost of a whole core.
#[test]
fn half_a_frame_is_waited_for_asleep() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let (mut half, number) = Raw::opened(&nucleus.socket("echo"), "echo", "run");
    let header = Header {
        payload_bytes: 1000,
        receptor: number,
        request_id: 2,
        fuel: Fuel(1_000_000),
        ..Header::new(Kind::Call)
    };
    half.write(&header.encode());
    half.write(&[1; 10]);
    let worker = nucleus.worker();
    let before = worker.ticks();
    // What is measured is the worker's sleep.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let taken = worker.ticks() - before;
    assert!(taken < 50, "{taken} ticks of 100");
    nucleus.down();
}
