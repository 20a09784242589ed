//! One job for one other machine: what it is told, what it says, and whether its receipt is of that job.
//!
//! Which machine, and what becomes of an answer, is not decided here.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::{AccountId, CellHash};
use cell_peer::Request;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::interrupt::{self, Interrupts};
use super::job_ids;
use super::paid::{self, Due, Pay};
use super::upload::{UPLOAD_TRIES_MAX, Upload};
use super::wire::{self, End, Kind, RECEIPT_BYTES_MAX, RUNNING, SPEC_BYTES_MAX, Spec};
use crate::cli::channel::Settled;
use crate::cli::output::escape;
use crate::cli::{Exit, Failure, Output, job_receipt};
use crate::home::Home;
use crate::peers::Machine;

/// How long it may take to be connected.
pub(crate) const DIAL_TIME_MAX: Duration = Duration::from_secs(20);

/// How long a machine may prepare a job, module and compilation, and say nothing: a line that lives longer
/// in silence is lost.
pub(super) const PREPARE_SILENCE_MAX: Duration = Duration::from_secs(300);
/// How long it may say nothing while the job runs; it says every five seconds that it does.
pub(super) const RUN_SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long the job may take besides what it was given, before the line is cut.
pub(super) const OVERTIME_MAX: Duration = Duration::from_secs(60);

/// How often it is looked, before a machine is dialled again, whether that is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What `cell run` was told, and read.
pub(crate) struct Asked<'a> {
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
}

impl Asked<'_> {
    /// The job as another machine is told of it, under a number that no other job has.
    pub(super) fn spec(&self, recorded: bool) -> anyhow::Result<Spec> {
        let spec = Spec {
            id: Some(job_ids::fresh()?),
            module: CellHash::of(self.wasm).to_string(),
            module_bytes: self.wasm.len() as u64,
            arguments: self.arguments.clone(),
            environment: self.environment.clone(),
            memory_mb_max: self.memory_mb_max,
            budget_nano_atp: self.budget_nano_atp,
            is_budget_given: self.is_budget_given,
            timeout_ms: self
                .timeout
                .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
            recorded,
            // As long as any, so that what follows is known to fit.
            channel: Some("0".repeat(64)),
        };
        let length = serde_json::to_vec(&spec)?.len();
        if length > SPEC_BYTES_MAX {
            let message = format!(
                "arguments and variables for another machine have at most {SPEC_BYTES_MAX} bytes; these have {length}"
            );
            return Err(Failure::new(Exit::Usage, message).into());
        }
        Ok(Spec { channel: None, ..spec })
    }
}

/// Has one machine run it, with this command's streams; ends as the job does.
pub(super) fn run(
    home: &Home,
    machine: &Machine,
    (asked, pay): (Asked<'_>, &Pay),
    output: &Output,
) -> anyhow::Result<Exit> {
    let spec = asked.spec(asked.receipt.is_some())?;
    let mut streams = Terminal { output, bar: output.progress("sending the job") };
    let sent = (asked.wasm, UPLOAD_TRIES_MAX);
    let said = ask((home, machine), (&spec, pay), sent, (&mut streams, &|_, _| Ok(())));
    let said = said.map_err(|failed| match pay.interrupts.has_happened() {
        true => interrupt::failure(&format!("{:#}", failed.error)).into(),
        false => failed.error,
    })?;
    if let Some(receipt) = &said.receipt {
        check(receipt, &spec, &said)?;
        if output.json() {
            output.machine_note(receipt);
        }
        if let Some(mut file) = asked.receipt {
            let text = serde_json::to_string_pretty(receipt)? + "\n";
            file.write_all(text.as_bytes()).context("write the receipt")?;
        }
    }
    let Said { end, receipt, settled, .. } = said;
    match settled.transpose() {
        Ok(settled) => settled.iter().for_each(|settled| settled.tell(output)),
        Err(error) if end.ran => return Err(error),
        // Why it did not run says more.
        Err(error) => output.note(&format!("{error:#}")),
    }
    if !end.ran {
        let message = format!("the other machine: {}", escape(&end.message));
        return Err(Failure::new(end.refusal(), message).into());
    }
    output.note(&escape(&end.message));
    if spec.recorded && receipt.is_none() {
        let message = "the other machine sent no receipt";
        return Err(Failure::new(Exit::NucleusFault, message).into());
    }
    Ok(Exit::Job(end.exit))
}

/// Where a job's streams come from, and where they go.
pub(super) trait Streams {
    /// The other machine has all that it needs but the job's input, which begins to go there.
    fn feed(&mut self, socket: UnixStream) -> anyhow::Result<()>;
    /// What it does before the job runs, for people.
    fn progress(&mut self, text: &str);
    /// What went wrong, and is tried again.
    fn note(&mut self, text: &str);
    fn output(&mut self, content: &[u8]) -> anyhow::Result<()>;
    fn errors(&mut self, content: &[u8]);
}

/// This command's own.
struct Terminal<'a> {
    output: &'a Output,
    bar: ProgressBar,
}

