//! One attempt to have a job run by one machine, with all it says kept until somebody decides to believe it.

#![allow(clippy::indexing_slicing, reason = "a field that is not in a JSON value reads as null")]

use std::os::unix::net::UnixStream;

use cell_abi::{EngineId, Fault, NanoAtp, Status};
use serde_json::{Value, json};

use super::ask::{self, Streams, Unanswered};
use super::choose::Candidate;
use super::input::Input;
use super::interrupt;
use super::paid::{self, Pay};
use super::upload::UPLOAD_TRIES_OF_MANY_MAX;
use super::wire::{End, Spec};
use crate::cli::output::escape;
use crate::cli::{Exit, Failure, Output, job_receipt};
use crate::home::Home;

/// Standard output that is kept.
pub(super) const OUTPUT_KEPT_BYTES_MAX: usize = 64 << 20;
/// Standard error that is kept.
pub(super) const ERRORS_KEPT_BYTES_MAX: usize = 1 << 20;

const INPUT_TOO_LONG: &str = "standard input has more than the 64 MiB that are kept for several machines; with one machine after --on and no --check, it is not kept";
const OUTPUT_TOO_LONG: &str = "the job writes more than the 64 MiB that are kept until it is believed; with one machine after --on and no --check, output is not kept";

/// A job for other machines.
pub(super) struct Work<'a> {
    pub(super) home: &'a Home,
    pub(super) wasm: &'a [u8],
    /// With the budget of all attempts together.
    pub(super) spec: Spec,
    pub(super) input: Input,
    pub(super) output: &'a Output,
    pub(super) pay: &'a Pay,
}

/// How it went.
pub(super) enum Attempt {
    Ran(Box<Ran>),
    /// It did not run, and the machine says that nothing was charged for it.
    NotRun {
        exit: Exit,
        why: String,
    },
    /// Nobody knows whether it ran: up to the attempt's budget may have been charged.
    Lost(String),
    /// What came is no answer to what was asked. The same.
    Wrong(String),
    /// It was given up from here, and no other machine would do better. The same.
    GivenUp(Failure),
}

/// A job that ran, as its machine says.
pub(super) struct Ran {
    pub(super) machine: Candidate,
    pub(super) receipt: Value,
    pub(super) output: Vec<u8>,
    pub(super) errors: Vec<u8>,
    pub(super) exit: u8,
    /// For people.
    pub(super) message: String,
    pub(super) engine: Option<EngineId>,
}

impl Ran {
    /// What two machines must agree on. Fuel can be compared only under one engine, so that is part of it.
    pub(super) fn result(&self) -> [&Value; 4] {
        ["outcome", "output_hash", "engine_id", "fuel"].map(|field| &self.receipt[field])
    }

    /// The same for people.
    pub(super) fn told(&self) -> String {
        let [_, output, engine, fuel] = self.result();
        let short =
            |value: &Value| value.as_str().unwrap_or_default().chars().take(12).collect::<String>();
        let how = match self.receipt["outcome"]["status"].as_str() {
            Some("exited") => format!("exited with {}", self.receipt["outcome"]["exit_code"]),
            status => escape(status.unwrap_or_default()),
        };
        let (output, engine) = (escape(&short(output)), escape(&short(engine)));
        format!("{}: {how}, output {output}, {fuel} fuel under engine {engine}", self.machine.name)
    }
}

impl Work<'_> {
    /// Has one machine run it, for at most so much.
    pub(super) fn attempt(&self, machine: &Candidate, budget: u64) -> Attempt {
        let spec = Spec { budget_nano_atp: budget, ..self.spec.clone() };
        let mut kept = Kept::new(&self.input);
        let fits = |receipt: &Value, end: &End| match differs(receipt, &spec, end.exit, &self.input)
        {
            None => Ok(()),
            Some(what) => anyhow::bail!("the receipt that came is of another {what}"),
        };
        let said = match ask::ask(
            (self.home, &machine.machine),
            (&spec, self.pay),
            (self.wasm, UPLOAD_TRIES_OF_MANY_MAX),
            (&mut kept, &fits),
        ) {
            Ok(said) => said,
            Err(_) if self.input.is_too_long() => {
                return Attempt::GivenUp(Failure::new(Exit::Usage, INPUT_TOO_LONG));
            }
            Err(_) if kept.is_too_long => {
                return Attempt::GivenUp(Failure::new(Exit::Failed, OUTPUT_TOO_LONG));
            }
            Err(Unanswered { was_sent, error }) => {
                let why = line(&format!("{error:#}"));
                if self.pay.interrupts.has_happened() {
                    return Attempt::GivenUp(interrupt::failure(&why));
                }
                return match was_sent {
                    true => Attempt::Lost(why),
                    false => Attempt::NotRun { exit: Exit::of(&error), why },
                };
            }
        };
        // Also of one that says it did not run, and bills for it.
        if let Some(Err(error)) = &said.settled {
            let why = line(&format!("{error:#}"));
            // A ledger that does not answer is not the machine's doing.
            return if paid::is_cheat(error) { Attempt::Wrong(why) } else { Attempt::Lost(why) };
        }
        if !said.end.ran {
            return Attempt::NotRun { exit: said.end.refusal(), why: line(&said.end.message) };
        }
        let Some(receipt) = said.receipt.clone() else {
            return Attempt::Wrong("it sent no receipt".into());
        };
        if let Err(error) = ask::check(&receipt, &spec, &said) {
            return Attempt::Wrong(format!("{error:#}"));
        }
        if let Some(Ok(settled)) = &said.settled {
            settled.tell(self.output);
        }
        if let Some(what) = differs(&receipt, &spec, said.end.exit, &self.input) {
            return Attempt::Wrong(format!("the receipt that came is of another {what}"));
        }
        if has_given_up(&receipt["outcome"]) {
            return Attempt::Lost(format!("it ended the job: {}", line(&said.end.message)));
        }
        let engine = receipt["engine_id"].as_str();
        let engine = engine.and_then(|engine| EngineId::parse(engine).ok());
        Attempt::Ran(Box::new(Ran {
            machine: machine.clone(),
            receipt,
            output: kept.output,
            errors: kept.errors,
            exit: said.end.exit,
            message: line(&said.end.message),
            engine,
        }))
    }
}

