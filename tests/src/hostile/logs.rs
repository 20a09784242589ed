//! Class E: what a cell prints and logs.

use std::fs;

use cell_host::price::LOG_BYTE;

use super::guest::{Guest, forever, handler};
use super::{Bill, Row, Seen, World};
use crate::eventually;

/// What a cell may log at once after a silence, and what it may go on with in the time that a row takes.
const LOG_BYTES_MAX: u64 = 2 << 20;

/// A cell that prints this many bytes, without a line's end.
pub(super) fn printed(bytes: &str) -> Guest {
    handler(&format!(
        "(memory.fill #65536 #97 #65536) (i32.store #0 #65536) (i32.store #4 #65536)
        (loop $again
            (drop (call $fd_write #1 #0 #1 #16))
            (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.load #16))) {bytes})))
        ##0"
    ))
}

pub(super) fn rows() -> Vec<Row> {
    [floods(), lines_and_levels()].into_iter().flatten().collect()
}

fn floods() -> Vec<Row> {
    vec![
        logged(
            "E1",
            "records without end",
            forever("(call $log #2 'all work and no play makes a dull cell, and so it goes on')"),
            200_000_000,
            "OutOfFuel; a bounded log",
        ),
        logged(
            "E1",
            "records of one byte without end",
            forever("(call $log #0 'x')"),
            200_000_000,
            "OutOfFuel; a bounded log",
        ),
        logged(
            "E1",
            "lines printed without end",
            forever(
                "(i32.store #65536 #0x0a) (i32.store #0 #65536) (i32.store #4 #1) (drop (call $fd_write #2 #0 #1 #16))",
            ),
            200_000_000,
            "OutOfFuel; a bounded log",
        ),
        logged(
            "E1",
            "32,768 lines in one record",
            handler(
                "(local.set $n #65536)
                (loop $again
                    (i32.store (local.get $n) #0x0a610a61)
                    (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) #4)) #131072)))
                (call $log #1 #65536 #65536) ##0",
            ),
            100_000_000,
            "Ok; a bounded log",
        ),
        logged(
            "E1",
            "64 KiB of control characters, which grow when escaped",
            handler("(memory.fill #65536 #27 #65536) (call $log #1 #65536 #65536) ##0"),
            100_000_000,
            "Ok; a bounded log",
        ),
        Row::of(
            "E1",
            "what was dropped is counted",
            dropped,
            "records dropped: more than",
            Bill::None,
        ),
    ]
}

fn lines_and_levels() -> Vec<Row> {
    vec![
        Row::of(
            "E2",
            "a record that forges another and clears the screen",
            forged,
            "one record, nothing raw",
            Bill::None,
        ),
        Row::of(
            "E2",
            "a print that forges a record",
            printed_forgery,
            "two records, nothing raw",
            Bill::None,
        ),
        Row::of(
            "E3",
            "a line of 1 MiB that never ends",
            endless_line,
            "lines of at most 4 KiB",
            Bill::None,
        ),
        Row::new(
            "E3",
            "a record past the memory",
            handler("(call $log #1 #262100 #100) ##0").call(),
            "Trapped: *out of bounds memory access*",
            Bill::call(20_000),
        ),
        Row::new(
            "E4",
            "a record of a level that there is not",
            handler("(call $log #-1 'x') ##0").call(),
            "Ok",
            Bill::call(4_000),
        ),
    ]
}

/// A cell's log when it grows no more: records may be written a moment after their call.
fn log(world: &World, cell: &str) -> String {
    let path = world.home().cell_directory(cell).join("log").join("cell.log");
    let mut last = Vec::new();
    eventually("the log is written", || {
        let now = fs::read(&path).unwrap_or_default();
        let done = !now.is_empty() && now == last;
        last = now;
        done.then_some(())
    });
    String::from_utf8_lossy(&last).into_owned()
}

/// A cell whose log must stay small, whatever it does.
pub(super) fn logged(
    class: &'static str,
    name: &'static str,
    guest: Guest,
    fuel: u64,
    expect: &'static str,
) -> Row {
    let text = guest.text();
    let act = move |world: &World| {
        let cell = world.live("", &text);
        let seen = world.call(&cell, b"", fuel);
        let bytes = log(world, &cell).len() as u64;
        let bounded = if bytes <= LOG_BYTES_MAX {
            "a bounded log".into()
        } else {
            format!("{bytes} bytes logged")
        };
        Seen { answer: format!("{}; {bounded}", seen.answer), ..seen }
    };
    let bill = if expect.starts_with("OutOfFuel") {
        Bill::Limit
    } else {
        Bill::Within(65_536 * LOG_BYTE, 65_536 * LOG_BYTE + 2_000_000)
    };
    Row::of(class, name, act, expect, bill)
}

fn dropped(world: &World) -> Seen {
    let cell = world.live("", &handler("(call $log #1 #65536 (local.get $len)) ##0").text());
    // Until the burst is used up; then one by one, until a record finds room again and tells.
    let told = eventually("the log tells what was dropped", || {
        world.call(&cell, &[b'x'; 100_000], 100_000_000);
        log(world, &cell).lines().find(|line| line.contains("records dropped")).map(str::to_owned)
    });
    let at = told.find("records dropped").unwrap();
    Seen::said(told[at..].chars().take(26).collect::<String>())
}

/// Every line of the log must begin as the host begins them, and hold no control character.
fn lines(world: &World, cell: &str) -> (usize, bool) {
    let log = log(world, cell);
    let plain = log.lines().all(|line| {
        line.starts_with(|c: char| c.is_ascii_digit()) && !line.chars().any(char::is_control)
    });
    (log.lines().count(), plain)
}

fn forged(world: &World) -> Seen {
    let cell = world.live(
        "",
        &handler("(call $log #1 '\\1b[2J\\0d\\c2\\9b31mall is well\\08\\07\\7f') ##0").text(),
    );
    world.call(&cell, b"", 10_000_000);
    let (count, plain) = lines(world, &cell);
    Seen::said(if count == 1 && plain {
        "one record, nothing raw".into()
    } else {
        log(world, &cell)
    })
}

fn printed_forgery(world: &World) -> Seen {
    let print = "(i32.store #4 #0) (i32.store #0 (local.get $ptr)) (i32.store #4 (local.get $len)) (drop (call $fd_write #1 #0 #1 #16)) ##0";
    let cell = world.live("", &handler(print).text());
    world.call(
        &cell,
        b"one\r\x1b]0;title\x07\n1700000000.000 error the disk is full\n",
        10_000_000,
    );
    let (count, plain) = lines(world, &cell);
    Seen::said(if count == 2 && plain {
        "two records, nothing raw".into()
    } else {
        log(world, &cell)
    })
}

fn endless_line(world: &World) -> Seen {
    let cell = world.live("", &printed("(i32.const 0x100000)").text());
    let seen = world.call(&cell, b"", 100_000_000);
    assert_eq!(seen.answer, "Ok");
    let longest = log(world, &cell).lines().map(str::len).max().unwrap_or(0);
    // The time and the level stand before it.
    Seen::said(if longest <= 4096 + 32 {
        "lines of at most 4 KiB".into()
    } else {
        format!("a line of {longest} bytes")
    })
}
