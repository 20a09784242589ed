//! The receipt of a job: JSON that says everything its bill depends on, signed by the home it ran for.
//!
//! What is signed is the object without its `signature`, as JSON without spaces and with its keys sorted.

use std::time::{Duration, SystemTime};

use cell_abi::{AccountId, NanoAtp, Status};
use cell_host::rates::Dimension;
use cell_host::{Rates, Sandbox, price};
use cell_ledger::TransferId;
use cell_ledger::receipts::{Counters, FUEL};
use cell_ledger::signed::{self, hex};
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};

use super::job_end::Ended;
use crate::compile::Compiled;
use crate::prices::rates_of;

/// What the signature is over besides the receipt.
const SIGNED: &str = "cell/job-receipt/v1";

/// What a receipt tells besides how the job ended.
pub(super) struct Facts<'a> {
    pub(super) job_id: Option<&'a str>,
    pub(super) compiled: &'a Compiled,
    pub(super) program: &'a str,
    pub(super) arguments: &'a [String],
    pub(super) environment: &'a [(String, String)],
    pub(super) directories: Vec<&'a str>,
    pub(super) memory_bytes_max: u64,
    pub(super) fuel_max: u64,
    pub(super) charge: NanoAtp,
    pub(super) rates: Rates,
    pub(super) payer: AccountId,
    pub(super) payee: AccountId,
    pub(super) transfer: TransferId,
    pub(super) started: SystemTime,
}

/// The receipt; with what it takes to run the job again if that was recorded.
pub(super) fn make(facts: &Facts<'_>, ended: &Ended, key: &SigningKey) -> Value {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let Facts { compiled, .. } = facts;
    let started = facts.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut receipt = json!({
        "version": 1,
        "node": signed::node(key).to_string(),
        "cell_hash": compiled.hash.to_string(),
        "engine_id": Sandbox::engine_id().to_string(),
        "outcome": outcome(ended.exit_code, ended.status, &ended.message),
        "fuel": ended.fuel.0,
        "fuel_max": facts.fuel_max,
        "charge_nano_atp": facts.charge.0,
        "compile_fuel": compiled.paid.map_or(0, |paid| paid.fuel.0),
        "compile_transfer": compiled.paid.map(|paid| paid.transfer.to_string()),
        "counters": counters(ended, facts.rates),
        "rates": rates_of(facts.rates),
        "start_fuel": price::start(compiled.info.memory_pages, compiled.info.data_bytes),
        "stdin_bytes": ended.stdin.0,
        "stdout_bytes": ended.stdout.0,
        "stderr_bytes": ended.stderr_bytes,
        "memory_bytes_peak": ended.memory_bytes_peak,
        "input_hash": input_hash(facts.arguments, facts.environment, &ended.stdin.1),
        "output_hash": ended.stdout.1,
        "directories": facts.directories,
        "payer": facts.payer.to_string(),
        "payee": facts.payee.to_string(),
        "transfer": facts.transfer.to_string(),
        "started_ms": millis(started),
        "wall_ms": millis(facts.started.elapsed().unwrap_or_default()),
    });
    if let Some(id) = facts.job_id {
        put(&mut receipt, "job", json!(id));
    }
    if ended.tape.is_some() || ended.flaw.is_some() {
        let rerun = json!({
            "program": facts.program,
            "arguments": facts.arguments,
            "environment": facts.environment,
            "memory_bytes_max": facts.memory_bytes_max,
            "stdin_hash": ended.stdin.1,
            "tape": ended.tape.as_deref().map(hex),
            "not_checkable": ended.flaw,
        });
        put(&mut receipt, "rerun", rerun);
    }
    let signature = signed::sign(SIGNED, &receipt, key);
    put(&mut receipt, "signature", json!(signature));
    receipt
}

/// How much it is billed for, by dimension.
fn counters(ended: &Ended, rates: Rates) -> Counters {
    let taken = Dimension::ALL.into_iter().zip(ended.taken.0);
    let taken = taken.filter(|(dimension, _)| rates.of(*dimension) > 0);
    let taken = taken.map(|(dimension, count)| (dimension.name().to_owned(), count));
    taken.chain([(FUEL.to_owned(), ended.fuel.0)]).collect()
}

/// Adds a field to an object.
pub(super) fn put(object: &mut Value, field: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
}

/// How a job ended, as receipts have it.
pub(super) fn outcome(exit_code: Option<u32>, status: Status, message: &str) -> Value {
    match exit_code {
        Some(code) => json!({ "status": "exited", "exit_code": code }),
        None => {
            json!({ "status": format!("{status:?}"), "code": status.code(), "message": message })
        }
    }
}

/// Whether the receipt is what its `node` signed.
pub(super) fn is_signed(receipt: &Value) -> bool {
    let mut unsigned = receipt.clone();
    let signature = unsigned.as_object_mut().and_then(|fields| fields.remove("signature"));
    let node = receipt.get("node").and_then(Value::as_str).map(AccountId::parse);
    match (node, signature) {
        (Some(Ok(node)), Some(Value::String(signature))) => {
            signed::is_signed(SIGNED, &unsigned, node, &signature)
        }
        _ => false,
    }
}

/// BLAKE3 over everything the job was given but its directories: each argument after the
/// program's name, each variable, and the hash of what it read from standard input, each behind
/// its length as eight little-endian bytes.
pub(super) fn input_hash(
    arguments: &[String],
    environment: &[(String, String)],
    stdin: &str,
) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("cell/job-input/v1");
    let mut put = |part: &str| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    arguments.iter().for_each(|argument| put(argument));
    for (key, value) in environment {
        put(key);
        put(value);
    }
    put(stdin);
    hasher.finalize().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_signed() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let node = signed::node(&key).to_string();
        let mut receipt =
            json!({ "version": 1, "node": node, "fuel": 10, "rerun": { "tape": "00" } });
        receipt["signature"] = json!(signed::sign(SIGNED, &receipt, &key));
        assert!(is_signed(&receipt));
        let pretty = serde_json::to_string_pretty(&receipt).unwrap();
        assert!(is_signed(&serde_json::from_str(&pretty).unwrap()));
        for (pointer, value) in
            [("/fuel", json!(11)), ("/rerun/tape", json!("01")), ("/node", json!("7".repeat(64)))]
        {
            let mut changed = receipt.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            assert!(!is_signed(&changed), "{pointer}");
        }
        receipt["more"] = json!(1);
        assert!(!is_signed(&receipt));
        assert!(!is_signed(&json!({})));
    }
}
