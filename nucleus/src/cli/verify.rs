//! `cell verify`: runs what a receipt bills again, and says where it differs.

#![allow(clippy::indexing_slicing, reason = "a field that is not in a JSON value reads as null")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use cell_abi::{CellHash, EngineId, Status};
use cell_host::limits::CELL_MEMORY_BYTES_MAX;
use cell_host::rates::Dimension;
use cell_host::{ModuleKind, Sandbox, gate};
use cell_ledger::ContentHash;
use cell_ledger::receipts::{
    Counters, FUEL, KeptCall, Leaf, Rate, Receipt, ReceiptStore, charge, content_hash, merkle,
};
use cell_ledger::signed::{from_hex, hex};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::job_process::JobProcess;
use super::output::escape;
use super::{Exit, Failure, Global, Output, job_receipt};
use crate::compile::{self, Compiled, Payer};
use crate::config::Config;
use crate::home::{Home, read_file};
use crate::job_worker::{JobReport, Prepare, RerunCall, RunJob, TapeUse, Task};
use crate::link::ModuleFacts;
use crate::memory_file;

/// Largest file with a receipt, in bytes.
pub(crate) const RECEIPT_BYTES_MAX: u64 = 256 << 20;
/// How long running one call or job again may take, in seconds, unless it is told.
const TIMEOUT_S: u64 = 600;
/// What a file with an exported receipt says that it is.
pub(super) const EXPORT: &str = "cell/receipt-export/v1";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A file: what `cell run --receipt` or `cell ledger receipts --export` wrote. Or the first digits of
    /// a receipt of this home, as `cell ledger receipts` shows them.
    receipt: String,
    /// Only this call of a cell's receipt.
    #[arg(long, value_name = "N")]
    call: Option<u64>,
    /// The module that ran, if it is not deployed here.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Give up a call or job after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT_S, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// A receipt with what belongs to it, as it is exported.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Export {
    pub(super) format: String,
    pub(super) receipt: Receipt,
    /// The one before it in its chain, unless it is the first.
    pub(super) before: Option<Receipt>,
    pub(super) calls: Vec<ExportedCall>,
}

/// A call under an exported receipt.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ExportedCall {
    pub(super) leaf: Leaf,
    /// Its neighbours on the way to the receipt's root; not needed where all leaves are there.
    #[serde(default)]
    pub(super) path: Vec<String>,
    /// Hexadecimal digits, if it was kept.
    pub(super) input: Option<String>,
    pub(super) tape: Option<String>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Where something differs, and how.
    pub(super) differences: Vec<String>,
    /// What cannot be checked, and why.
    pub(super) not_checkable: Vec<String>,
    rerun: u64,
    fuel: u64,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    let mut findings = Findings::default();
    let verifier = Verifier { arguments, wasm: None, home: &home, output };
    match verifier.source()? {
        Source::Job(receipt) => verifier.job(&receipt, &mut findings)?,
        Source::Calls(export) => verifier.calls(*export, &mut findings)?,
    }
    let Findings { differences, not_checkable, rerun, fuel } = findings;
    let verified = differences.is_empty();
    let value = json!({ "verified": verified, "rerun": rerun, "fuel": fuel,
                        "differences": differences, "not_checkable": not_checkable });
    let mut lines: Vec<_> = differences.iter().map(|text| format!("differs: {text}")).collect();
    lines.extend(not_checkable.iter().map(|text| format!("not checkable: {text}")));
    let runs = if rerun == 1 { "run" } else { "runs" };
    lines.push(match (verified, rerun) {
        (false, _) => "the receipt does not hold".into(),
        (true, 0) => "the signature holds; nothing was run again".into(),
        (true, _) => format!("verified: {rerun} {runs} again, {fuel} fuel, no difference"),
    });
    output.result(&value, &escape(&lines.join("\n")));
    Ok(if verified { Exit::Done } else { Exit::Failed })
}

/// Runs a job that was billed again, from its receipt and this module.
pub(super) fn job_again(
    home: &Home,
    wasm: &[u8],
    receipt: &Value,
    output: &Output,
) -> anyhow::Result<Findings> {
    let arguments =
        Arguments { receipt: String::new(), call: None, module: None, timeout: TIMEOUT_S };
    let mut findings = Findings::default();
    let verifier = Verifier { arguments: &arguments, wasm: Some(wasm), home, output };
    verifier.job(receipt, &mut findings)?;
    Ok(findings)
}

enum Source {
    Job(Value),
    Calls(Box<Export>),
}

