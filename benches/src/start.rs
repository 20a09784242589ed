//! What it takes to begin: a whole `cell run` of a small job, and putting a large module in place.
//!
//! Both are whole ways, from what a user does to what a user sees. The floors are the same by
//! Wasmtime alone: a program that loads one artefact and runs it, and the compiler.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use tempfile::TempDir;
use wasmtime::{Caller, Config, Engine, Linker, Module, Store};

use crate::cli::Plan;
use crate::measure::{Repeated, Rounds, Side, Tally, compare};
use crate::nucleus::{Nucleus, cell_binary};
use crate::placement::{Cores, Mode};
use crate::report::Report;
use crate::row::{Row, Target, Unit};

const RUN: &str = "cell run, compiled before";
const DEPLOY: &str = "deploy a module of 1 MB";
const SAYS: &str = "done\n";
const DEPLOY_TIME_MAX: Duration = Duration::from_secs(60);
/// One deploy takes seconds: each round has one for each side.
const DEPLOY_ROUNDS: Rounds =
    Rounds { count: 5, slice: Duration::from_millis(1), warm_up: Duration::from_millis(1) };

/// A job that says one line.
const JOB: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "\10\00\00\00\05\00\00\00done\n")
    (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0)))))"#;

/// Measures what is wanted.
pub(crate) fn measure(plan: &Plan, cores: &Cores, report: &mut Report) -> anyhow::Result<()> {
    cores.pin_this_process(Mode::Plain)?;
    if plan.wants(RUN) {
        let target = Target { text: "p50 ≤ 10 ms", is_met: |row| row.ours.p50 <= 10e6 };
        let files = tempfile::Builder::new().prefix("cell-bench-").tempdir()?;
        let (floor, ours) = (bare_run(&files)?, cell_run(&files)?);
        let (mut floor, mut ours) =
            (Repeated { batch: 1, work: floor }, Repeated { batch: 1, work: ours });
        let progress = report.progress(RUN, plan.rounds.count);
        let (floor, ours) = compare(plan, &mut floor, &mut ours, || progress.inc(1))?;
        progress.finish_and_clear();
        report.add(row(RUN, floor, ours).with_target(Some(target)));
    }
    if plan.wants(DEPLOY) {
        let nucleus = Nucleus::start()?;
        let plan = Plan { rounds: DEPLOY_ROUNDS, ..plan.clone() };
        let progress = report.progress(DEPLOY, plan.rounds.count);
        let (mut floor, mut ours) =
            (Compiled { engine: engine()?, made: 0 }, Deployed { nucleus: &nucleus, made: 0 });
        let (floor, ours) = compare(&plan, &mut floor, &mut ours, || progress.inc(1))?;
        progress.finish_and_clear();
        report.add(row(DEPLOY, floor, ours));
    }
    Ok(())
}

/// What the floor's program does: loads the artefact, runs it, ends.
#[allow(unsafe_code, reason = "deserialising native code is unsafe by contract")]
pub(crate) fn run_artefact(artefact: &Path) -> anyhow::Result<()> {
    let engine = engine()?;
    let failed = |e: wasmtime::Error| anyhow!("{e:#}");
    // SAFETY: the program that started this one wrote the file with such an engine.
    let module = unsafe { Module::deserialize_file(&engine, artefact) }.map_err(failed)?;
    let mut linker = Linker::<()>::new(&engine);
    linker
        .func_wrap(
            "wasi_snapshot_preview1",
            "fd_write",
            |mut caller: Caller<'_, ()>, _fd: i32, _vectors: i32, _count: i32, _written: i32| {
                let memory = caller.get_export("memory").and_then(wasmtime::Extern::into_memory);
                let bytes = memory.and_then(|m| m.data(&caller).get(16..16 + SAYS.len()));
                bytes.map_or(1, |bytes| i32::from(std::io::stdout().write_all(bytes).is_err()))
            },
        )
        .map_err(failed)?;
    let mut store = Store::new(&engine, ());
    store.set_fuel(1 << 40).map_err(failed)?;
    let instance = linker.instantiate(&mut store, &module).map_err(failed)?;
    let start = instance.get_typed_func::<(), ()>(&mut store, "_start").map_err(failed)?;
    start.call(&mut store, ()).map_err(failed)
}

