//! A sandbox, cells from WAT, and one-line calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use cell_abi::{AccountId, CellName, Fuel, Status};
use cell_host::{
    Allocation, CallSpec, Callee, Cell, CellOptions, LogLevel, Module, RemoteCell, Resolving,
    Sandbox, Services, StopHandle, gate,
};

/// The one engine of this process.
pub(crate) fn sandbox() -> Arc<Sandbox> {
    static SANDBOX: OnceLock<Arc<Sandbox>> = OnceLock::new();
    let make = || {
        let pooled = Allocation::Pooled { instances_max: 200, memory_bytes_max: 64 << 20 };
        Arc::new(Sandbox::new(pooled).unwrap())
    };
    Arc::clone(SANDBOX.get_or_init(make))
}

/// A cell with one receptor `run(bytes) -> bytes`, a mailbox at 64 KiB, and this handler.
///
/// The handler finds the request in `$ptr` and `$len` and leaves the reply as an i64.
pub(crate) fn wat(imports: &str, handler: &str) -> String {
    format!(
        r#"(module
            {imports}
            (memory (export "memory") 4)
            (@custom "cell:interface" "receptor run(bytes) -> bytes\n\n")
            (func (export "cell_mailbox") (param i32) (result i32)
                (if (result i32) (i32.gt_u (local.get 0) (i32.const 100000)) (then (i32.const 0)) (else (i32.const 65536))))
            (func (export "cell_receive") (param $receptor i32) (param $ptr i32) (param $len i32) (result i64)
                {handler})
        )"#
    )
}

/// Answers with the request.
pub(crate) const ECHO: &str = "(i64.or (i64.shl (i64.extend_i32_u (local.get $len)) (i64.const 32)) (i64.extend_i32_u (local.get $ptr)))";

/// Burns fuel for ever.
pub(crate) const SPIN: &str = "(loop $again (br $again)) unreachable";

pub(crate) fn module(text: &str) -> Module {
    let wasm = wat::parse_str(text).unwrap();
    let info = gate::inspect(&wasm).unwrap();
    sandbox().compile_and_load(&wasm, info).unwrap()
}

/// Cells by name, and everything they logged.
#[derive(Debug, Default)]
pub(crate) struct World {
    cells: Mutex<HashMap<String, Callee>>,
    pub(crate) lines: Mutex<Vec<String>>,
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn deploy(
        self: &Arc<Self>,
        name: &str,
        text: &str,
        options: CellOptions,
    ) -> Arc<Cell> {
        let services = Arc::clone(self) as Arc<dyn Services>;
        let parsed = CellName::parse(name).unwrap();
        let cell = Cell::new(&sandbox(), parsed, module(text), options, services).unwrap();
        let callee = Callee::Here(Arc::clone(&cell));
        self.cells.lock().unwrap().insert(name.to_owned(), callee);
        cell
    }

    /// Has another machine run a cell.
    pub(crate) fn far(&self, cell: Arc<dyn RemoteCell>) {
        let name = cell.name().as_str().to_owned();
        self.cells.lock().unwrap().insert(name, Callee::Elsewhere(cell));
    }
}

impl Services for World {
    fn resolve<'a>(&'a self, name: &'a CellName) -> Resolving<'a> {
        let cell = self.cells.lock().unwrap().get(name.as_str()).cloned();
        Box::pin(std::future::ready(cell.ok_or(Status::UnknownCell)))
    }

    fn log(&self, _cell: &CellName, level: LogLevel, line: &[u8]) {
        self.lines.lock().unwrap().push(format!("{level:?} {}", String::from_utf8_lossy(line)));
    }
}

pub(crate) fn deploy(text: &str, options: CellOptions) -> Arc<Cell> {
    World::new().deploy("test", text, options)
}

pub(crate) fn spec(fuel: u64, stop: &StopHandle) -> CallSpec {
    let deadline = Instant::now() + Duration::from_secs(60);
    CallSpec::new(AccountId::from_bytes([7; 32]), Fuel(fuel), deadline, stop.clone())
}

/// Calls receptor 0: status, fuel, and the reply or message.
pub(crate) async fn call(cell: &Arc<Cell>, request: &[u8], fuel: u64) -> (Status, u64, Vec<u8>) {
    call_with(cell, request, fuel, &StopHandle::new()).await
}

pub(crate) async fn call_with(
    cell: &Arc<Cell>,
    request: &[u8],
    fuel: u64,
    stop: &StopHandle,
) -> (Status, u64, Vec<u8>) {
    let mut lease = match cell.checkout(0).await {
        Ok(lease) => lease,
        Err((status, message)) => return (status, 0, message),
    };
    let outcome = match lease.begin(spec(fuel, stop), u32::try_from(request.len()).unwrap()).await {
        Ok(()) => {
            lease.request_mut().copy_from_slice(request);
            lease.finish(0, false).await
        }
        Err(outcome) => outcome,
    };
    let reply = match outcome.status {
        Status::Ok => lease.reply(&outcome).to_vec(),
        _ => outcome.message.clone(),
    };
    (outcome.status, outcome.fuel.0, reply)
}
