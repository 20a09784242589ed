//! `cell run --on`: a job for another machine, with this one's streams.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use cell_abi::{AccountId, CellHash, NanoAtp};
use cell_host::price;
use cell_peer::Request;
use serde_json::{Value, json};

use super::wire::{self, End, Kind, RECEIPT_BYTES_MAX, SPEC_BYTES_MAX, Spec};
use crate::cli::channel::{Money, Paying, Purse};
use crate::cli::output::escape;
use crate::cli::{Exit, Failure, Output, job_receipt};
use crate::home::Home;
use crate::peers::{Machine, Peers};

/// The least that is agreed to at a time, in nano-ATP: a machine does not work for less than it costs to ask.
const SLICE_NANO_MIN: u64 = 10_000_000;

/// How long it may take to be connected.
pub(crate) const DIAL_TIME_MAX: Duration = Duration::from_secs(20);

/// What `cell run` was told, and read.
pub(crate) struct Asked<'a> {
    pub(crate) machine: &'a str,
    pub(crate) wasm: &'a [u8],
    /// The program's name first.
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) memory_mb_max: u32,
    pub(crate) budget_nano_atp: u64,
    pub(crate) is_budget_given: bool,
    pub(crate) timeout: Option<Duration>,
    /// Where the receipt goes, open already.
    pub(crate) receipt: Option<std::fs::File>,
    /// The ledger of the channel that pays; without one this home's account there does.
    pub(crate) pay_by: Option<&'a str>,
    /// The most of it that is at stake at a time.
    pub(crate) slice: Option<NanoAtp>,
}

/// Has the other machine run it; ends as the job does.
pub(crate) fn run(home: &Home, asked: Asked<'_>, output: &Output) -> anyhow::Result<Exit> {
    let (budget, slice, wasm) = (NanoAtp(asked.budget_nano_atp), asked.slice, asked.wasm);
    let mut spec = Spec {
        module: CellHash::of(asked.wasm).to_string(),
        module_bytes: asked.wasm.len() as u64,
        arguments: asked.arguments,
        environment: asked.environment,
        memory_mb_max: asked.memory_mb_max,
        budget_nano_atp: asked.budget_nano_atp,
        is_budget_given: asked.is_budget_given,
        timeout_ms: asked
            .timeout
            .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
        recorded: asked.receipt.is_some(),
        // As long as any, so that what follows is known to fit.
        channel: asked.pay_by.map(|_| "0".repeat(64)),
    };
    let bytes = serde_json::to_vec(&spec)?.len();
    if bytes > SPEC_BYTES_MAX {
        let message = format!(
            "arguments and variables for another machine have at most {SPEC_BYTES_MAX} bytes; these have {bytes}"
        );
        return Err(Failure::new(Exit::Usage, message).into());
    }
    let machine = Machine::parse(asked.machine, &Peers::read(home)?)
        .map_err(|error| Failure::new(Exit::Usage, format!("--on: {error:#}")))?;
    let paying = match asked.pay_by {
        Some(ledger) => Some(open_channel(home, &machine, (ledger, budget, slice), wasm, output)?),
        None => None,
    };
    spec.channel = paying.as_ref().map(|paying| paying.channel.to_string());
    let said = send(home, &machine, &spec, wasm, output);
    if let Some(paying) = paying {
        settle(paying, said.as_ref().ok(), wasm, output)?;
    }
    let Said { end, receipt, output: said } = said?;
    if let Some(receipt) = &receipt {
        check(receipt, &spec, machine.peer, home, &said)?;
        if output.json() {
            output.machine_note(receipt);
        }
        if let Some(mut file) = asked.receipt {
            let text = serde_json::to_string_pretty(receipt)? + "\n";
            file.write_all(text.as_bytes()).context("write the receipt")?;
        }
    }
    if !end.ran {
        let message = format!("the other machine: {}", escape(&end.message));
        return Err(Failure::new(Exit::Job(end.exit), message).into());
    }
    output.note(&escape(&end.message));
    if spec.recorded && receipt.is_none() {
        let message = "the other machine sent no receipt";
        return Err(Failure::new(Exit::NucleusFault, message).into());
    }
    Ok(Exit::Job(end.exit))
}

fn send(
    home: &Home,
    machine: &Machine,
    spec: &Spec,
    wasm: &[u8],
    output: &Output,
) -> anyhow::Result<Said> {
    let mut socket = machine.connect(home, &Request::Job, DIAL_TIME_MAX)?;
    wire::write(&mut socket, Kind::Spec, &serde_json::to_vec(spec)?).context("send the job")?;
    converse(&mut socket, wasm, output)
}

