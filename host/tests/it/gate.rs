//! Each limit of the gate from both sides, and each part of WebAssembly that is off.

use cell_host::gate::limits::*;
use cell_host::{GateError, gate};

use crate::support::{ECHO, wat};

/// A number as modules write it.
fn leb(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [leb(bytes.len() as u64), bytes.to_vec()].concat()
}

fn times(bytes: &[u8], count: u64) -> Vec<u8> {
    bytes.repeat(usize::try_from(count).unwrap())
}

/// A job of these parts. Its memory, `_start` and their types are there already.
#[derive(Default)]
struct Parts {
    types: Vec<Vec<u8>>,
    /// Function types by index, each with its body.
    functions: Vec<(u64, Vec<u8>)>,
    imports: u64,
    tables: Vec<u64>,
    memories: Vec<u64>,
    globals: Vec<Vec<u8>>,
    exports: Vec<Vec<u8>>,
    /// Function indices of each element segment.
    elements: Vec<u64>,
    data: u64,
    customs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A body without locals: operators, then its end.
fn body(operators: &[u8]) -> Vec<u8> {
    [&[0], operators, &[0x0b]].concat()
}

fn section(id: u8, items: &[Vec<u8>]) -> Vec<u8> {
    if items.is_empty() {
        return Vec::new();
    }
    let content = [leb(items.len() as u64), items.concat()].concat();
    [vec![id], sized(&content)].concat()
}

/// A function type with so many parameters and results of type i32.
fn function_type(params: u64, results: u64) -> Vec<u8> {
    [vec![0x60], leb(params), times(&[0x7f], params), leb(results), times(&[0x7f], results)]
        .concat()
}

impl Parts {
    fn job() -> Self {
        let mut parts = Self::default();
        parts.types.push(function_type(0, 0));
        parts.functions.push((0, body(&[])));
        parts.memories.push(1);
        parts
    }

    fn with(change: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut parts = Self::job();
        change(&mut parts);
        parts.build()
    }

