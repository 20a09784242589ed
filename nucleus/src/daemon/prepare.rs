//! Reads, gates and compiles directories, on threads of their own: a compilation takes its time.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, bail};
use cell_abi::CellName;
use cell_host::{ModuleKind, gate};

use super::Event;
use super::artefacts::Artefacts;
use super::scan::{Seen, look};
use crate::compile::{self, Compiled, Payer};
use crate::home::{Home, read_file};
use crate::link::ToWorker;
use crate::manifest::{self, Manifest, Settings};

/// Directories that are prepared at once: one that compiles for long does not keep all others
/// waiting.
const THREADS: usize = 2;

/// What is to be done.
#[derive(Debug)]
pub(super) enum Work {
    /// Read, gate and compile a cell's directory.
    Prepare { cell: String },
    /// Find or make the artefact of code that a worker wants to run.
    Artefact { worker: u64, cell: String, generation: u64, hash: String },
}

/// A cell's directory after it was read, gated and compiled.
pub(crate) struct Prepared {
    pub(super) name: String,
    pub(super) seen: Seen,
    pub(super) result: anyhow::Result<What>,
}

/// What a cell's directory has.
#[derive(Clone)]
pub(super) enum What {
    Module(Compiled, Settings),
    /// Other machines run it: how its manifest names them, and whether calls of peers may go on to it.
    Elsewhere {
        machines: Vec<String>,
        for_peers: bool,
    },
}

/// Starts the threads; they live as long as the sender.
pub(super) fn start(
    artefacts: &Artefacts,
    home: &Home,
    events: &Sender<Event>,
) -> anyhow::Result<Sender<Work>> {
    let (sender, receiver) = mpsc::channel::<Work>();
    let receiver = Arc::new(Mutex::new(receiver));
    for at in 0..THREADS {
        let (artefacts, home, events) = (artefacts.clone(), home.clone(), events.clone());
        let receiver = Arc::clone(&receiver);
        thread::Builder::new().name(format!("prepare {at}")).spawn(move || {
            loop {
                let work = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(work) = work else { return };
                if events.send(done(work, &artefacts, &home)).is_err() {
                    return;
                }
            }
        })?;
    }
    Ok(sender)
}

fn done(work: Work, artefacts: &Artefacts, home: &Home) -> Event {
    match work {
        Work::Prepare { cell } => {
            let directory = home.cell(&cell);
            let seen = look(&directory);
            let result = prepare(artefacts, home, &cell);
            Event::Prepared(Box::new(Prepared { name: cell, seen, result }))
        }
        Work::Artefact { worker, cell, generation, hash } => {
            // Somebody removed or changed it: it is made again from the module.
            let made = prepare(artefacts, home, &cell).and_then(|what| match what {
                What::Module(compiled, _) if compiled.hash.to_string() == hash => {
                    artefacts.find(&hash).context("the artefact vanished")
                }
                _ => bail!("the module was replaced"),
            });
            let error = made.as_ref().err().map(|error| format!("{error:#}"));
            let message = ToWorker::Artefact { cell, generation, error };
            Event::Send(worker, message, made.ok())
        }
    }
}

fn prepare(artefacts: &Artefacts, home: &Home, name: &str) -> anyhow::Result<What> {
    let directory = &home.cell(name);
    CellName::parse(name).with_context(|| format!("directory name {name:?}"))?;
    let manifest = Manifest::read(directory)?;
    if manifest.name.as_str() != name {
        bail!(
            "{} says name = {:?}, but the directory is {name:?}; they must be the same",
            manifest::FILE,
            manifest.name.as_str()
        );
    }
    if !manifest.at.is_empty() {
        if directory.join(&manifest.wasm).exists() {
            bail!(
                "{} names machines that run the cell, and there is a {} here too; remove one of them",
                manifest::FILE,
                manifest.wasm
            );
        }
        let for_peers = manifest.settings.peers;
        return Ok(What::Elsewhere { machines: manifest.at, for_peers });
    }
    let wasm = read_file(&directory.join(&manifest.wasm), gate::MODULE_BYTES_MAX as u64)?;
    let compiled = compile::compile(&artefacts.cache, &wasm, Payer::Home(home))?;
    if compiled.info.kind != ModuleKind::Cell {
        bail!("{} is a command, not a cell; run it with `cell run`", manifest.wasm);
    }
    let (pages, memory_mb) = (compiled.info.memory_pages, manifest.settings.memory_mb_max);
    if pages > u64::from(memory_mb) * 16 {
        bail!(
            "the module starts with {pages} pages of 64 KiB, more than memory_mb_max = {memory_mb}"
        );
    }
    Ok(What::Module(compiled, manifest.settings))
}
