//! Cells written by hand.

/// Answers with the request.
pub const ECHO: &str = "(i64.or (i64.shl (i64.extend_i32_u (local.get $len)) (i64.const 32)) (i64.extend_i32_u (local.get $ptr)))";

/// Burns fuel for ever.
pub const SPIN: &str = "(loop $again (br $again)) unreachable";

/// A cell with one receptor `run(bytes) -> bytes` and this handler, which finds the request in
/// `$ptr` and `$len` and leaves the reply as an i64. Requests may have up to 128 KiB.
pub fn cell(imports: &str, handler: &str) -> String {
    format!(
        r#"(module
            {imports}
            (memory (export "memory") 4)
            (@custom "cell:interface" "receptor run(bytes) -> bytes\n\n")
            (func (export "cell_mailbox") (param i32) (result i32)
                (if (result i32) (i32.gt_u (local.get 0) (i32.const 131072)) (then (i32.const 0)) (else (i32.const 65536))))
            (func (export "cell_receive") (param $receptor i32) (param $ptr i32) (param $len i32) (result i64)
                {handler})
        )"#
    )
}

/// A handler that answers with a constant: 1 to 8 bytes at address 0.
pub fn constant(value: u32) -> String {
    format!("(i32.store (i32.const 0) (i32.const {value})) (i64.shl (i64.const 4) (i64.const 32))")
}

/// The import with which a cell calls another one, and a handler that passes its request on and
/// answers with the callee's status in four bytes and its reply.
pub fn caller(callee: &str) -> String {
    let imports = format!(
        r#"(import "cell_v1" "call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i64) (result i64)))
           (import "cell_v1" "call_reply" (func $reply (param i32 i32) (result i32)))
           (data (i32.const 0) "{callee}run")"#
    );
    let length = callee.len();
    let handler = format!(
        "(local $got i64)
         (local.set $got (call $call (i32.const 0) (i32.const {length}) (i32.const {length}) (i32.const 3)
            (i32.const 0) (i32.const 0) (local.get $ptr) (local.get $len) (i64.const -1)))
         (i32.store (i32.const 1024) (i32.wrap_i64 (i64.shr_u (local.get $got) (i64.const 32))))
         (drop (call $reply (i32.const 1028) (i32.const 4096)))
         (i64.or
            (i64.shl (i64.add (i64.const 4) (i64.and (local.get $got) (i64.const 0xfff))) (i64.const 32))
            (i64.const 1024))"
    );
    cell(&imports, &handler)
}

/// The text as wasm.
///
/// # Panics
///
/// If the text is no module.
#[track_caller]
pub fn compile(text: &str) -> Vec<u8> {
    ::wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A manifest with more lines below the name.
pub fn manifest(name: &str, more: &str) -> String {
    format!("[cell]\nname = \"{name}\"\n{more}\n")
}
