//! `cell run`: any WASI program, once, within a budget, with a bill.
//!
//! It needs no nucleus: it sets the budget aside in the ledger itself, runs the job in a process of
//! its own, pays what was burned, and gives back the rest.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use cell_abi::{CellHash, Fuel, NanoAtp, Status};
use cell_host::{ModuleKind, Rates, Sandbox, gate, price};
use clap::Args;
use ed25519_dalek::SigningKey;
use serde_json::json;

use super::call::{Budget, seconds};
use super::job_end::{Ended, Terms};
use super::job_process::JobProcess;
use super::{Exit, Failure, Global, Output, remote};
use crate::bank::{Bank, Held};
use crate::compile::{self, Compiled, Payer};
use crate::config::Config;
use crate::home::Home;
use crate::job_worker::{JobReport, Prepare, RunJob, TapeUse, Task};
use crate::link::ModuleFacts;
use crate::prices::Prices;
use crate::signals::{self, Hearing, SignalKind};

/// The budget of who names none: about ten seconds of plain arithmetic.
const BUDGET_DEFAULT: NanoAtp = NanoAtp(100_000_000_000);

const NOT_A_COMMAND: &str =
    "this is a cell, not a command; deploy it with `cell deploy` and call it with `cell call`";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A wasm32-wasip1 command.
    module: PathBuf,
    #[command(flatten)]
    budget: Budget,
    /// End the job after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
    /// Let the job use a directory: HOST::GUEST, or HOST::GUEST::ro to look but not touch.
    #[arg(long, value_name = "HOST::GUEST", value_parser = parse_directory)]
    dir: Vec<(PathBuf, String, bool)>,
    /// Set an environment variable for the job.
    #[arg(long, value_name = "K=V", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Memory the job may have, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    memory: u32,
    #[command(flatten)]
    elsewhere: remote::Elsewhere,
    /// Say what the run would cost, and do not run it.
    #[arg(long)]
    quote: bool,
    /// Write the bill with every figure to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// What the job gets as its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn parse_directory(text: &str) -> Result<(PathBuf, String, bool), String> {
    let parts: Vec<&str> = text.split("::").collect();
    match parts.as_slice() {
        [host, guest] if !host.is_empty() && !guest.is_empty() => {
            Ok((host.into(), (*guest).to_owned(), false))
        }
        [host, guest, "ro"] if !host.is_empty() && !guest.is_empty() => {
            Ok((host.into(), (*guest).to_owned(), true))
        }
        _ => Err("write HOST::GUEST or HOST::GUEST::ro, such as ./data::/data".into()),
    }
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write K=V, such as LANG=C".into()),
    }
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let timeout = arguments.timeout.map(seconds).transpose()?;
    for (host, ..) in &arguments.dir {
        if !host.is_dir() {
            return Err(Failure::new(
                Exit::Usage,
                format!("--dir: {} is not a directory", host.display()),
            )
            .into());
        }
    }
    let create = |path: &PathBuf| {
        fs::File::create(path).map_err(|error| {
            Failure::new(Exit::Usage, format!("--receipt: create {}: {error}", path.display()))
        })
    };
    let home = global.home()?;
    let wasm = read_module(&arguments.module)?;
    if arguments.quote {
        return quote(arguments, &home, &wasm, output);
    }
    if arguments.elsewhere.is_asked() {
        let program = program(&arguments.module);
        let asked = remote::Asked {
            wasm: &wasm,
            arguments: std::iter::once(program)
                .chain(arguments.arguments.iter().cloned())
                .collect(),
            environment: arguments.env.clone(),
            memory_mb_max: arguments.memory,
            budget_nano_atp: arguments.budget.fuel_or(BUDGET_DEFAULT).at_base_price().0,
            is_budget_given: arguments.budget.is_given(),
            timeout,
            receipt: arguments.receipt.as_ref().map(create).transpose()?,
        };
        let receipt = arguments.receipt.as_deref();
        return remote::run(&home, (&arguments.elsewhere, receipt), asked, output);
    }
    let directories = directories(arguments)?;
    let config = Config::read(&home)?;
    // It takes as long to start as the ledger takes to open, so it starts first.
    let process = JobProcess::start(&Prepare {
        directories: directories.iter().map(|(host, _, ro)| (host.clone(), *ro)).collect(),
        require_walls: config.require_walls,
    })?;
    let rates = config.prices.rates();
    let mut bank = Bank::open(&home)?;
    let bar = output.progress("compiling");
    let cache = compile::cache(&home)?;
    let compiled = compile::compile(&cache, &wasm, Payer::Bank(&mut bank))?;
    bar.finish_and_clear();
    if compiled.info.kind != ModuleKind::Command {
        return Err(Failure::new(Exit::Refused, NOT_A_COMMAND).into());
    }
    let receipt = arguments.receipt.as_ref().map(create).transpose()?;
    let artefact = cache.find(compiled.hash).context("the artefact vanished")?;
    let budget = arguments.budget.fuel_or(BUDGET_DEFAULT).at_base_price();
    let called = program(&arguments.module);
    let held = terms(arguments, &called, &compiled, rates, &bank).hold(
        &mut bank,
        (budget, arguments.budget.is_given()),
        "see `cell ledger grant`",
    )?;
    let mut run = Run {
        arguments,
        compiled: &compiled,
        timeout,
        directories,
        rates,
        started: SystemTime::now(),
        receipt,
    };
    let report = run.execute(process, held.amount.fuel_at_base_price(), &artefact);
    let report = report.inspect_err(|_| drop(bank.void(held)))?;
    run.conclude(&mut bank, held, &report, &home.key()?, output)
}

