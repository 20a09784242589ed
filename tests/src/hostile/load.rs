//! Class B: modules that mean harm to whoever reads or compiles them.

use std::fmt::Write as _;
use std::fs;

use super::guest::{echo, handler, import};
use super::{Bill, Row, Seen, World, deploy};
use crate::wat;

pub(super) fn rows() -> Vec<Row> {
    [
        bombs(),
        bodies(),
        counts(),
        paddings(),
        malformed(),
        types(),
        wrong(),
        imports(),
        sections(),
        artefacts(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What a compiler may need long for must neither stop the nucleus nor its cells.
const EITHER: &str = "an answer, in bounds";

fn bombs() -> Vec<Row> {
    let bomb = |class, name, make: fn() -> String| {
        let act = move |world: &World| {
            let wasm = wat::compile(&make());
            match world.deploy(&world.name(), "", &wasm) {
                Err(reason) if !reason.contains("compile") && !reason.contains("gate") => {
                    Seen::charged(reason, 0)
                }
                Err(reason) if reason.contains("panicked") => Seen::charged(reason, 0),
                _ => Seen::charged(EITHER, 0),
            }
        };
        Row::of(class, name, act, EITHER, Bill::Nothing)
    };
    vec![
        bomb("B1", "8,000 empty loops in one function", || {
            handler(&("(loop)".repeat(8_000) + "##0")).text()
        }),
        bomb("B1", "10,000 blocks that end in locals", || {
            let block = "(local.set $n (block (result i32) (br_if 0 #1 (local.get $n))))";
            handler(&(block.repeat(10_000) + "##0")).text()
        }),
        bomb("B1", "5,000 loads, each of the last one's address", || {
            handler(&format!("(drop {}#0{}) ##0", "(i32.load ".repeat(5_000), ")".repeat(5_000)))
                .text()
        }),
        bomb("B2", "one function of 240 KiB", || {
            let step = "(local.set $n (i32.add (local.get $n) #1))";
            handler(&(step.repeat(35_000) + "##0")).text()
        }),
        bomb("B3", "10,000 functions of 60 parameters", || {
            let types = "i32 ".repeat(60);
            echo().with(&format!("(func (param {types}))").repeat(10_000)).text()
        }),
        bomb("B4", "300 calls of 900 parameters", || {
            let arguments = "(local.get $n) ".repeat(900);
            let call = format!("(call $many {arguments})");
            handler(&(call.repeat(300) + "##0"))
                .with(&format!("(func $many (param {}))", "i32 ".repeat(900)))
                .text()
        }),
        bomb("B8", "20,000 blocks in one another", || {
            // Written flat: folded, they would be too deep for the text's own parser.
            handler(&("block ".repeat(20_000) + &"end ".repeat(20_000) + "i64.const 0")).text()
        }),
    ]
}

fn bodies() -> Vec<Row> {
    let refused = |class, name, make: fn() -> Vec<u8>, answer| {
        Row::new(class, name, deploy(make), answer, Bill::Nothing)
    };
    vec![
        refused(
            "B6",
            "one function of more than 1 MiB",
            || wat::compile(&handler(&("(local.set $n #1)".repeat(300_000) + "##0")).text()),
            "refused: *bytes in one function*",
        ),
        refused(
            "B3",
            "a function of 1,001 parameters",
            || {
                wat::compile(
                    &echo().with(&format!("(func (param {}))", "i32 ".repeat(1_001))).text(),
                )
            },
            "refused: *param*",
        ),
        refused(
            "B5",
            "a br_table of a million targets",
            || {
                wat::compile(
                    &handler(&format!(
                        "(block (br_table {}(local.get $n))) ##0",
                        "0 ".repeat(1_000_000)
                    ))
                    .text(),
                )
            },
            "refused: *",
        ),
    ]
}

fn counts() -> Vec<Row> {
    let refused = |class, name, make: fn() -> Vec<u8>, answer| {
        Row::new(class, name, deploy(make), answer, Bill::Nothing)
    };
    vec![
        refused(
            "B7",
            "50,001 functions",
            || wat::compile(&echo().with(&"(func)".repeat(50_001)).text()),
            "refused: *functions*at most*",
        ),
        refused(
            "B7",
            "1,001 globals",
            || wat::compile(&echo().with(&"(global i32 #0)".repeat(1_001)).text()),
            "refused: *1001 globals*",
        ),
        refused(
            "B7",
            "100,001 data segments",
            || wat::compile(&echo().with(&"(data \"\")".repeat(100_001)).text()),
            "refused: *100001 data segments*",
        ),
        refused(
            "B7",
            "100,001 element segments",
            || wat::compile(&echo().with(&"(elem func)".repeat(100_001)).text()),
            "refused: *100001 element segments*",
        ),
        refused(
            "B7",
            "201 imports",
            || {
                let one = import("cell_v1", "fuel_left", "", "I").replace(" $fuel_left", "");
                wat::compile(&echo().text().replacen(
                    "(module",
                    &format!("(module {}", one.repeat(201)),
                    1,
                ))
            },
            "refused: *201 imports*",
        ),
        refused(
            "B7",
            "100,000 locals in one function",
            || {
                wat::compile(
                    &echo().with(&format!("(func (local {}))", "i32 ".repeat(100_000))).text(),
                )
            },
            "refused: *local*",
        ),
        refused("B7", "2^32-1 locals in five bytes", || locals(u32::MAX), "refused: *local*"),
    ]
}

fn paddings() -> Vec<Row> {
    let refused = |class, name, make: fn() -> Vec<u8>, answer| {
        Row::new(class, name, deploy(make), answer, Bill::Nothing)
    };
    vec![
        refused(
            "B7",
            "a file of more than 32 MiB",
            || {
                let mut wasm = wat::compile(&echo().text());
                custom(&mut wasm, "padding", &vec![0; 32 << 20]);
                wasm
            },
            "refused: *",
        ),
        refused(
            "B7",
            "a custom section of 30 MiB",
            || {
                let mut wasm = wat::compile(&echo().text());
                custom(&mut wasm, "padding", &vec![0; 30 << 20]);
                wasm
            },
            "live or refused: *",
        ),
        refused(
            "B7",
            "names that are none, 4 MiB of them",
            || {
                let mut wasm = wat::compile(&echo().text());
                custom(&mut wasm, "name", &vec![0xff; 4 << 20]);
                wasm
            },
            "live or refused: *",
        ),
    ]
}

/// Appends a custom section.
fn custom(wasm: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    wasm.push(0);
    leb(wasm, 1 + name.len() + bytes.len());
    wasm.push(u8::try_from(name.len()).unwrap());
    wasm.extend_from_slice(name.as_bytes());
    wasm.extend_from_slice(bytes);
}

fn leb(to: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        to.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    to.push(u8::try_from(value).unwrap());
}

/// The echo with one more function of this many locals, which the text format could not hold.
fn locals(count: u32) -> Vec<u8> {
    let marked = echo().with("(func (local i32 i32 i32))").text();
    let mut wasm = wat::compile(&marked);
    // One group of three locals of type i32: 01 03 7f, in a body of five bytes with its end.
    let at = wasm.windows(5).position(|w| w == [0x04, 0x01, 0x03, 0x7f, 0x0b]).unwrap();
    let mut body = vec![0x08, 0x01];
    leb(&mut body, usize::try_from(count).unwrap());
    body.extend([0x7f, 0x0b]);
    assert_eq!(body.len(), 9);
    wasm.splice(at..at + 5, body);
    // The code section became four bytes longer.
    grow_code_section(&mut wasm, 4);
    wasm
}

/// Adds to the length of the code section, which takes one or two bytes here.
fn grow_code_section(wasm: &mut Vec<u8>, by: usize) {
    let mut at = 8;
    while wasm[at] != 10 {
        let (length, bytes) = unleb(&wasm[at + 1..]);
        at += 1 + bytes + length;
    }
    let (length, bytes) = unleb(&wasm[at + 1..]);
    let mut grown = Vec::new();
    leb(&mut grown, length + by);
    wasm.splice(at + 1..at + 1 + bytes, grown);
}

fn unleb(bytes: &[u8]) -> (usize, usize) {
    let (mut value, mut count) = (0, 0);
    for byte in bytes {
        value |= usize::from(byte & 0x7f) << (7 * count);
        count += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (value, count)
}

fn malformed() -> Vec<Row> {
    let bytes = |class, name, make: fn() -> Vec<u8>, answer| {
        Row::new(class, name, deploy(make), answer, Bill::Nothing)
    };
    vec![
        bytes(
            "B9",
            "native code in place of wasm",
            || b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
            "refused: *not a WebAssembly module*",
        ),
        bytes("B7", "an empty file", Vec::new, "refused: *not a WebAssembly module*"),
        bytes(
            "B7",
            "a header and nothing more",
            || b"\0asm\x01\0\0\0".to_vec(),
            "refused: *neither a cell*",
        ),
        bytes("B7", "a version of the future", || b"\0asm\x09\0\0\0".to_vec(), "refused: *"),
        bytes("B7", "a component", || wat::compile("(component)"), "refused: *component*"),
        bytes(
            "B7",
            "half a module",
            || {
                let wasm = wat::compile(&echo().text());
                wasm[..wasm.len() / 2].to_vec()
            },
            "refused: *",
        ),
        bytes(
            "B7",
            "a section that claims 4 GiB",
            || b"\0asm\x01\0\0\0\x01\xff\xff\xff\xff\x0f".to_vec(),
            "refused: *",
        ),
        bytes(
            "B7",
            "a vector that claims 2^32-1 types",
            || b"\0asm\x01\0\0\0\x01\x05\xff\xff\xff\xff\x0f".to_vec(),
            "refused: *",
        ),
    ]
}

/// The echo with one export's type changed.
fn mistyped(name: &'static str, from: &str, to: &str, answer: &'static str) -> Row {
    let text = echo().text().replace(from, to);
    Row::new("B7", name, deploy(move || wat::compile(&text)), answer, Bill::Nothing)
}

/// Exports of a cell that have another type than its host calls.
fn types() -> Vec<Row> {
    vec![
        mistyped(
            "a mailbox of another type",
            "(export \"cell_mailbox\") (param i32) (result i32)",
            "(export \"cell_mailbox\") (param i32) (param i32) (result i32)",
            "refused: *cell_mailbox*",
        ),
        mistyped(
            "an answer of another type",
            "(param $len i32) (result i64)",
            "(param $len i32) (param i64) (result i64)",
            "refused: *cell_receive*",
        ),
        Row::new(
            "B7",
            "an entry of another type",
            handler("##0").with("(func (export \"_initialize\") (param i32))").deploy(),
            "refused: *_initialize*",
            Bill::Nothing,
        ),
    ]
}

/// Modules that are well formed and still no cell.
fn wrong() -> Vec<Row> {
    let bytes = |class, name, make: fn() -> Vec<u8>, answer| {
        Row::new(class, name, deploy(make), answer, Bill::Nothing)
    };
    vec![
        bytes(
            "B7",
            "code that is not valid",
            || wat::compile(&handler("drop drop i32.add").text()),
            "refused: *",
        ),
        bytes(
            "B7",
            "a million sections of no bytes",
            || {
                let mut wasm = wat::compile(&echo().text());
                (0..1_000_000).for_each(|_| wasm.extend([0, 1, 0]));
                wasm
            },
            "live or refused: *",
        ),
        bytes(
            "B7",
            "a command where a cell is due",
            || wat::compile("(module (memory (export \"memory\") 1) (func (export \"_start\")))"),
            "refused: *command*",
        ),
        bytes(
            "B7",
            "no memory",
            || wat::compile(&echo().text().replace("(export \"memory\")", "")),
            "refused: *no memory*",
        ),
    ]
}

fn imports() -> Vec<Row> {
    let imports = |name, fields: &str, answer| {
        let text = echo().text().replacen("(module", &format!("(module {fields}"), 1);
        Row::new("B7", name, deploy(move || wat::compile(&text)), answer, Bill::Nothing)
    };
    vec![
        imports(
            "an import of the web",
            r#"(import "wasi:http/outgoing-handler" "handle" (func))"#,
            "refused: *handle*not offered*",
        ),
        imports(
            "an import of a socket",
            r#"(import "wasi_snapshot_preview1" "sock_open" (func))"#,
            "refused: *sock_open*not offered*",
        ),
        imports(
            "an import whose name clears the screen",
            "(import \"\\1b[2J\" \"\\0d\\0a\" (func))",
            "refused: *`[2J` ``*not offered*",
        ),
        imports(
            "an import with a name of a megabyte",
            &format!("(import \"env\" \"{}\" (func))", "x".repeat(1 << 20)),
            "refused: *",
        ),
        imports(
            "a function imported as a global",
            r#"(import "cell_v1" "log" (global i32))"#,
            "refused: *log*",
        ),
        imports(
            "a function imported with another type",
            r#"(import "wasi_snapshot_preview1" "fd_write" (func (param i64)))"#,
            "refused: *fd_write*",
        ),
        imports("an import of the memory", r#"(import "env" "memory" (memory 1))"#, "refused: *"),
        imports(
            "an import of a table",
            r#"(import "cell_v1" "call" (table 1 funcref))"#,
            "refused: *call*",
        ),
    ]
}

fn sections() -> Vec<Row> {
    let section = |name, bytes: &str, answer| {
        Row::new("B7", name, echo().section(bytes).deploy(), answer, Bill::Nothing)
    };
    let many: String = (0..257).fold(String::new(), |mut text, n| {
        let _ = write!(text, "receptor r{n}(u8) -> u8\\n\\n");
        text
    });
    vec![
        section("an interface of no bytes", "", "refused: *no cell:interface section*"),
        section(
            "an interface that is no text",
            "\\ff\\fe receptor run()",
            "refused: *not plain text*",
        ),
        section(
            "an interface that clears the screen",
            "receptor run(u8)\\1b[2J\\n\\n",
            "refused: *not plain text*",
        ),
        section(
            "an interface of 64 KiB and more",
            &format!("receptor run({})", "x".repeat(70_000)),
            "refused: *at most 65536*",
        ),
        section("an interface of 257 receptors", &many, "refused: *257 receptors*"),
        section(
            "an interface with a receptor twice",
            "receptor run(u8) -> u8\\n\\nreceptor run(u8) -> u16\\n\\n",
            "refused: *twice*",
        ),
        section(
            "an interface with a path for a name",
            "receptor ../../x(u8) -> u8\\n\\n",
            "refused: *block 1*",
        ),
        section("an interface of line ends", &"\\n".repeat(60_000), "refused: *"),
    ]
}

fn artefacts() -> Vec<Row> {
    vec![
        Row::of(
            "B9",
            "an artefact with a byte changed",
            |world| tampered(world, |bytes| bytes[4096] ^= 1),
            COMPILED_ANEW,
            Bill::None,
        ),
        Row::of(
            "B9",
            "an artefact of another module",
            |world| tampered(world, |bytes| bytes.reverse()),
            COMPILED_ANEW,
            Bill::None,
        ),
        Row::of(
            "B11",
            "an artefact cut in half",
            |world| tampered(world, |bytes| bytes.truncate(bytes.len() / 2)),
            COMPILED_ANEW,
            Bill::None,
        ),
        Row::of(
            "B11",
            "an artefact of no bytes",
            |world| tampered(world, Vec::clear),
            COMPILED_ANEW,
            Bill::None,
        ),
        Row::of(
            "B10",
            "the module replaced by garbage while it serves",
            replaced,
            "refused, and Ok",
            Bill::None,
        ),
        Row::of("B10", "the module gone while it serves", vanished, "refused, and Ok", Bill::None),
    ]
}

const COMPILED_ANEW: &str = "compiled anew, Ok 3";

/// Harms a cell's artefact and deploys the module again under another name.
fn tampered(world: &World, harm: fn(&mut Vec<u8>)) -> Seen {
    // Each module is one of its own, so that no other row knows its artefact.
    let mark = world.name();
    let wasm = wat::compile(
        &handler(&format!(
            "(drop #{}) (i32.store #0 #3) ##0x400000000",
            &mark[1..].trim_start_matches('0')
        ))
        .text(),
    );
    let (one, two) = (world.name(), world.name());
    world.deploy(&one, "", &wasm).unwrap();
    let hash = cell_abi::CellHash::of(&wasm).to_string();
    let kept = fs::read_dir(world.home().path().join("artefacts")).unwrap().flatten();
    let artefact = kept
        .map(|file| file.path())
        .find(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with(&hash) && name.ends_with(".cwasm")
        })
        .unwrap();
    let good = fs::read(&artefact).unwrap();
    let mut bad = good.clone();
    harm(&mut bad);
    // Never in place: the worker may have mapped it, and whoever can write here can do worse.
    fs::write(artefact.with_extension("new"), &bad).unwrap();
    fs::rename(artefact.with_extension("new"), &artefact).unwrap();
    if let Err(reason) = world.deploy(&two, "", &wasm) {
        return Seen::said(format!("refused: {reason}"));
    }
    let anew =
        if fs::read(&artefact).unwrap() == good { "compiled anew" } else { "used as it was" };
    Seen::said(format!("{anew}, {}", world.call(&two, b"", 1_000_000).answer))
}

fn replaced(world: &World) -> Seen {
    let cell = world.live("", &echo().text());
    let garbage = vec![0xa5; 1000];
    world.home().replace_wasm(&cell, &garbage);
    after_loss(world, &cell, &garbage)
}

fn vanished(world: &World) -> Seen {
    let cell = world.live("", &echo().text());
    fs::remove_file(world.home().cell_directory(&cell).join("cell.wasm")).unwrap();
    after_loss(world, &cell, b"")
}

/// What serves goes on serving until there is something better.
fn after_loss(world: &World, cell: &str, wasm: &[u8]) -> Seen {
    let refused = if world.settle(cell, wasm).is_err() { "refused" } else { "live" };
    Seen::said(format!("{refused}, and {}", world.call(cell, b"", 1_000_000).answer))
}
