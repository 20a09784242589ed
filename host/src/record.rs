//! What a receipt's leaf says of one call, and running it again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cell_abi::{AccountId, CellHash, CellName, Fuel, Status};

use crate::cell::Cell;
use crate::instance::{CallSpec, Lease, Outcome};
use crate::meter::StopHandle;
use crate::rates::Taken;
use crate::tape::{Flaw, Tape};

/// A call of a cell that keeps receipts: what went in, what came out, and all that it learned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallRecord {
    /// The cell.
    pub cell: CellName,
    /// Its code.
    pub hash: CellHash,
    /// Which receptor, by its place in the interface.
    pub receptor: u16,
    /// By way of the JSON adapter.
    pub json: bool,
    /// Linear memory that its instance might have.
    pub memory_bytes_max: u64,
    /// State that its cell might have.
    pub state_bytes_max: u64,
    /// The most it might burn, callees included.
    pub limit: Fuel,
    /// What it burned, callees included.
    pub fuel: Fuel,
    /// What it burned without its callees: what its cell is paid.
    pub own_fuel: Fuel,
    /// What it took besides fuel, without its callees.
    pub taken: Taken,
    /// How it ended.
    pub status: Status,
    /// Bytes of the request, whether or not they came.
    pub input_bytes: u32,
    /// The request; nothing if the call ended before it came.
    pub input: Vec<u8>,
    /// Bytes of the reply, or of the message of a call that failed.
    pub output_bytes: u64,
    /// BLAKE3 of those.
    pub output_hash: [u8; 32],
    /// What it learned; see [`tape`](crate::tape).
    pub tape: Vec<u8>,
    /// Why running it again would not tell.
    pub flaw: Option<Flaw>,
}

/// What is known of a call before it has ended.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) tape: Tape,
    pub(crate) receptor: u16,
    pub(crate) json: bool,
    pub(crate) input_bytes: u32,
    pub(crate) input: Vec<u8>,
}

impl Draft {
    pub(crate) const fn new(tape: Tape, input_bytes: u32) -> Self {
        Self { tape, receptor: 0, json: false, input_bytes, input: Vec::new() }
    }

    /// The record of a call that ended so; nothing of one that is not billed.
    pub(crate) fn end(self, lease: &Lease, limit: u64, outcome: &Outcome) -> Option<CallRecord> {
        if outcome.status == Status::HostFault || self.tape.is_playing() {
            return None;
        }
        let output = match outcome.status {
            Status::Ok => lease.reply(outcome),
            _ => &outcome.message,
        };
        let (tape, flaw) = self.tape.take();
        let stopped = match outcome.status {
            Status::TimedOut | Status::Cancelled => Some(Flaw::Stopped),
            Status::OutOfFuel if outcome.extra.is_some() => Some(Flaw::Charges),
            _ => None,
        };
        let cell = lease.cell();
        Some(CallRecord {
            cell: cell.name().clone(),
            hash: cell.hash(),
            receptor: self.receptor,
            json: self.json,
            memory_bytes_max: cell.options().limits.memory_bytes_max as u64,
            state_bytes_max: cell.options().state_bytes_max,
            limit: Fuel(limit),
            fuel: outcome.fuel,
            own_fuel: outcome.own_fuel(),
            taken: outcome.taken(),
            status: outcome.status,
            input_bytes: self.input_bytes,
            input: self.input,
            output_bytes: output.len() as u64,
            output_hash: *blake3::hash(output).as_bytes(),
            tape,
            flaw: flaw.or(stopped),
        })
    }
}

/// A call that is to be run again from its record, by anybody who has the module.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Which receptor.
    pub receptor: u16,
    /// By way of the JSON adapter.
    pub json: bool,
    /// The most it might burn.
    pub limit: Fuel,
    /// Bytes of the request.
    pub input_bytes: u32,
    /// The request; nothing if it did not come.
    pub input: Vec<u8>,
    /// What it learned then.
    pub tape: Vec<u8>,
}

/// How a call went that was run again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// How it ended.
    pub status: Status,
    /// What it burned, callees included.
    pub fuel: Fuel,
    /// What it burned without them.
    pub own_fuel: Fuel,
    /// The reply, or the message of a call that failed.
    pub output: Vec<u8>,
    /// It asked for other things than the tape has.
    pub diverged: bool,
}

impl Replay {
    /// Runs the call again on a fresh instance of the cell. Nothing but the tape reaches it.
    ///
    /// The error is the status of a call that did not start.
    pub async fn run(&self, cell: &Arc<Cell>, stop: StopHandle) -> Result<Replayed, Status> {
        let tape = Tape::playing(self.tape.clone());
        // Payer and times are on the tape; nothing looks at these.
        let nobody = AccountId::from_bytes([0; 32]);
        let deadline = Instant::now() + Duration::from_secs(3600);
        let spec = CallSpec::new(nobody, self.limit, deadline, stop);
        let mut lease = cell.checkout_playing(tape.clone()).await?;
        let outcome = match lease.begin(spec, self.input_bytes).await {
            Err(outcome) => outcome,
            Ok(()) if self.input.len() == lease.request_mut().len() => {
                lease.request_mut().copy_from_slice(&self.input);
                lease.finish(self.receptor, self.json).await
            }
            // It waits for a request that did not come then.
            Ok(()) => {
                let mut outcome = lease.abandon();
                outcome.status = Status::HostFault;
                outcome
            }
        };
        let output = match outcome.status {
            Status::Ok => lease.reply(&outcome).to_vec(),
            _ => outcome.message.clone(),
        };
        Ok(Replayed {
            status: outcome.status,
            fuel: outcome.fuel,
            own_fuel: outcome.own_fuel(),
            output,
            diverged: outcome.status == Status::HostFault || !tape.is_over(),
        })
    }
}
