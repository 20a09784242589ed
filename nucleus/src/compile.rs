//! Compiling: in a process of its own, which the module may exhaust without harm to anyone.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::CellHash;
use cell_host::{Allocation, ArtefactCache, GateError, ModuleInfo, Sandbox, gate};

use crate::cli::{Exit, Failure};
use crate::home::Home;
use crate::walls;

/// Processor time a compilation may take, in seconds.
const CPU_S_MAX: u64 = 60;
/// Wall-clock time, for a machine that is busy otherwise.
const WALL_TIME_MAX: Duration = Duration::from_secs(180);
/// Address space of the compiler, in bytes.
const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// Largest artefact, in bytes.
const ARTEFACT_BYTES_MAX: u64 = 512 << 20;

/// A module that passed the gate and lies compiled in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Compiled {
    pub(crate) hash: CellHash,
    pub(crate) info: ModuleInfo,
}

/// The cache of this home.
pub(crate) fn cache(home: &Home) -> anyhow::Result<ArtefactCache> {
    let key = home.secret(&home.root().join("artefacts.key"))?;
    ArtefactCache::open(home.artefacts(), *key).context("open the artefact cache")
}

/// Passes a module through the gate and compiles it, unless this machine has done so before.
pub(crate) fn compile(cache: &ArtefactCache, wasm: &[u8]) -> anyhow::Result<Compiled> {
    let info = gate::inspect(wasm).map_err(|error: GateError| {
        Failure::new(Exit::Refused, format!("refused by the gate: {error}"))
    })?;
    let hash = CellHash::of(wasm);
    if cache.find(hash).is_none() {
        cache.store(hash, &compile_elsewhere(wasm)?).context("keep the artefact")?;
    }
    Ok(Compiled { hash, info })
}

/// Starts `cell compile-worker`, feeds it the module and takes the artefact.
fn compile_elsewhere(wasm: &[u8]) -> anyhow::Result<Vec<u8>> {
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
    let read = |stream: Box<dyn std::io::Read + Send>, max: u64| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.take(max + 1).read_to_end(&mut bytes).map(|_| bytes)
        })
    };
    let artefact = read(Box::new(stdout), ARTEFACT_BYTES_MAX);
    let messages = read(Box::new(stderr), 4096);
    let wasm = wasm.to_vec();
    // A compiler that died does not read on; its status tells why.
    let feeder = thread::spawn(move || drop(stdin.write_all(&wasm)));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > WALL_TIME_MAX {
            child.kill()?;
        }
        thread::sleep(Duration::from_millis(2));
    };
    let _ = feeder.join();
    let taken = |thread: thread::JoinHandle<std::io::Result<Vec<u8>>>| match thread.join() {
        Ok(bytes) => bytes.context("read from the compiler"),
        Err(_) => anyhow::bail!("reading from the compiler failed"),
    };
    let (artefact, messages) = (taken(artefact)?, taken(messages)?);
    if status.success() && artefact.len() as u64 <= ARTEFACT_BYTES_MAX {
        return Ok(artefact);
    }
    let why = String::from_utf8_lossy(&messages);
    let why = match why.trim() {
        "" if status.success() => format!("its artefact has more than {ARTEFACT_BYTES_MAX} bytes"),
        "" => format!(
            "the compiler ended with {status}: more than {CPU_S_MAX} s or {MEMORY_BYTES_MAX} bytes of memory?"
        ),
        why => why.to_owned(),
    };
    Err(Failure::new(Exit::Refused, format!("the module does not compile: {why}")).into())
}

/// The compiler process: a module on standard input, its artefact on standard output.
pub(crate) fn worker() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    walls::close_inherited_descriptors()?;
    let resources = walls::Resources {
        cpu_s_max: Some(CPU_S_MAX),
        address_bytes_max: Some(MEMORY_BYTES_MAX),
        file_bytes_max: Some(0),
        descriptors_max: Some(16),
        ..walls::Resources::default()
    };
    walls::raise(&walls::Role::Compiler, &resources);
    let mut wasm = Vec::new();
    std::io::stdin().take(gate::MODULE_BYTES_MAX as u64 + 1).read_to_end(&mut wasm)?;
    let info = gate::inspect(&wasm)?;
    let artefact = Sandbox::new(Allocation::OnDemand)?.compile(&wasm, info.kind)?;
    std::io::stdout().write_all(&artefact)?;
    Ok(())
}
