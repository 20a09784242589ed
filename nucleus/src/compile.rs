//! Compiling: in a process of its own, which the module may exhaust without harm to anyone.
//!
//! It is paid by the home's owner, once for each module that the compiler works on, and what the
//! compiler refuses is remembered. A module that the gate refuses costs nothing.

use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::{AccountId, CellHash, Fuel, NanoAtp};
use cell_host::{Allocation, ArtefactCache, GateError, ModuleInfo, Refused, Sandbox, gate, price};
use cell_ledger::{LedgerError, Payment, TransferId};
use rustix::process::Signal;

use crate::bank::{Bank, Held};
use crate::cli::{Exit, Failure};
use crate::home::Home;
use crate::walls;

cell_abi::limits! {
    /// Processor time of a compilation, in seconds, besides what its size allows.
    ///
    /// The compiler is ended; the module is refused, and that is remembered.
    pub(crate) const CPU_S_MAX: u64 = 3;

    /// Processor time of a compilation for each MiB of the module, in seconds. A program of
    /// 13 MB took 15 s on the machine this was measured on, less than a third of what it may.
    ///
    /// The compiler is ended; the module is refused, and that is remembered.
    pub(crate) const CPU_S_PER_MIB_MAX: u64 = 4;

    /// Time of a compilation on the wall clock, as a multiple of its processor time, for a machine
    /// that is busy otherwise.
    ///
    /// The compiler is ended; the module is refused, and that is remembered.
    pub(crate) const WALL_TIMES_CPU_MAX: u64 = 4;

    /// Address space of the compiler, in bytes. A program of 13 MB took 0.4 GiB.
    ///
    /// The compiler ends; the module is refused, and that is remembered.
    pub(crate) const MEMORY_BYTES_MAX: u64 = 2 << 30;

    /// Largest artefact, in bytes.
    ///
    /// The module is refused, and that is remembered.
    pub(crate) const ARTEFACT_BYTES_MAX: u64 = 256 << 20;

    /// Largest artefact, in bytes for each byte of the module, besides 16 MiB. Real programs
    /// become three times as large, a module made for it fifty times.
    ///
    /// The module is refused, and that is remembered.
    pub(crate) const ARTEFACT_BYTES_PER_BYTE_MAX: u64 = 8;

    /// Descriptors of the compiler: three pipes, and a few to spare.
    ///
    /// It opens no file, and nothing could be opened.
    pub(crate) const DESCRIPTORS_MAX: u64 = 16;

    /// What the compiler may say, in bytes.
    ///
    /// The rest is not read.
    pub(crate) const MESSAGE_BYTES_MAX: u64 = 4096;
}

/// What any artefact may have, in bytes: a small module has the same frame as a large one.
const ARTEFACT_BYTES_FREE: u64 = 16 << 20;

/// A module that passed the gate and lies compiled in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Compiled {
    pub(crate) hash: CellHash,
    pub(crate) info: ModuleInfo,
    /// What was paid for compiling it just now; nothing if it lay in the cache.
    pub(crate) paid: Option<Paid>,
}

/// A payment for compiling.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paid {
    pub(crate) fuel: Fuel,
    pub(crate) transfer: TransferId,
}

