//! One cell's endless loops, and the cell next door.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use cell_client::{CallOptions, Client, Fuel, RawSlot};
use cell_tests::{GUARD, Nucleus, eventually, wat};

const CALLS: usize = 1000;

/// Calls, and returns the times sorted.
fn measure(client: &mut Client, slot: &RawSlot) -> Vec<Duration> {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let started = Instant::now();
        let reply = client.call_raw(
            slot,
            b"ping",
            CallOptions { timeout: GUARD, ..CallOptions::default() },
        );
        times.push(started.elapsed());
        assert_eq!(reply.expect("the neighbour answers").bytes(), b"ping");
    }
    times.sort();
    times
}

#[test]
fn sixteen_endless_loops_and_a_neighbour() {
    let nucleus = Nucleus::new();
    nucleus.put(
        "spin",
        &wat::manifest("spin", "call_ms_max = 600000"),
        &wat::compile(&wat::cell("", wat::SPIN)),
    );
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    nucleus.wait_for("spin", "live");
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    let quiet = measure(&mut client, &slot);
    // Two clients, for one alone does not get every instance.
    let mut spinners = [nucleus.client("spin"), nucleus.client("spin")];
    for spinner in &mut spinners {
        let spin = spinner.open_raw("run").unwrap();
        let options = CallOptions { fuel: Fuel(20_000_000_000), timeout: Duration::MAX };
        for _ in 0..8 {
            spinner.send_raw(&spin, b"", options).unwrap();
        }
        spinner.flush().unwrap();
    }
    eventually("sixteen loops run", || {
        (nucleus.row("spin").unwrap()["stats"]["instances"] == 16).then_some(())
    });
    let loud = measure(&mut client, &slot);
    // New connections, to any of the worker's threads, are served as well.
    for _ in 0..20 {
        let mut client = nucleus.client("echo");
        let slot = client.open_raw("run").unwrap();
        client
            .call_raw(&slot, b"", CallOptions { timeout: GUARD, ..CallOptions::default() })
            .unwrap();
    }
    assert_eq!(
        nucleus.row("spin").unwrap()["stats"]["instances"],
        16,
        "the loops ended before the measurement did"
    );
    drop(spinners);
    eventually("the loops stop", || {
        (nucleus.row("spin").unwrap()["stats"]["instances"] == 0).then_some(())
    });
    for (what, times) in [("quiet", quiet), ("loud", loud)] {
        println!(
            "neighbour, {what}: p50 {:?}, p99 {:?}, max {:?}",
            times[CALLS / 2],
            times[CALLS * 99 / 100],
            times[CALLS - 1]
        );
    }
    nucleus.down();
}

/// Many callers of one runaway with too few instances wait in line; its neighbour does not.
#[test]
fn a_full_house_next_door() {
    let nucleus = Nucleus::new();
    nucleus.put(
        "spin",
        &wat::manifest("spin", "replicas_max = 1"),
        &wat::compile(&wat::cell("", wat::SPIN)),
    );
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    nucleus.wait_for("spin", "live");
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..6)
        .map(|_| {
            let (home, stop) = ((*nucleus).clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut client = home.client("spin");
                let slot = client.open_raw("run").unwrap();
                let options = CallOptions { fuel: Fuel(20_000_000), timeout: GUARD };
                let mut calls = 0;
                while !stop.load(Relaxed) || calls == 0 {
                    let error = client.call_raw(&slot, b"", options).unwrap_err();
                    assert_eq!(error.fuel(), options.fuel, "{error}");
                    calls += 1;
                }
            })
        })
        .collect();
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    measure(&mut client, &slot);
    stop.store(true, Relaxed);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    nucleus.down();
}
