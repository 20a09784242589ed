//! The gate's walk through a module's sections.

use cell_abi::Interface;
use cell_abi::interface::INTERFACE_SECTION;
use cell_abi::limits::INTERFACE_BYTES_MAX;
use wasmparser::{
    BinaryReader, CustomSectionReader, ElementItems, ElementKind, ExternalKind, FunctionBody,
    Imports, KnownCustom, Parser, Payload, SectionLimited, TableInit, ValType,
};

use super::code::{self, Sums};
use super::error::{GateError, Place, malformed};
use super::features::{self, off};
use super::limits::*;
use super::offered::{self, Signature};
use super::{ModuleInfo, ModuleKind, at_most};
use crate::host_calls;
use crate::limits::{CELL_TABLE_ELEMENTS_MAX, JOB_TABLE_ELEMENTS_MAX};

/// The module's types, and which one each function has.
#[derive(Debug, Default)]
pub(super) struct Types<'a> {
    types: Vec<Type<'a>>,
    /// Type of each function, imported ones first.
    functions: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Type<'a> {
    signature: Signature<'a>,
    params: u32,
    results: u32,
}

impl<'a> Types<'a> {
    fn signature(&self, index: u32) -> Option<Signature<'a>> {
        Some(self.types.get(usize::try_from(index).ok()?)?.signature)
    }

    /// Parameters and results of a type; none for one that is not there.
    pub(super) fn arity(&self, index: u32) -> (u64, u64) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.types.get(index).map_or((0, 0), |ty| (ty.params.into(), ty.results.into()))
    }

    /// Parameters and results of a function; none for one that is not there.
    pub(super) fn of_function(&self, index: u32) -> (u64, u64) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.functions.get(index).map_or((0, 0), |ty| self.arity(*ty))
    }
}

/// A size with the place where it stands.
type Sized = (u64, usize);

/// What was read so far.
#[derive(Debug)]
pub(super) struct Module<'a> {
    wasm: &'a [u8],
    types: Types<'a>,
    imported_functions: u32,
    params: u64,
    bodies: u32,
    sums: Sums,
    /// A `cell_v1` function that is imported.
    cell_import: Option<&'a str>,
    memory: Sized,
    table: Sized,
    elements: u64,
    data_bytes: u64,
    custom_sections: u32,
    interface: Vec<u8>,
    exports: Exports,
}

#[derive(Debug, Default)]
struct Exports {
    memory: bool,
    start: bool,
    mailbox: bool,
    receive: bool,
    json: bool,
}

impl<'a> Module<'a> {
    pub(super) fn new(wasm: &'a [u8]) -> Self {
        Self {
            wasm,
            types: Types::default(),
            imported_functions: 0,
            params: 0,
            bodies: 0,
            sums: Sums::default(),
            cell_import: None,
            memory: (0, 0),
            table: (0, 0),
            elements: 0,
            data_bytes: 0,
            custom_sections: 0,
            interface: Vec::new(),
            exports: Exports::default(),
        }
    }

    /// Reads every section and every body. The parser sees to it that each section comes once: a
    /// second one would escape the first one's count.
    pub(super) fn read(&mut self) -> Result<(), GateError> {
        for payload in Parser::new(0).parse_all(self.wasm) {
            self.section(payload.map_err(malformed)?)?;
        }
        Ok(())
    }

    fn section(&mut self, payload: Payload<'a>) -> Result<(), GateError> {
        match payload {
            Payload::Version { encoding: wasmparser::Encoding::Component, .. } => {
                Err(GateError::Component)
            }
            Payload::TypeSection(types) => self.types(&types),
            Payload::ImportSection(imports) => self.imports(imports),
            Payload::FunctionSection(functions) => self.functions(functions),
            Payload::TableSection(tables) => self.tables(tables),
            Payload::MemorySection(memories) => self.memories(memories),
            Payload::TagSection(tags) => Err(off(features::EXCEPTIONS, tags.range().start)),
            Payload::GlobalSection(globals) => check_globals(globals),
            Payload::ExportSection(exports) => self.exports(exports),
            Payload::StartSection { .. } => Err(GateError::StartSection),
            Payload::ElementSection(segments) => self.element_segments(segments),
            Payload::DataCountSection { count, range } => {
                at_most!(DATA_SEGMENTS_MAX, "data segments", count, range.start);
                Ok(())
            }
            Payload::DataSection(segments) => self.data_segments(segments),
            Payload::CodeSectionStart { count, range, .. } => {
                at_most!(FUNCTIONS_MAX, "functions", count, range.start);
                Ok(())
            }
            Payload::CodeSectionEntry(body) => self.body(&body),
            Payload::CustomSection(section) => self.custom(&section),
            Payload::UnknownSection { id, range, .. } => Err(GateError::Malformed {
                message: format!("there is no section {id}"),
                place: Place::at(range.start),
            }),
            _ => Ok(()),
        }
    }

