//! Is the price fair? What one fuel is worth in time, for everything that a guest can make a
//! machine do.
//!
//! Each kernel does one thing again and again, in a cell of a running nucleus, with the host's side
//! and the meter as they are. Time and fuel of an empty call are taken off, so that a figure is of
//! that one thing. Beside it stands the fuel that Wasmtime's own table would count for the same
//! code, which knows one weight for every operator and nothing of host calls and memory.

mod kernels;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use cell_client::{CallOptions, Client, Fuel, RawSlot, TIMEOUT_DEFAULT};
use rustix::process::Pid;
use serde_json::{Value, json};
use wasmtime::{Config, Engine, Instance, Linker, Module, Store};

use crate::cli::Plan;
use crate::measure::nanoseconds;
use crate::nucleus::{ECHO, Nucleus};
use crate::placement::{Cores, Mode};
use crate::report::Report;
use kernels::{Kernel, Kind};

/// How long one measured call takes, about: far more than the way to the worker and back.
const CALL_TIME: Duration = Duration::from_millis(4);
const DEPLOY_TIME_MAX: Duration = Duration::from_secs(60);
const OPTIONS: CallOptions = CallOptions { fuel: Fuel(20_000_000_000), timeout: TIMEOUT_DEFAULT };
/// Rows that are named at either end.
const EXTREMES: usize = 5;
const CALLS_PER_SAMPLE: u32 = 500;
const CALLS: [(&str, usize); 3] =
    [("call, 64 B", 64), ("call, 64 KiB", 64 << 10), ("call, 1 MiB", 1 << 20)];
const HEADINGS: &str = "kind      what                                  ns    wasmtime   ns/fuel        fuel   ns/fuel";

/// One line of the table.
struct Found {
    kind: Kind,
    name: String,
    /// What one operation takes, in nanoseconds.
    time: f64,
    /// What it burns by Wasmtime's table, and by ours.
    plain: f64,
    fuel: f64,
}

impl Found {
    /// Nanoseconds for one fuel of ours.
    fn per_fuel(&self) -> f64 {
        self.time / self.fuel
    }

    /// Nanoseconds for one fuel of Wasmtime's table.
    fn per_plain(&self) -> f64 {
        self.time / self.plain
    }
}

