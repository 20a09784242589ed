//! The `cell_v1` imports of `docs/GUEST-ABI.md`, each charged before it works.

use std::sync::Arc;

use cell_abi::{CellName, Fuel, Reject, Status, limits as abi_limits};
use tokio::time::timeout;
use wasmtime::{Caller, Linker};

use crate::elsewhere::{Callee, RemoteCall, RemoteCell, RemoteReply};
use crate::error::Stop;
use crate::gate::offered::{I32, I64, Offered};
use crate::guest::{Guest, Link};
use crate::instance::{CallSpec, Share};
use crate::limits::{
    CALL_DEPTH_MAX, LOG_LINE_BYTES_MAX, NESTED_WAIT_MAX, STATE_KEY_BYTES_MAX, STATE_VALUE_BYTES_MAX,
};
use crate::meter::{charge, deduct, wait};
use crate::price::{
    BYTE, CELL_CALL, HOST_CALL, LOG_BYTE, STATE_BYTE, STATE_READ, STATE_TAKE, STATE_WRITE,
};
use crate::rates::Taken;
use crate::services::LogLevel;
use crate::state::StateCall;
use crate::tape::{Event, Flaw};
use crate::wasi::memory;

pub(crate) const MODULE: &str = "cell_v1";

/// Every function of the module: what the gate lets a cell import.
#[rustfmt::skip]
pub(crate) const FUNCTIONS: &[Offered] = &[
    Offered::new("call", &[I32, I32, I32, I32, I32, I32, I32, I32, I64], &[I64]),
    Offered::new("call_reply", &[I32, I32], &[I32]),
    Offered::new("context", &[I32], &[]),
    Offered::new("fuel_left", &[], &[I64]),
    Offered::new("kv_delete", &[I32, I32], &[I32]),
    Offered::new("kv_get", &[I32, I32], &[I64]),
    Offered::new("kv_set", &[I32, I32, I32, I32], &[I32]),
    Offered::new("kv_value", &[I32, I32], &[I32]),
    Offered::new("log", &[I32, I32, I32], &[]),
    Offered::new("reject", &[I32, I32, I32], &[]),
];

type Guests<'a> = Caller<'a, Guest>;

pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap_async(MODULE, "context", |caller: Guests<'_>, (out,): (u32,)| {
        Box::new(context(caller, out))
    })?;
    linker.func_wrap_async(MODULE, "fuel_left", |mut caller: Guests<'_>, (): ()| {
        Box::new(async move {
            charge(&mut caller, HOST_CALL).await?;
            // The store holds one more than the limit, so that burning exactly the limit succeeds.
            Ok(caller.get_fuel()?.saturating_sub(1))
        })
    })?;
    linker.func_wrap_async(MODULE, "log", |caller: Guests<'_>, args: (u32, u32, u32)| {
        Box::new(log(caller, args))
    })?;
    linker.func_wrap_async(MODULE, "reject", |caller: Guests<'_>, args: (u32, u32, u32)| {
        Box::new(reject(caller, args))
    })?;
    linker.func_wrap_async(MODULE, "call", |caller: Guests<'_>, args: CallArguments| {
        Box::new(call(caller, args))
    })?;
    linker.func_wrap_async(
        MODULE,
        "call_reply",
        |caller: Guests<'_>, (out, len): (u32, u32)| Box::new(call_reply(caller, out, len)),
    )?;
    linker.func_wrap_async(
        MODULE,
        "kv_get",
        |caller: Guests<'_>, (key, key_len): (u32, u32)| Box::new(kv_get(caller, key, key_len)),
    )?;
    linker.func_wrap_async(MODULE, "kv_value", |caller: Guests<'_>, (out, len): (u32, u32)| {
        Box::new(kv_value(caller, out, len))
    })?;
    linker.func_wrap_async(
        MODULE,
        "kv_set",
        |caller: Guests<'_>, args: (u32, u32, u32, u32)| Box::new(kv_set(caller, args)),
    )?;
    linker.func_wrap_async(
        MODULE,
        "kv_delete",
        |caller: Guests<'_>, (key, key_len): (u32, u32)| Box::new(kv_delete(caller, key, key_len)),
    )?;
    Ok(())
}

