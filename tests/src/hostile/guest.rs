//! Hostile modules as short WebAssembly text.
//!
//! The text has three shorthands: `#7` and `##7` are constants of 32 and 64 bits, and `'text'` is
//! the address and the length of a string. What it calls of WASI and of `cell_v1` is imported by
//! itself.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Strings lie here, above what handlers write and below the mailbox.
const STRINGS: usize = 32_768;

/// Every function a module may import: module, name, parameters (`i` and `I` are 32 and 64 bits), result.
pub(super) const IMPORTS: &[(&str, &str, &str, &str)] = &[
    ("cell_v1", "call", "iiiiiiiiI", "I"),
    ("cell_v1", "call_reply", "ii", "i"),
    ("cell_v1", "context", "i", ""),
    ("cell_v1", "fuel_left", "", "I"),
    ("cell_v1", "kv_delete", "ii", "i"),
    ("cell_v1", "kv_get", "ii", "I"),
    ("cell_v1", "kv_set", "iiii", "i"),
    ("cell_v1", "kv_value", "ii", "i"),
    ("cell_v1", "log", "iii", ""),
    ("cell_v1", "reject", "iii", ""),
    (WASI, "args_get", "ii", "i"),
    (WASI, "args_sizes_get", "ii", "i"),
    (WASI, "clock_res_get", "ii", "i"),
    (WASI, "clock_time_get", "iIi", "i"),
    (WASI, "environ_get", "ii", "i"),
    (WASI, "environ_sizes_get", "ii", "i"),
    (WASI, "fd_advise", "iIIi", "i"),
    (WASI, "fd_allocate", "iII", "i"),
    (WASI, "fd_close", "i", "i"),
    (WASI, "fd_datasync", "i", "i"),
    (WASI, "fd_fdstat_get", "ii", "i"),
    (WASI, "fd_fdstat_set_flags", "ii", "i"),
    (WASI, "fd_fdstat_set_rights", "iII", "i"),
    (WASI, "fd_filestat_get", "ii", "i"),
    (WASI, "fd_filestat_set_size", "iI", "i"),
    (WASI, "fd_filestat_set_times", "iIIi", "i"),
    (WASI, "fd_pread", "iiiIi", "i"),
    (WASI, "fd_prestat_dir_name", "iii", "i"),
    (WASI, "fd_prestat_get", "ii", "i"),
    (WASI, "fd_pwrite", "iiiIi", "i"),
    (WASI, "fd_read", "iiii", "i"),
    (WASI, "fd_readdir", "iiiIi", "i"),
    (WASI, "fd_renumber", "ii", "i"),
    (WASI, "fd_seek", "iIii", "i"),
    (WASI, "fd_sync", "i", "i"),
    (WASI, "fd_tell", "ii", "i"),
    (WASI, "fd_write", "iiii", "i"),
    (WASI, "path_create_directory", "iii", "i"),
    (WASI, "path_filestat_get", "iiiii", "i"),
    (WASI, "path_filestat_set_times", "iiiiIIi", "i"),
    (WASI, "path_link", "iiiiiii", "i"),
    (WASI, "path_open", "iiiiiIIii", "i"),
    (WASI, "path_readlink", "iiiiii", "i"),
    (WASI, "path_remove_directory", "iii", "i"),
    (WASI, "path_rename", "iiiiii", "i"),
    (WASI, "path_symlink", "iiiii", "i"),
    (WASI, "path_unlink_file", "iii", "i"),
    (WASI, "poll_oneoff", "iiii", "i"),
    (WASI, "proc_exit", "i", ""),
    (WASI, "proc_raise", "i", "i"),
    (WASI, "random_get", "ii", "i"),
    (WASI, "sched_yield", "", "i"),
    (WASI, "sock_accept", "iii", "i"),
    (WASI, "sock_recv", "iiiiii", "i"),
    (WASI, "sock_send", "iiiii", "i"),
    (WASI, "sock_shutdown", "ii", "i"),
];

pub(super) const WASI: &str = "wasi_snapshot_preview1";

/// A cell in the making: one receptor, `run`.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    memory: String,
    fields: String,
    section: String,
    mailbox: String,
    handler: String,
}

/// A cell whose `cell_receive` has this body; `$receptor`, `$ptr` and `$len` are its parameters, `$n`
/// and `$m` are for its use.
pub(super) fn handler(body: &str) -> Guest {
    Guest {
        memory: "4".into(),
        fields: String::new(),
        section: "receptor run(bytes) -> bytes\\n\\n".into(),
        mailbox: "(if (result i32) (i32.gt_u (local.get 0) #131072) (then #0) (else #65536))"
            .into(),
        handler: body.into(),
    }
}