/// Measures every kernel and prints the table with its spread.
pub(crate) fn measure(plan: &Plan, cores: &Cores, json: Option<&Path>) -> anyhow::Result<()> {
    let nucleus = Nucleus::start()?;
    // What other processes do for a guest is part of what it takes, so they all share a core.
    cores.pin_this_process(Mode::OneCore)?;
    for process in nucleus.processes()? {
        cores.pin_process(process, Mode::OneCore)?;
    }
    nucleus.put("other", ECHO)?;
    Report::line(HEADINGS);
    let mut found = Vec::new();
    for (number, kernel) in kernels::all().into_iter().enumerate() {
        if !plan.wants(&kernel.name) {
            continue;
        }
        plan.check_interrupted()?;
        let what = kernel.name.clone();
        let row = one(plan, &nucleus, kernel, &format!("k{number}"))
            .with_context(|| format!("measure {what}"))?;
        Report::line(&line(&row));
        found.push(row);
    }
    for (name, bytes) in CALLS {
        if plan.wants(name) {
            let row =
                call(plan, &nucleus, name, bytes).with_context(|| format!("measure {name}"))?;
            Report::line(&line(&row));
            found.push(row);
        }
    }
    ensure!(!found.is_empty(), "no kernel has such a name");
    if let Some(path) = json {
        let rows: Vec<Value> = found.iter().map(to_json).collect();
        fs::write(path, serde_json::to_vec(&rows)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    conclude(&found);
    Ok(())
}

fn line(row: &Found) -> String {
    format!(
        "{:9} {:32} {:>9.2} {:>11.2} {:>9.3} {:>11.2} {:>9.4}",
        row.kind.name(),
        row.name,
        row.time,
        row.plain,
        row.per_plain(),
        row.fuel,
        row.per_fuel()
    )
}

fn to_json(row: &Found) -> Value {
    json!({
        "kind": row.kind.name(),
        "work": row.name,
        "ns": row.time,
        "wasmtime_fuel": row.plain,
        "wasmtime_ns_per_fuel": row.per_plain(),
        "fuel": row.fuel,
        "ns_per_fuel": row.per_fuel(),
    })
}

/// The spread, before and after, and what the best hostile buyer gets.
fn conclude(found: &[Found]) {
    Report::line("");
    let computing = found.iter().filter(|row| matches!(row.kind, Kind::Compute | Kind::Host));
    spread("computing and host calls", computing.collect(), 10.0);
    spread("with cache misses and pages", found.iter().collect(), 30.0);
}

fn spread(what: &str, mut rows: Vec<&Found>, aim: f64) {
    let before = rows.iter().map(|row| row.per_plain());
    let before = before.clone().fold(0.0, f64::max) / before.fold(f64::INFINITY, f64::min);
    rows.sort_by(|a, b| a.per_fuel().total_cmp(&b.per_fuel()));
    let (Some(least), Some(median), Some(most)) =
        (rows.first(), rows.get(rows.len() / 2), rows.last())
    else {
        return;
    };
    let [least, median, most] = [least, median, most].map(|row| row.per_fuel());
    Report::line(&format!(
        "{what}: {least:.4} to {most:.4} ns for a fuel, {:.1}x (by Wasmtime's table {before:.0}x); aim {aim:.0}x: {}",
        most / least,
        if most / least <= aim { "met" } else { "missed" }
    ));
    Report::line(&format!(
        "    1 ATP buys {median:.3} s of a core at the median and {most:.3} s at most: {:.1}x",
        most / median
    ));
    let name = |row: &&Found| format!("{} {:.4}", row.name, row.per_fuel());
    let least: Vec<_> = rows.iter().take(EXTREMES).map(name).collect();
    let most: Vec<_> = rows.iter().rev().take(EXTREMES).map(name).collect();
    Report::line(&format!("    least: {}", least.join("; ")));
    Report::line(&format!("    most: {}", most.join("; ")));
}

/// An empty call from outside: what the worker's threads take for it, by the kernel's clock of them.
fn call(plan: &Plan, nucleus: &Nucleus, name: &str, bytes: usize) -> anyhow::Result<Found> {
    let mut client = Client::connect(nucleus.socket(), "echo")?;
    let slot = client.open_raw("echo")?;
    let (worker, payload) = (nucleus.worker()?, vec![7; bytes]);
    let mut all = Vec::new();
    let mut fuel = 0;
    for _ in 0..plan.rounds.count.max(5) {
        let before = processor_time(worker)?;
        for _ in 0..CALLS_PER_SAMPLE {
            fuel = client.call_raw(&slot, &payload, OPTIONS)?.fuel().0;
        }
        let time = processor_time(worker)?.saturating_sub(before);
        all.push(time as f64 / f64::from(CALLS_PER_SAMPLE));
    }
    Ok(Found {
        kind: Kind::Host,
        name: name.to_owned(),
        time: median(all),
        plain: plain_fuel_of_echo(bytes)? as f64,
        fuel: fuel as f64,
    })
}

/// What the threads of a process have run so far, in nanoseconds.
fn processor_time(process: Pid) -> anyhow::Result<u64> {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
        let path = task?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let ran: u64 = text.split(' ').next().unwrap_or_default().parse()?;
        sum += ran;
    }
    Ok(sum)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

fn one(plan: &Plan, nucleus: &Nucleus, kernel: Kernel, name: &str) -> anyhow::Result<Found> {
    let text = kernel.module();
    nucleus.put_with(name, &wat::parse_str(&text)?, kernel.manifest())?;
    nucleus.wait_for(name, DEPLOY_TIME_MAX)?;
    let mut calls = Calls::open(nucleus, name)?;
    let wanted = if kernel.is_fresh() { Duration::MAX } else { CALL_TIME };
    let times = calls.times_for(wanted, kernel.times_max)?;
    let (mut all, mut fuel) = (Vec::new(), 0);
    for _ in 0..plan.rounds.count.max(5) {
        let (nothing, least) = calls.call(0)?;
        let (something, most) = calls.call(times)?;
        all.push(nanoseconds(something.saturating_sub(nothing)) as f64);
        fuel = most - least;
    }
    let operations = f64::from(times) * f64::from(kernel.operations);
    let time = median(all) / operations;
    let plain = plain_fuel(&text, times)? as f64 / operations;
    Ok(Found { kind: kernel.kind, name: kernel.name, time, plain, fuel: fuel as f64 / operations })
}

/// A client of a kernel's cell; a request is how often the kernel shall do it.
struct Calls {
    client: Client,
    slot: RawSlot,
}

impl Calls {
    fn open(nucleus: &Nucleus, name: &str) -> anyhow::Result<Self> {
        let mut client = Client::connect(nucleus.socket_of(name), name)?;
        let slot = client.open_raw("run")?;
        Ok(Self { client, slot })
    }

    fn call(&mut self, times: u32) -> anyhow::Result<(Duration, u64)> {
        let started = Instant::now();
        let reply = self.client.call_raw(&self.slot, &times.to_le_bytes(), OPTIONS)?;
        let time = started.elapsed();
        ensure!(reply.bytes().len() == 8, "a wrong reply");
        Ok((time, reply.fuel().0))
    }

    /// How often it has to be done for a call to take about this long.
    fn times_for(&mut self, wanted: Duration, times_max: u32) -> anyhow::Result<u32> {
        let mut times = 16.min(times_max);
        loop {
            // The first call of a cell starts it; the second is like all others.
            self.call(times)?;
            let (time, _) = self.call(times)?;
            if time >= wanted || times >= times_max {
                return Ok(times);
            }
            times = times.saturating_mul(2).min(times_max);
        }
    }
}

/// A cell's instance that counts by Wasmtime's own table, with host calls that do nothing.
fn plain_instance(text: &str) -> Result<(Store<()>, Instance), wasmtime::Error> {
    let engine = Engine::new(Config::new().consume_fuel(true))?;
    let module = Module::new(&engine, wat::parse_str(text).map_err(wasmtime::Error::new)?)?;
    let mut linker = Linker::<()>::new(&engine);
    let mut store = Store::new(&engine, ());
    linker.define_unknown_imports_as_default_values(&mut store, &module)?;
    store.set_fuel(u64::MAX)?;
    let instance = linker.instantiate(&mut store, &module)?;
    if let Ok(start) = instance.get_typed_func::<(), ()>(&mut store, "_initialize") {
        start.call(&mut store, ())?;
    }
    Ok((store, instance))
}

/// What Wasmtime's own table counts for the echo cell's two functions.
fn plain_fuel_of_echo(bytes: usize) -> anyhow::Result<u64> {
    let failed = |e: wasmtime::Error| anyhow!("{e:#}");
    let (mut store, instance) = plain_instance(ECHO).map_err(failed)?;
    let (mailbox, receive) = (
        instance.get_typed_func::<u32, u32>(&mut store, "cell_mailbox").map_err(failed)?,
        instance
            .get_typed_func::<(u32, u32, u32), u64>(&mut store, "cell_receive")
            .map_err(failed)?,
    );
    let before = store.get_fuel().map_err(failed)?;
    let bytes = u32::try_from(bytes)?;
    let at = mailbox.call(&mut store, bytes).map_err(failed)?;
    receive.call(&mut store, (0, at, bytes)).map_err(failed)?;
    Ok(before - store.get_fuel().map_err(failed)?)
}

/// What Wasmtime's own table counts for a kernel.
fn plain_fuel(text: &str, times: u32) -> anyhow::Result<u64> {
    let failed = |e: wasmtime::Error| anyhow!("{e:#}");
    let (mut store, instance) = plain_instance(text).map_err(failed)?;
    let run = instance.get_typed_func::<u32, u64>(&mut store, "run").map_err(failed)?;
    let mut burned = |times| -> anyhow::Result<u64> {
        let before = store.get_fuel().map_err(failed)?;
        run.call(&mut store, times).map_err(failed)?;
        Ok(before - store.get_fuel().map_err(failed)?)
    };
    let nothing = burned(0)?;
    Ok(burned(times)?.saturating_sub(nothing))
}