impl Streams for Terminal<'_> {
    fn feed(&mut self, socket: UnixStream) -> anyhow::Result<()> {
        feed(socket)
    }

    fn progress(&mut self, text: &str) {
        self.bar.set_message(escape(text));
    }

    fn note(&mut self, text: &str) {
        self.bar.suspend(|| self.output.note(text));
    }

    fn output(&mut self, content: &[u8]) -> anyhow::Result<()> {
        self.bar.finish_and_clear();
        self.output.bytes(content)
    }

    fn errors(&mut self, content: &[u8]) {
        self.bar.finish_and_clear();
        self.output.error_bytes(content);
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Whether a receipt fits what else is known of the job, besides what [`check`] looks at.
pub(super) type Fits<'a> = dyn Fn(&Value, &End) -> anyhow::Result<()> + 'a;

/// Why there is no answer.
pub(super) struct Unanswered {
    /// The machine knows of the job, so it may have charged up to the budget.
    pub(super) was_sent: bool,
    pub(super) error: anyhow::Error,
}

/// Has one machine run the job, and pays it, from the connection to its last word. With the module comes how
/// often the machine is dialled while that does not get there.
pub(super) fn ask(
    (home, machine): (&Home, &Machine),
    (spec, pay): (&Spec, &Pay),
    (wasm, tries_max): (&[u8], u32),
    (streams, fits): (&mut dyn Streams, &Fits<'_>),
) -> Result<Said, Unanswered> {
    let failed = |was_sent, error| Unanswered { was_sent, error };
    let own = home.key().map_err(|error| failed(false, error))?;
    let opened = pay.open(home, machine, spec.budget_nano_atp, wasm);
    let paying = opened.map_err(|error| failed(false, error))?;
    let channel = paying.as_ref().map(|paying| paying.channel.to_string());
    let payer = channel.clone().unwrap_or_else(|| cell_ledger::signed::node(&own).to_string());
    let spec = Spec { channel, ..spec.clone() };
    let upload = Upload::new(wasm, tries_max);
    // What is not paid is not run.
    let is_over =
        || pay.interrupts.has_happened() || paying.as_ref().is_some_and(|paying| paying.is_over());
    let told = reach((home, machine), (&spec, upload), streams, (&pay.interrupts, &is_over));
    let told = told.map(|(end, receipt, output)| Said {
        end,
        receipt,
        output,
        node: machine.peer,
        payer,
        settled: None,
    });
    let due = match &told {
        Err(Unanswered { was_sent: false, .. }) => Due::Compiling,
        Err(_) => Due::Unknown,
        Ok(said) => match &said.receipt {
            None if said.end.ran => Due::Nothing("there is no receipt".into()),
            None => Due::Compiling,
            // What is not of this job is not paid for.
            Some(receipt) => {
                match check(receipt, &spec, said).and_then(|()| fits(receipt, &said.end)) {
                    Ok(()) => Due::Receipt(receipt),
                    Err(error) => Due::Nothing(format!("{error:#}")),
                }
            }
        },
    };
    let settled = paying.map(|paying| paid::settle(paying, &due, wasm));
    match (told, settled) {
        (Ok(said), settled) => Ok(Said { settled, ..said }),
        // What becomes of the money is told as well; and where it did not come back, it may be gone.
        (Err(Unanswered { error, .. }), Some(Err(unsettled))) => {
            Err(failed(true, error.context(format!("{unsettled:#}"))))
        }
        (Err(Unanswered { was_sent, error }), Some(Ok(settled))) => {
            Err(failed(was_sent, error.context(settled.text())))
        }
        (Err(unanswered), None) => Err(unanswered),
    }
}

/// Connects, and tells it; and again, as long as the line is lost while the module is on its way.
fn reach(
    (home, machine): (&Home, &Machine),
    (spec, mut upload): (&Spec, Upload<'_>),
    streams: &mut dyn Streams,
    (interrupts, is_over): (&Interrupts, &dyn Fn() -> bool),
) -> Result<Told, Unanswered> {
    loop {
        upload.dial();
        let told = match machine.connect(home, &Request::Job, DIAL_TIME_MAX) {
            Ok(mut socket) => {
                let told = interrupts.watch(&socket).and_then(|()| tell(&mut socket, spec));
                let told = told.and_then(|()| {
                    let told = converse(&mut socket, (spec, &mut upload), streams);
                    told.inspect_err(|_| upload.lost())
                });
                // Whoever still carries input there sees that it is over.
                let _ = socket.shutdown(Shutdown::Both);
                told
            }
            // What became of the job is not told by why the last connection failed.
            Err(error) if upload.is_again() => Err(error.context(upload.loss())),
            Err(error) => Err(error),
        };
        let error = match told {
            Ok((end, ..)) if !end.ran && upload.may_have_run() => {
                let (lost, said) = (upload.loss(), escape(&end.message));
                let message = format!("{lost}; dialled again, the other machine says: {said}");
                Failure::new(Exit::NucleusFault, message).into()
            }
            Ok(told) => return Ok(told),
            Err(error) => error,
        };
        let unanswered = |error| Err(Unanswered { was_sent: upload.may_have_run(), error });
        let Some((wait, text)) = upload.again().filter(|_| !is_over()) else {
            return unanswered(error);
        };
        streams.note(&text);
        let until = Instant::now() + wait;
        while Instant::now() < until {
            thread::sleep(LOOK_EVERY);
            if is_over() {
                return unanswered(error);
            }
        }
    }
}

/// How it ended, its receipt, and BLAKE3 of its output.
type Told = (End, Option<Value>, String);

/// Tells a machine of the job; where that fails, it does not know of it.
fn tell(socket: &mut UnixStream, spec: &Spec) -> anyhow::Result<()> {
    let text = serde_json::to_vec(spec)?;
    wire::write(socket, Kind::Spec, &text).context("send the job")
}

/// What the other machine said.
pub(super) struct Said {
    pub(super) end: End,
    pub(super) receipt: Option<Value>,
    /// BLAKE3 of all output that came.
    pub(super) output: String,
    /// Who ran it, and which account there pays.
    node: AccountId,
    payer: String,
    /// What became of the channel, if one pays.
    pub(super) settled: Option<anyhow::Result<Settled>>,
}

/// Whether the receipt is of this job, and within what was agreed to: another one may be signed as well.
pub(super) fn check(receipt: &Value, spec: &Spec, said: &Said) -> anyhow::Result<()> {
    let Said { node, payer, output, .. } = said;
    let arguments = spec.arguments.get(1..).unwrap_or_default();
    let charge = receipt["charge_nano_atp"].as_u64();
    let rerun = &receipt["rerun"];
    let fits = [
        ("node", receipt["node"] == node.to_string().as_str()),
        ("signature", job_receipt::is_signed(receipt)),
        ("number", receipt["job"] == json!(spec.id)),
        ("payer", receipt["payer"] == payer.as_str()),
        ("module", receipt["cell_hash"] == spec.module.as_str()),
        ("charge", charge.is_some_and(|charge| charge <= spec.budget_nano_atp)),
        ("output", receipt["output_hash"] == output.as_str()),
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
fn converse(
    socket: &mut UnixStream,
    (spec, upload): (&Spec, &mut Upload<'_>),
    streams: &mut dyn Streams,
) -> anyhow::Result<Told> {
    let (mut content, mut receipt) = (Vec::new(), Vec::new());
    let (mut fed, mut hasher) = (false, blake3::Hasher::new());
    socket.set_read_timeout(Some(PREPARE_SILENCE_MAX))?;
    loop {
        let loss = upload.loss();
        let lost = || anyhow::Error::from(Failure::new(Exit::NucleusFault, loss));
        let kind = wire::read(socket, &mut content).map_err(|_| lost())?.ok_or_else(lost)?;
        if kind == Kind::End && upload.is_stuck() {
            // It waited in vain: a line that stands still is as good as lost.
            return Err(lost());
        }
        if !fed && kind != Kind::NeedModule {
            // From here on it has all that it needs but its input.
            fed = true;
            upload.arrived();
            streams.feed(socket.try_clone()?)?;
        }
        match kind {
            Kind::NeedModule if !fed => {
                let rest = upload.asked(&content).ok_or_else(lost)?;
                // Where that fails, what the machine said before it hung up tells why.
                let _ = upload.send(socket, rest, streams);
            }
            // It only says that it is there.
            Kind::Progress if content.is_empty() => {}
            Kind::Progress => {
                if content == RUNNING {
                    socket.set_read_timeout(Some(RUN_SILENCE_MAX))?;
                    if let Some(timeout_ms) = spec.timeout_ms {
                        cut(socket.try_clone()?, Duration::from_millis(timeout_ms))?;
                    }
                }
                streams.progress(&String::from_utf8_lossy(&content));
            }
            Kind::Output => {
                hasher.update(&content);
                streams.output(&content)?;
            }
            Kind::Errors => streams.errors(&content),
            Kind::Receipt => {
                if receipt.len() + content.len() > RECEIPT_BYTES_MAX {
                    return Err(lost());
                }
                receipt.extend_from_slice(&content);
            }
            Kind::End => {
                let end = serde_json::from_slice(&content).map_err(|_| lost())?;
                let receipt = match receipt.is_empty() {
                    true => None,
                    false => Some(serde_json::from_slice(&receipt).map_err(|_| lost())?),
                };
                let output = hasher.finalize().to_string();
                return Ok((end, receipt, output));
            }
            Kind::NeedModule | Kind::Spec | Kind::Module | Kind::Input => return Err(lost()),
        }
    }
}

/// Ends the connection when a job must have ended, whatever the other machine says.
fn cut(socket: UnixStream, timeout: Duration) -> anyhow::Result<()> {
    // It ends with this process; a connection that has ended already does not mind.
    thread::Builder::new().name("cut".into()).spawn(move || {
        thread::sleep(timeout.saturating_add(OVERTIME_MAX));
        let _ = socket.shutdown(Shutdown::Both);
    })?;
    Ok(())
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
        let payer = AccountId::from_bytes([5; 32]);
        let key = SigningKey::from_bytes(&[7; 32]);
        let node = signed::node(&key);
        let spec = Spec {
            id: Some("7".repeat(64)),
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
        let end = End { exit: 0, message: String::new(), ran: true };
        let (payer_text, output) = (payer.to_string(), "out".into());
        let of_machine =
            Said { end, receipt: None, output, node, payer: payer_text, settled: None };
        let said = |pointer: &str, value: Value| {
            let mut receipt = json!({
                "node": node.to_string(), "job": "7".repeat(64), "payer": payer.to_string(), "cell_hash": spec.module,
                "charge_nano_atp": 100, "output_hash": "out",
                "rerun": { "arguments": ["a"], "environment": [] },
            });
            if let Some(place) = receipt.pointer_mut(pointer) {
                *place = value;
            }
            receipt["signature"] = json!(signed::sign("cell/job-receipt/v1", &receipt, &key));
            check(&receipt, &spec, &of_machine).map_err(|error| error.to_string())
        };
        assert_eq!(
            said("", json!({})),
            Err("the receipt that came is not of this job: its node is another".into())
        );
        assert_eq!(said("/nothing", json!(0)), Ok(()));
        for (pointer, value, expect) in [
            ("/node", json!("cd".repeat(32)), "node"),
            ("/job", json!("8".repeat(64)), "number"),
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
        let told = check(&unsigned, &spec, &of_machine).unwrap_err().to_string();
        assert!(told.contains("its signature is"), "{told}");
    }
}
