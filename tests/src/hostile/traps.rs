//! Class F: stacks, traps, and what is left of an instance after them.

use cell_abi::limits::MESSAGE_BYTES_MAX;
use cell_host::price::CALL;

use super::cpu::SLEEP;
use super::guest::{echo, handler, reply};
use super::{Bill, Row, Seen, World};
use crate::Raw;

pub(super) fn rows() -> Vec<Row> {
    [stacks(), kinds(), named(), exits(), remains()].into_iter().flatten().collect()
}

fn stacks() -> Vec<Row> {
    let deep = |step: &str| {
        reply("(call $down #0)")
            .with(&format!("(func $down (param i32) (result i32) {step} (i32.add #1 (call $down (i32.add #1 (local.get 0)))))"))
            .call()
            .fuel(2_000_000_000)
    };
    vec![
        Row::new("F1", "recursion without end", deep(""), "Trapped: *call stack exhausted*", Bill::call(2_000_000)),
        Row::new(
            "F1",
            "recursion with many locals",
            reply("(call $down ##0 ##0 ##0 ##0 ##0 ##0 ##0 ##0)")
                .with("(func $down (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32)
                    (i32.add #1 (call $down (local.get 7) (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4) (local.get 5) (local.get 6))))")
                .call(),
            "Trapped: *call stack exhausted*",
            Bill::call(2_000_000),
        ),
        Row::new("F2", "a host call at every depth", deep("(drop (call $fd_write #1 #0 #0 #64))"), "Trapped: *call stack exhausted*",
            Bill::call(2_000_000_000)),
        Row::new("F2", "a large log record at every depth", deep("(call $log #2 #0 #4000)").fuel(20_000_000_000), "Trapped: *call stack exhausted*",
            Bill::call(20_000_000_000)),
        Row::new(
            "F3",
            "recursion in each of nine nested cells",
            reply("(call $down #2000)")
                .with("(func $down (param i32) (result i32) (if (result i32) (local.get 0)
                    (then (i32.add #0 (call $down (i32.sub (local.get 0) #1))))
                    (else (i32.wrap_i64 (i64.shr_u (call $call 'SELF' 'run' #0 #0 #0 #0 ##-1) ##32)))))")
                .call(),
            "Ok 0",
            Bill::Within(9 * CALL, 9 * CALL + 2_000_000),
        ),
    ]
}

fn kinds() -> Vec<Row> {
    let traps = |class, name, body: &str, answer| {
        let guest = handler(&format!("{body} ##0")).with("(type $none (func)) (type $two (func (param i32 i32))) (func $f) (table $t 2 funcref) (elem (i32.const 0) $f)");
        Row::new(class, name, guest.call(), answer, Bill::call(800))
    };
    vec![
        traps("F4", "unreachable", "unreachable", "Trapped: *unreachable*"),
        traps(
            "F4",
            "division by zero",
            "(drop (i32.div_u #1 (local.get $n)))",
            "Trapped: *divide by zero*",
        ),
        traps(
            "F4",
            "the largest negative number by -1",
            "(drop (i32.div_s #0x80000000 (i32.sub (local.get $n) #1)))",
            "Trapped: *overflow*",
        ),
        traps(
            "F4",
            "a float that fits no integer",
            "(drop (i32.trunc_f32_s (f32.const inf)))",
            "Trapped: *",
        ),
        traps(
            "F4",
            "a load at 4 GiB",
            "(drop (i32.load offset=0xffffffff #-1))",
            "Trapped: *out of bounds memory access*",
        ),
        traps(
            "F4",
            "a store across the end",
            "(i64.store (i32.sub (i32.mul (memory.size) #65536) #4) ##0)",
            "Trapped: *out of bounds memory access*",
        ),
        traps(
            "F4",
            "a call of nothing",
            "(call_indirect (type $none) #1)",
            "Trapped: *uninitialized element*",
        ),
        traps(
            "F4",
            "a call past the table",
            "(call_indirect (type $none) #-1)",
            "Trapped: *out of bounds table*",
        ),
        traps(
            "F4",
            "a call of another type",
            "(call_indirect (type $two) #1 #1 #0)",
            "Trapped: *indirect call type mismatch*",
        ),
    ]
}

/// Traps in functions whose names mean harm to whoever shows them.
fn named() -> Vec<Row> {
    let row = |class, name, function: String, body: &'static str| {
        let act = move |world: &World| {
            let text = handler(&format!("(call $\"{function}\") ##0"))
                .with(&format!("(func $\"{function}\" {body})"))
                .text();
            told(world, &text)
        };
        Row::of(class, name, act, "Trapped, in one short line", Bill::call(4_000_000))
    };
    let (trap, refused) = ("unreachable", "(drop (call $random_get #0 #65537))");
    vec![
        row(
            "E2",
            "a trap in a function whose name clears the screen",
            "\\1b[2J\\0ahello".into(),
            trap,
        ),
        row(
            "E2",
            "a refusal in a function whose name clears the screen",
            "\\1b[2J\\0ahello".into(),
            refused,
        ),
        row("E1", "a trap in a function with a name of 90 KiB", "x".repeat(90_000), trap),
        row("E1", "a refusal in a function with a name of 90 KiB", "x".repeat(90_000), refused),
    ]
}

/// What a caller is told of a trap: one line without control characters, within the limit of messages.
fn told(world: &World, text: &str) -> Seen {
    let cell = world.live("", text);
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    raw.call(receptor, 1, 10_000_000, b"");
    let (header, payload) = raw.receive();
    let message = String::from_utf8(payload).unwrap();
    let short = message.len() <= MESSAGE_BYTES_MAX && !message.chars().any(char::is_control);
    let answer =
        if short { ", in one short line".into() } else { format!(": {} bytes", message.len()) };
    Seen::charged(format!("{:?}{answer}", crate::status(&header)), header.fuel.0)
}

fn exits() -> Vec<Row> {
    let exit = |name, code: &str, answer| {
        let guest = handler(&format!("(call $proc_exit {code}) unreachable"));
        Row::new("F8", name, guest.call(), answer, Bill::call(2_400))
    };
    vec![
        exit("proc_exit 0", "#0", "Exited: with code 0"),
        exit("proc_exit 134", "#134", "Exited: with code 134"),
        exit("proc_exit 2^32-1", "#-1", "Exited: with code 4294967295"),
        Row::new(
            "F8",
            "proc_raise of SIGKILL",
            reply("(call $proc_raise #9)").call(),
            "Ok 58",
            Bill::call(20_000),
        ),
        Row::new(
            "F8",
            "proc_exit while it starts",
            echo().initialize("(call $proc_exit #0)").call(),
            "Trapped: the cell does not start: *",
            Bill::Nothing,
        ),
    ]
}

/// Leaves a mark in memory, a global and a table, and then ends as the request's first byte says.
pub(super) fn marks() -> String {
    handler(&format!(
        "(i32.store #0 (i32.add (i32.load #8) (i32.add (global.get $g) (table.size $t))))
        (i32.store #8 #100) (global.set $g #10) (drop (table.grow $t (ref.null func) #1))
        (if (i32.eq (i32.load8_u (local.get $ptr)) #1) (then unreachable))
        (if (i32.eq (i32.load8_u (local.get $ptr)) #2) (then (loop $again (br $again))))
        (if (i32.eq (i32.load8_u (local.get $ptr)) #3) (then (call $proc_exit #3)))
        (if (i32.eq (i32.load8_u (local.get $ptr)) #4) (then (drop {SLEEP})))
        (if (i32.eq (i32.load8_u (local.get $ptr)) #5) (then (return ##-2)))
        ##0x400000000"
    ))
    .with("(global $g (mut i32) #0) (table $t 1 1000 funcref)")
    .text()
}

/// What the next call finds after one that ended in this way; 1 is a fresh instance.
fn next_after(world: &World, end: u8) -> Seen {
    let cell = world.live("call_ms_max = 150\nreplicas_max = 1", &marks());
    let first = world.call(&cell, &[end], 10_000_000);
    let second = world.call(&cell, &[0], 10_000_000);
    Seen { answer: format!("{} | {}", first.answer, second.answer), ..second }
}

fn remains() -> Vec<Row> {
    let row = |name, end: u8, answer| {
        Row::of("F5", name, move |world| next_after(world, end), answer, Bill::call(4_000))
    };
    vec![
        row("an instance after a trap", 1, "Trapped: * | Ok 1"),
        row("an instance after it ran out of fuel", 2, "OutOfFuel | Ok 1"),
        row("an instance after it exited", 3, "Exited: with code 3 | Ok 1"),
        row("an instance after it ran out of time", 4, "TimedOut | Ok 1"),
        row("an instance after an invalid reply", 5, "BadReply | Ok 1"),
        row("an instance after a call that went well", 0, "Ok 1 | Ok 112"),
        Row::of("F5", "an instance whose client hung up", hung_up, "Ok 1", Bill::call(4_000)),
        Row::of("F6", "three hundred crashes in a row", crashes, "300 are told", Bill::None),
    ]
}

fn hung_up(world: &World) -> Seen {
    let cell = world.live("replicas_max = 1", &marks());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    raw.call(receptor, 1, 10_000_000, &[4]);
    world.wait_for(&cell, "instances", 1);
    drop(raw);
    world.wait_for(&cell, "instances", 0);
    world.call(&cell, &[0], 10_000_000)
}

/// A cell that crashes may be given a rest; whoever calls it is told so at once, for nothing.
fn crashes(world: &World) -> Seen {
    let cell = world.live("", &marks());
    let mut told = 0;
    for _ in 0..300 {
        let seen = world.call(&cell, &[1], 1_000_000);
        let resting = seen.answer.starts_with("BackingOff") && seen.fuel == Some(0);
        told += u32::from(resting || seen.answer.starts_with("Trapped"));
    }
    Seen::said(format!("{told} are told"))
}
