//! The interpreter as text: what each byte of a program does.

use std::fmt::Write as _;

use super::imports::{IMPORTS, Import};

/// The receptor that answers with its request.
pub(super) const ECHO: u16 = 0;
/// The receptor that runs its request.
pub(super) const RUN: u16 = 1;

/// Where its memory ends at first.
pub(super) const MEMORY_BYTES: u32 = 4 << 16;
/// Where requests are put, unless a program says otherwise.
pub(super) const MAILBOX: u32 = 1 << 16;
/// Where the names that calls need lie: `callee`, `self`, `run`, `echo`, each at a multiple of 16.
pub(super) const NAMES: [(u32, u32); 4] = [(16, 6), (32, 4), (48, 3), (64, 4)];

/// What it does besides calling the host: name, parameters as in [`Import`], code.
pub(super) const OPERATIONS: &[(&str, &str, &str)] = &[
    ("store", "il", "(i64.store (local.get $0) (local.get $1))"),
    ("keep", "i", "(i64.store (local.get $0) (global.get $last))"),
    ("return", "l", "(global.set $answer (local.get $0)) (global.set $at (i32.const -1))"),
    (
        "jump",
        "i",
        "(global.set $at (i32.add (global.get $start) (i32.and (local.get $0) (i32.const 0xfff))))",
    ),
    (
        "skip_if_zero",
        "i",
        "(if (i64.eqz (global.get $last)) (then (global.set $at (i32.add (global.get $at) (i32.and (local.get $0) (i32.const 0xff))))))",
    ),
    ("memory_grow", "i", "(global.set $last (i64.extend_i32_s (memory.grow (local.get $0))))"),
    (
        "table_grow",
        "i",
        "(global.set $last (i64.extend_i32_s (table.grow 0 (ref.null func) (local.get $0))))",
    ),
    ("memory_fill", "iii", "(memory.fill (local.get $0) (local.get $1) (local.get $2))"),
    ("recurse", "i", "(call $recurse (local.get $0))"),
    ("call_indirect", "i", "(call_indirect (type $nothing) (local.get $0))"),
    ("divide", "ll", "(global.set $last (i64.div_s (local.get $0) (local.get $1)))"),
    ("trap", "", "unreachable"),
    (
        "mailbox",
        "ii",
        "(global.set $mode (i32.and (local.get $0) (i32.const 3))) (global.set $mailbox (local.get $1))",
    ),
];

const FRAME: &str = r#"
    (memory (export "memory") 4)
    (table 10 funcref)
    (elem (i32.const 0) $recursion)
    (data (i32.const 16) "callee") (data (i32.const 32) "self")
    (data (i32.const 48) "run") (data (i32.const 64) "echo")
    (@custom "cell:interface" "receptor echo(bytes) -> bytes\n\nreceptor run(bytes) -> bytes\n\n")
    (global $start (mut i32) (i32.const 0))
    (global $at (mut i32) (i32.const 0))
    (global $end (mut i32) (i32.const 0))
    (global $last (mut i64) (i64.const 0))
    (global $answer (mut i64) (i64.const 0))
    (global $mode (mut i32) (i32.const 0))
    (global $mailbox (mut i32) (i32.const 0))

    (func $i (result i32)
        (global.set $at (i32.add (global.get $at) (i32.const 4)))
        (i32.load (i32.sub (global.get $at) (i32.const 4))))
    (func $l (result i64)
        (global.set $at (i32.add (global.get $at) (i32.const 8)))
        (i64.load (i32.sub (global.get $at) (i32.const 8))))
    (func $recurse (param i32)
        (if (local.get 0) (then (call $recurse (i32.sub (local.get 0) (i32.const 1))))))
    (func $recursion (call $recursion))

    (func (export "cell_mailbox") (param i32) (result i32)
        (local $mode i32)
        (local.set $mode (global.get $mode))
        ;; What a program asks for holds once, so that the next call finds a mailbox.
        (global.set $mode (i32.const 0))
        (if (i32.eq (local.get $mode) (i32.const 1)) (then (return (global.get $mailbox))))
        (if (i32.eq (local.get $mode) (i32.const 2)) (then unreachable))
        (if (i32.eq (local.get $mode) (i32.const 3)) (then (loop $again (br $again))))
        (if (result i32) (i32.gt_u (local.get 0) (i32.const 100000))
            (then (i32.const 0)) (else (i32.const 65536))))

    (func (export "cell_receive") (param $receptor i32) (param $ptr i32) (param $len i32) (result i64)
        (global.set $answer (i64.or
            (i64.shl (i64.extend_i32_u (local.get $len)) (i64.const 32))
            (i64.extend_i32_u (local.get $ptr))))
        (if (i32.eqz (local.get $receptor)) (then (return (global.get $answer))))
        (global.set $start (local.get $ptr))
        (global.set $at (local.get $ptr))
        (global.set $end (i32.add (local.get $ptr) (local.get $len)))
        (loop $next
            (if (i32.lt_u (global.get $at) (global.get $end)) (then (call $step) (br $next))))
        (global.get $answer))
