//! Random valid modules, made into cells.
//!
//! wasm-smith makes a module without exports; what a cell needs is added here: a mailbox, and a
//! receptor that calls one of the module's functions and answers with what it returned and with the
//! start of its memory. The sections are edited as bytes, since only a few entries are appended.

use arbitrary::Unstructured;
use wasm_smith::Config;
use wasmparser::{FuncType, Parser, Payload, TypeRef, ValType};

/// Bytes of memory that the receptor answers with; the results lie at its start.
const REPLY_BYTES: u64 = 4096;
/// Largest memory a module asks for, in bytes.
const MEMORY_BYTES_MAX: u64 = 1 << 20;
/// Most elements of its table.
const TABLE_ELEMENTS_MAX: u64 = 500;

const I32: u8 = 0x7f;
const I64: u8 = 0x7e;
const END: u8 = 0x0b;

/// A cell around a random module; `None` if the bytes do not suffice for one.
pub(crate) fn cell(data: &[u8]) -> Option<Vec<u8>> {
    let (chosen, data) = data.split_first()?;
    let config = config(chosen >> 6 == 0, chosen & 0x20 == 0);
    let module = wasm_smith::Module::new(config, &mut Unstructured::new(data)).ok()?;
    wrap(&module.to_bytes(), *chosen)
}

/// What the sandbox's engine takes; see the configuration in `cell_host`'s `engine`.
///
/// With references most modules use externref, which the engine has not; so they are rare. Code
/// that may trap does so at once, as a rule; so every other module is made not to.
fn config(references: bool, traps: bool) -> Config {
    Config {
        allow_start_export: false,
        exceptions_enabled: false,
        gc_enabled: false,
        custom_page_sizes_enabled: false,
        disallow_traps: !traps,
        memory64_enabled: false,
        reference_types_enabled: references,
        relaxed_simd_enabled: false,
        shared_everything_threads_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        max_exports: 0,
        max_imports: 0,
        min_funcs: 1,
        max_funcs: 8,
        max_globals: 16,
        max_memories: 1,
        max_memory32_bytes: MEMORY_BYTES_MAX,
        min_memories: 1,
        max_table_elements: TABLE_ELEMENTS_MAX,
        max_tables: 1,
        max_tags: 0,
        max_instructions: 200,
        ..Config::default()
    }
}

/// What there is to know of a module before something is appended.
#[derive(Debug, Default)]
struct Shape {
    types: Vec<FuncType>,
    functions: Vec<u32>,
}

fn shape(wasm: &[u8]) -> Option<Shape> {
    let mut shape = Shape::default();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.ok()? {
            Payload::TypeSection(types) => {
                for ty in types.into_iter_err_on_gc_types() {
                    shape.types.push(ty.ok()?);
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    // An imported function would move the numbers of the others.
                    if matches!(import.ok()?.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
                        return None;
                    }
                }
            }
            Payload::FunctionSection(functions) => {
                for function in functions {
                    shape.functions.push(function.ok()?);
                }
            }
            _ => {}
        }
    }
    Some(shape)
}

/// Appends what makes a cell of the module.
fn wrap(wasm: &[u8], chosen: u8) -> Option<Vec<u8>> {
    let shape = shape(wasm)?;
    let called = usize::from(chosen) % shape.functions.len().max(1);
    let ty = shape.types.get(usize::try_from(*shape.functions.get(called)?).ok()?)?;
    let types = shape.types.len();
    let functions = shape.functions.len();

    let mut new_types = vec![0x60, 1, I32, 1, I32];
    new_types.extend_from_slice(&[0x60, 3, I32, I32, I32, 1, I64]);
    let new_functions = [leb(types), leb(types + 1)].concat();
    // A mailbox for an empty request may be anywhere but at zero.
    let mailbox = body(&[], &[0x41, 16]);
    let receive = body(&locals(ty), &receive_code(ty, called)?);
    let new_code = [mailbox, receive].concat();

    let mut cell = wasm.get(..8)?.to_vec();
    let mut exported = false;
    let mut rest = wasm.get(8..)?;
    while let Some((id, after)) = rest.split_first() {
        let (length, after) = read_leb(after)?;
        let (content, after) = after.split_at_checked(length)?;
        rest = after;
        // Sections are ordered: exports come before start, elements, data count, code and data.
        if !exported && matches!(id, 8..=12) {
            push_section(&mut cell, 7, &exports(functions));
            exported = true;
        }
        match id {
            1 => push_section(&mut cell, 1, &appended(content, 2, &new_types)?),
            3 => push_section(&mut cell, 3, &appended(content, 2, &new_functions)?),
            10 => push_section(&mut cell, 10, &appended(content, 2, &new_code)?),
            5 => push_section(&mut cell, 5, &memory(content)?),
            // What the module exports itself nobody calls.
            7 => {}
            id => push_section(&mut cell, *id, content),
        }
    }
    let name = b"cell:interface";
    let mut interface = [leb(name.len()), name.to_vec()].concat();
    interface.extend_from_slice(b"receptor run(bytes) -> bytes\n\n");
    push_section(&mut cell, 0, &interface);
    Some(cell)
}