/// Whose ledger pays, if anything is to be paid.
pub(crate) enum Payer<'a> {
    /// One that is open.
    Bank(&'a mut Bank),
    /// One that is open, and the account of another machine in it.
    Peer(&'a mut Bank, AccountId),
    /// One that is opened for the payment.
    Home(&'a Home),
}

/// Why the compiler gave no artefact, by the module's fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Invalid(String),
    #[error("it takes more than {0} s of processor time")]
    CpuTime(u64),
    #[error("it takes more than {0} s")]
    WallTime(u64),
    #[error("it takes more than {MEMORY_BYTES_MAX} bytes of memory")]
    Memory,
    #[error("its artefact has more than {0} bytes")]
    ArtefactSize(u64),
    #[error("the compiler crashed with {0}")]
    Crashed(ExitStatus),
}

/// The cache of this home.
pub(crate) fn cache(home: &Home) -> anyhow::Result<ArtefactCache> {
    let key = home.secret(&home.root().join("artefacts.key"))?;
    ArtefactCache::open(home.artefacts(), *key).context("open the artefact cache")
}

/// Passes a module through the gate and compiles it, unless this machine has done so before.
pub(crate) fn compile(
    cache: &ArtefactCache,
    wasm: &[u8],
    payer: Payer<'_>,
) -> anyhow::Result<Compiled> {
    let info = gate::inspect(wasm).map_err(|error: GateError| {
        Failure::new(Exit::Refused, format!("refused by the gate: {error}"))
    })?;
    let hash = CellHash::of(wasm);
    if cache.find(hash).is_some() {
        return Ok(Compiled { hash, info, paid: None });
    }
    // Of several that want the same module one compiles it, and pays.
    let _alone = cache.alone(hash).context("wait for who compiles the same module")?;
    if cache.find(hash).is_some() {
        return Ok(Compiled { hash, info, paid: None });
    }
    if let Some(Refused { reason, file }) = cache.refused(hash) {
        let file = file.display();
        let message = format!(
            "the module does not compile: {reason} (remembered; change the module, or remove {file} to pay for another try)"
        );
        return Err(Failure::new(Exit::Refused, message).into());
    }
    let mut opened;
    let (bank, account) = match payer {
        Payer::Bank(bank) => (bank, None),
        Payer::Peer(bank, account) => (bank, Some(account)),
        Payer::Home(home) => {
            opened = Bank::open(home)?;
            (&mut opened, None)
        }
    };
    let account = account.unwrap_or(bank.accounts.owner);
    let price = Fuel(price::compile(wasm.len() as u64));
    let held = set_aside(bank, account, price.at_base_price())?;
    let compiled = match compile_elsewhere(wasm) {
        Ok(compiled) => compiled,
        // The host's own fault costs nothing.
        Err(error) => {
            bank.void(held)?;
            return Err(error);
        }
    };
    let paid = pay(bank, held, hash, price)?;
    match compiled {
        Ok(artefact) => {
            cache.store(hash, &artefact).context("keep the artefact")?;
            Ok(Compiled { hash, info, paid: Some(paid) })
        }
        Err(fault) => {
            let reason = fault.to_string();
            cache.refuse(hash, &reason).context("remember a refusal")?;
            let message = format!(
                "the module does not compile: {reason} ({} ATP were paid for the attempt)",
                price.at_base_price()
            );
            Err(Failure::new(Exit::Refused, message).into())
        }
    }
}

/// Sets the price aside before anything is done for it.
fn set_aside(bank: &mut Bank, account: AccountId, price: NanoAtp) -> anyhow::Result<Held> {
    match bank.hold(account, price, price) {
        Ok(held) => Ok(held),
        Err(LedgerError::InsufficientFunds { available, .. }) => Err(Failure::new(
            Exit::OutOfAtp,
            format!(
                "compiling the module costs {price} ATP, once, and the account has {available} ATP; see `cell ledger grant`"
            ),
        )
        .into()),
        Err(error) => Err(error).context("set the price of compiling aside"),
    }
}

/// Pays what was set aside to the node, under an id that makes a second payment the same one.
fn pay(bank: &Bank, held: Held, hash: CellHash, fuel: Fuel) -> anyhow::Result<Paid> {
    let (engine, session) = (Sandbox::engine_id(), bank.session());
    let parts: [&[u8]; 3] = [hash.as_bytes(), engine.as_bytes(), session.as_bytes()];
    let transfer = TransferId::derive("cell/compile/v1", &parts);
    let node = bank.accounts.node();
    let memo = format!("compile {}", hash.short());
    let payment = Payment { id: transfer, credit: node, amount: fuel.at_base_price(), memo };
    bank.settle(held, vec![payment]).context("pay for compiling")?;
    Ok(Paid { fuel, transfer })
}

/// Processor time that a module of this size may take, in seconds.
const fn cpu_s_max(bytes: usize) -> u64 {
    CPU_S_MAX + (bytes as u64).saturating_mul(CPU_S_PER_MIB_MAX).div_ceil(1 << 20)
}

/// Size that the artefact of a module of this size may have, in bytes.
fn artefact_bytes_max(bytes: usize) -> u64 {
    let by_size = (bytes as u64).saturating_mul(ARTEFACT_BYTES_PER_BYTE_MAX);
    by_size.saturating_add(ARTEFACT_BYTES_FREE).min(ARTEFACT_BYTES_MAX)
}

/// Starts `cell compile-worker`, feeds it the module and takes the artefact.
fn compile_elsewhere(wasm: &[u8]) -> anyhow::Result<Result<Vec<u8>, Fault>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("compile-worker")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the compiler")?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        anyhow::bail!("the compiler has no pipes");
    };
    // A reader that has enough closes its pipe, which ends a compiler that says more.
    let read = |stream: Box<dyn std::io::Read + Send>, max: u64| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.take(max + 1).read_to_end(&mut bytes).map(|_| bytes)
        })
    };
    let artefact_bytes_max = artefact_bytes_max(wasm.len());
    let artefact = read(Box::new(stdout), artefact_bytes_max);
    let messages = read(Box::new(stderr), MESSAGE_BYTES_MAX);
    let cpu_s = cpu_s_max(wasm.len());
    let wasm = wasm.to_vec();
    // A compiler that died does not read on; its status tells why.
    let feeder = thread::spawn(move || drop(stdin.write_all(&wasm)));
    let wall_s = cpu_s * WALL_TIMES_CPU_MAX;
    let (status, in_time) = wait(&mut child, Duration::from_secs(wall_s))?;
    let _ = feeder.join();
    let taken = |thread: thread::JoinHandle<std::io::Result<Vec<u8>>>| match thread.join() {
        Ok(bytes) => bytes.context("read from the compiler"),
        Err(_) => anyhow::bail!("reading from the compiler failed"),
    };
    let (artefact, messages) = (taken(artefact)?, taken(messages)?);
    let said = String::from_utf8_lossy(&messages);
    // A guest's names may be in what it says.
    let said: String = said.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Ok(if artefact.len() as u64 > artefact_bytes_max {
        Err(Fault::ArtefactSize(artefact_bytes_max))
    } else if status.success() {
        Ok(artefact)
    } else if !in_time {
        Err(Fault::WallTime(wall_s))
    } else if status.signal() == Some(Signal::XCPU.as_raw()) {
        Err(Fault::CpuTime(cpu_s))
    } else if said.contains("memory allocation of") {
        Err(Fault::Memory)
    } else if status.code().is_some() {
        Err(Fault::Invalid(said))
    } else {
        Err(Fault::Crashed(status))
    })
}

