//! A nucleus with many cells and more than one caller: what one of them notices of all the others.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use cell_client::{CallOptions, Client, Fuel};

use crate::bare::Woken;
use crate::cli::Plan;
use crate::measure::{Side, Tally, compare};
use crate::nucleus::{ECHO, Nucleus};
use crate::ours;
use crate::placement::{Cores, Mode};
use crate::report::Report;
use crate::row::{Row, Target, Unit};

/// How long deploying may take.
const DEPLOY_TIME_MAX: Duration = Duration::from_secs(300);
/// Calls that the greedy caller keeps in flight.
const GREEDY_WINDOW: usize = 64;
const BYTES: usize = 64;

/// A cell that counts down a number of steps from its request, then answers with the request.
const WORK: &str = r#"(module
    (memory (export "memory") 2)
    (@custom "cell:interface" "receptor work(bytes) -> bytes\n\n")
    (func (export "cell_mailbox") (param $len i32) (result i32) (i32.const 1024))
    (func (export "cell_receive") (param $receptor i32) (param $ptr i32) (param $len i32) (result i64)
        (local $left i32)
        (local.set $left (i32.load (local.get $ptr)))
        (loop $again
            (local.set $left (i32.sub (local.get $left) (i32.const 1)))
            (br_if $again (i32.gt_s (local.get $left) (i32.const 0))))
        (i64.or
            (i64.shl (i64.extend_i32_u (local.get $len)) (i64.const 32))
            (i64.extend_i32_u (local.get $ptr)))))"#;

/// Measures with this many cells deployed beside the one that is called.
pub(crate) fn measure(
    plan: &Plan,
    cells: u32,
    cores: &Cores,
    report: &mut Report,
) -> anyhow::Result<()> {
    let alone = Nucleus::start()?;
    let crowd = Nucleus::start()?;
    if plan.wants("sleeping") || plan.wants("stopped") {
        deploy(&crowd, cells, report)?;
    }
    for mode in [Mode::OneCore, Mode::Plain] {
        for nucleus in [&alone, &crowd] {
            cores.pin_process(nucleus.worker()?, mode)?;
        }
        cores.pin_this_process(mode)?;
        if plan.wants("sleeping") {
            let (mut floor, mut ours) = (
                ours::Call::new(&alone.socket(), ours::Way::Socket, BYTES)?,
                ours::Call::new(&crowd.socket(), ours::Way::Socket, BYTES)?,
            );
            let (floor, ours) = compare(plan, &mut floor, &mut ours, || {})?;
            let work = format!("call beside {cells} sleeping");
            // Unpinned, where the kernel happens to put the two processes is all that is seen.
            let target = Target { text: "p50 ≤ 1.10x", is_met: |row| row.ratio() <= 1.10 };
            report.add(
                Row::new(work, mode.to_string(), Unit::Nanoseconds, floor, ours)
                    .with_target((mode == Mode::OneCore).then_some(target)),
            );
        }
        greedy(plan, &alone, mode, report)?;
    }
    if plan.wants("stopped") {
        cores.pin_this_process(Mode::Plain)?;
        let mut floor = Woken::new(ECHO)?;
        let mut ours = Stopped { nucleus: &crowd, next: 0, cells };
        let (floor, ours) = compare(plan, &mut floor, &mut ours, || {})?;
        report.add(Row::new(
            "first call of a stopped cell".into(),
            Mode::Plain.to_string(),
            Unit::Nanoseconds,
            floor,
            ours,
        ));
    }
    Ok(())
}