async fn context(mut caller: Guests<'_>, out: u32) -> wasmtime::Result<()> {
    charge(&mut caller, HOST_CALL + 64 * BYTE).await?;
    let call = &mut caller.data_mut().call;
    let context = match &call.tape {
        None => call.context(),
        Some(tape) => match tape.play(Event::Context)? {
            Some(played) => played.try_into().map_err(|_| Stop::Diverged)?,
            None => {
                let tape = tape.clone();
                let context = call.context();
                tape.record(Event::Context, &[&context]);
                context
            }
        },
    };
    write(&mut caller, out, &context)
}

async fn log(mut caller: Guests<'_>, (level, ptr, len): (u32, u32, u32)) -> wasmtime::Result<()> {
    charge(&mut caller, HOST_CALL + u64::from(len) * LOG_BYTE).await?;
    let text = read(&mut caller, ptr, len)?;
    if let Some(cell) = &caller.data().cell {
        for line in text.split(|byte| *byte == b'\n') {
            for piece in line.chunks(LOG_LINE_BYTES_MAX) {
                cell.log(LogLevel::from_number(level), piece);
            }
        }
    }
    Ok(())
}

async fn reject(mut caller: Guests<'_>, (code, ptr, len): (u32, u32, u32)) -> wasmtime::Result<()> {
    charge(&mut caller, HOST_CALL + u64::from(len) * BYTE).await?;
    let kept = len.min(u32::try_from(abi_limits::MESSAGE_BYTES_MAX).unwrap_or(u32::MAX));
    let message = read(&mut caller, ptr, kept)?;
    let message = String::from_utf8_lossy(&message).into_owned();
    caller.data_mut().call.reject = Some(Reject::new(code, message));
    Ok(())
}

type CallArguments = (u32, u32, u32, u32, u32, u32, u32, u32, u64);

/// Calls another cell and leaves its reply for `call_reply`.
async fn call(mut caller: Guests<'_>, arguments: CallArguments) -> wasmtime::Result<u64> {
    let (cell, cell_len, receptor, receptor_len, schema, schema_len, request, request_len, fuel) =
        arguments;
    let bytes = [cell_len, receptor_len, schema_len, request_len]
        .iter()
        .map(|len| u64::from(*len))
        .sum::<u64>();
    charge(&mut caller, HOST_CALL + CELL_CALL + bytes * BYTE).await?;
    let name_max = u32::try_from(abi_limits::NAME_BYTES_MAX).unwrap_or(u32::MAX);
    let schema_max = u32::try_from(abi_limits::INTERFACE_BYTES_MAX).unwrap_or(u32::MAX);
    let target = Target {
        cell: read(&mut caller, cell, cell_len.min(name_max + 1))?,
        receptor: read(&mut caller, receptor, receptor_len.min(name_max + 1))?,
        schema: read(&mut caller, schema, schema_len.min(schema_max))?,
        request,
        request_len,
        fuel,
    };
    if !caller.data().call.running {
        // A start is not billed, so it may not make others work.
        return Err(Stop::OverLimit.into());
    }
    let tape = caller.data().call.tape.clone();
    let played = tape.as_ref().map_or(Ok(None), |tape| tape.play(Event::Call))?;
    let Answer { status, fuel, reply } = match played {
        Some(played) => Answer::played(&mut caller, &played)?,
        None => target.call(&mut caller).await?,
    };
    if let Some(tape) = &tape {
        tape.record(Event::Call, &[&status.code().to_le_bytes(), &fuel.to_le_bytes(), &reply]);
    }
    if status == Status::Ok {
        charge(&mut caller, reply.len() as u64 * BYTE).await?;
    }
    let len = u64::try_from(reply.len()).unwrap_or(0);
    caller.data_mut().call.callee_reply = reply;
    Ok(u64::from(status.code()) << 32 | len)
}

struct Target {
    cell: Vec<u8>,
    receptor: Vec<u8>,
    schema: Vec<u8>,
    request: u32,
    request_len: u32,
    fuel: u64,
}

/// What a call of another cell brought, and what it burned there.
struct Answer {
    status: Status,
    fuel: u64,
    /// The reply, or what the status alone does not say.
    reply: Vec<u8>,
}