fn row(work: &str, floor: Tally, ours: Tally) -> Row {
    Row::new(work.to_owned(), Mode::Plain.to_string(), Unit::Nanoseconds, floor, ours)
}

fn engine() -> anyhow::Result<Engine> {
    let mut config = Config::new();
    config.consume_fuel(true).cranelift_nan_canonicalization(true);
    Engine::new(&config).map_err(|e| anyhow!("make an engine: {e:#}"))
}

fn bare_run(files: &TempDir) -> anyhow::Result<impl FnMut() -> Result<(), String>> {
    let compiled = engine()?.precompile_module(&wat::parse_str(JOB)?);
    let artefact = files.path().join("job.cwasm");
    std::fs::write(&artefact, compiled.map_err(|e| anyhow!("compile: {e:#}"))?)?;
    let program = std::env::current_exe()?;
    Ok(move || says(Command::new(&program).arg("run-artefact").arg(&artefact)))
}

fn cell_run(files: &TempDir) -> anyhow::Result<impl FnMut() -> Result<(), String>> {
    let (home, module) = (files.path().join("home"), files.path().join("job.wasm"));
    std::fs::write(&module, wat::parse_str(JOB)?)?;
    let program = cell_binary()?;
    let run = move || {
        says(Command::new(&program).args(["run", "--quiet", "--home"]).arg(&home).arg(&module))
    };
    // The first one makes the home and compiles.
    run().map_err(|error| anyhow!(error))?;
    Ok(run)
}

/// Runs a program to its end, which has to say what the job says.
fn says(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() && output.stdout == SAYS.as_bytes() {
        return Ok(());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Compiles a module that nobody has compiled before.
struct Compiled {
    engine: Engine,
    made: u32,
}

impl Side for Compiled {
    fn slice(&mut self, _: Duration, tally: &mut Tally) {
        let timed = || -> anyhow::Result<Duration> {
            let wasm = wat::parse_str(large(2 * self.made))?;
            let started = Instant::now();
            self.engine.precompile_module(&wasm).map_err(|e| anyhow!("compile: {e:#}"))?;
            Ok(started.elapsed())
        };
        tally.take(timed());
        self.made += 1;
    }
}

/// Puts such a module into `cells/` and waits until it listens.
struct Deployed<'a> {
    nucleus: &'a Nucleus,
    made: u32,
}

impl Side for Deployed<'_> {
    fn slice(&mut self, _: Duration, tally: &mut Tally) {
        let timed = || -> anyhow::Result<Duration> {
            let name = format!("large{}", self.made);
            let wasm = wat::parse_str(large(2 * self.made + 1))?;
            ensure!((900_000..1_100_000).contains(&wasm.len()), "not 1 MB: {}", wasm.len());
            let started = Instant::now();
            self.nucleus.put_wasm(&name, &wasm)?;
            self.nucleus.wait_for(&name, DEPLOY_TIME_MAX)?;
            Ok(started.elapsed())
        };
        tally.take(timed());
        self.made += 1;
    }
}

/// An echo cell with a megabyte of code beside it, different for each number.
fn large(number: u32) -> String {
    let mut functions = String::new();
    for at in 0..3_350_u32 {
        let constant = number.wrapping_mul(0x9E37_79B9) ^ at.wrapping_mul(0x85EB_CA6B);
        functions.push_str(&function(at, constant.cast_signed()));
    }
    crate::nucleus::ECHO.replacen("(module", &format!("(module {functions}"), 1)
}

/// Some two hundred bytes of code as programs have it: arithmetic, memory, a loop, a branch.
fn function(at: u32, constant: i32) -> String {
    let callee = at.saturating_sub(1);
    let mixed = (1..=12).fold(String::new(), |body, step| {
        body + &format!(
            "(local.set $x (i32.xor (i32.mul (local.get $x) (i32.const {constant}))
                (i32.shr_u (local.get $x) (i32.const {step}))))"
        )
    });
    format!(
        "(func $f{at} (param $x i32) (result i32) (local $n i32)
            (loop $again {mixed}
                (i32.store offset=65536 (i32.and (local.get $x) (i32.const 65532)) (local.get $n))
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $n) (i32.const 9))))
            (if (result i32) (i32.gt_s (local.get $x) (i32.const {constant}))
                (then (call $f{callee} (i32.load offset=65536
                    (i32.and (local.get $x) (i32.const 65532)))))
                (else (local.get $x))))"
    )
}