/// A channel over the budget and what compiling costs, whose bills are paid from here on.
fn open_channel(
    home: &Home,
    machine: &Machine,
    (ledger, budget, slice): (&str, NanoAtp, Option<NanoAtp>),
    wasm: &[u8],
    output: &Output,
) -> anyhow::Result<Paying> {
    let compile = NanoAtp(price::compile(wasm.len() as u64));
    let deposit = budget.checked_add(compile).context("such a budget cannot be")?;
    // What compiling costs is known before, and due at once.
    let slice = slice.unwrap_or(NanoAtp(budget.0 / 10)).max(NanoAtp(SLICE_NANO_MIN));
    let slice = slice.checked_add(compile).context("such a slice cannot be")?;
    let bar = output.progress("opening a channel");
    let money = Money::open(home, machine, Purse { ledger, deposit, slice });
    bar.finish_and_clear();
    money.context("open a channel")?.pay()
}

/// Pays for what was said to be done, if the bill fits that.
fn settle(paying: Paying, said: Option<&Said>, wasm: &[u8], output: &Output) -> anyhow::Result<()> {
    let channel = paying.channel;
    let is_right = |charge: NanoAtp| match said {
        // The line was lost; what was done until then cannot be known here.
        None => Ok(()),
        Some(Said { receipt: Some(receipt), .. }) => {
            let part = |field: &str| receipt[field].as_u64().unwrap_or(0);
            let expected = part("charge_nano_atp").saturating_add(part("compile_fuel"));
            match charge == NanoAtp(expected) {
                true => Ok(()),
                false => Err(format!(
                    "the channel is billed {charge} ATP, and the job's receipt says {} ATP",
                    NanoAtp(expected)
                )),
            }
        }
        Some(_) if charge.0 <= price::compile(wasm.len() as u64) => Ok(()),
        Some(_) => Err(format!("the channel is billed {charge} ATP for a job that did not run")),
    };
    let standing = paying.end(is_right).context("settle the channel")?;
    let (paid, deposit) = (NanoAtp(standing.paid_nano), NanoAtp(standing.deposit_nano));
    output.note(&format!(
        "channel {}: {paid} of {deposit} ATP were paid; the rest is back",
        channel.short()
    ));
    if output.json() {
        output.machine_note(&json!({ "channel": channel.to_string(), "standing": standing }));
    }
    Ok(())
}

/// What the other machine said.
struct Said {
    end: End,
    receipt: Option<Value>,
    /// BLAKE3 of all output that came.
    output: String,
}

/// Whether the receipt is of this job, and within what was agreed to: another one may be signed as well.
fn check(
    receipt: &Value,
    spec: &Spec,
    node: AccountId,
    home: &Home,
    output: &str,
) -> anyhow::Result<()> {
    let payer = match &spec.channel {
        Some(channel) => channel.clone(),
        None => AccountId::from_bytes(home.key()?.verifying_key().to_bytes()).to_string(),
    };
    let arguments = spec.arguments.get(1..).unwrap_or_default();
    let charge = receipt["charge_nano_atp"].as_u64();
    let rerun = &receipt["rerun"];
    let fits = [
        ("node", receipt["node"] == node.to_string().as_str()),
        ("signature", job_receipt::is_signed(receipt)),
        ("payer", receipt["payer"] == payer.as_str()),
        ("module", receipt["cell_hash"] == spec.module.as_str()),
        ("charge", charge.is_some_and(|charge| charge <= spec.budget_nano_atp)),
        ("output", receipt["output_hash"] == output),
        ("arguments", rerun.is_null() || rerun["arguments"] == json!(arguments)),
        ("variables", rerun.is_null() || rerun["environment"] == json!(spec.environment)),
    ];
    match fits.into_iter().find(|(_, fits)| !fits) {
        None => Ok(()),
        Some((what, _)) => {
            let message =
                format!("the receipt that came is not of this job: its {what} is another");
            Err(Failure::new(Exit::NucleusFault, message).into())
        }
    }
}