    fn build(self) -> Vec<u8> {
        let import = [sized(b"wasi_snapshot_preview1"), sized(b"sched_yield"), vec![0, 1]].concat();
        let imports = vec![import; usize::try_from(self.imports).unwrap()];
        let mut exports = vec![
            [sized(b"memory"), vec![2, 0]].concat(),
            [sized(b"_start"), vec![0], leb(self.imports)].concat(),
        ];
        exports.extend(self.exports);
        let indices: Vec<_> = self.functions.iter().map(|(ty, _)| leb(*ty)).collect();
        let bodies: Vec<_> = self.functions.iter().map(|(_, body)| sized(body)).collect();
        let limits = |least: &u64| [vec![0], leb(*least)].concat();
        let tables: Vec<_> =
            self.tables.iter().map(|least| [vec![0x70], limits(least)].concat()).collect();
        let memories: Vec<_> = self.memories.iter().map(limits).collect();
        let elements: Vec<_> = self
            .elements
            .iter()
            .map(|count| [vec![1, 0], leb(*count), times(&[0], *count)].concat())
            .collect();
        let data = vec![vec![1, 0]; usize::try_from(self.data).unwrap()];
        let customs: Vec<_> = self
            .customs
            .iter()
            .map(|(name, content)| [vec![0], sized(&[sized(name), content.clone()].concat())])
            .map(|parts| parts.concat())
            .collect();
        [
            b"\0asm\x01\0\0\0".to_vec(),
            section(1, &self.types),
            section(2, &imports),
            section(3, &indices),
            section(4, &tables),
            section(5, &memories),
            section(6, &self.globals),
            section(7, &exports),
            section(9, &elements),
            section(10, &bodies),
            section(11, &data),
            customs.concat(),
        ]
        .concat()
    }
}

/// A module with exactly the limit passes; with one more it is refused, by the limit's name.
#[track_caller]
fn check(limit: &str, make: impl Fn(u64) -> Vec<u8>) {
    let rows = [LIMITS, cell_host::limits::LIMITS, cell_abi::limits::LIMITS].concat();
    let row = rows.iter().find(|row| row.name == limit).unwrap();
    let most = row.value();
    if let Err(error) = gate::inspect(&make(most)) {
        panic!("{limit}: {most} must pass: {error}");
    }
    match gate::inspect(&make(most + 1)).expect_err(limit) {
        GateError::TooMany { limit: by, found, max, .. } => {
            assert_eq!((by, found, max), (limit, most + 1, most));
        }
        other => panic!("{limit}: {other}"),
    }
}

/// A job with one more function of this type and body.
fn with_function(ty: u64, operators: &[u8]) -> Vec<u8> {
    Parts::with(|parts| parts.functions.push((ty, body(operators))))
}

#[test]
fn sections() {
    let many = |n: u64, item: Vec<u8>| vec![item; usize::try_from(n).unwrap()];
    let custom = |name: &[u8], bytes: u64| (name.to_vec(), times(b"\n", bytes));
    check("MODULE_BYTES_MAX", |n| {
        let frame = Parts::with(|parts| parts.customs.push(custom(b"x", 1 << 24))).len();
        let rest = n - frame as u64 + (1 << 24);
        Parts::with(|parts| parts.customs.push(custom(b"x", rest)))
    });
    check("TYPES_MAX", |n| Parts::with(|parts| parts.types = many(n, function_type(0, 0))));
    check("PARAMS_MAX", |n| Parts::with(|parts| parts.types.push(function_type(n, 0))));
    check("RESULTS_MAX", |n| Parts::with(|parts| parts.types.push(function_type(0, n))));
    check("PARAMS_SUM_MAX", |n| {
        Parts::with(|parts| {
            parts.types.extend([function_type(100, 0), function_type(n % 100, 0)]);
            parts.functions.extend(vec![(1, body(&[])); usize::try_from(n / 100).unwrap()]);
            parts.functions.push((2, body(&[])));
        })
    });
    check("IMPORTS_MAX", |n| {
        Parts::with(|parts| {
            parts.types.push(function_type(0, 1));
            parts.imports = n;
        })
    });
    check("FUNCTIONS_MAX", |n| {
        Parts::with(|parts| {
            parts.functions = vec![(0, body(&[])); usize::try_from(n).unwrap()];
        })
    });
    check("TABLES_MAX", |n| {
        Parts::with(|parts| parts.tables = vec![1; usize::try_from(n).unwrap()])
    });
    check("JOB_TABLE_ELEMENTS_MAX", |n| Parts::with(|parts| parts.tables = vec![n]));
    check("MEMORIES_MAX", |n| {
        Parts::with(|parts| parts.memories = vec![1; usize::try_from(n).unwrap()])
    });
    check("JOB_MEMORY_PAGES_MAX", |n| Parts::with(|parts| parts.memories = vec![n]));
    check("GLOBALS_MAX", |n| {
        Parts::with(|parts| parts.globals = many(n, vec![0x7f, 0, 0x41, 0, 0x0b]))
    });
    check("CONSTANT_OPERATORS_MAX", |n| {
        let global = [vec![0x7f, 0], times(&[0x01], n - 1), vec![0x0b]].concat();
        Parts::with(|parts| parts.globals.push(global))
    });
    check("EXPORTS_MAX", |n| {
        Parts::with(|parts| parts.exports = many(n - 2, [sized(b"x"), vec![0, 0]].concat()))
    });
    check("EXPORT_NAMES_BYTES_MAX", |n| {
        // The two exports of every job take 12 bytes, and a name has at most 100,000.
        let (rest, long) = ((n - 12) % 100_000, (n - 12) / 100_000);
        let export = |bytes: u64| [sized(&times(b"x", bytes)), vec![0, 0]].concat();
        Parts::with(|parts| {
            parts.exports = many(long, export(100_000));
            parts.exports.push(export(rest));
        })
    });
    check("ELEMENT_SEGMENTS_MAX", |n| {
        Parts::with(|parts| parts.elements = vec![0; usize::try_from(n).unwrap()])
    });
    check("ELEMENTS_MAX", |n| Parts::with(|parts| parts.elements = vec![n - 1, 1]));
    check("DATA_SEGMENTS_MAX", |n| Parts::with(|parts| parts.data = n));
    check("CUSTOM_SECTIONS_MAX", |n| {
        Parts::with(|parts| parts.customs = vec![custom(b"x", 0); usize::try_from(n).unwrap()])
    });
    check("CUSTOM_NAME_BYTES_MAX", |n| {
        Parts::with(|parts| parts.customs.push(custom(&times(b"x", n), 0)))
    });
    check("NAME_SECTION_BYTES_MAX", |n| {
        Parts::with(|parts| parts.customs.push(custom(b"name", n)))
    });
    check("INTERFACE_BYTES_MAX", |n| {
        // Two sections are joined by an empty line.
        Parts::with(|parts| {
            parts.customs.push(custom(b"cell:interface", 100));
            parts.customs.push(custom(b"cell:interface", n - 102));
        })
    });
}

#[test]
fn bodies() {
    const BLOCK: [u8; 2] = [0x02, 0x40];
    check("BODY_BYTES_MAX", |n| with_function(0, &times(&[0x01], n - 2)));
    // The count of locals is run-length coded: a few bytes declare as many as one likes.
    let locals = |n: u64| [vec![1], leb(n), vec![0x7f, 0x0b]].concat();
    check("LOCALS_MAX", |n| Parts::with(|parts| parts.functions.push((0, locals(n)))));
    check("LOCALS_SUM_MAX", |n| {
        Parts::with(|parts| {
            let full = usize::try_from(n / LOCALS_MAX).unwrap();
            parts.functions.extend(vec![(0, locals(LOCALS_MAX)); full]);
            parts.functions.push((0, locals(n % LOCALS_MAX)));
        })
    });
    check("BLOCKS_MAX", |n| with_function(0, &times(&[BLOCK[0], BLOCK[1], 0x0b], n)));
    check("LOOPS_MAX", |n| with_function(0, &times(&[0x03, 0x40, 0x0b], n)));
    check("NESTING_MAX", |n| with_function(0, &[times(&BLOCK, n), times(&[0x0b], n)].concat()));
    let br_table = |n: u64| [vec![0x41, 0, 0x0e], leb(n), times(&[0], n), vec![0]].concat();
    check("BR_TABLE_TARGETS_MAX", |n| with_function(0, &br_table(n)));
    check("BR_TABLE_TARGETS_SUM_MAX", |n| {
        let most = u64::from(BR_TABLE_TARGETS_MAX);
        Parts::with(|parts| {
            let full = usize::try_from(n / most).unwrap();
            parts.functions.extend(vec![(0, body(&br_table(most))); full]);
            parts.functions.push((0, body(&br_table(n % most))));
        })
    });
    // Calls of a function with a hundred parameters, and of one with as many as are left.
    check("VALUES_PASSED_MAX", |n| {
        Parts::with(|parts| {
            parts.types.extend([function_type(90, 10), function_type(n % 100, 0)]);
            parts.functions.extend([(1, body(&[0])), (2, body(&[]))]);
            let calls = [times(&[0x10, 1], n / 100), vec![0x10, 2]].concat();
            parts.functions.push((0, body(&calls)));
        })
    });
    // The same by branches out of a block with ten results.
    check("VALUES_PASSED_MAX", |n| {
        Parts::with(|parts| {
            parts.types.push(function_type(0, 1));
            parts.types.push(function_type(0, 10));
            // The block has counted ten.
            let tens = (n - 10) / 10;
            let block = [vec![0x02, 2], times(&[0x0c, 0], tens), vec![0x0b]].concat();
            let ones = [vec![0x02, 1], times(&[0x0c, 0], (n - 10) % 10), vec![0x0b]].concat();
            let ones = if n.is_multiple_of(10) { Vec::new() } else { ones };
            // A block of one result that is never branched out of counts as the one that is left.
            let ones = if n % 10 == 1 { vec![0x02, 1, 0x0b] } else { ones };
            parts.functions.push((0, body(&[block, ones].concat())));
        })
    });
}

#[test]
fn cells_start_smaller() {
    check("CELL_MEMORY_PAGES_MAX", |n| {
        let text = wat("", ECHO).replace("\"memory\") 4", &format!("\"memory\") {n}"));
        wat::parse_str(text).unwrap()
    });
    check("CELL_TABLE_ELEMENTS_MAX", |n| {
        wat::parse_str(wat(&format!("(table {n} funcref)"), ECHO)).unwrap()
    });
}

#[track_caller]
fn check_off(feature: &str, fields: &str) {
    check_off_with(feature, "1", fields);
}

#[track_caller]
fn check_off_with(feature: &str, memory: &str, fields: &str) {
    let text = format!(
        r#"(module (memory (export "memory") {memory}) (func (export "_start")) (type $f (func)) {fields})"#
    );
    let wasm = wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}"));
    match gate::inspect(&wasm) {
        Err(GateError::Feature { feature: found, .. }) => {
            assert!(found.contains(feature), "{found}")
        }
        other => panic!("{feature}: {other:?}"),
    }
}