impl Answer {
    fn refusal(status: Status) -> Self {
        Self { status, fuel: 0, reply: status.describe().as_bytes().to_vec() }
    }

    /// What a tape says of a call.
    fn played(caller: &mut Guests<'_>, content: &[u8]) -> wasmtime::Result<Self> {
        let (status, rest) = content.split_first_chunk::<4>().ok_or(Stop::Diverged)?;
        let (fuel, reply) = rest.split_first_chunk::<8>().ok_or(Stop::Diverged)?;
        let status = Status::from_code(u32::from_le_bytes(*status)).ok_or(Stop::Diverged)?;
        let fuel = u64::from_le_bytes(*fuel);
        deduct(caller, fuel)?;
        let guest = caller.data_mut();
        if let Some(cell) = guest.cell.clone() {
            let cell = Callee::Here(cell);
            Share { cell, fuel: Fuel(fuel), taken: Taken::default(), calls: 1 }
                .add_to(&mut guest.call.callees);
        }
        Ok(Self { status, fuel, reply: reply.to_vec() })
    }
}

impl Target {
    /// The outer error ends the caller; the inner one is an answer it may handle.
    async fn call(&self, caller: &mut Guests<'_>) -> wasmtime::Result<Answer> {
        let refuse = |status: Status| Ok(Answer::refusal(status));
        let guest = caller.data();
        let Some(from) = guest.cell.clone() else {
            return refuse(Status::UnknownCell);
        };
        if guest.call.depth + 1 > CALL_DEPTH_MAX {
            return refuse(Status::TooDeep);
        }
        let Some(name) =
            std::str::from_utf8(&self.cell).ok().and_then(|name| CellName::parse(name).ok())
        else {
            return refuse(Status::UnknownCell);
        };
        let gauge = Arc::clone(&guest.gauge);
        let resolved = wait(&gauge, timeout(NESTED_WAIT_MAX, from.services().resolve(&name))).await;
        let cell = match resolved {
            Ok(Ok(Callee::Here(cell))) => cell,
            Ok(Ok(Callee::Elsewhere(cell))) => return self.call_elsewhere(caller, cell).await,
            Ok(Err(status)) => return refuse(status),
            Err(_) => return refuse(Status::Busy),
        };
        let guest = caller.data();
        let receptor = std::str::from_utf8(&self.receptor).unwrap_or_default();
        let Some((number, interface)) = cell.interface().find(receptor) else {
            return refuse(Status::UnknownReceptor);
        };
        if !self.schema.is_empty() && self.schema != interface.schema.as_bytes() {
            let reply = interface.schema.clone().into_bytes();
            return Ok(Answer { status: Status::SchemaMismatch, fuel: 0, reply });
        }
        let holds_state = guest.call.state.is_some();
        let chain = Arc::new(Link { cell: from, holds_state, caller: guest.call.chain.clone() });
        let by = guest.call.caller;
        if cannot_return_to(&chain, &cell, by) {
            return refuse(Status::TooDeep);
        }
        let left = caller.get_fuel()?.saturating_sub(1).saturating_sub(gauge.extras.cost());
        let spec = CallSpec {
            began: None,
            payer: caller.data().call.payer,
            caller: by,
            fuel: Fuel(self.fuel.min(left)),
            deadline: caller.data().call.deadline,
            depth: caller.data().call.depth + 1,
            stop: caller.data().call.stop.clone(),
            chain: Some(chain),
        };
        let lease = match wait(&gauge, timeout(NESTED_WAIT_MAX, cell.checkout(by))).await {
            Ok(Ok(lease)) => lease,
            Ok(Err((status, _))) => return refuse(status),
            Err(_) => return refuse(Status::Busy),
        };
        self.run(caller, lease, spec, number).await
    }