    /// Types are read by hand: a recursive group of a million types is refused at its first byte.
    fn types(
        &mut self,
        section: &SectionLimited<'a, wasmparser::RecGroup>,
    ) -> Result<(), GateError> {
        let start = section.original_position();
        at_most!(TYPES_MAX, "types", section.count(), start);
        let bytes = self.wasm.get(start..section.range().end).unwrap_or_default();
        let mut reader = BinaryReader::new(bytes, start);
        for _ in 0..section.count() {
            let at = reader.original_position();
            if reader.read_u8().map_err(malformed)? != 0x60 {
                return Err(off(features::GC, at));
            }
            let (params, param_types) = self.values(&mut reader, true)?;
            let (results, result_types) = self.values(&mut reader, false)?;
            let signature = Signature { params: param_types, results: result_types };
            self.types.types.push(Type { signature, params, results });
        }
        Ok(())
    }

    fn values(
        &self,
        reader: &mut BinaryReader<'a>,
        are_params: bool,
    ) -> Result<(u32, &'a [u8]), GateError> {
        let at = reader.original_position();
        let count = reader.read_var_u32().map_err(malformed)?;
        if are_params {
            at_most!(PARAMS_MAX, "parameters in one type", count, at);
        } else {
            at_most!(RESULTS_MAX, "results in one type", count, at);
        }
        let start = reader.original_position();
        for _ in 0..count {
            let at = reader.original_position();
            features::value(reader.read::<ValType>().map_err(malformed)?, at)?;
        }
        let bytes = self.wasm.get(start..reader.original_position()).unwrap_or_default();
        Ok((count, bytes))
    }

    fn imports(&mut self, section: SectionLimited<'a, Imports<'a>>) -> Result<(), GateError> {
        at_most!(IMPORTS_MAX, "imports", section.count(), section.original_position());
        for imports in section.into_iter_with_offsets() {
            let (offset, imports) = imports.map_err(malformed)?;
            let Imports::Single(_, import) = imports else {
                return Err(off(features::COMPACT_IMPORTS, offset));
            };
            offered::check(&import, |index| self.types.signature(index))?;
            if import.module == host_calls::MODULE {
                self.cell_import = Some(import.name);
            }
            if let wasmparser::TypeRef::Func(index) | wasmparser::TypeRef::FuncExact(index) =
                import.ty
            {
                self.types.functions.push(index);
                self.imported_functions += 1;
            }
        }
        Ok(())
    }

    fn functions(&mut self, section: SectionLimited<'a, u32>) -> Result<(), GateError> {
        at_most!(FUNCTIONS_MAX, "functions", section.count(), section.original_position());
        for function in section.into_iter_with_offsets() {
            let (offset, index) = function.map_err(malformed)?;
            self.types.functions.push(index);
            self.params += self.types.arity(index).0;
            at_most!(PARAMS_SUM_MAX, "parameters of all functions", self.params, offset);
        }
        Ok(())
    }

    fn tables(
        &mut self,
        section: SectionLimited<'a, wasmparser::Table<'a>>,
    ) -> Result<(), GateError> {
        at_most!(TABLES_MAX, "tables", section.count(), section.original_position());
        for table in section.into_iter_with_offsets() {
            let (offset, table) = table.map_err(malformed)?;
            features::table(&table.ty, offset)?;
            if let TableInit::Expr(_) = table.init {
                return Err(off(features::FUNCTION_REFERENCES, offset));
            }
            self.table = (table.ty.initial, offset);
        }
        Ok(())
    }

    fn memories(
        &mut self,
        section: SectionLimited<'a, wasmparser::MemoryType>,
    ) -> Result<(), GateError> {
        at_most!(MEMORIES_MAX, "memories", section.count(), section.original_position());
        for memory in section.into_iter_with_offsets() {
            let (offset, memory) = memory.map_err(malformed)?;
            features::memory(&memory, offset)?;
            self.memory = (memory.initial, offset);
        }
        Ok(())
    }

