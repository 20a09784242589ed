//! Class D: memory, tables, instances and disks of the host.

use std::fs;

use cell_host::price::{MEMORY_PAGE, RANDOM_BYTE, START, STATE_BYTE, STATE_TAKE, STATE_WRITE};

use super::cpu::SLEEP;
use super::guest::program;
use super::guest::{forever, handler, reply};
use super::job::job;
use super::{Bill, Row, Seen, World};
use crate::Raw;

pub(super) fn rows() -> Vec<Row> {
    [memories(), tables(), lengths(), state(), instances()].into_iter().flatten().collect()
}

/// Grows to the end and touches every page.
const ALL_OF_IT: &str = "(drop (memory.grow #1020)) (memory.fill #0 #0xa5 #0x4000000) ##0";

fn memories() -> Vec<Row> {
    vec![
        Row::new(
            "D1",
            "all the memory there is, touched",
            handler(ALL_OF_IT).call().fuel(1_000_000_000),
            "Ok",
            Bill::Within(
                1020 * MEMORY_PAGE + (64 << 20),
                1020 * MEMORY_PAGE + (64 << 20) + 100_000,
            ),
        )
        .growth(80),
        Row::of("D1", "eight cells' memory at once", eight, "8 x Ok", Bill::None)
            .growth(8 * 64 + 32),
        Row::new(
            "D1",
            "a memory that starts with 64 MiB and a page",
            reply("(memory.size)").memory("1025").call(),
            "refused: *",
            Bill::Nothing,
        ),
        Row::new(
            "D1",
            "a memory that starts with 4 GiB",
            reply("(memory.size)").memory("65536").call(),
            "refused: *",
            Bill::Nothing,
        ),
        Row::new(
            "D2",
            "two memories of ten pages",
            reply("(memory.size)").with("(memory 10)").deploy(),
            "refused: *",
            Bill::Nothing,
        ),
        Row::new("D2", "a 64-bit memory", super::deploy(memory64), "refused: *", Bill::Nothing),
        Row::new(
            "H4",
            "a memory that others could change meanwhile",
            reply("#0").memory("1 2 shared").deploy(),
            "refused: *",
            Bill::Nothing,
        ),
        Row::of("D9", "what a neighbour left in a slot", left_behind, "0 bytes found", Bill::None)
            .growth(80),
    ]
}

fn memory64() -> Vec<u8> {
    // The mailbox and its caller would have to be of 64 bits as well; the gate is asked, not they.
    let text = reply("#0")
        .text()
        .replace("(memory (export \"memory\") 4)", "(memory (export \"memory\") i64 4)");
    crate::wat::compile(&text.replace("(i32.store (i32.const 0) (i32.const 0))", ""))
}