    /// Has another machine answer.
    async fn call_elsewhere(
        &self,
        caller: &mut Guests<'_>,
        cell: Arc<dyn RemoteCell>,
    ) -> wasmtime::Result<Answer> {
        if self.request_len > abi_limits::FRAME_PAYLOAD_BYTES_MAX {
            return Ok(Answer::refusal(Status::TooLarge));
        }
        let Ok(schema) = std::str::from_utf8(&self.schema) else {
            return Ok(Answer::refusal(Status::SchemaMismatch));
        };
        let gauge = Arc::clone(&caller.data().gauge);
        let left = caller.get_fuel()?.saturating_sub(1).saturating_sub(gauge.extras.cost());
        let limit = self.fuel.min(left);
        let memory = memory(caller)?;
        let request = slice(memory.data(&*caller), self.request, self.request_len)?.to_vec();
        let receptor = std::str::from_utf8(&self.receptor).unwrap_or_default();
        let deadline = caller.data().call.deadline;
        let call = RemoteCall::new(receptor, schema, request, Fuel(limit), deadline);
        // Should this call be given up meanwhile, that is on its bill.
        caller.data_mut().call.elsewhere = Some((Arc::clone(&cell), call.stake.clone()));
        let RemoteReply { status, fuel, bytes } = wait(&gauge, cell.call(call)).await;
        caller.data_mut().call.elsewhere = None;
        let fuel = fuel.0.min(limit);
        deduct(caller, fuel)?;
        Share::elsewhere(cell, Fuel(fuel)).add_to(&mut caller.data_mut().call.callees);
        Ok(Answer { status, fuel, reply: bytes })
    }

    async fn run(
        &self,
        caller: &mut Guests<'_>,
        mut lease: crate::Lease,
        spec: CallSpec,
        number: u16,
    ) -> wasmtime::Result<Answer> {
        let gauge = Arc::clone(&caller.data().gauge);
        let mut outcome = match wait(&gauge, lease.begin(spec, self.request_len)).await {
            Ok(()) => {
                let memory = memory(caller)?;
                let request = slice(memory.data(&*caller), self.request, self.request_len)?;
                lease.request_mut().copy_from_slice(request);
                wait(&gauge, lease.finish(number, false)).await
            }
            Err(outcome) => outcome,
        };
        let callee = Arc::clone(lease.cell());
        deduct(caller, outcome.fuel.0)?;
        gauge.extras.add_callee(outcome.extra.as_ref().map_or(0, |extra| extra.nano_atp));
        let guest = caller.data_mut();
        let own = Share {
            cell: Callee::Here(callee),
            fuel: outcome.own_fuel(),
            taken: outcome.taken(),
            calls: 1,
        };
        for share in std::iter::once(own).chain(outcome.callees.iter().cloned()) {
            share.add_to(&mut guest.call.callees);
        }
        guest.call.records.append(&mut outcome.records);
        let reply = match outcome.status {
            Status::Ok => lease.reply(&outcome).to_vec(),
            _ => outcome.message,
        };
        Ok(Answer { status: outcome.status, fuel: outcome.fuel.0, reply })
    }
}

/// Whether a call further up the chain keeps what this callee would wait for: its cell's state, or
/// its last instance.
fn cannot_return_to(chain: &Arc<Link>, callee: &Arc<crate::Cell>, caller: u64) -> bool {
    let mut link = Some(chain);
    while let Some(at) = link {
        if at.cell.name() == callee.name() && (at.holds_state || callee.is_full(caller)) {
            return true;
        }
        link = at.caller.as_ref();
    }
    false
}

async fn call_reply(mut caller: Guests<'_>, out: u32, len: u32) -> wasmtime::Result<u32> {
    charge(&mut caller, HOST_CALL + u64::from(len) * BYTE).await?;
    let reply = std::mem::take(&mut caller.data_mut().call.callee_reply);
    copy_out(&mut caller, &reply, out, len)
}

async fn kv_get(mut caller: Guests<'_>, key: u32, key_len: u32) -> wasmtime::Result<i64> {
    charge(&mut caller, HOST_CALL + STATE_READ + u64::from(key_len) * BYTE).await?;
    let key = state_key(&mut caller, key, key_len)?;
    let state = state(&mut caller).await?;
    match state.value(&key)? {
        Some(value) => {
            let len = i64::try_from(value.len()).unwrap_or(0);
            state.found = value;
            charge(&mut caller, len.unsigned_abs() * BYTE).await?;
            Ok(len)
        }
        None => {
            state.found.clear();
            Ok(-1)
        }
    }
}