#[test]
fn what_the_engine_has_off() {
    check_off("exceptions", "(tag)");
    check_off("exceptions", "(func (throw_ref (unreachable)))");
    check_off("tail calls", "(func $g (return_call $g))");
    check_off("threads", "(func (atomic.fence))");
    check_off("64-bit", "(table i64 1 funcref)");
    check_off("garbage", "(type (struct))");
    check_off("garbage", "(rec (type (func)) (type (func)))");
    check_off("garbage", "(func (drop (ref.i31 (i32.const 0))))");
    check_off("anything but functions", "(func (param externref))");
    check_off("anything but functions", "(func (local externref))");
    check_off("anything but functions", "(table 1 externref)");
    check_off("anything but functions", "(global externref (ref.null extern))");
    check_off("typed function", "(func (param funcref) (call_ref $f (unreachable)))");
    check_off("typed function", "(func $g) (table 1 funcref (ref.func $g))");
    check_off(
        "relaxed",
        "(func (drop (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0))))",
    );
    check_off("wide", "(func (i64.const 0) (i64.const 0) (i64.mul_wide_u) (drop) (drop))");
    check_off_with("custom page sizes", "1 (pagesize 1)", "");
    check_off_with("64-bit", "i64 1", "");
    check_off_with("threads", "1 1 shared", "");
}

