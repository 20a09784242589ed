//! Calls through memory that client and worker share.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use cell_client::ring::{Memory, RING_BYTES, SHARED_BYTES};
use cell_client::{CallOptions, Client, Config, Error, Fuel, Status};
use cell_tests::{Home, Nucleus, Raw, eventually, wat};

const OPTIONS: CallOptions = CallOptions { fuel: Fuel(5_000_000), timeout: cell_tests::GUARD };

fn echo() -> Nucleus {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "replicas_max = 64");
    nucleus
}

fn connect(home: &Home) -> Client {
    let config = Config { shared_memory: true, ..Config::default() };
    Client::connect_with(home.socket("echo"), "echo", config).unwrap()
}

/// Lengths around words, pages, what is buffered and what is copied, up to the cell's mailbox.
#[test]
fn a_call_is_the_same_as_through_the_socket() {
    let nucleus = echo();
    let (mut shared, mut plain) = (connect(&nucleus), nucleus.client("echo"));
    assert!(shared.shares_memory() && !plain.shares_memory());
    let slots = (shared.open_raw("run").unwrap(), plain.open_raw("run").unwrap());
    for length in [0, 1, 7, 8, 9, 64, 4095, 4097, 16_384, 16_385, 32_700, 65_536, 131_071, 131_072]
    {
        let request: Vec<u8> =
            (0..length).map(|at: usize| (at * 7 % 253).to_le_bytes()[0]).collect();
        for _ in 0..3 {
            let through = shared.call_raw(&slots.0, &request, OPTIONS).unwrap();
            let beside = plain.call_raw(&slots.1, &request, OPTIONS).unwrap();
            assert!(through.bytes() == request, "{length}");
            assert_eq!(through.fuel(), beside.fuel());
        }
    }
    match shared.call_raw(&slots.0, &vec![0; 131_073], OPTIONS) {
        Err(Error::Failed { status: Status::TooLarge, .. }) => {}
        other => panic!("{other:?}"),
    }
    shared.ping().unwrap();
    nucleus.down();
}

/// Requests and replies together are a hundred times what the memory holds.
#[test]
fn many_calls_in_flight_wait_for_room() {
    let nucleus = echo();
    let mut client = connect(&nucleus);
    let slot = client.open_raw("run").unwrap();
    let request = |number: usize| vec![(number % 251).to_le_bytes()[0]; number * 523 % 131_072];
    let (mut asked, mut answered) = (std::collections::HashMap::new(), 0);
    for number in 0..800 {
        if asked.len() == 40 {
            let (id, reply) = client.receive().unwrap();
            let reply = reply.unwrap();
            assert!(reply.bytes() == request(asked.remove(&id).unwrap()));
            answered += 1;
        }
        asked.insert(client.send_raw(&slot, &request(number), OPTIONS).unwrap(), number);
    }
    while !asked.is_empty() {
        let (id, reply) = client.receive().unwrap();
        assert!(reply.unwrap().bytes() == request(asked.remove(&id).unwrap()));
        answered += 1;
    }
    assert_eq!(answered, 800);
    nucleus.down();
}

#[test]
fn more_clients_than_cores_are_all_answered() {
    let nucleus = echo();
    thread::scope(|scope| {
        for client in 0..12_u8 {
            let nucleus = &nucleus;
            scope.spawn(move || {
                let mut connection = connect(nucleus);
                let slot = connection.open_raw("run").unwrap();
                for _ in 0..500 {
                    let reply = connection.call_raw(&slot, &[client; 64], OPTIONS).unwrap();
                    assert_eq!(reply.bytes(), [client; 64]);
                }
            });
        }
    });
    nucleus.down();
}

#[test]
fn an_open_ring_without_calls_takes_no_processor_time() {
    let nucleus = echo();
    let mut clients: Vec<_> = (0..20).map(|_| connect(&nucleus)).collect();
    for client in &mut clients {
        client.ping().unwrap();
    }
    let worker = nucleus.worker();
    // What is measured is sleep.
    thread::sleep(Duration::from_millis(200));
    let before = worker.ticks();
    thread::sleep(Duration::from_secs(2));
    let taken = worker.ticks() - before;
    assert!(taken <= 4, "{taken} ticks of 200");
    for client in &mut clients {
        client.ping().unwrap();
    }
    nucleus.down();
}

/// One that waits long for its reply sleeps meanwhile, and so does the worker while it has nothing
/// to do for it; a deadline ends the wait.
#[test]
fn a_long_call_is_waited_for_asleep_and_times_out() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::SPIN), "");
    let mut client = connect(&nucleus);
    let slot = client.open_raw("run").unwrap();
    let soon = CallOptions { fuel: Fuel(900_000_000_000), timeout: Duration::from_millis(300) };
    match client.call_raw(&slot, &[], soon) {
        Err(Error::TimedOut) => {}
        other => panic!("{other:?}"),
    }
    client.ping().unwrap();
    nucleus.down();
}

/// One that always has bytes in its memory keeps nobody else from being served: not at a socket, and
/// not through memory.
#[test]
fn a_greedy_client_lets_others_through() {
    let nucleus = echo();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = connect(&nucleus);
                let slot = client.open_raw("run").unwrap();
                let mut in_flight = 0;
                while !stop.load(Relaxed) || in_flight > 0 {
                    while in_flight < 200 && !stop.load(Relaxed) {
                        client.send_raw(&slot, &[1; 64], OPTIONS).unwrap();
                        in_flight += 1;
                    }
                    client.receive().unwrap().1.unwrap();
                    in_flight -= 1;
                }
            });
        }
        for mut client in [nucleus.client("echo"), connect(&nucleus)] {
            let slot = client.open_raw("run").unwrap();
            for number in 0..1000_u32 {
                let request = number.to_le_bytes();
                let reply = client.call_raw(&slot, &request, OPTIONS).unwrap();
                assert_eq!(reply.bytes(), request);
            }
        }
        stop.store(true, Relaxed);
    });
    nucleus.down();
}