    fn exports(
        &mut self,
        section: SectionLimited<'a, wasmparser::Export<'a>>,
    ) -> Result<(), GateError> {
        at_most!(EXPORTS_MAX, "exports", section.count(), section.original_position());
        let mut name_bytes = 0_usize;
        for export in section.into_iter_with_offsets() {
            let (offset, export) = export.map_err(malformed)?;
            name_bytes += export.name.len();
            at_most!(EXPORT_NAMES_BYTES_MAX, "bytes of export names", name_bytes, offset);
            let exports = &mut self.exports;
            match (export.kind, export.name) {
                (ExternalKind::Memory, "memory") => exports.memory = true,
                (ExternalKind::Func, "_start") => exports.start = true,
                (ExternalKind::Func, "cell_mailbox") => exports.mailbox = true,
                (ExternalKind::Func, "cell_receive") => exports.receive = true,
                (ExternalKind::Func, "cell_receive_json") => exports.json = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn element_segments(
        &mut self,
        section: SectionLimited<'a, wasmparser::Element<'a>>,
    ) -> Result<(), GateError> {
        let start = section.original_position();
        at_most!(ELEMENT_SEGMENTS_MAX, "element segments", section.count(), start);
        for segment in section {
            let segment = segment.map_err(malformed)?;
            if let ElementKind::Active { offset_expr, .. } = &segment.kind {
                code::constant(offset_expr)?;
            }
            let start = segment.range.start;
            self.elements += u64::from(match &segment.items {
                ElementItems::Functions(items) => items.count(),
                ElementItems::Expressions(_, items) => items.count(),
            });
            at_most!(ELEMENTS_MAX, "elements in all segments", self.elements, start);
            if let ElementItems::Expressions(ty, items) = segment.items {
                features::value(ValType::Ref(ty), start)?;
                for item in items {
                    code::constant(&item.map_err(malformed)?)?;
                }
            }
        }
        Ok(())
    }

    fn data_segments(
        &mut self,
        section: SectionLimited<'a, wasmparser::Data<'a>>,
    ) -> Result<(), GateError> {
        let start = section.original_position();
        at_most!(DATA_SEGMENTS_MAX, "data segments", section.count(), start);
        for segment in section {
            let segment = segment.map_err(malformed)?;
            if let wasmparser::DataKind::Active { offset_expr, .. } = &segment.kind {
                code::constant(offset_expr)?;
            }
            self.data_bytes += segment.data.len() as u64;
        }
        Ok(())
    }

    fn body(&mut self, body: &FunctionBody<'a>) -> Result<(), GateError> {
        let function = self.imported_functions + self.bodies;
        self.bodies += 1;
        let results = self.types.of_function(function).1;
        code::check(body, results, &self.types, &mut self.sums)
            .map_err(|error| error.in_function(function, self.wasm))
    }

    fn custom(&mut self, section: &CustomSectionReader<'a>) -> Result<(), GateError> {
        let start = section.range().start;
        self.custom_sections += 1;
        at_most!(CUSTOM_SECTIONS_MAX, "custom sections", self.custom_sections, start);
        let name_bytes = section.name().len();
        at_most!(CUSTOM_NAME_BYTES_MAX, "bytes in a custom section's name", name_bytes, start);
        if section.name() == INTERFACE_SECTION {
            // The linker joins sections of one name; a file with several has them joined here.
            if !self.interface.is_empty() {
                self.interface.extend_from_slice(b"\n\n");
            }
            let bytes = self.interface.len() + section.data().len();
            at_most!(INTERFACE_BYTES_MAX, "bytes of interface", bytes, start);
            self.interface.extend_from_slice(section.data());
        }
        if let KnownCustom::Name(_) = section.as_known() {
            let bytes = section.data().len();
            at_most!(NAME_SECTION_BYTES_MAX, "bytes in its name section", bytes, start);
        }
        Ok(())
    }

    /// What kind of module it is, and whether it is whole.
    pub(super) fn finish(self) -> Result<ModuleInfo, GateError> {
        let exports = &self.exports;
        let kind = if exports.receive && exports.mailbox {
            ModuleKind::Cell
        } else if exports.start {
            ModuleKind::Command
        } else {
            return Err(GateError::NeitherCellNorCommand);
        };
        if !exports.memory {
            return Err(GateError::NoMemory);
        }
        let ((pages, memory_at), (elements, table_at)) = (self.memory, self.table);
        match kind {
            ModuleKind::Cell => {
                at_most!(CELL_MEMORY_PAGES_MAX, "pages of memory at its start", pages, memory_at);
                at_most!(CELL_TABLE_ELEMENTS_MAX, "elements in its table", elements, table_at);
            }
            ModuleKind::Command => {
                at_most!(JOB_MEMORY_PAGES_MAX, "pages of memory at its start", pages, memory_at);
                at_most!(JOB_TABLE_ELEMENTS_MAX, "elements in its table", elements, table_at);
                if let Some(name) = self.cell_import {
                    let module = host_calls::MODULE.to_owned();
                    return Err(GateError::UnknownImport { module, name: name.to_owned() });
                }
            }
        }
        let interface = Interface::parse(&self.interface)?;
        if kind == ModuleKind::Cell && interface.receptors().is_empty() {
            return Err(GateError::NoReceptors);
        }
        Ok(ModuleInfo {
            kind,
            interface,
            has_json: exports.json,
            memory_pages: pages,
            data_bytes: self.data_bytes,
        })
    }
}

fn check_globals(section: SectionLimited<'_, wasmparser::Global<'_>>) -> Result<(), GateError> {
    at_most!(GLOBALS_MAX, "globals", section.count(), section.original_position());
    for global in section.into_iter_with_offsets() {
        let (offset, global) = global.map_err(malformed)?;
        if global.ty.shared {
            return Err(off(features::THREADS, offset));
        }
        features::value(global.ty.content_type, offset)?;
        code::constant(&global.init_expr)?;
    }
    Ok(())
}