fn exports(functions: usize) -> Vec<u8> {
    let mut content = vec![3];
    let names =
        [("memory", 2, 0), ("cell_mailbox", 0, functions), ("cell_receive", 0, functions + 1)];
    for (name, kind, index) in names {
        content.extend_from_slice(&leb(name.len()));
        content.extend_from_slice(name.as_bytes());
        content.push(kind);
        content.extend_from_slice(&leb(index));
    }
    content
}

/// One local for each result, behind the three parameters.
fn locals(ty: &FuncType) -> Vec<u8> {
    ty.results().iter().filter_map(|result| Some([1, code_of(*result)?])).flatten().collect()
}

/// Calls the function with constants, keeps what it returned at the start of the memory, and
/// answers with that start.
fn receive_code(ty: &FuncType, called: usize) -> Option<Vec<u8>> {
    let mut code = Vec::new();
    for (at, parameter) in ty.params().iter().enumerate() {
        // Signed LEB128 of a number below 64 is the number.
        let small = u8::try_from(at % 60).ok()?;
        match parameter {
            ValType::I32 => code.extend_from_slice(&[0x41, small]),
            ValType::I64 => code.extend_from_slice(&[0x42, small]),
            ValType::F32 => code.extend_from_slice(&[0x43, 0, 0, small, 0x40]),
            ValType::F64 => code.extend_from_slice(&[0x44, 0, 0, 0, 0, 0, 0, small, 0x40]),
            ValType::V128 => {
                code.extend_from_slice(&[[0xfd, 12].as_slice(), &[small; 16]].concat())
            }
            ValType::Ref(_) => code.extend_from_slice(&[0xd0, code_of(*parameter)?]),
        }
    }
    code.push(0x10);
    code.extend_from_slice(&leb(called));
    let results = ty.results();
    for at in (0..results.len()).rev() {
        code.push(0x21);
        code.extend_from_slice(&leb(3 + at));
    }
    for (at, result) in results.iter().enumerate() {
        let store: &[u8] = match result {
            ValType::I32 => &[0x36, 0],
            ValType::I64 => &[0x37, 0],
            ValType::F32 => &[0x38, 0],
            ValType::F64 => &[0x39, 0],
            ValType::V128 => &[0xfd, 11, 0],
            ValType::Ref(_) => continue,
        };
        code.extend_from_slice(&[0x41, 0, 0x20]);
        code.extend_from_slice(&leb(3 + at));
        code.extend_from_slice(store);
        code.extend_from_slice(&leb(16 * at));
    }
    code.push(0x42);
    code.extend_from_slice(&signed_leb(REPLY_BYTES << 32));
    Some(code)
}

const fn code_of(ty: ValType) -> Option<u8> {
    Some(match ty {
        ValType::I32 => I32,
        ValType::I64 => I64,
        ValType::F32 => 0x7d,
        ValType::F64 => 0x7c,
        ValType::V128 => 0x7b,
        ValType::Ref(ty) if ty.is_func_ref() => 0x70,
        ValType::Ref(ty) if ty.is_extern_ref() => 0x6f,
        ValType::Ref(_) => return None,
    })
}

fn body(locals: &[u8], code: &[u8]) -> Vec<u8> {
    let content = [&leb(locals.len() / 2), locals, code, &[END]].concat();
    [leb(content.len()), content].concat()
}

/// A section's content with more entries at its end.
fn appended(content: &[u8], more: usize, entries: &[u8]) -> Option<Vec<u8>> {
    let (count, old) = read_leb(content)?;
    Some([&leb(count + more), old, entries].concat())
}

/// A memory's section with a page to start with; wasm-smith prefers none.
fn memory(content: &[u8]) -> Option<Vec<u8>> {
    let (count, rest) = read_leb(content)?;
    let (flags, rest) = rest.split_first()?;
    let (min, max) = read_leb(rest)?;
    let min = min.max(1);
    let mut content = [&leb(count), [*flags].as_slice(), &leb(min)].concat();
    if !max.is_empty() {
        content.extend_from_slice(&leb(read_leb(max)?.0.max(min)));
    }
    Some(content)
}

fn push_section(wasm: &mut Vec<u8>, id: u8, content: &[u8]) {
    wasm.push(id);
    wasm.extend_from_slice(&leb(content.len()));
    wasm.extend_from_slice(content);
}

fn leb(number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut left = number;
    loop {
        let low = u8::try_from(left & 0x7f).unwrap_or(0);
        left >>= 7;
        if left == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// LEB128 of a number that is not negative, with room for its sign.
fn signed_leb(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut left = number;
    while left >= 64 {
        bytes.push(u8::try_from(left & 0x7f).unwrap_or(0) | 0x80);
        left >>= 7;
    }
    bytes.push(u8::try_from(left).unwrap_or(0));
    bytes
}

fn read_leb(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut number = 0_usize;
    for (at, byte) in bytes.iter().take(5).enumerate() {
        number |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(at + 1..)?));
        }
    }
    None
}