async fn kv_value(mut caller: Guests<'_>, out: u32, len: u32) -> wasmtime::Result<u32> {
    charge(&mut caller, HOST_CALL + u64::from(len) * BYTE).await?;
    let found = std::mem::take(&mut state(&mut caller).await?.found);
    copy_out(&mut caller, &found, out, len)
}

async fn kv_set(
    mut caller: Guests<'_>,
    (key, key_len, value, value_len): (u32, u32, u32, u32),
) -> wasmtime::Result<u32> {
    // A value that is too long is refused, so it costs no more than the longest.
    let bytes = u64::from(key_len) + u64::from(value_len.min(STATE_VALUE_BYTES_MAX));
    charge(&mut caller, HOST_CALL + STATE_WRITE + bytes * STATE_BYTE).await?;
    let key = state_key(&mut caller, key, key_len)?;
    if value_len > STATE_VALUE_BYTES_MAX {
        return Err(Stop::OverLimit.into());
    }
    let value = read(&mut caller, value, value_len)?;
    let fits = state(&mut caller).await?.set(key, value)?;
    Ok(u32::from(!fits))
}

async fn kv_delete(mut caller: Guests<'_>, key: u32, key_len: u32) -> wasmtime::Result<u32> {
    charge(&mut caller, HOST_CALL + STATE_WRITE + u64::from(key_len) * STATE_BYTE).await?;
    let key = state_key(&mut caller, key, key_len)?;
    let existed = state(&mut caller).await?.delete(key)?;
    Ok(u32::from(existed))
}

fn state_key(caller: &mut Guests<'_>, key: u32, len: u32) -> wasmtime::Result<Vec<u8>> {
    if len > STATE_KEY_BYTES_MAX {
        return Err(Stop::OverLimit.into());
    }
    read(caller, key, len)
}

/// The call's view of the state; the first use waits until no other call has it.
async fn state<'a>(caller: &'a mut Guests<'_>) -> wasmtime::Result<&'a mut StateCall> {
    if caller.data().call.state.is_none() {
        let guest = caller.data();
        let Some(state) = guest.cell.as_ref().map(|cell| cell.state().clone()) else {
            return Err(Stop::HostFault.into());
        };
        if !guest.call.running {
            return Err(Stop::OverLimit.into());
        }
        charge(caller, STATE_TAKE).await?;
        let guest = caller.data();
        let gauge = Arc::clone(&guest.gauge);
        let begin = StateCall::begin(state, guest.call.tape.clone());
        let begun = if guest.call.depth == 0 {
            wait(&gauge, begin).await?
        } else {
            match wait(&gauge, timeout(NESTED_WAIT_MAX, begin)).await {
                Ok(begun) => begun?,
                Err(_) => {
                    caller.data().call.spoil(Flaw::StateRefused);
                    return Err(Stop::OverLimit.into());
                }
            }
        };
        caller.data_mut().call.state = Some(begun);
    }
    caller.data_mut().call.state.as_mut().ok_or_else(|| Stop::HostFault.into())
}

fn read(caller: &mut Guests<'_>, ptr: u32, len: u32) -> wasmtime::Result<Vec<u8>> {
    let memory = memory(caller)?;
    slice(memory.data(&*caller), ptr, len).map(<[u8]>::to_vec)
}

fn write(caller: &mut Guests<'_>, ptr: u32, bytes: &[u8]) -> wasmtime::Result<()> {
    let memory = memory(caller)?;
    let at = usize::try_from(ptr)?;
    memory.write(&mut *caller, at, bytes).map_err(|_| wasmtime::Trap::MemoryOutOfBounds.into())
}

fn copy_out(caller: &mut Guests<'_>, bytes: &[u8], out: u32, len: u32) -> wasmtime::Result<u32> {
    let len = usize::try_from(len)?.min(bytes.len());
    write(caller, out, bytes.get(..len).unwrap_or_default())?;
    Ok(u32::try_from(len)?)
}

fn slice(memory: &[u8], ptr: u32, len: u32) -> wasmtime::Result<&[u8]> {
    let start = usize::try_from(ptr)?;
    let end = start.saturating_add(usize::try_from(len)?);
    memory.get(start..end).ok_or_else(|| wasmtime::Trap::MemoryOutOfBounds.into())
}