fn eight(world: &World) -> Seen {
    let cell =
        world.live("replicas_max = 16", &handler(&ALL_OF_IT.replace("##0", SLEEP_BRIEFLY)).text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    for id in 0..8 {
        raw.call(receptor, id, 200_000_000, b"");
    }
    let ok = (0..8).filter(|_| raw.receive().0.status == 0).count();
    Seen::said(format!("{ok} x Ok"))
}

/// Keeps the instance for a tenth of a second, so that all are there at once.
const SLEEP_BRIEFLY: &str = "(i32.store #272 #1) (i64.store #280 ##100000000) (drop (call $poll_oneoff #256 #512 #1 #1000)) ##0";

fn left_behind(world: &World) -> Seen {
    let writer = world.live("", &handler("(memory.fill #0 #0xa5 #262144) unreachable").text());
    let reader = world.live(
        "isolation = \"call\"",
        // Counts what is not zero, but for its own strings and its reply.
        &reply("(local.get $receptor)")
            .with("(func $count (result i32) (local $at i32) (local $found i32) (loop $again
                (if (i32.load8_u (local.get $at)) (then (local.set $found (i32.add (local.get $found) #1))))
                (br_if $again (i32.lt_u (local.tee $at (i32.add (local.get $at) #1)) #262144))) (local.get $found))")
            .text()
            .replace("(local.get $receptor)", "(call $count)"),
    );
    let mut found = 0;
    for _ in 0..20 {
        world.call(&writer, b"", 10_000_000);
        let (mut raw, receptor) = Raw::opened(&world.home().socket(&reader), &reader, "run");
        raw.call(receptor, 1, 50_000_000, b"");
        let (header, payload) = raw.receive();
        assert_eq!(header.status, 0, "{header:?}");
        found += i32::from_le_bytes(payload.try_into().unwrap());
    }
    Seen::said(format!("{found} bytes found"))
}

fn tables() -> Vec<Row> {
    let table = |name, grow: &str, answer, bill| {
        let guest = reply(grow).with("(table $t 1 funcref)
            (func $all (result i32) (loop $again (br_if $again (i32.ne (table.grow $t (ref.null func) #1) #-1))) (table.size $t))");
        Row::new("D3", name, guest.call(), answer, bill)
    };
    vec![
        table(
            "table.grow by 2^32-1",
            "(table.grow $t (ref.null func) #-1)",
            "OutOfFuel",
            Bill::Limit,
        ),
        table(
            "table.grow past its limit",
            "(table.grow $t (ref.null func) #20000)",
            "Ok -1",
            Bill::call(30_000),
        ),
        table(
            "table.grow one by one to the end",
            "(call $all)",
            "Ok 10001",
            Bill::Within(640_000, 10_000_000),
        ),
        Row::new(
            "D3",
            "a table that starts with 20,001 elements",
            reply("#0").with("(table 20001 funcref)").call(),
            "refused: *",
            Bill::Nothing,
        ),
        Row::new(
            "D3",
            "a table of 2^32-1 elements",
            reply("#0").with("(table 0xffffffff funcref)").call(),
            "refused: *",
            Bill::Nothing,
        ),
        Row::new(
            "D3",
            "two tables",
            reply("#0").with("(table 1 funcref) (table 1 funcref)").deploy(),
            "refused: *2 tables*",
            Bill::Nothing,
        ),
    ]
}

/// Lengths of 4 GiB; none may be taken before it is paid for and found to lie in memory.
fn lengths() -> Vec<Row> {
    let paid = |name, body: &str, answer| {
        let call = handler(&format!("{body} ##0")).call().fuel(6_000_000_000);
        Row::new("D5", name, call, answer, Bill::call(4_400_000_000))
    };
    vec![
        Row::new(
            "D5",
            "a log record of 4 GiB",
            handler("(call $log #2 #0 #-1) ##0").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "D5",
            "a call with a request of 4 GiB",
            reply("(i32.wrap_i64 (i64.shr_u (call $call 'echo' 'run' #0 #0 #0 #-1 ##-1) ##32))")
                .call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        paid(
            "a call with a request of 4 GiB that is paid for",
            "(drop (call $call 'echo' 'run' #0 #0 #0 #-1 ##1000000))",
            "Ok",
        ),
        paid(
            "a call with a name of 4 GiB that is paid for",
            "(drop (call $call #0 #-1 'run' #0 #0 #0 #0 ##-1))",
            "Ok",
        ),
        paid(
            "a call with a schema of 4 GiB that is paid for",
            "(drop (call $call 'echo' 'run' #0 #-1 #0 #0 ##-1))",
            "Ok",
        ),
        paid("kv_set of 4 GiB that is paid for", "(drop (call $kv_set #0 #1 #0 #-1))", "OverLimit"),
        paid("kv_get of a key of 4 GiB", "(drop (call $kv_get #0 #-1))", "OverLimit"),
        paid(
            "call_reply of 4 GiB to the memory's end",
            "(drop (call $call_reply #262144 #-1))",
            "Ok",
        ),
        Row::new(
            "D5",
            "random_get of 64 KiB and a byte",
            reply("(call $random_get #0 #65537)").call(),
            "Trapped: *requested len 65537*",
            Bill::call(65_537 * RANDOM_BYTE + 20_000),
        ),
        Row::new(
            "D5",
            "fd_readdir of 4 GiB",
            reply("(call $fd_readdir #3 #0 #-1 ##0 #64)").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
    ]
}

fn state() -> Vec<Row> {
    vec![
        Row::new("D10", "a key of 1025 bytes", handler("(drop (call $kv_set #0 #1025 #0 #1)) ##0").call(), "OverLimit", Bill::call(STATE_WRITE + 100_000)),
        Row::new("D10", "a value of 1 MiB and a byte", handler("(drop (call $kv_set #0 #1 #0 #1048577)) ##0").memory("20").call(), "OverLimit", Bill::call(STATE_WRITE + (1 << 20) * STATE_BYTE + 100_000)),
        Row::of("D10", "writes until the quota is full", quota, "Ok 15 of at most 16, 2 MiB on disk", Bill::Within((1 << 20) * STATE_BYTE, 2 * (1 << 20) * STATE_BYTE)),
        Row::new(
            "D10",
            "one value overwritten for ever",
            forever("(drop (call $kv_set #0 #1 #0 #65536))").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::of("D10", "one value overwritten in a hundred calls", overwritten, "at most 8 MiB on disk", Bill::None),
        Row::new("D10", "a state of no bytes", reply("(call $kv_set #0 #1 #0 #1)").call().manifest("state_mb_max = 0"), "Ok 1", Bill::call(STATE_TAKE + STATE_WRITE + 20_000)),
        Row::new(
            "D10",
            "a program that writes without end",
            job(program("(i32.store #0 #64) (i32.store #4 #65536) (loop $again (drop (call $fd_write #1 #0 #1 #16)) (br $again))")).fuel(30_000_000),
            "OutOfFuel, * bytes out",
            Bill::Limit,
        ),
        Row::new(
            "D10",
            "a file of 2^63-1 bytes",
            job(program(
                "(call $must (call $path_open #3 #0 'big' #1 ##0x1fffffff ##0x1fffffff #0 #64))
                (call $proc_exit (call $fd_filestat_set_size (i32.load #64) ##0x7fffffffffffffff))",
            ))
            .directory()
            .inspect(|inside| format!(", {} bytes", fs::metadata(inside.join("big")).map_or(0, |found| found.len()))),
            "exit 22, 0 bytes",
            Bill::Within(START, START + 8 * MEMORY_PAGE),
        ),
    ]
}

fn disk_mib(world: &World, cell: &str) -> u64 {
    let data = world.home().cell_directory(cell).join("data");
    let files = fs::read_dir(data).unwrap().flatten();
    files.map(|file| file.metadata().map_or(0, |found| found.len())).sum::<u64>().div_ceil(1 << 20)
}

fn quota(world: &World) -> Seen {
    let all = "(i32.store #0 #0) (local.set $n #1)
        (loop $again
            (i32.store #32 (local.get $n))
            (if (i32.eqz (call $kv_set #32 #4 #65536 #65536))
                (then (local.set $n (i32.add (local.get $n) #1)) (br $again))))
        (i32.store #0 (i32.sub (local.get $n) #1)) ##0x400000000";
    let cell = world.live("state_mb_max = 1", &handler(all).text());
    let seen = world.call(&cell, b"", 100_000_000);
    let disk = disk_mib(world, &cell);
    Seen { answer: format!("{} of at most 16, {disk} MiB on disk", seen.answer), ..seen }
}

fn overwritten(world: &World) -> Seen {
    let cell = world.live("", &handler("(drop (call $kv_set #0 #1 #65536 #131072)) ##0").text());
    for _ in 0..100 {
        let seen = world.call(&cell, b"", 20_000_000);
        assert_eq!(seen.answer, "Ok");
    }
    let disk = disk_mib(world, &cell);
    Seen::said(if disk <= 8 {
        "at most 8 MiB on disk".into()
    } else {
        format!("{disk} MiB on disk")
    })
}

fn instances() -> Vec<Row> {
    vec![
        Row::of("D7", "more instances than there are slots", slots, "a thousand, and the others are told", Bill::None).growth(160),
        Row::new("D4", "16 MiB of standard output in one call", super::logs::printed("(i32.const 0x1000000)").call().fuel(1_000_000_000), "Ok", Bill::call(1_000_000_000)).growth(40),
        Row::new("D6", "every descriptor closed and renumbered, for ever", forever("(drop (call $fd_renumber #1 #2)) (drop (call $fd_close #1)) (drop (call $fd_renumber #2 #0))").call(), "OutOfFuel", Bill::Limit),
        Row::new(
            "D6",
            "a program that opens files and never closes one",
            job(program(
                "(loop $again (local.set $n (call $path_open #3 #0 'file' #0 ##2 ##0 #0 #64)) (br_if $again (i32.eqz (local.get $n))))
                (call $proc_exit (local.get $n))",
            ))
            .directory()
            .fuel(2_000_000_000),
            "exit * or OutOfFuel",
            Bill::Within(1_000_000, 2_000_000_000),
        ),
    ]
}

/// Twenty cells of up to 64 instances each, and slots for a thousand: who gets none is told that it is
/// busy, or waits its time for one of its own cell's.
fn slots(world: &World) -> Seen {
    const CELLS: usize = 20;
    let text = reply(SLEEP).text();
    let mut callers = Vec::new();
    for _ in 0..CELLS {
        let cell = world.live("replicas_max = 64\ncall_ms_max = 2500", &text);
        let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
        for id in 0..64 {
            raw.call(receptor, id, 1_000_000, b"");
        }
        callers.push(raw);
    }
    let (mut slept, mut waited, mut busy, mut other) = (0, 0, 0, Vec::new());
    for mut raw in callers {
        for _ in 0..64 {
            let (header, payload) = raw.receive();
            let seen = super::world::answered(&header, &payload);
            match (seen.answer.as_str(), seen.fuel) {
                ("TimedOut", Some(0)) => waited += 1,
                ("TimedOut", _) => slept += 1,
                (answer, Some(0)) if answer.starts_with("Busy") => busy += 1,
                _ => other.push(seen.answer),
            }
        }
    }
    println!(
        "{slept} calls had an instance, {waited} waited for one, {busy} were told that it is busy"
    );
    let told = other.is_empty() && slept + waited + busy == CELLS * 64;
    Seen::said(if told && busy > 0 {
        "a thousand, and the others are told".into()
    } else {
        format!("{slept} slept, {waited} waited, {busy} busy, {other:?}")
    })
}