/// Waits for the compiler, and ends it when its time is over; says whether it ended in time.
fn wait(child: &mut Child, time_max: Duration) -> anyhow::Result<(ExitStatus, bool)> {
    let started = Instant::now();
    let mut in_time = true;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, in_time));
        }
        if started.elapsed() > time_max {
            in_time = false;
            child.kill()?;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The compiler process: a module on standard input, its artefact on standard output.
pub(crate) fn worker() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    walls::close_inherited_descriptors()?;
    let mut wasm = Vec::new();
    std::io::stdin().take(gate::MODULE_BYTES_MAX as u64 + 1).read_to_end(&mut wasm)?;
    // Read, but not looked at: from here on the walls stand.
    let resources = walls::Resources {
        cpu_s_max: Some(cpu_s_max(wasm.len())),
        address_bytes_max: Some(MEMORY_BYTES_MAX),
        // It writes to pipes, never to a file.
        file_bytes_max: Some(0),
        descriptors_max: Some(DESCRIPTORS_MAX),
        ..walls::Resources::default()
    };
    walls::raise(&walls::Role::Compiler, &resources);
    let info = gate::inspect(&wasm)?;
    let artefact = Sandbox::new(Allocation::OnDemand)?.compile(&wasm, info.kind)?;
    std::io::stdout().write_all(&artefact)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowances_follow_the_size() {
        assert_eq!([0, 1, 1 << 20, (1 << 20) + 1, 32 << 20].map(cpu_s_max), [3, 4, 7, 8, 131]);
        let artefacts =
            [0, 1 << 20, 30 << 20, 32 << 20].map(|bytes| artefact_bytes_max(bytes) >> 20);
        assert_eq!(artefacts, [16, 24, 256, 256]);
    }
}