"#;

/// The module; a steady one does nothing where it would ask for the time, for randomness or for
/// who calls, so that the same program always ends in the same way.
pub(super) fn text(steady: bool) -> String {
    let mut imports = String::new();
    let mut steps = String::new();
    for (at, (name, parameters, code)) in OPERATIONS.iter().enumerate() {
        step(&mut steps, at, name, parameters, code);
    }
    for (at, import) in IMPORTS.iter().enumerate() {
        if steady && import.varies {
            step(&mut steps, OPERATIONS.len() + at, import.name, import.parameters, "nop");
            continue;
        }
        declare(&mut imports, import);
        let arguments: String =
            (0..import.parameters.len()).map(|at| format!("(local.get ${at})")).collect();
        let call = format!("(call $host_{} {arguments})", import.name);
        let code = match import.result {
            "" => call,
            "i" => format!("(global.set $last (i64.extend_i32_u {call}))"),
            _ => format!("(global.set $last {call})"),
        };
        step(&mut steps, OPERATIONS.len() + at, import.name, import.parameters, &code);
    }
    let dispatch: String = (0..OPERATIONS.len() + IMPORTS.len())
        .map(|at| {
            format!("(if (i32.eq (local.get 0) (i32.const {at})) (then (call $step_{at}) return))")
        })
        .collect();
    format!(
        "(module (type $nothing (func)) {imports} {FRAME} {steps}
         (func $step (local i32)
            (local.set 0 (i32.load8_u (global.get $at)))
            (global.set $at (i32.add (global.get $at) (i32.const 1)))
            {dispatch}))"
    )
}

fn declare(text: &mut String, import: &Import) {
    let types = |letters: &str| letters.chars().map(kind).collect::<Vec<_>>().join(" ");
    let Import { module, name, parameters, result, .. } = import;
    let (parameters, result) = (types(parameters), types(result));
    writeln!(
        text,
        "(import \"{module}\" \"{name}\" (func $host_{name} (param {parameters}) (result {result})))"
    )
    .expect("a String takes it");
}

/// One operation: reads its arguments from the program, then does its work.
fn step(text: &mut String, number: usize, name: &str, parameters: &str, code: &str) {
    let locals: String = parameters
        .chars()
        .enumerate()
        .map(|(at, c)| format!("(local ${at} {})", kind(c)))
        .collect();
    let reads: String = parameters
        .chars()
        .enumerate()
        .map(|(at, c)| format!("(local.set ${at} (call ${c}))"))
        .collect();
    writeln!(text, "(func $step_{number} ;; {name}\n {locals} {reads} {code})")
        .expect("a String takes it");
}

const fn kind(letter: char) -> &'static str {
    if letter == 'l' { "i64" } else { "i32" }
}