struct Verifier<'a> {
    arguments: &'a Arguments,
    /// The module that ran, where it was read already.
    wasm: Option<&'a [u8]>,
    home: &'a Home,
    output: &'a Output,
}

impl Verifier<'_> {
    fn source(&self) -> anyhow::Result<Source> {
        let name = &self.arguments.receipt;
        if !Path::new(name).is_file() {
            let receipt = find(self.home, name)?;
            let store = open(self.home)?;
            return Ok(Source::Calls(Box::new(export(&store, receipt, self.arguments.call)?)));
        }
        let text = read_file(Path::new(name), RECEIPT_BYTES_MAX)?;
        let value: Value = serde_json::from_slice(&text).with_context(|| format!("read {name}"))?;
        if value["format"] == EXPORT {
            return Ok(Source::Calls(Box::new(
                serde_json::from_value(value).with_context(|| format!("read {name}"))?,
            )));
        }
        if value["version"] == 1 && value["outcome"].is_object() {
            return Ok(Source::Job(value));
        }
        bail!("{name} is neither a job's receipt nor an exported one")
    }

    fn calls(&self, export: Export, findings: &mut Findings) -> anyhow::Result<()> {
        let Export { receipt, before, calls, .. } = export;
        let mut wrong =
            |error: &dyn std::fmt::Display| findings.differences.push(error.to_string());
        if let Err(error) = receipt.check() {
            wrong(&error);
            return Ok(());
        }
        let first = receipt.sequence == 1;
        if let Err(error) = match &before {
            None if !first => Ok(()),
            before => receipt.check_follows(before.as_ref()),
        } {
            wrong(&error);
        }
        let leaves: Vec<_> = calls.iter().map(|call| call.leaf.clone()).collect();
        // What it counts since the one before it; that its leaves are its own is shown by them, or by paths.
        let has_sums = leaves.len() as u64 == receipt.calls() && (before.is_some() || first);
        if has_sums {
            if let Err(error) = receipt.check_leaves(before.as_ref(), &leaves) {
                wrong(&error);
                return Ok(());
            }
        } else if self.arguments.call.is_none() {
            let text =
                "the receipt's sums: not all of its calls, or not the receipt before it, are here";
            findings.not_checkable.push(text.into());
        }
        let wanted: Vec<_> = calls
            .into_iter()
            .filter(|call| self.arguments.call.is_none_or(|wanted| wanted == call.leaf.call))
            .collect();
        match self.arguments.call {
            Some(call) if wanted.is_empty() => {
                let kept = (receipt.first_call..=receipt.last_call).contains(&call);
                let why =
                    if kept { "it is not kept any more" } else { "the receipt has no such call" };
                bail!("call {call}: {why}")
            }
            None if wanted.is_empty() => {
                findings.not_checkable.push("no call is kept any more".into());
            }
            _ => {}
        }
        let bar = self.output.progress("running again");
        for call in wanted {
            bar.set_message(format!("running call {} again", call.leaf.call));
            self.call(&receipt, call, has_sums, findings)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn call(
        &self,
        receipt: &Receipt,
        call: ExportedCall,
        is_under: bool,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let number = call.leaf.call;
        let path =
            call.path.iter().map(|hash| ContentHash::parse(hash)).collect::<Result<Vec<_>, _>>();
        if !is_under && call.path.is_empty() && receipt.calls() > 1 {
            // Leaves beside it were given up, and nothing here says where it hangs.
            let text = format!("call {number}: what shows its place in the receipt is not here");
            findings.not_checkable.push(text);
            return Ok(());
        }
        if !is_under && receipt.check_leaf(&call.leaf, &path?).is_err() {
            findings
                .differences
                .push(format!("call {number}: the receipt was not signed over this leaf"));
            return Ok(());
        }
        let bytes = |text: &Option<String>| text.as_deref().map(from_hex);
        let (input, tape) = match (bytes(&call.input), bytes(&call.tape), &call.leaf.not_checkable)
        {
            (_, _, Some(why)) => {
                findings.not_checkable.push(format!("call {number}: {why}"));
                return Ok(());
            }
            (Some(Some(input)), Some(Some(tape)), None) => (input, tape),
            _ => {
                findings
                    .not_checkable
                    .push(format!("call {number}: request and tape are not here"));
                return Ok(());
            }
        };
        let leaf = &call.leaf;
        for (what, bytes, hash) in
            [("request", &input, leaf.input_hash), ("tape", &tape, leaf.tape_hash)]
        {
            if content_hash(bytes) != hash {
                findings
                    .differences
                    .push(format!("call {number}: the {what} is not the one that was billed"));
                return Ok(());
            }
        }
        if let Some(text) = other_engine(receipt.engine_id) {
            findings.not_checkable.push(format!("call {number}: {text}"));
            return Ok(());
        }
        let compiled = self.compiled(leaf.cell_hash, Some(&receipt.cell))?;
        let report = self.rerun_call(receipt, leaf, &compiled, (&input, &tape))?;
        let JobReport::Called { status, fuel, own_fuel, output, diverged } = report else {
            bail!("call {number} could not be run again: {}", not_started(&report));
        };
        if Status::from_code(status) == Some(Status::TimedOut) {
            let seconds = self.arguments.timeout;
            let text = format!("call {number}: it did not end within {seconds} s; see --timeout");
            findings.not_checkable.push(text);
            return Ok(());
        }
        findings.rerun += 1;
        findings.fuel = findings.fuel.saturating_add(fuel);
        let differs = &mut findings.differences;
        let mut compare = |what: &str,
                           billed: &dyn std::fmt::Display,
                           found: &dyn std::fmt::Display| {
            let (billed, found) = (billed.to_string(), found.to_string());
            if billed != found {
                differs.push(format!("call {number}: {what}: billed {billed}, run again {found}"));
            }
        };
        if diverged {
            compare("what it asks for", &"other things", &"not those on the tape");
            return Ok(());
        }
        compare("outcome", &status_name(leaf.status), &status_name(status));
        compare("fuel", &leaf.fuel, &fuel);
        compare("fuel of its own", leaf.billed.get(FUEL).unwrap_or(&0), &own_fuel);
        // What else is counted of a call follows from it, but for the time that it took.
        let is_told = matches!(Status::from_code(status), Some(Status::Ok | Status::Rejected));
        if receipt.rates.contains_key(Dimension::Egress.name()) {
            let billed = leaf.billed.get(Dimension::Egress.name()).unwrap_or(&0);
            compare("egress", billed, if is_told { &output.0 } else { &0 });
        }
        let starts = leaf.billed.get(Dimension::Start.name()).unwrap_or(&0);
        compare("starts", starts, &(*starts).min(1));
        compare("output bytes", &leaf.output_bytes, &output.0);
        compare("output", &leaf.output_hash, &output.1);
        Ok(())
    }

    fn rerun_call(
        &self,
        receipt: &Receipt,
        leaf: &Leaf,
        compiled: &Compiled,
        (input, tape): (&[u8], &[u8]),
    ) -> anyhow::Result<JobReport> {
        let task = Task::Call(RerunCall {
            cell: receipt.cell.clone(),
            hash: compiled.hash.to_string(),
            facts: ModuleFacts::of(&compiled.info),
            memory_bytes_max: leaf.memory_bytes_max.min(CELL_MEMORY_BYTES_MAX as u64),
            state_bytes_max: leaf.state_bytes_max,
            receptor: leaf.receptor,
            json: leaf.json,
            fuel_max: leaf.fuel_max,
            input_bytes: u32::try_from(leaf.input_bytes).unwrap_or(u32::MAX),
            timeout_ms: self.arguments.timeout * 1000,
        });
        let artefact =
            compile::cache(self.home)?.find(compiled.hash).context("the artefact vanished")?;
        let files = [artefact.into(), memory_file::write(input)?, memory_file::write(tape)?];
        self.in_process(&task, &files)
    }

    /// Has a walled process do it.
    fn in_process(&self, task: &Task, files: &[std::os::fd::OwnedFd]) -> anyhow::Result<JobReport> {
        let mut process = JobProcess::start(&Prepare {
            directories: Vec::new(),
            require_walls: Config::read(self.home)?.require_walls,
        })?;
        let files: Vec<_> = files.iter().map(std::os::fd::AsFd::as_fd).collect();
        // Where that fails the process has ended; what it said tells why.
        let _ = process.link.send(task, &files);
        let report = process.link.receive::<JobReport>(&mut Vec::new())?.map(|(report, _)| report);
        let status = process.end()?;
        report.with_context(|| format!("the process that runs it again ended with {status}"))
    }

    /// The module with this hash, compiled: the one that was named, or one that is deployed here.
    fn compiled(&self, hash: CellHash, cell: Option<&str>) -> anyhow::Result<Compiled> {
        let wasm = self.module(hash, cell)?;
        compile::compile(&compile::cache(self.home)?, &wasm, Payer::Home(self.home))
    }

    fn module(&self, hash: CellHash, cell: Option<&str>) -> anyhow::Result<Vec<u8>> {
        if let Some(wasm) = self.wasm.filter(|wasm| CellHash::of(wasm) == hash) {
            return Ok(wasm.to_vec());
        }
        let named = self.arguments.module.iter().cloned();
        let deployed = cell.into_iter().map(|cell| self.home.cell(cell)).chain(
            fs::read_dir(self.home.cells())
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path()),
        );
        let modules = deployed.filter_map(|directory| {
            let manifest = crate::manifest::Manifest::read(&directory).ok()?;
            Some(directory.join(manifest.wasm))
        });
        for path in named.chain(modules) {
            match read_file(&path, gate::MODULE_BYTES_MAX as u64) {
                Ok(wasm) if CellHash::of(&wasm) == hash => return Ok(wasm),
                Err(error) if Some(&path) == self.arguments.module.as_ref() => return Err(error),
                _ => {}
            }
        }
        let message = match &self.arguments.module {
            Some(path) => {
                format!("{} is not the module that ran, whose hash is {hash}", path.display())
            }
            None => format!("the module {hash} is not deployed here; name it with --module FILE"),
        };
        Err(Failure::new(Exit::Failed, message).into())
    }

    fn job(&self, receipt: &Value, findings: &mut Findings) -> anyhow::Result<()> {
        if self.arguments.call.is_some() {
            bail!("a job's receipt has no calls; leave --call out");
        }
        if !job_receipt::is_signed(receipt) {
            let text =
                "the signature is not the node's over this receipt: something in it was changed";
            findings.differences.push(text.into());
            return Ok(());
        }
        let rerun = &receipt["rerun"];
        let Some(tape) = rerun["tape"].as_str().and_then(from_hex) else {
            let why = rerun["not_checkable"].as_str().unwrap_or("it was not recorded");
            findings.not_checkable.push(format!("the job: {why}"));
            return Ok(());
        };
        let engine = EngineId::parse(text(receipt, "engine_id")?)?;
        if let Some(text) = other_engine(engine) {
            findings.not_checkable.push(format!("the job: {text}"));
            return Ok(());
        }
        let compiled = self.compiled(CellHash::parse(text(receipt, "cell_hash")?)?, None)?;
        if compiled.info.kind != ModuleKind::Command {
            bail!("the module is a cell, and the receipt is of a job");
        }
        let given: Given = serde_json::from_value(rerun.clone()).context("read the receipt")?;
        let mut arguments = vec![given.program];
        arguments.extend(given.arguments.iter().cloned());
        let task = Task::Job(RunJob {
            hash: compiled.hash.to_string(),
            facts: ModuleFacts::of(&compiled.info),
            arguments,
            environment: given.environment.clone(),
            directories: Vec::new(),
            fuel: receipt["fuel_max"].as_u64().context("the receipt has no fuel_max")?,
            allowance: None,
            memory_bytes_max: given.memory_bytes_max.min(4 << 30),
            timeout_ms: Some(self.arguments.timeout * 1000),
            tape: TapeUse::Play,
            rates: [0; 3],
        });
        let null = || fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        let artefact =
            compile::cache(self.home)?.find(compiled.hash).context("the artefact vanished")?;
        let files = [
            null()?.into(),
            null()?.into(),
            null()?.into(),
            artefact.into(),
            memory_file::write(&tape)?,
        ];
        let report = self.in_process(&task, &files)?;
        let JobReport::Ended {
            exit_code,
            status,
            message,
            fuel,
            stdin,
            stdout,
            stderr_bytes,
            diverged,
            ..
        } = report
        else {
            bail!("the job could not be run again: {}", not_started(&report));
        };
        let status = Status::from_code(status).unwrap_or(Status::HostFault);
        if status == Status::TimedOut {
            let seconds = self.arguments.timeout;
            let text = format!("the job: it did not end within {seconds} s; see --timeout");
            findings.not_checkable.push(text);
            return Ok(());
        }
        findings.rerun += 1;
        findings.fuel = fuel;
        let outcome = job_receipt::outcome(exit_code, status, &message);
        let input = job_receipt::input_hash(&given.arguments, &given.environment, &stdin.1);
        if diverged {
            let text = "what it asks for: not those things that are on the tape";
            findings.differences.push(text.into());
            return Ok(());
        }
        let billed = Billed::deserialize(receipt).context("read the receipt")?;
        // What else is counted follows from the run, but for the time that it took.
        let counted = |dimension: Dimension, found: u64| {
            let has_price = billed.rates.contains_key(dimension.name());
            (
                &receipt["counters"][dimension.name()],
                if has_price { json!(found) } else { json!(null) },
            )
        };
        let (starts, one) = counted(Dimension::Start, 1);
        let (egress, written) = counted(Dimension::Egress, stdout.0.saturating_add(stderr_bytes));
        let charge = u64::try_from(charge(&billed.counters, &billed.rates)?).ok();
        for (what, billed, found) in [
            ("outcome", &receipt["outcome"], outcome),
            ("fuel", &receipt["fuel"], json!(fuel)),
            ("fuel that is charged", &receipt["counters"][FUEL], json!(fuel)),
            ("starts", starts, one),
            ("egress", egress, written),
            ("charge", &receipt["charge_nano_atp"], json!(charge)),
            ("input", &receipt["input_hash"], json!(input)),
            ("output bytes", &receipt["stdout_bytes"], json!(stdout.0)),
            ("output", &receipt["output_hash"], json!(stdout.1)),
        ] {
            if *billed != found {
                findings.differences.push(format!("{what}: billed {billed}, run again {found}"));
            }
        }
        Ok(())
    }
}