/// What a run would cost: all that can be known before it runs. Nothing is set aside or written.
fn quote(arguments: &Arguments, home: &Home, wasm: &[u8], output: &Output) -> anyhow::Result<Exit> {
    let info = gate::inspect(wasm)
        .map_err(|error| Failure::new(Exit::Refused, format!("refused by the gate: {error}")))?;
    if info.kind != ModuleKind::Command {
        return Err(Failure::new(Exit::Refused, NOT_A_COMMAND).into());
    }
    // Looking into the cache makes one; a home that has none has compiled nothing.
    let is_compiled =
        home.artefacts().is_dir() && compile::cache(home)?.find(CellHash::of(wasm)).is_some();
    let compile = if is_compiled { 0 } else { price::compile(wasm.len() as u64) };
    let start = price::start(info.memory_pages, info.data_bytes);
    let prices = Prices::of(home)?;
    let budget = arguments.budget.fuel_or(BUDGET_DEFAULT).at_base_price();
    let at_most = budget.checked_add(NanoAtp(compile)).context("such a budget cannot be")?;
    let value = json!({
        "cell_hash": CellHash::of(wasm).to_string(),
        "engine_id": Sandbox::engine_id().to_string(),
        "compile_nano_atp": compile,
        "start_nano_atp": start,
        "rates": prices.json(),
        "budget_nano_atp": budget.0,
        "at_most_nano_atp": at_most.0,
    });
    let once = if is_compiled { "compiled already" } else { "once for this module" };
    let text = format!(
        "compiling  {} ATP, {once}\nstarting   {} ATP, of the budget\nbudget     {budget} ATP\nat most    {at_most} ATP in all\nprices, of the budget:{}",
        NanoAtp(compile),
        NanoAtp(start.saturating_add(prices.start.0)),
        prices.text()
    );
    output.result(&value, &text);
    Ok(Exit::Done)
}

/// Reads the module; a pipe will do, for who names one means it.
fn read_module(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut wasm = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(gate::MODULE_BYTES_MAX as u64 + 1).read_to_end(&mut wasm))
        .with_context(|| format!("read {}", path.display()))?;
    Ok(wasm)
}

/// What the job may use, each by its true path.
fn directories(arguments: &Arguments) -> anyhow::Result<Vec<(PathBuf, String, bool)>> {
    let resolve = |(host, guest, read_only): &(PathBuf, String, bool)| {
        let host = host.canonicalize().with_context(|| format!("--dir: {}", host.display()))?;
        Ok((host, guest.clone(), *read_only))
    };
    arguments.dir.iter().map(resolve).collect()
}

struct Run<'a> {
    arguments: &'a Arguments,
    compiled: &'a Compiled,
    timeout: Option<Duration>,
    directories: Vec<(PathBuf, String, bool)>,
    rates: Rates,
    started: SystemTime,
    /// Open before anything runs: a job that was paid must not lose its receipt to a wrong path.
    receipt: Option<fs::File>,
}

