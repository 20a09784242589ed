//! The gate, and what comes behind it: whatever it lets through may be compiled and run.

use std::fs::OpenOptions;

use cell_abi::{Fuel, Status};
use cell_host::gate::limits;
use cell_host::stdio::Stream;
use cell_host::{CellOptions, Job, Limits, Module, ModuleInfo, ModuleKind, StopHandle, gate};
use wasmparser::{ExternalKind, Parser, Payload};

use crate::bytes::Bytes;
use crate::smith;
use crate::world::{Call, World, block_on, bounded, call, on_demand};

/// What a module that passed may burn here.
const FUEL: u64 = 1_000_000;

/// Shows the gate a module: with an even first byte the rest as it is, with an odd one a random
/// valid cell of which some bytes are changed. What it lets through is run.
pub fn gate(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let wasm = if bytes.u8() & 1 == 0 {
        bytes.rest().to_vec()
    } else {
        let edits: [[u8; 3]; 4] = std::array::from_fn(|_| bytes.array());
        let count = usize::from(bytes.u8()) % (edits.len() + 1);
        let Some(mut wasm) = smith::cell(bytes.rest()) else { return };
        for [low, high, value] in edits.into_iter().take(count) {
            let at = usize::from(u16::from_le_bytes([low, high])) % wasm.len();
            if let Some(byte) = wasm.get_mut(at) {
                *byte ^= value;
            }
        }
        wasm
    };
    let Ok(info) = gate::inspect(&wasm) else { return };
    let counted = Counted::of(&wasm);
    counted.check(&info);
    let Ok(module) = on_demand().compile_and_load(&wasm, info.clone()) else { return };
    match info.kind {
        ModuleKind::Cell => run_cell(module),
        ModuleKind::Command => run_job(&module),
    }
}

/// What the gate promises, counted once more.
#[derive(Debug, Default)]
struct Counted {
    functions: u32,
    tables: u32,
    memories: u32,
    globals: u32,
    segments: u32,
    imports: Vec<String>,
    exports: Vec<(String, bool)>,
    data_bytes: u64,
    memory_pages: u64,
    starts: bool,
    body_bytes_max: usize,
}

impl Counted {
    fn of(wasm: &[u8]) -> Self {
        let mut counted = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            counted.add(payload.expect("the gate read all of it"));
        }
        counted
    }

    fn add(&mut self, payload: Payload<'_>) {
        match payload {
            Payload::ImportSection(imports) => {
                let names = imports.into_imports().map(|import| import.expect("an import"));
                self.imports.extend(names.map(|import| import.module.to_owned()));
            }
            Payload::FunctionSection(functions) => self.functions += functions.count(),
            Payload::TableSection(tables) => self.tables += tables.count(),
            Payload::MemorySection(memories) => {
                self.memories += memories.count();
                for memory in memories {
                    self.memory_pages += memory.expect("a memory").initial;
                }
            }
            Payload::GlobalSection(globals) => self.globals += globals.count(),
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export.expect("an export");
                    let memory = export.kind == ExternalKind::Memory;
                    self.exports.push((export.name.to_owned(), memory));
                }
            }
            Payload::StartSection { .. } => self.starts = true,
            Payload::ElementSection(segments) => self.segments += segments.count(),
            Payload::DataSection(segments) => {
                self.segments += segments.count();
                for segment in segments {
                    self.data_bytes += segment.expect("a segment").data.len() as u64;
                }
            }
            Payload::CodeSectionEntry(body) => {
                self.body_bytes_max = self.body_bytes_max.max(body.range().len());
            }
            _ => {}
        }
    }

    fn check(&self, info: &ModuleInfo) {
        assert!(self.functions <= limits::FUNCTIONS_MAX, "{self:?}");
        assert!(self.tables <= 1 && self.memories <= 1, "{self:?}");
        assert!(self.globals <= limits::GLOBALS_MAX, "{self:?}");
        assert!(
            self.segments <= limits::ELEMENT_SEGMENTS_MAX + limits::DATA_SEGMENTS_MAX,
            "{self:?}"
        );
        assert!(self.imports.len() <= limits::IMPORTS_MAX as usize, "{self:?}");
        let known = ["cell_v1", "wasi_snapshot_preview1"];
        assert!(self.imports.iter().all(|module| known.contains(&&**module)), "{self:?}");
        assert!(!self.starts && self.body_bytes_max <= limits::BODY_BYTES_MAX, "{self:?}");
        assert_eq!((info.memory_pages, info.data_bytes), (self.memory_pages, self.data_bytes));
        let exports = |name: &str| self.exports.iter().any(|(export, _)| export == name);
        assert!(exports("memory"), "{self:?}");
        match info.kind {
            ModuleKind::Cell => {
                assert!(exports("cell_mailbox") && exports("cell_receive"), "{self:?}");
                assert!(!info.interface.receptors().is_empty());
            }
            ModuleKind::Command => assert!(exports("_start"), "{self:?}"),
        }
        assert_eq!(info.has_json, info.has_json && exports("cell_receive_json"));
    }
}

fn run_cell(module: Module) {
    let world = World::new();
    let mut options = CellOptions::default();
    options.limits.memory_bytes_max = 4 << 20;
    let Ok(cell) = world.deploy(on_demand(), "gated", module, options) else { return };
    for length in [0, 24] {
        let request = &[7; 24];
        let plan = Call { receptor: 0, length, request, fuel: FUEL, abandon: false };
        block_on(call(&cell, plan));
    }
    world.retire();
}

fn run_job(module: &Module) {
    let nothing = || {
        let file = OpenOptions::new().read(true).write(true).open("/dev/null").expect("/dev/null");
        file.into()
    };
    let mut limits = Limits::JOB;
    limits.memory_bytes_max = 4 << 20;
    let stop = StopHandle::new();
    let ended = block_on(async {
        let job = Job {
            arguments: vec!["gated".into(), "argument".into()],
            environment: vec![("NAME".into(), "value".into())],
            directories: Vec::new(),
            stdin: Stream::input(nothing()).expect("stdin"),
            stdout: Stream::output(nothing()).expect("stdout"),
            stderr: Stream::output(nothing()).expect("stderr"),
            fuel: Fuel(FUEL),
            limits,
            allowance: None,
            stop: stop.clone(),
            tape: cell_host::JobTape::None,
            rates: cell_host::Rates::default(),
        };
        bounded(job.run(on_demand(), module), &stop).await
    });
    if let Ok(outcome) = ended {
        assert!(outcome.fuel.0 <= FUEL, "{outcome:?}");
        assert!(outcome.memory_bytes_peak <= 4 << 20, "{outcome:?}");
        if let cell_host::JobEnd::Stopped { status, .. } = outcome.end {
            assert!(status != Status::Ok && status != Status::HostFault);
        }
    }
}