/// One caller's times while another one keeps many calls in flight, beside its times alone.
fn greedy(plan: &Plan, nucleus: &Nucleus, mode: Mode, report: &mut Report) -> anyhow::Result<()> {
    for (work, steps) in [("call beside 64 short ones", 1), ("call beside 64 long ones", 3_000_000)]
    {
        if !plan.wants(work) {
            continue;
        }
        if !nucleus.has("work") {
            nucleus.put("work", WORK)?;
            nucleus.wait_for("work", DEPLOY_TIME_MAX)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let pause = Arc::new(AtomicBool::new(true));
        let other = spawn_greedy(nucleus, steps, &stop, &pause)?;
        let socket = nucleus.socket();
        let mut quiet = Paused {
            call: ours::Call::new(&socket, ours::Way::Socket, BYTES)?,
            pause: &pause,
            to: true,
        };
        let mut loud = Paused {
            call: ours::Call::new(&socket, ours::Way::Socket, BYTES)?,
            pause: &pause,
            to: false,
        };
        let compared = compare(plan, &mut quiet, &mut loud, || {});
        stop.store(true, Relaxed);
        let answered = other.join().map_err(|_| anyhow!("the greedy caller panicked"))??;
        let (floor, ours) = compared?;
        if answered == 0 {
            bail!("the greedy caller got no answer: this measured nothing");
        }
        let target = Target { text: "p99 ≤ 3x", is_met: |row| row.ratio_p99() <= 3.0 };
        report.add(
            Row::new(work.into(), mode.to_string(), Unit::Nanoseconds, floor, ours)
                .with_target(Some(target)),
        );
    }
    Ok(())
}

/// A caller with `GREEDY_WINDOW` calls in flight whenever it is not paused; returns how many were
/// answered.
fn spawn_greedy(
    nucleus: &Nucleus,
    steps: u32,
    stop: &Arc<AtomicBool>,
    pause: &Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<anyhow::Result<u64>>> {
    let mut client = Client::connect(nucleus.socket_of("work"), "work")?;
    let slot = client.open_raw("work")?;
    let (stop, pause) = (Arc::clone(stop), Arc::clone(pause));
    let options = CallOptions { fuel: Fuel(1_000_000_000), timeout: Duration::from_secs(60) };
    Ok(thread::Builder::new().name("greedy".into()).spawn(move || {
        let (mut in_flight, mut answered) = (0, 0);
        while !stop.load(Relaxed) {
            if pause.load(Relaxed) && in_flight == 0 {
                thread::sleep(Duration::from_micros(200));
                continue;
            }
            while in_flight < GREEDY_WINDOW && !pause.load(Relaxed) {
                client.send_raw(&slot, &steps.to_le_bytes(), options)?;
                in_flight += 1;
            }
            if in_flight > 0 {
                client.receive()?.1?;
                in_flight -= 1;
                answered += 1;
            }
        }
        Ok(answered)
    })?)
}

/// Calls with the greedy caller paused, or not.
struct Paused<'a> {
    call: ours::Call,
    pause: &'a AtomicBool,
    to: bool,
}

impl Side for Paused<'_> {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        self.pause.store(self.to, Relaxed);
        // The other one starts, or its calls in flight end, before anything is measured.
        thread::sleep(Duration::from_millis(if self.to { 150 } else { 20 }));
        self.call.slice(length, tally);
        self.pause.store(true, Relaxed);
    }
}

/// Each call goes to another cell, whose code is not loaded.
struct Stopped<'a> {
    nucleus: &'a Nucleus,
    next: u32,
    cells: u32,
}

impl Side for Stopped<'_> {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            if self.next == self.cells {
                // None is left that sleeps: what follows would measure something else.
                return;
            }
            let name = sleeper(self.next);
            self.next += 1;
            let timed = || -> anyhow::Result<Duration> {
                // Connecting is not what wakes a cell.
                let mut client = Client::connect(self.nucleus.socket_of(&name), &name)?;
                let slot = client.open_raw("echo")?;
                let started = Instant::now();
                let reply = client.call_raw(&slot, &[7; BYTES], CallOptions::default())?;
                let time = started.elapsed();
                anyhow::ensure!(reply.bytes() == [7; BYTES], "a wrong reply");
                Ok(time)
            };
            if !tally.take(timed().with_context(|| name.clone())) {
                return;
            }
        }
    }
}

fn sleeper(number: u32) -> String {
    format!("c{number}")
}

/// Deploys that many cells, and says what each takes.
fn deploy(nucleus: &Nucleus, cells: u32, report: &Report) -> anyhow::Result<()> {
    let before = nucleus.resident_bytes()?;
    let started = Instant::now();
    for number in 0..cells {
        nucleus.put(&sleeper(number), ECHO)?;
    }
    let written = started.elapsed();
    for number in 0..cells {
        nucleus.wait_for(&sleeper(number), DEPLOY_TIME_MAX)?;
    }
    let live = started.elapsed();
    // What deploying took and is not needed any more is given back by now.
    thread::sleep(Duration::from_secs(2));
    let after = nucleus.resident_bytes()?;
    let each = |at: usize| {
        let grown = after.get(at).copied().unwrap_or(0) as f64
            - before.get(at).copied().unwrap_or(0) as f64;
        grown / f64::from(cells.max(1)) / 1024.0
    };
    let total = each(0) + each(1);
    report.note(&format!(
        "{cells} cells: written in {:.1} s, all live after {:.1} s; resident for each {total:.1} KiB (nucleus {:.1}, worker {:.1}); target ≤ 16 KiB: {}",
        written.as_secs_f64(),
        live.as_secs_f64(),
        each(0),
        each(1),
        if total <= 16.0 { "met" } else { "missed" }
    ));
    Ok(())
}

/// The resident memory of a process, in bytes.
pub(crate) fn resident_bytes(process: i32) -> anyhow::Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(Path::new(&path)).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("a process has no memory")?;
    Ok(kib << 10)
}
