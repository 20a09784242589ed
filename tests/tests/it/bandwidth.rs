//! How much of the line other machines get.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cell_tests::Home;

use crate::donate::{ALWAYS, Donate, is_working, wait_for};
use crate::remote_jobs::{CAT, Two, two};

/// What a job is sent here, and says again.
const BYTES: usize = 512 << 10;
/// What the settings of these tests allow, in bytes a second.
const BYTES_PER_S: usize = 256 << 10;

/// Has a job carry [`BYTES`] in each direction, and says how long all of it took.
fn carry(two: &Two, home: &Home, module: &Path) -> Duration {
    let (input, start) = ("0123456789abcdef".repeat(BYTES / 16), Instant::now());
    let run = ["run", "--on", "den", "--budget", "5", module.to_str().unwrap()];
    let ran = home.cell_with_input(run, input.as_bytes());
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(ran.stdout == input && two.donor.nucleus.process().is_alive());
    start.elapsed()
}

/// The least that so many bytes take in one direction, all sessions together: a tenth of a second's bytes, and a
/// turn of each session, may come at once.
fn least(bytes: usize) -> Duration {
    let at_once = BYTES_PER_S / 10 + 2 * BYTES_PER_S / 16;
    Duration::from_secs_f64((bytes - at_once) as f64 / BYTES_PER_S as f64)
}

/// Two machines at once, which share what there is.
#[test]
fn all_sessions_share_what_others_get() {
    let two = two("bandwidth_kb_s_max = 256\n");
    let module = two.module("cat", CAT);
    let time = carry(&two, &two.home, &module);
    println!("{BYTES} bytes at {BYTES_PER_S} a second: {time:?}");
    assert!(time >= least(BYTES), "{time:?}");
    let other = Home::new();
    two.donor.admit(&other, "50");
    let den = ["peer", "add", &two.donor.key, "--name", "den", "--at", &two.donor.address];
    other.cell(den).expect(0);
    let start = Instant::now();
    thread::scope(|scope| {
        for home in [&two.home, &other] {
            scope.spawn(|| carry(&two, home, &module));
        }
    });
    let time = start.elapsed();
    println!("twice {BYTES} bytes at {BYTES_PER_S} a second: {time:?}");
    assert!(time >= least(2 * BYTES), "{time:?}");
}

/// What is lent has a limit of its own, which holds from the first session on, and is told.
#[test]
fn what_is_lent_of_the_line() {
    let two = two(&format!("{ALWAYS}bandwidth_kb_s_max = 256\n"));
    let module = two.module("cat", CAT);
    let donor = &two.donor.nucleus;
    let donate = Donate::start(donor);
    wait_for(donor, "it works", is_working);
    let time = carry(&two, &two.home, &module);
    assert!(time >= least(BYTES), "{time:?}");
    donor.cell(["donate", "stop"]).expect(0);
    donate.end();
    std::fs::write(donor.path().join("nucleus.toml"), "[donate]\nbandwidth_kb_s_max = 63\n")
        .unwrap();
    let refused = donor.cell(["donate"]);
    assert!(refused.stderr.contains("must be between 64 and 4194304"), "{}", refused.stderr);
}