/// What a job is charged for, as its receipt has it.
#[derive(Debug, Deserialize)]
struct Billed {
    counters: Counters,
    rates: BTreeMap<String, Rate>,
}

/// What a job was given, as its receipt has it.
#[derive(Debug, Deserialize)]
struct Given {
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    memory_bytes_max: u64,
}

fn text<'a>(receipt: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    receipt[field].as_str().with_context(|| format!("the receipt has no {field}"))
}

fn other_engine(engine: EngineId) -> Option<String> {
    let own = Sandbox::engine_id();
    (engine != own).then(|| {
        format!(
            "it ran under engine {}, this program has {}; fuel can be compared only under the same",
            engine.short(),
            own.short()
        )
    })
}

fn status_name(code: u32) -> String {
    Status::from_code(code).map_or_else(|| code.to_string(), |status| format!("{status:?}"))
}

fn not_started(report: &JobReport) -> &str {
    match report {
        JobReport::NotStarted { message } => message,
        _ => "its process answered something else",
    }
}

/// The receipts of a home; there is no file before the first.
pub(super) fn open(home: &Home) -> anyhow::Result<ReceiptStore> {
    let path = home.receipts();
    if !path.exists() {
        let text = "this home has no receipts: a cell whose Cell.toml says receipts = true gets them as it is called";
        return Err(Failure::new(Exit::Failed, text).into());
    }
    Ok(ReceiptStore::open(&path, u64::MAX)?)
}

