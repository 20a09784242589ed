//! Command modules: exit codes, streams, budgets.

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;

use cell_abi::{Fuel, Status};
use cell_host::stdio::Stream;
use cell_host::{Allowance, Job, JobEnd, JobOutcome, JobTape, Limits, Rates, StopHandle, Taken};

use crate::support::{module, sandbox};

const WASI: &str = r#"
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;

fn command(body: &str) -> String {
    format!(r#"(module {WASI} (memory (export "memory") 1) (func (export "_start") {body}))"#)
}

/// Copies standard input to standard output.
const CAT: &str = r#"
    (loop $more
        (i32.store (i32.const 0) (i32.const 100))
        (i32.store (i32.const 4) (i32.const 1000))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (if (i32.load (i32.const 8)) (then
            (i32.store (i32.const 4) (i32.load (i32.const 8)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
            (br $more))))"#;

/// Runs a command with this input; its outcome and what it printed.
fn run(body: &str, input: &[u8], fuel: u64) -> (JobOutcome, Vec<u8>) {
    run_at(Rates::default(), body, input, fuel)
}

fn run_at(rates: Rates, body: &str, input: &[u8], fuel: u64) -> (JobOutcome, Vec<u8>) {
    run_text(rates, &command(body), input, fuel)
}

fn run_text(rates: Rates, text: &str, input: &[u8], fuel: u64) -> (JobOutcome, Vec<u8>) {
    let mut stdin = tempfile::tempfile().unwrap();
    stdin.write_all(input).unwrap();
    stdin.rewind().unwrap();
    let mut stdout = tempfile::tempfile().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = runtime.block_on(async {
        let job = Job {
            arguments: vec!["job".into()],
            environment: Vec::new(),
            directories: Vec::new(),
            stdin: Stream::input(OwnedFd::from(stdin)).unwrap(),
            stdout: Stream::output(OwnedFd::from(stdout.try_clone().unwrap())).unwrap(),
            stderr: Stream::output(OwnedFd::from(tempfile::tempfile().unwrap())).unwrap(),
            fuel: Fuel(fuel),
            limits: Limits::JOB,
            allowance: None,
            stop: StopHandle::new(),
            tape: JobTape::None,
            rates,
        };
        job.run(&sandbox(), &module(text)).await.unwrap()
    });
    let mut printed = Vec::new();
    stdout.rewind().unwrap();
    stdout.read_to_end(&mut printed).unwrap();
    (outcome, printed)
}

/// A job that is paid by slices goes no further than it was let, whether it computes or asks the host for
/// something all the time; and further when it is let.
#[test]
fn an_allowance_holds_a_job_back() {
    #[track_caller]
    fn check(body: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let entered = runtime.enter();
        let (allowed, more) = (20_000_000, 100_000_000);
        let allowance = Allowance::new(allowed);
        let job = Job {
            arguments: vec!["job".into()],
            environment: Vec::new(),
            directories: Vec::new(),
            stdin: Stream::input(OwnedFd::from(tempfile::tempfile().unwrap())).unwrap(),
            stdout: Stream::output(OwnedFd::from(tempfile::tempfile().unwrap())).unwrap(),
            stderr: Stream::output(OwnedFd::from(tempfile::tempfile().unwrap())).unwrap(),
            fuel: Fuel(1 << 40),
            limits: Limits::JOB,
            allowance: Some(allowance.clone()),
            stop: StopHandle::new(),
            tape: JobTape::None,
            rates: Rates::default(),
        };
        let (sandbox, module, text) = (sandbox(), module(&command(body)), body);
        let mut running = Box::pin(job.run(&sandbox, &module));
        drop(entered);
        let mut poll = |times: u32| {
            runtime.block_on(std::future::poll_fn(|cx| {
                for _ in 0..times {
                    assert!(running.as_mut().poll(cx).is_pending(), "{text}");
                }
                std::task::Poll::Ready(())
            }));
            allowance.spent()
        };
        // Far more often than it takes to spend all of it.
        let spent = poll(5_000);
        assert!(spent <= allowed && spent > allowed / 2, "{text}: {spent}");
        allowance.raise(more);
        let spent = poll(20_000);
        assert!(spent <= more && spent > more - allowed, "{text}: {spent}");
    }
    check("(loop $again (br $again))");
    // A host call, with next to nothing between two of them.
    check(
        "(loop $again (drop (call $read (i32.const 9) (i32.const 0) (i32.const 0) (i32.const 8))) (br $again))",
    );
}

#[test]
fn streams_pass_through() {
    let input: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let (outcome, printed) = run(CAT, &input, 1 << 40);
    assert_eq!(outcome.end, JobEnd::Exited { code: 0 });
    assert!(printed == input);
}

#[test]
fn any_exit_code_passes_through() {
    for code in [0, 1, 125, 126, 255] {
        let (outcome, _) = run(&format!("(call $exit (i32.const {code}))"), b"", 1 << 30);
        assert_eq!(outcome.end, JobEnd::Exited { code });
    }
}

#[test]
fn a_budget_is_exact() {
    let (free, _) = run(CAT, b"some input", 1 << 30);
    let (same, printed) = run(CAT, b"some input", free.fuel.0);
    assert_eq!((&same, &printed[..]), (&free, &b"some input"[..]));
    let (short, _) = run(CAT, b"some input", free.fuel.0 - 1);
    assert!(matches!(short.end, JobEnd::Stopped { status: Status::OutOfFuel, .. }), "{short:?}");
    assert_eq!(short.fuel.0, free.fuel.0 - 1);
}

#[test]
fn traps_are_told_apart() {
    let (outcome, _) = run("unreachable", b"", 1 << 30);
    assert!(matches!(outcome.end, JobEnd::Stopped { status: Status::Trapped, .. }), "{outcome:?}");
}

#[test]
fn a_start_and_output_are_paid_from_the_budget() {
    let input = vec![1; 100_000];
    let (free, _) = run(CAT, &input, 1 << 40);
    // 5,000 for a start, 1,000 nano-ATP a byte.
    let rates = Rates([5_000, 1000 << 30, 0]);
    let (paid, printed) = run_at(rates, CAT, &input, 1 << 40);
    assert!(printed == input);
    assert_eq!((&paid.end, paid.fuel, paid.taken), (&free.end, free.fuel, Taken([1, 100_000, 0])));
    let least = free.fuel.0 + 5_000 + 100_000_000;
    let (exact, _) = run_at(rates, CAT, &input, least);
    assert_eq!(exact.end, JobEnd::Exited { code: 0 });
    for limit in [least - 1, least / 2, least / 100] {
        let (short, printed) = run_at(rates, CAT, &input, limit);
        assert!(
            matches!(short.end, JobEnd::Stopped { status: Status::OutOfFuel, .. }),
            "{short:?}"
        );
        let charge = short.fuel.0 + short.taken.charge(rates);
        assert!(charge <= limit && charge > limit - 1_000_000, "{charge} of {limit}");
        // No more than one write went out that is not paid.
        let Taken([_, bytes, _]) = short.taken;
        assert!((bytes..=bytes + 1000).contains(&(printed.len() as u64)), "{bytes}");
    }
}

/// A job that only waits holds its memory, and ends when that is not paid for any more.
#[test]
fn a_job_that_waits_pays_for_its_memory() {
    let poll = r#"(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))"#;
    // One subscription to the monotonic clock, for an hour.
    let body = r#"
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 3600000000000))
        (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))"#;
    let text = command(body).replace("(module", &format!("(module {poll}"));
    let rates = Rates([0, 0, 1000 * cell_host::rates::Dimension::Memory.per()]);
    let (paid, _) = run_text(rates, &text, b"", 100_000_000);
    let JobEnd::Stopped { status: Status::OutOfFuel, message } = &paid.end else {
        panic!("{paid:?}")
    };
    assert!(message.contains("besides"), "{message}");
    let Taken([_, _, memory]) = paid.taken;
    assert!(memory * 1000 > 50_000_000 && memory * 1000 + paid.fuel.0 <= 100_000_000, "{paid:?}");
}