/// A client that never sleeps rings no bell; the worker looks at the time all the same.
#[test]
fn a_call_that_follows_others_without_a_pause_is_timed_out() {
    let nucleus = Nucleus::new();
    let sleeps_if_asked = "(if (i32.eq (local.get $len) (i32.const 1)) (then
        (i64.store (i32.const 24) (i64.const 60000000000))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))";
    let poll = "(import \"wasi_snapshot_preview1\" \"poll_oneoff\" (func $poll (param i32 i32 i32 i32) (result i32)))";
    let handler =
        format!("(i32.store (i32.const 16) (i32.const 1)) {sleeps_if_asked} {}", wat::ECHO);
    nucleus.deploy_wat("echo", &wat::cell(poll, &handler), "call_ms_max = 300");
    let mut client = connect(&nucleus);
    let slot = client.open_raw("run").unwrap();
    for _ in 0..5 {
        // Longer than the clock's period, and without a pause in which it would be seen to stop.
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(120) {
            client.call_raw(&slot, &[], OPTIONS).unwrap();
        }
        match client.call_raw(&slot, &[0], OPTIONS) {
            Err(Error::Failed { status: Status::TimedOut, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    nucleus.down();
}

/// Two hundred get memory; whoever comes then is served through the socket.
#[test]
fn memory_has_an_end() {
    let nucleus = echo();
    let mut clients: Vec<_> = (0..210).map(|_| connect(&nucleus)).collect();
    let shared = clients.iter().filter(|client| client.shares_memory()).count();
    assert_eq!(shared, 200);
    for client in &mut clients {
        client.ping().unwrap();
    }
    drop(clients);
    eventually("the memory is free again", || connect(&nucleus).shares_memory().then_some(()));
    nucleus.down();
}

#[test]
fn a_client_that_is_gone_leaves_nothing() {
    let nucleus = echo();
    let worker = nucleus.worker();
    // The code of a cell that was called stays open.
    let mut first = connect(&nucleus);
    let slot = first.open_raw("run").unwrap();
    first.call_raw(&slot, &[], OPTIONS).unwrap();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", worker.pid)).unwrap().count();
    let before = descriptors();
    for _ in 0..50 {
        let mut client = connect(&nucleus);
        let slot = client.open_raw("run").unwrap();
        client.send_raw(&slot, &[0; 100_000], OPTIONS).unwrap();
        client.flush().unwrap();
    }
    eventually("every connection is closed", || (descriptors() <= before).then_some(()));
    nucleus.down();
}

#[test]
fn a_worker_that_dies_is_told() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::SPIN), "");
    let mut client = connect(&nucleus);
    let slot = client.open_raw("run").unwrap();
    let options = CallOptions { fuel: Fuel(900_000_000_000), ..OPTIONS };
    client.send_raw(&slot, &[], options).unwrap();
    client.flush().unwrap();
    nucleus.worker().kill();
    match client.receive() {
        Err(Error::Disconnected { .. }) => {}
        other => panic!("{other:?}"),
    }
    nucleus.down();
}

type Lie = (&'static str, Box<dyn Fn(&Memory, &mut Raw)>);

/// Positions that cannot be, frames that are none, and bytes that change as they are read: the liar's
/// connection ends, and nobody else's.
#[test]
fn a_liar_harms_itself_alone() {
    let nucleus = echo();
    let mut neighbour = connect(&nucleus);
    let slot = neighbour.open_raw("run").unwrap();
    let worker = nucleus.worker();
    let written =
        |value: u64| move |memory: &Memory, _: &mut Raw| memory.word(0).store(value, Relaxed);
    let lies: [Lie; 5] = [
        ("more than there can be", Box::new(written(1 << 40))),
        ("less than before", Box::new(written(u64::MAX))),
        ("zeros for frames", Box::new(written(4096))),
        (
            "a header that claims too much",
            Box::new(|memory: &Memory, _: &mut Raw| {
                memory.store(4096, &[0xff; 64]);
                memory.word(0).store(64, Relaxed);
            }),
        ),
        (
            "replies read that were never written",
            Box::new(|memory: &Memory, raw: &mut Raw| {
                // As many pings as there is memory for their answers, and then one more.
                for at in (0..RING_BYTES).step_by(32) {
                    memory.store(4096 + at + 4, &[6]);
                }
                memory.word(8).store(1 << 50, Relaxed);
                memory.word(0).store(RING_BYTES as u64, Relaxed);
                raw.write(&[0]);
                let answered = || memory.word(128).load(Relaxed) == RING_BYTES as u64;
                eventually("the pings are answered", || answered().then_some(()));
                memory.word(0).store(RING_BYTES as u64 + 32, Relaxed);
            }),
        ),
    ];
    for (name, lie) in lies {
        let (mut raw, memory) = Raw::sharing(&nucleus.socket("echo"));
        let memory = Memory::map(memory.unwrap(), SHARED_BYTES).unwrap();
        lie(&memory, &mut raw);
        raw.write(&[0]);
        raw.expect_gone(name);
        let reply = neighbour.call_raw(&slot, name.as_bytes(), OPTIONS).unwrap();
        assert_eq!(reply.bytes(), name.as_bytes());
    }
    assert!(worker.is_alive());
    nucleus.down();
}