/// Goes on until the other machine has said how it ended.
fn converse(socket: &mut UnixStream, wasm: &[u8], output: &Output) -> anyhow::Result<Said> {
    let lost = || {
        let message = "the connection was lost; what the job did until then is charged there";
        anyhow::Error::from(Failure::new(Exit::NucleusFault, message))
    };
    let (mut content, mut receipt) = (Vec::new(), Vec::new());
    let (mut was_sent, mut fed, mut hasher) = (false, false, blake3::Hasher::new());
    let bar = output.progress("sending the job");
    loop {
        let kind = wire::read(socket, &mut content).map_err(|_| lost())?.ok_or_else(lost)?;
        if !fed && kind != Kind::NeedModule {
            // From here on it has all that it needs but its input.
            fed = true;
            feed(socket.try_clone()?)?;
        }
        match kind {
            Kind::NeedModule if !was_sent && !fed => {
                was_sent = true;
                wire::write(socket, Kind::Module, wasm).map_err(|_| lost())?;
            }
            // It only says that it is there.
            Kind::Progress if content.is_empty() => {}
            Kind::Progress => bar.set_message(escape(&String::from_utf8_lossy(&content))),
            Kind::Output => {
                bar.finish_and_clear();
                hasher.update(&content);
                output.bytes(&content)?;
            }
            Kind::Errors => {
                bar.finish_and_clear();
                output.error_bytes(&content);
            }
            Kind::Receipt => {
                if receipt.len() + content.len() > RECEIPT_BYTES_MAX {
                    return Err(lost());
                }
                receipt.extend_from_slice(&content);
            }
            Kind::End => {
                bar.finish_and_clear();
                let end = serde_json::from_slice(&content).map_err(|_| lost())?;
                let receipt = match receipt.is_empty() {
                    true => None,
                    false => Some(serde_json::from_slice(&receipt).map_err(|_| lost())?),
                };
                let output = hasher.finalize().to_string();
                return Ok(Said { end, receipt, output });
            }
            Kind::NeedModule | Kind::Spec | Kind::Module | Kind::Input => return Err(lost()),
        }
    }
}

/// Carries this command's standard input, on a thread that ends with it.
fn feed(mut socket: UnixStream) -> anyhow::Result<()> {
    thread::Builder::new().name("input".into()).spawn(move || {
        let mut bytes = vec![0; wire::FRAME_BYTES_MAX];
        let mut stdin = std::io::stdin().lock();
        while let Ok(read) = stdin.read(&mut bytes) {
            let part = bytes.get(..read).unwrap_or_default();
            // An empty part says that there is no more.
            if wire::write(&mut socket, Kind::Input, part).is_err() || read == 0 {
                return;
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use cell_ledger::signed;
    use ed25519_dalek::SigningKey;

    use super::*;

    /// A machine that sends somebody else's receipt, an old one, or one for more than was agreed to.
    #[test]
    fn only_its_own_receipt_will_do() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(directory.path().to_owned())).unwrap();
        let payer = AccountId::from_bytes(home.key().unwrap().verifying_key().to_bytes());
        let key = SigningKey::from_bytes(&[7; 32]);
        let node = signed::node(&key);
        let spec = Spec {
            module: "ab".repeat(32),
            module_bytes: 1,
            arguments: vec!["job.wasm".into(), "a".into()],
            environment: Vec::new(),
            memory_mb_max: 1,
            budget_nano_atp: 100,
            is_budget_given: true,
            timeout_ms: None,
            recorded: true,
            channel: None,
        };
        let said = |pointer: &str, value: Value| {
            let mut receipt = json!({
                "node": node.to_string(), "payer": payer.to_string(), "cell_hash": spec.module,
                "charge_nano_atp": 100, "output_hash": "out",
                "rerun": { "arguments": ["a"], "environment": [] },
            });
            if let Some(place) = receipt.pointer_mut(pointer) {
                *place = value;
            }
            receipt["signature"] = json!(signed::sign("cell/job-receipt/v1", &receipt, &key));
            check(&receipt, &spec, node, &home, "out").map_err(|error| error.to_string())
        };
        assert_eq!(
            said("", json!({})),
            Err("the receipt that came is not of this job: its node is another".into())
        );
        assert_eq!(said("/nothing", json!(0)), Ok(()));
        for (pointer, value, expect) in [
            ("/node", json!("cd".repeat(32)), "node"),
            ("/payer", json!("cd".repeat(32)), "payer"),
            ("/cell_hash", json!("cd".repeat(32)), "module"),
            ("/charge_nano_atp", json!(101), "charge"),
            ("/output_hash", json!("other"), "output"),
            ("/rerun/arguments", json!(["b"]), "arguments"),
            ("/rerun/environment", json!([["A", "b"]]), "variables"),
        ] {
            let told = said(pointer, value).unwrap_err();
            assert!(told.contains(&format!("its {expect} is")), "{pointer}: {told}");
        }
        let unsigned = json!({ "node": node.to_string(), "signature": "00" });
        let told = check(&unsigned, &spec, node, &home, "out").unwrap_err().to_string();
        assert!(told.contains("its signature is"), "{told}");
    }
}
