//! `cell run --on`: a job for another machine, with this one's streams.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use cell_abi::CellHash;
use cell_peer::Request;

use super::wire::{self, End, Kind, RECEIPT_BYTES_MAX, SPEC_BYTES_MAX, Spec};
use crate::cli::output::escape;
use crate::cli::{Exit, Failure, Output, job_receipt};
use crate::home::Home;
use crate::peers::{Machine, Peers};

/// How long it may take to be connected.
pub(super) const DIAL_TIME_MAX: Duration = Duration::from_secs(20);

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
}

/// Has the other machine run it; ends as the job does.
pub(crate) fn run(home: &Home, asked: Asked<'_>, output: &Output) -> anyhow::Result<Exit> {
    let spec = Spec {
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
    };
    let text = serde_json::to_vec(&spec)?;
    if text.len() > SPEC_BYTES_MAX {
        let message = format!(
            "arguments and variables for another machine have at most {SPEC_BYTES_MAX} bytes; these have {}",
            text.len()
        );
        return Err(Failure::new(Exit::Usage, message).into());
    }
    let machine = Machine::parse(asked.machine, &Peers::read(home)?)
        .map_err(|error| Failure::new(Exit::Usage, format!("--on: {error:#}")))?;
    let mut socket = machine.connect(home, &Request::Job, DIAL_TIME_MAX)?;
    wire::write(&mut socket, Kind::Spec, &text).context("send the job")?;
    let (end, receipt) = converse(&mut socket, asked.wasm, output)?;
    if let Some(receipt) = &receipt {
        if receipt["node"] != machine.peer.to_string().as_str() || !job_receipt::is_signed(receipt)
        {
            let message = "the receipt is not signed by the machine that ran the job";
            return Err(Failure::new(Exit::NucleusFault, message).into());
        }
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
    Ok(Exit::Job(end.exit))
}

/// Goes on until the other machine has said how it ended.
fn converse(
    socket: &mut UnixStream,
    wasm: &[u8],
    output: &Output,
) -> anyhow::Result<(End, Option<serde_json::Value>)> {
    let lost = || {
        let message = "the connection was lost; what the job did until then is charged there";
        anyhow::Error::from(Failure::new(Exit::NucleusFault, message))
    };
    let (mut content, mut receipt, mut fed) = (Vec::new(), Vec::new(), false);
    let bar = output.progress("sending the job");
    loop {
        let kind = wire::read(socket, &mut content).map_err(|_| lost())?.ok_or_else(lost)?;
        if !fed && kind != Kind::NeedModule {
            // From here on it has all that it needs but its input.
            fed = true;
            feed(socket.try_clone()?)?;
        }
        match kind {
            Kind::NeedModule => {
                wire::write(socket, Kind::Module, wasm).map_err(|_| lost())?;
            }
            Kind::Progress => bar.set_message(escape(&String::from_utf8_lossy(&content))),
            Kind::Output => {
                bar.finish_and_clear();
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
                return Ok((end, receipt));
            }
            Kind::Spec | Kind::Module | Kind::Input => return Err(lost()),
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