/// A cell that answers with this number.
pub(super) fn reply(number: &str) -> Guest {
    handler(&format!("(i32.store #0 {number}) ##0x400000000"))
}

/// A cell that repeats these steps until its fuel is gone.
pub(super) fn forever(steps: &str) -> Guest {
    handler(&format!("(loop $again {steps} (br $again)) unreachable"))
}

/// A cell that answers with its request and does harm elsewhere.
pub(super) fn echo() -> Guest {
    handler(
        "(i64.or (i64.shl (i64.extend_i32_u (local.get $len)) ##32) (i64.extend_i32_u (local.get $ptr)))",
    )
}

impl Guest {
    /// The limits of its memory, in pages.
    pub(super) fn memory(mut self, limits: &str) -> Self {
        self.memory = limits.into();
        self
    }

    /// More fields of the module: functions, tables, globals.
    pub(super) fn with(mut self, fields: &str) -> Self {
        self.fields.push_str(fields);
        self
    }

    /// The body of `_initialize`.
    pub(super) fn initialize(self, body: &str) -> Self {
        self.with(&format!("(func (export \"_initialize\") (local $n i32) {body})"))
    }

    /// The body of `cell_mailbox`; its parameter is local 0.
    pub(super) fn mailbox(mut self, body: &str) -> Self {
        self.mailbox = body.into();
        self
    }

    /// What the interface section holds, escaped as in a string of the text format.
    pub(super) fn section(mut self, bytes: &str) -> Self {
        self.section = bytes.into();
        self
    }

    /// The module's text.
    pub(super) fn text(&self) -> String {
        let Self { memory, fields, section, mailbox, handler } = self;
        let custom = format!("(@custom \"cell:interface\" \"{section}\")");
        let body = expand(&format!(
            "{fields}
            (func (export \"cell_mailbox\") (param i32) (result i32) {mailbox})
            (func (export \"cell_receive\") (param $receptor i32) (param $ptr i32) (param $len i32) (result i64)
                (local $n i32) (local $m i64) {handler})"
        ));
        format!(
            "(module {} {custom} (memory (export \"memory\") {memory}) {})",
            body.imports, body.text
        )
    }
}

/// A program whose `_start` has these steps. `$must` ends it with an errno that is not zero.
pub(super) fn program(steps: &str) -> String {
    let body = expand(&format!(
        "(global $fd (mut i32) #0)
        (func $must (param i32) (if (local.get 0) (then (call $proc_exit (local.get 0)))))
        (func (export \"_start\") (local $n i32) {steps})"
    ));
    format!("(module {} (memory (export \"memory\") 4) {})", body.imports, body.text)
}

struct Expanded {
    imports: String,
    text: String,
}

/// Writes the shorthands out.
fn expand(text: &str) -> Expanded {
    let mut out = String::with_capacity(text.len() * 2);
    let mut data = String::new();
    let mut at = STRINGS;
    let mut quoted = false;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            // Within a string of the text format nothing is a shorthand.
            '"' => {
                quoted = !quoted;
                out.push(c);
            }
            '\'' if !quoted => {
                let string: String = rest.by_ref().take_while(|c| *c != '\'').collect();
                let _ = write!(data, "(data (i32.const {at}) \"{string}\")");
                let _ = write!(out, "(i32.const {at}) (i32.const {})", length(&string));
                at += length(&string);
            }
            '#' if !quoted => {
                let kind = if rest.next_if_eq(&'#').is_some() { "i64" } else { "i32" };
                let mut number = String::new();
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '-') {
                    number.push(c);
                }
                let _ = write!(out, "({kind}.const {number})");
            }
            c => out.push(c),
        }
    }
    Expanded { imports: imports(&out), text: out + &data }
}

/// Bytes of a string whose escapes are all of the form `\hh`.
fn length(string: &str) -> usize {
    string.len() - 2 * string.matches('\\').count()
}

fn imports(text: &str) -> String {
    let called: BTreeSet<&str> = text
        .split("(call $")
        .skip(1)
        .map(|rest| rest.split([' ', ')']).next().unwrap_or_default())
        .collect();
    let wanted = IMPORTS.iter().filter(|import| called.contains(import.1));
    wanted.map(|(module, name, from, to)| import(module, name, from, to)).collect()
}

/// One import of this type.
pub(super) fn import(module: &str, name: &str, from: &str, to: &str) -> String {
    let types = |list: &str| {
        list.chars().map(|c| if c == 'I' { " i64" } else { " i32" }).collect::<String>()
    };
    let result = if to.is_empty() { String::new() } else { format!("(result{})", types(to)) };
    format!("(import \"{module}\" \"{name}\" (func ${name} (param{}) {result}))\n", types(from))
}