impl Run<'_> {
    /// Has the process run the job, and waits for its report.
    fn execute(
        &self,
        mut process: JobProcess,
        fuel: Fuel,
        artefact: &fs::File,
    ) -> anyhow::Result<Ended> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let fds: [BorrowedFd<'_>; 4] =
            [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), artefact.as_fd()];
        // Ctrl-C goes to both processes; the job's ends the job, and this one pays.
        let _signals = pass_signals_on(&process.child)?;
        // Where that fails the process has ended; what it said, or its end, tells why.
        let _ = process.link.send(&Task::Job(self.job(fuel)), &fds);
        let reported = self.wait(&mut process);
        let status = process.end()?;
        Ended::read(reported?, status)
    }

    fn wait(&self, process: &mut JobProcess) -> anyhow::Result<Option<(JobReport, Vec<OwnedFd>)>> {
        let Some(timeout) = self.timeout else {
            return Ok(process.link.receive(&mut Vec::new())?);
        };
        // The job's process keeps the time; if it fails to, it is ended from here.
        let reader = process.link.try_clone()?;
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || drop(sender.send(reader.receive::<JobReport>(&mut Vec::new()))));
        match receiver.recv_timeout(timeout + Duration::from_secs(5)) {
            Ok(received) => Ok(received?),
            Err(_) => {
                process.child.kill()?;
                Err(Failure::new(
                    Exit::NucleusFault,
                    "the job's process did not end in time; nothing is charged",
                )
                .into())
            }
        }
    }

    fn job(&self, fuel: Fuel) -> RunJob {
        let arguments = self.arguments;
        RunJob {
            hash: self.compiled.hash.to_string(),
            facts: ModuleFacts::of(&self.compiled.info),
            arguments: std::iter::once(self.program())
                .chain(arguments.arguments.iter().cloned())
                .collect(),
            environment: arguments.env.clone(),
            directories: self.directories.clone(),
            fuel: fuel.0,
            allowance: None,
            memory_bytes_max: u64::from(arguments.memory) << 20,
            timeout_ms: self
                .timeout
                .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
            // Only who keeps the receipt can have the job run again.
            rates: self.rates.0,
            tape: if self.receipt.is_some() { TapeUse::Record } else { TapeUse::None },
        }
    }

    fn program(&self) -> String {
        program(&self.arguments.module)
    }

    /// Pays, tells what it cost, and passes the job's exit code through.
    fn conclude(
        &mut self,
        bank: &mut Bank,
        held: Held,
        ended: &Ended,
        key: &SigningKey,
        output: &Output,
    ) -> anyhow::Result<Exit> {
        let program = self.program();
        let terms = terms(self.arguments, &program, self.compiled, self.rates, bank);
        let funds = terms.funds(held, None);
        let (charge, receipt) = terms.settle(bank, funds, ended, self.started, key)?;
        if output.json() {
            // Standard output is the job's; the bill goes where the people's line goes.
            output.machine_note(&receipt);
        }
        if let Some(paid) = self.compiled.paid {
            let price = paid.fuel.at_base_price();
            output
                .note(&format!("compiled: {price} ATP, once for this module, besides the budget"));
        }
        output.note(&ended.bill(charge, self.rates));
        if ended.status == Status::OutOfFuel {
            output.note("give it more with --budget, such as --budget 500");
        }
        if let Some(file) = &mut self.receipt {
            let text = serde_json::to_string_pretty(&receipt)? + "\n";
            file.write_all(text.as_bytes()).context("write the receipt")?;
        }
        Ok(ended.exit())
    }
}

/// What the job is given, by the owner's account.
fn terms<'a>(
    arguments: &'a Arguments,
    program: &'a str,
    compiled: &'a Compiled,
    rates: Rates,
    bank: &Bank,
) -> Terms<'a> {
    Terms {
        job_id: None,
        compiled,
        rates,
        payer: bank.accounts.owner,
        program,
        arguments: &arguments.arguments,
        environment: &arguments.env,
        directories: arguments.dir.iter().map(|(_, guest, _)| guest.as_str()).collect(),
        memory_mb_max: arguments.memory,
    }
}

/// What a job is told that it is called.
fn program(module: &Path) -> String {
    module.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Keeps signals from ending this process for as long as the result lives: the job ends first, and
/// is paid. Ctrl-C reaches the job's process by itself; a termination is passed on to it.
pub(super) fn pass_signals_on(child: &Child) -> anyhow::Result<Hearing> {
    use rustix::process::{Pid, Signal, kill_process};
    let job = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(signals::hear(&[SignalKind::interrupt(), SignalKind::terminate()], move |kind| {
        if let Some(job) = job.filter(|_| kind == SignalKind::terminate()) {
            // A job that has ended needs no signal.
            let _ = kill_process(job, Signal::INT);
        }
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_variables() {
        assert_eq!(parse_directory("a::/b"), Ok(("a".into(), "/b".into(), false)));
        assert_eq!(parse_directory("a::/b::ro"), Ok(("a".into(), "/b".into(), true)));
        for bad in ["a", "a::", "::b", "a::b::rw", "a::b::ro::c"] {
            assert!(parse_directory(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(parse_variable("=b").is_err());
        assert!(parse_variable("A").is_err());
    }
}