#[test]
fn imports_by_name_and_type() {
    let import = |module: &str, import: &str| {
        let text = format!(
            r#"(module (import "{module}" {import}) (memory (export "memory") 1) (func (export "_start")))"#
        );
        gate::inspect(&wat::parse_str(text).unwrap()).map(drop)
    };
    let wasi = "wasi_snapshot_preview1";
    assert_eq!(import(wasi, r#""fd_tell" (func (param i32 i32) (result i32))"#), Ok(()));
    assert_eq!(import(wasi, r#""proc_exit" (func (param i32))"#), Ok(()));
    assert_eq!(
        import(wasi, r#""fd_tell" (func (param i32 i64) (result f32))"#),
        Err(GateError::ImportType {
            module: wasi.into(),
            name: "fd_tell".into(),
            found: "(i32, i64) -> (f32)".into(),
            offered: "(i32, i32) -> (i32)".into(),
        })
    );
    for refused in [r#""fd_tell" (memory 1)"#, r#""fd_fly" (func)"#, r#""fd_tell" (global i32)"#] {
        let found = import(wasi, refused);
        assert!(matches!(found, Err(GateError::UnknownImport { .. })), "{found:?}");
    }
    // What a cell may import a job may not.
    let found = import("cell_v1", r#""fuel_left" (func (result i64))"#);
    assert!(matches!(found, Err(GateError::UnknownImport { .. })), "{found:?}");
    let found = import(r"env\1b[2J", r#""a\0ab" (func)"#).unwrap_err().to_string();
    assert!(found.contains("`env[2J` `ab`"), "{found}");
}

#[test]
fn a_refusal_says_where() {
    let table = "0 ".repeat(usize::try_from(BR_TABLE_TARGETS_MAX).unwrap() + 2);
    let text = format!(
        r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
            (memory (export "memory") 1) (func (export "_start"))
            (func $wide (@name "wi\1b\0ade") (br_table {table} (i32.const 0))))"#
    );
    let wasm = wat::parse_str(text).unwrap();
    let error = gate::inspect(&wasm).unwrap_err();
    let GateError::TooMany { place, .. } = &error else { panic!("{error}") };
    assert_eq!((place.function, place.name.as_deref()), (Some(2), Some("wide")));
    // The byte is the operator's.
    assert_eq!(wasm[place.offset], 0x0e);
    assert_eq!(
        error.to_string(),
        format!(
            "the module has 8193 targets in one br_table in function 2 `wide` at byte {}; at most 8192 are allowed (BR_TABLE_TARGETS_MAX)",
            place.offset
        )
    );
}

/// A section that comes twice escapes no count: both are one error.
#[test]
fn malformed_modules() {
    let types = section(1, &[function_type(0, 0)]);
    let twice = [b"\0asm\x01\0\0\0".as_slice(), &types, &types].concat();
    let error = gate::inspect(&twice).unwrap_err();
    assert!(error.to_string().contains("out of order at byte"), "{error}");
    let unknown = [b"\0asm\x01\0\0\0".as_slice(), &[77, 0]].concat();
    assert!(matches!(gate::inspect(&unknown), Err(GateError::Malformed { .. })));
    // A count that promises more than the bytes hold costs nothing.
    let promised = [b"\0asm\x01\0\0\0".as_slice(), &[1, 3, 0xff, 0xce, 0x00]].concat();
    assert!(gate::inspect(&promised).is_err());
}

/// Any byte of a module may be anything: the gate answers, and never panics.
#[test]
fn any_bytes_have_an_answer() {
    let mut modules = vec![
        wat::parse_str(wat(r#"(import "cell_v1" "fuel_left" (func (result i64))) (table 2 funcref) (global i32 (i32.const 1)) (data "abc")"#, ECHO)).unwrap(),
    ];
    modules.push(Parts::with(|parts| {
        parts.functions.push((0, body(&[0x41, 0, 0x0e, 2, 0, 0, 0, 0x02, 0x40, 0x0b])));
        parts.elements = vec![3, 0];
        parts.tables = vec![3];
        parts.customs.push((b"name".to_vec(), vec![1, 4, 1, 0, 1, b'x']));
    }));
    for module in modules {
        assert!(gate::inspect(&module).is_ok(), "{:?}", gate::inspect(&module));
        for at in 0..module.len() {
            for byte in [0, 1, 0x0b, 0x40, 0x5e, 0x60, 0x7f, 0x80, 0xfb, 0xfd, 0xff] {
                let mut changed = module.clone();
                changed[at] = byte;
                let _ = gate::inspect(&changed);
                // A longer number than fits, in the same place.
                changed.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f]);
                let _ = gate::inspect(&changed);
            }
        }
    }
}
