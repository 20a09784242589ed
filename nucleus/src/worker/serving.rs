//! One generation of a cell's code: asked for when it is first called, and let go when it has been idle.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cell_abi::{CellHash, CellName, Interface, Status};
use cell_host::{Cell, CellOptions, Lease, ModuleInfo, Sandbox, Services};
use tokio::sync::Notify;

use super::call::Route;
use super::cells::{Cells, lock};
use crate::link::LoadCell;
use crate::manifest::Settings;

/// One generation of a cell's code and settings.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) interface: Interface,
    pub(super) has_json: bool,
    pub(super) call_time_max: Duration,
    /// Its calls are recorded.
    pub(super) receipts: bool,
    pub(super) name: CellName,
    pub(super) hash: CellHash,
    pub(super) generation: u64,
    memory_pages: u64,
    data_bytes: u64,
    settings: Settings,
    code: Mutex<Code>,
    changed: Notify,
    retired: AtomicBool,
}

#[derive(Debug)]
enum Code {
    Asleep,
    Asked,
    /// Loaded, and since when nothing uses it, if that was seen.
    Loaded(Arc<Cell>, Option<Instant>),
}

impl Serving {
    pub(super) fn new(name: CellName, load: &LoadCell) -> anyhow::Result<Self> {
        Ok(Self {
            interface: Interface::parse(load.facts.interface.as_bytes())?,
            has_json: load.facts.has_json,
            call_time_max: Duration::from_millis(load.settings.call_ms_max),
            receipts: load.settings.receipts,
            name,
            hash: CellHash::parse(&load.hash)?,
            generation: load.generation,
            memory_pages: load.facts.memory_pages,
            data_bytes: load.facts.data_bytes,
            settings: load.settings.clone(),
            code: Mutex::new(Code::Asleep),
            changed: Notify::new(),
            retired: AtomicBool::new(false),
        })
    }

    /// How its manifest has it run.
    pub(super) fn options(&self) -> CellOptions {
        self.settings.options()
    }

    /// Makes a cell of its artefact.
    pub(super) fn make(
        &self,
        sandbox: &Arc<Sandbox>,
        options: CellOptions,
        services: Arc<dyn Services>,
        artefact: OwnedFd,
    ) -> anyhow::Result<Arc<Cell>> {
        let info = ModuleInfo::of_cell(
            self.interface.clone(),
            self.has_json,
            self.memory_pages,
            self.data_bytes,
        );
        let module = sandbox.load(artefact.into(), info, self.hash)?;
        Ok(Cell::new(sandbox, self.name.clone(), module, options, services)?)
    }

    /// Takes the code that was asked for; without any the next call asks again.
    pub(super) fn take(&self, cell: Option<Arc<Cell>>) {
        *lock(&self.code) = match cell {
            Some(cell) => {
                if self.retired.load(Relaxed) {
                    cell.retire();
                }
                Code::Loaded(cell, None)
            }
            None => Code::Asleep,
        };
        self.changed.notify_waiters();
    }

    /// Takes an instance of the code; asks the nucleus for the code if need be.
    pub(super) async fn checkout(
        self: &Arc<Self>,
        route: &Route,
    ) -> Result<Lease, (Status, Vec<u8>)> {
        self.cell(&route.cells).await?.checkout(route.caller).await
    }

    pub(super) async fn cell(
        self: &Arc<Self>,
        cells: &Cells,
    ) -> Result<Arc<Cell>, (Status, Vec<u8>)> {
        if let Code::Loaded(cell, unused) = &mut *lock(&self.code) {
            *unused = None;
            return Ok(Arc::clone(cell));
        }
        // Seldom, so that what waiting takes is not a part of every call.
        Box::pin(self.load(cells)).await
    }

    async fn load(self: &Arc<Self>, cells: &Cells) -> Result<Arc<Cell>, (Status, Vec<u8>)> {
        let mut waited = false;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change is missed in between.
            changed.as_mut().enable();
            {
                let mut code = lock(&self.code);
                match &mut *code {
                    Code::Loaded(cell, unused) => {
                        *unused = None;
                        return Ok(Arc::clone(cell));
                    }
                    Code::Asleep if waited => {
                        let reason = "its code could not be loaded; see `cell ps`";
                        return Err((Status::HostFault, reason.into()));
                    }
                    Code::Asleep => {
                        cells.ask(self)?;
                        *code = Code::Asked;
                    }
                    Code::Asked => {}
                }
            }
            waited = true;
            changed.await;
        }
    }

    pub(super) fn loaded(&self) -> Option<Arc<Cell>> {
        match &*lock(&self.code) {
            Code::Loaded(cell, _) => Some(Arc::clone(cell)),
            Code::Asleep | Code::Asked => None,
        }
    }

    pub(super) fn is_asleep(&self) -> bool {
        matches!(&*lock(&self.code), Code::Asleep)
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Relaxed);
        if let Some(cell) = self.loaded() {
            cell.retire();
        }
    }

    pub(super) fn stop_idle(&self) {
        let idle = Duration::from_secs(self.settings.idle_s);
        let mut code = lock(&self.code);
        let Code::Loaded(cell, unused) = &mut *code else { return };
        cell.stop_idle(idle);
        // Nobody else has it, so nobody can begin to use it while the lock is held.
        if Arc::strong_count(cell) > 1 || cell.resting().is_some() {
            *unused = None;
            return;
        }
        let now = Instant::now();
        if now.saturating_duration_since(*unused.get_or_insert(now)) >= idle {
            *code = Code::Asleep;
        }
    }
}
