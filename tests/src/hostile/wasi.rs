//! Classes D6 and F6: every function of the host, with arguments that nobody sane would pass.

use std::fmt::Write as _;

use super::guest::{IMPORTS, forever, handler, reply};
use super::{Bill, Row, Seen, World};

pub(super) fn rows() -> Vec<Row> {
    [wilds(), errnos()].into_iter().flatten().collect()
}

fn wilds() -> Vec<Row> {
    let row = |name, argument: &'static str| {
        Row::of("F6", name, move |world| wild(world, argument), EACH, Bill::None)
    };
    vec![
        row("every import with arguments of 0", "0"),
        row("every import with arguments of -1", "-1"),
        row("every import with arguments of 1", "1"),
        row("every import with arguments of 2^31-1", "0x7fffffff"),
        row("every import with arguments of 262,143", "262143"),
    ]
}

fn errnos() -> Vec<Row> {
    vec![
        errno(
            "G1",
            "path_open without a directory",
            "(call $path_open #3 #0 '/etc/passwd' #0 ##2 ##2 #0 #64)",
            "Ok 8",
        ),
        errno("G1", "fd_prestat_get of what is not given", "(call $fd_prestat_get #3 #64)", "Ok 8"),
        errno(
            "G5",
            "fd_readdir of what is not given",
            "(call $fd_readdir #3 #64 #1000 ##0 #16)",
            "Ok 8",
        ),
        errno("G7", "fd_renumber of what is not open", "(call $fd_renumber #1000000 #-1)", "Ok 8"),
        errno("G8", "sock_accept of standard input", "(call $sock_accept #0 #0 #64)", "Ok 57"),
        errno("G8", "sock_send to what is not open", "(call $sock_send #7 #0 #0 #0 #64)", "Ok 8"),
        Row::new(
            "G4",
            "environment and arguments of a cell",
            handler(
                "(drop (call $environ_sizes_get #64 #68)) (drop (call $args_sizes_get #72 #76))
                (i64.store #0 (i64.or (i64.load #64) (i64.load #72))) ##0x800000000",
            )
            .call(),
            "Ok 0 0",
            Bill::call(20_000),
        ),
        errno(
            "F6",
            "rights that there are not",
            "(call $path_open #3 #0 'x' #0 ##-1 ##-1 #0 #64)",
            "Trapped: *Rights*",
        ),
        errno("D5", "args_get past the memory", "(call $args_sizes_get #262143 #-4)", "Trapped: *"),
        Row::new(
            "D6",
            "fd_close of every descriptor there could be",
            forever(
                "(drop (call $fd_close (local.get $n))) (local.set $n (i32.add (local.get $n) #1))",
            )
            .call(),
            "OutOfFuel",
            Bill::Limit,
        ),
    ]
}

const FUEL: u64 = 10_000_000;
const EACH: &str = "56 functions, each call ended";

fn errno(class: &'static str, name: &'static str, call: &str, answer: &'static str) -> Row {
    Row::new(class, name, reply(call).call(), answer, Bill::call(140_000))
}

/// A cell that calls the function whose number the request's first byte is.
fn wild(world: &World, argument: &str) -> Seen {
    let mut cases = String::new();
    for (at, (_, name, from, to)) in IMPORTS.iter().enumerate() {
        let arguments = from
            .chars()
            .map(|kind| format!(" ({}.const {argument})", if kind == 'I' { "i64" } else { "i32" }));
        let call = format!("(call ${name}{})", arguments.collect::<String>());
        let call = if to.is_empty() { call } else { format!("(drop {call})") };
        let _ = write!(cases, "(if (i32.eq (i32.load8_u (local.get $ptr)) #{at}) (then {call}))");
    }
    let cell = world.live("call_ms_max = 100", &handler(&format!("{cases} ##0")).text());
    for (at, (_, name, ..)) in IMPORTS.iter().enumerate() {
        let seen = world.call(&cell, &[u8::try_from(at).unwrap()], FUEL);
        let fuel = seen.fuel.unwrap_or(0);
        assert!(fuel <= FUEL, "{name}: {fuel} fuel");
        assert!(!seen.answer.starts_with("HostFault"), "{name}: {}", seen.answer);
    }
    Seen::said(format!("{} functions, each call ended", IMPORTS.len()))
}