/// The one receipt whose hash begins so.
pub(super) fn find(home: &Home, digits: &str) -> anyhow::Result<Receipt> {
    if digits.len() < 4 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        bail!("`{}` is neither a file nor the first digits of a receipt", escape(digits));
    }
    let mut found = open(home)?.find(digits)?;
    match (found.pop(), found.is_empty()) {
        (Some(receipt), true) => Ok(receipt),
        (Some(_), false) => bail!("more than one receipt begins with {digits}; write more digits"),
        (None, _) => bail!("no receipt begins with {digits}; `cell ledger receipts` shows them"),
    }
}

/// A receipt with all that is kept of its calls, or of one of them.
pub(super) fn export(
    store: &ReceiptStore,
    receipt: Receipt,
    only: Option<u64>,
) -> anyhow::Result<Export> {
    let calls = store.calls(&receipt)?;
    let hashes: Vec<_> = calls.iter().map(|call| call.leaf.hash()).collect();
    let are_all = calls.len() as u64 == receipt.calls();
    let exported = |(place, call): (usize, KeptCall)| {
        let path = if are_all { merkle::path(&hashes, place) } else { Vec::new() };
        let digits = |bytes: Option<Vec<u8>>| bytes.map(|bytes| hex(&bytes));
        ExportedCall {
            leaf: call.leaf,
            path: path.iter().map(ToString::to_string).collect(),
            input: digits(call.input),
            tape: digits(call.tape),
        }
    };
    let wanted = |call: &ExportedCall| only.is_none_or(|only| only == call.leaf.call);
    Ok(Export {
        format: EXPORT.into(),
        before: store.before(&receipt)?,
        calls: calls.into_iter().enumerate().map(exported).filter(wanted).collect(),
        receipt,
    })
}