/// Another machine's words, on the one line that they have.
pub(super) fn line(words: &str) -> String {
    escape(words).replace(['\n', '\t'], " ")
}

/// In what a receipt that is of this job, as far as is known, contradicts what was asked or said.
fn differs(receipt: &Value, spec: &Spec, exit: u8, input: &Input) -> Option<&'static str> {
    let rerun = &receipt["rerun"];
    let fuel = NanoAtp(spec.budget_nano_atp).fuel_at_base_price().0;
    let fuel_max = receipt["fuel_max"].as_u64();
    let read = receipt["stdin_bytes"].as_u64().and_then(|read| usize::try_from(read).ok());
    let stdin = read.and_then(|read| input.hash(read).1);
    let arguments = spec.arguments.get(1..).unwrap_or_default();
    let given = stdin.map(|stdin| job_receipt::input_hash(arguments, &spec.environment, &stdin));
    [
        ("memory", rerun["memory_bytes_max"] == json!(u64::from(spec.memory_mb_max) << 20)),
        ("budget", fuel_max.is_some_and(|max| max == fuel || max < fuel && !spec.is_budget_given)),
        ("input", given.is_some_and(|given| receipt["input_hash"] == json!(given))),
        ("end", exit_of(&receipt["outcome"]) == Some(exit)),
    ]
    .into_iter()
    .find_map(|(what, fits)| (!fits).then_some(what))
}

/// What `cell run` exits with when a job ended so.
fn exit_of(outcome: &Value) -> Option<u8> {
    if outcome["status"] == "exited" {
        return outcome["exit_code"].as_u64().and_then(|code| u8::try_from(code & 0xff).ok());
    }
    match status(outcome)? {
        Status::Cancelled => Some(130),
        status => Some(Exit::of_status(status).code()),
    }
}

/// Whether the machine, and not the job, is why it ended: nobody here cancels a job and waits for its end.
fn has_given_up(outcome: &Value) -> bool {
    status(outcome)
        .is_some_and(|status| status == Status::Cancelled || status.fault() == Fault::Host)
}

fn status(outcome: &Value) -> Option<Status> {
    outcome["code"].as_u64().and_then(|code| u32::try_from(code).ok()).and_then(Status::from_code)
}

/// A job's streams, from what is kept and to what is kept.
struct Kept<'a> {
    input: &'a Input,
    output: Vec<u8>,
    errors: Vec<u8>,
    /// There was more output than is kept.
    is_too_long: bool,
}

impl<'a> Kept<'a> {
    const fn new(input: &'a Input) -> Self {
        Self { input, output: Vec::new(), errors: Vec::new(), is_too_long: false }
    }
}

impl Streams for Kept<'_> {
    fn feed(&mut self, socket: UnixStream) -> anyhow::Result<()> {
        self.input.feed(socket)
    }

    fn progress(&mut self, _: &str) {}

    fn note(&mut self, _: &str) {}

    fn output(&mut self, content: &[u8]) -> anyhow::Result<()> {
        if self.output.len() + content.len() > OUTPUT_KEPT_BYTES_MAX {
            self.is_too_long = true;
            return Err(Failure::new(Exit::Failed, OUTPUT_TOO_LONG).into());
        }
        self.output.extend_from_slice(content);
        Ok(())
    }

    fn errors(&mut self, content: &[u8]) {
        let room = ERRORS_KEPT_BYTES_MAX.saturating_sub(self.errors.len());
        self.errors.extend_from_slice(content.get(..room.min(content.len())).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_the_receipts() {
        for (outcome, expect) in [
            (json!({ "status": "exited", "exit_code": 7 }), Some(7)),
            (json!({ "status": "exited", "exit_code": 256 }), Some(0)),
            (json!({ "status": "Cancelled", "code": Status::Cancelled.code() }), Some(130)),
            (json!({ "status": "Trapped", "code": Status::Trapped.code() }), Some(123)),
            (json!({ "status": "exited" }), None),
            (json!({ "code": 1_000_000 }), None),
            (json!(null), None),
        ] {
            assert_eq!(exit_of(&outcome), expect, "{outcome}");
        }
        let given_up = |status: Status| has_given_up(&json!({ "code": status.code() }));
        assert!(given_up(Status::Cancelled) && given_up(Status::HostFault));
        assert!(!given_up(Status::Trapped) && !given_up(Status::TimedOut));
    }

    #[test]
    fn errors_are_cut_and_output_is_not() {
        let input = Input::start().unwrap();
        let mut kept = Kept::new(&input);
        kept.errors(&vec![b'x'; ERRORS_KEPT_BYTES_MAX - 1]);
        kept.errors(b"yz");
        assert_eq!(kept.errors.len(), ERRORS_KEPT_BYTES_MAX);
        kept.output(&vec![b'x'; OUTPUT_KEPT_BYTES_MAX]).unwrap();
        assert!(kept.output(b"y").is_err() && kept.is_too_long);
    }
}
