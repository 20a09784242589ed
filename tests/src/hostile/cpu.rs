//! Class A: processor time that nobody pays for, and fuel that is counted wrongly.

use cell_abi::{Fuel, Header, Kind};
use cell_host::price::{CALL, MEMORY_PAGE};

use super::guest::{Guest, echo, forever, handler, reply};
use super::{Bill, Row, Seen, World};
use crate::{Raw, wat};

/// Sets a clock subscription at 256 that fires in 584 years, and waits for it.
pub(super) const SLEEP: &str =
    "(i32.store #272 #1) (i64.store #280 ##-1) (call $poll_oneoff #256 #512 #1 #1000)";

/// Calls itself with all it has, and answers with the status of each call below it, outermost first.
const CHAIN: &str = "
    (local.set $m (call $call 'SELF' 'run' #0 #0 (local.get $ptr) (local.get $len) ##-1))
    (i32.store #1024 (i32.wrap_i64 (i64.shr_u (local.get $m) ##32)))
    (if (i64.ge_u (local.get $m) ##0x100000000) (then (local.set $m ##0)))
    (drop (call $call_reply #1028 (i32.wrap_i64 (local.get $m))))
    (i64.or (i64.shl (i64.add ##4 (local.get $m)) ##32) ##1024)";

/// Calls another cell with this much fuel and answers with the status of that call.
pub(super) fn asks(callee: &str, fuel: &str) -> Guest {
    reply(&format!(
        "(i32.wrap_i64 (i64.shr_u (call $call '{callee}' 'run' #0 #0 (local.get $ptr) (local.get $len) {fuel}) ##32))"
    ))
}

pub(super) fn rows() -> Vec<Row> {
    [loops(), growth(), bulk(), limits(), host_calls(), sleeps(), prices(), starts(), chains()]
        .into_iter()
        .flatten()
        .collect()
}

fn loops() -> Vec<Row> {
    vec![
        Row::new("A1", "endless loop", forever("").call(), "OutOfFuel", Bill::Limit),
        Row::new(
            "A1",
            "endless loop while asked for a mailbox",
            echo().mailbox("(loop $again (br $again)) unreachable").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A1",
            "endless loop without a back edge that costs",
            forever("(block nop) (block nop)").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::of(
            "A13",
            "sixteen endless loops at once",
            sixteen,
            "16 x OutOfFuel",
            Bill::Exactly(800_000_000),
        ),
    ]
}

fn sixteen(world: &World) -> Seen {
    let cell = world.live("", &forever("").text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    for id in 0..16 {
        raw.call(receptor, id, 50_000_000, b"");
    }
    let ends: Vec<_> = (0..16).map(|_| raw.receive().0).collect();
    let fuel = ends.iter().map(|end| end.fuel.0).sum();
    let spent = ends.iter().filter(|end| end.status == cell_abi::Status::OutOfFuel.code()).count();
    Seen::charged(format!("{spent} x OutOfFuel"), fuel)
}

fn growth() -> Vec<Row> {
    let to_the_end = "(loop $again (br_if $again (i32.ne (memory.grow #1) #-1)))";
    vec![
        Row::new(
            "A2",
            "memory.grow by 4 GiB",
            reply("(memory.grow #65535)").call(),
            "Ok -1",
            Bill::call(4_000),
        ),
        Row::new(
            "A2",
            "memory.grow by 2^32-1 pages",
            reply("(memory.grow #-1)").call(),
            "Ok -1",
            Bill::call(4_000),
        ),
        Row::new(
            "A2",
            "memory.grow page by page to the end",
            handler(&format!("{to_the_end} (i32.store #0 (memory.size)) ##0x400000000"))
                .call()
                .fuel(1_000_000_000),
            "Ok 1024",
            Bill::Within(1020 * MEMORY_PAGE, 1020 * MEMORY_PAGE + 1_000_000),
        ),
        Row::new(
            "A2",
            "memory.grow dearer than what is left",
            reply("(memory.grow #1000)").call().fuel(1_000_000),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A3",
            "failing memory.grow for ever",
            forever("(drop (memory.grow #65535))").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A3",
            "memory.grow by nothing for ever",
            forever("(drop (memory.grow #0))").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A3",
            "failing table.grow for ever",
            forever("(drop (table.grow $t (ref.null func) #-1))")
                .with("(table $t 1 funcref)")
                .call(),
            "OutOfFuel",
            Bill::Limit,
        ),
    ]
}

fn bulk() -> Vec<Row> {
    let whole = "(drop (memory.grow #1020))";
    vec![
        Row::new(
            "A4",
            "memory.fill of 64 MiB",
            handler(&format!("{whole} (memory.fill #0 #7 #0x4000000) ##0")).call().fuel(1_000_000_000),
            "Ok",
            Bill::Within((1020 * MEMORY_PAGE) + (64 << 20), (1020 * MEMORY_PAGE) + (64 << 20) + 100_000),
        )
        .growth(80),
        Row::new(
            "A4",
            "memory.copy of 32 MiB for ever",
            handler(&format!("{whole} (loop $again (memory.copy #0x2000000 #0 #0x2000000) (br $again)) unreachable"))
                .call()
                .fuel(500_000_000),
            "OutOfFuel",
            Bill::Limit,
        )
        .growth(80),
        Row::new("A5", "memory.fill of 4 GiB, out of bounds", handler("(memory.fill #0 #0 #-1) ##0").call(), "OutOfFuel", Bill::Limit),
        Row::new(
            "A5",
            "memory.fill of 4 GiB that is paid for",
            handler("(memory.fill #0 #0 #-1) ##0").call().fuel(6_000_000_000),
            "Trapped: *out of bounds memory access*",
            Bill::call(6_000_000_000),
        ),
        Row::new("A5", "memory.copy of 4 GiB, out of bounds", handler("(memory.copy #0 #65536 #-1) ##0").call(), "OutOfFuel", Bill::Limit),
        Row::new(
            "A5",
            "memory.init and table.fill past their ends",
            handler("(memory.init $d #0 #0 #1000) (table.fill $t #0 (ref.null func) #1000) ##0")
                .with("(data $d \"x\") (table $t 1 funcref)")
                .call(),
            "Trapped: *out of bounds memory access*",
            Bill::call(60_000),
        ),
    ]
}

fn limits() -> Vec<Row> {
    vec![
        Row::new(
            "A6",
            "a limit of 2^64-1 fuel",
            echo().call().fuel(u64::MAX),
            "OutOfAtp: *",
            Bill::Nothing,
        ),
        Row::new(
            "A6",
            "a limit of 2^63 fuel",
            echo().call().fuel(1 << 63),
            "OutOfAtp: *",
            Bill::Nothing,
        ),
        Row::new("A6", "a limit of no fuel", echo().call().fuel(0), "OutOfFuel", Bill::Limit),
        Row::new(
            "A6",
            "a limit of one fuel, in a loop",
            forever("").call().fuel(1),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A8",
            "a host call that takes the last fuel",
            forever("(drop (call $fuel_left))").call().fuel(5_700),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A8",
            "a reply dearer than what is left",
            handler("##0x0002000000000000").call().fuel(50_000),
            "OutOfFuel",
            Bill::Limit,
        ),
    ]
}

fn host_calls() -> Vec<Row> {
    vec![
        Row::new(
            "A7",
            "random_get of 4 GiB",
            reply("(call $random_get #0 #-1)").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A7",
            "random_get for ever",
            forever("(drop (call $random_get #0 #65536))").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A7",
            "fd_write of 2^29 vectors",
            reply("(call $fd_write #1 #0 #0x1fffffff #0)").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A7",
            "fd_write of a vector of 4 GiB",
            reply("(i32.store #8 #0) (i32.store #12 #-1) (call $fd_write #1 #8 #1 #16)").call(),
            "Ok 48",
            Bill::call(1_580_000),
        ),
        Row::new(
            "A7",
            "poll_oneoff of a million subscriptions",
            reply("(call $poll_oneoff #0 #0 #1000000 #0)").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A7",
            "clock_time_get for ever",
            forever("(drop (call $clock_time_get #1 ##0 #64))").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A7",
            "fuel_left for ever",
            forever("(drop (call $fuel_left))").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A7",
            "sched_yield for ever",
            forever("(drop (call $sched_yield))").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::new(
            "A7",
            "kv_get of nothing for ever",
            forever("(drop (call $kv_get #0 #8))").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
    ]
}

fn sleeps() -> Vec<Row> {
    let sleeper = reply(SLEEP);
    vec![
        Row::new(
            "A9",
            "poll_oneoff for 584 years",
            sleeper.call().manifest("call_ms_max = 200"),
            "TimedOut",
            Bill::call(60_000),
        ),
        Row::new(
            "A9",
            "endless loop of no fuel to speak of, out of time",
            forever("(i32.store #272 #1) (i64.store #280 ##1000000) (drop (call $poll_oneoff #256 #512 #1 #1000))")
                .call()
                .manifest("call_ms_max = 200"),
            "TimedOut",
            Bill::call(10_000_000),
        ),
        Row::of(
            "A9",
            "asleep when its client hangs up",
            move |world| {
                let cell = world.live("", &sleeper.text());
                let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
                raw.call(receptor, 1, 1_000_000, b"");
                world.wait_for(&cell, "instances", 1);
                drop(raw);
                world.wait_for(&cell, "instances", 0);
                Seen::said("its instance is gone")
            },
            "its instance is gone",
            Bill::None,
        ),
        Row::of("A9", "asleep when its call is cancelled", cancelled, "Cancelled", Bill::call(60_000)),
    ]
}

fn cancelled(world: &World) -> Seen {
    let cell = world.live("", &reply(SLEEP).text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    raw.call(receptor, 1, 1_000_000, b"");
    world.wait_for(&cell, "instances", 1);
    raw.send(Header { request_id: 1, fuel: Fuel::ZERO, ..Header::new(Kind::Cancel) }, &[]);
    let (header, payload) = raw.receive();
    super::world::answered(&header, &payload)
}

fn prices() -> Vec<Row> {
    let million = |step: &str| {
        handler(&format!(
            "(local.set $n #1000000)
            (loop $again {step} (br_if $again (local.tee $n (i32.sub (local.get $n) #1))))
            ##0"
        ))
        .call()
        .fuel(1_000_000_000)
    };
    vec![
        Row::new("A10", "a million divisions", million("(drop (i64.div_u ##9 (i64.extend_i32_u (local.get $n))))"), "Ok", Bill::Within(48_000_000, 80_000_000)),
        Row::new("A10", "a million square roots", million("(drop (f64.sqrt (f64.convert_i32_u (local.get $n))))"), "Ok", Bill::Within(64_000_000, 120_000_000)),
        Row::new(
            "A10",
            "a million stores all over 64 MiB",
            handler(
                "(drop (memory.grow #1020)) (local.set $n #1000000)
                (loop $again
                    (i32.store (i32.and (i32.mul (local.get $n) #0x9e3779b1) #0x3fffff8) (local.get $n))
                    (br_if $again (local.tee $n (i32.sub (local.get $n) #1))))
                ##0",
            )
            .call()
            .fuel(1_000_000_000),
            "Ok",
            Bill::Within(1020 * MEMORY_PAGE, 1020 * MEMORY_PAGE + 50_000_000),
        )
        .growth(80),
        Row::new(
            "A11",
            "the bits of a NaN",
            reply("(i32.reinterpret_f32 (f32.add (f32.reinterpret_i32 #0xffa00001) (f32.div (f32.convert_i32_s (local.get $n)) (f32.convert_i32_s (local.get $n)))))").call(),
            "Ok 2143289344",
            Bill::call(400),
        ),
        Row::of("A11", "the same call on three fresh instances", three_fresh, "one bill", Bill::None),
        Row::new(
            "A12",
            "relaxed SIMD, whose bits differ between machines",
            handler("(drop (f32x4.relaxed_madd (v128.const i64x2 0 0) (v128.const i64x2 0 0) (v128.const i64x2 0 0))) ##0").deploy(),
            "refused: *relaxed*",
            Bill::Nothing,
        ),
    ]
}

fn three_fresh(world: &World) -> Seen {
    let busy = "(local.set $n #5000) (loop $again (drop (memory.grow #0)) (memory.fill #0 #1 #999)
        (br_if $again (local.tee $n (i32.sub (local.get $n) #1)))) ##0";
    let cell = world.live("isolation = \"call\"", &handler(busy).text());
    let bills: Vec<_> = (0..3).map(|_| world.call(&cell, b"", 100_000_000).fuel).collect();
    let same = bills.iter().all(|bill| *bill == bills[0]);
    Seen::said(if same { "one bill".into() } else { format!("{bills:?}") })
}

fn starts() -> Vec<Row> {
    let failing = "Trapped: the cell does not start: * | Trapped: * | Trapped: * | BackingOff: *";
    vec![
        Row::new(
            "A14",
            "a start section",
            echo().with("(func $f (loop $again (br $again))) (start $f)").deploy(),
            "refused: *start section*",
            Bill::Nothing,
        ),
        Row::new(
            "A14",
            "_initialize spins",
            echo().initialize("(loop $again (br $again))").call().times(4),
            failing,
            Bill::Nothing,
        ),
        Row::new(
            "A14",
            "_initialize traps",
            echo().initialize("unreachable").call().times(4),
            failing,
            Bill::Nothing,
        ),
        Row::new(
            "A14",
            "_initialize takes all memory",
            echo()
                .initialize("(drop (memory.grow #1020)) (memory.fill #0 #1 #0x4000000)")
                .call()
                .fuel(CALL + 1_000),
            "Ok",
            Bill::call(400),
        )
        .growth(80),
        Row::new(
            "A14",
            "_initialize makes another cell work",
            asks("echo", "##-1")
                .initialize("(drop (call $call 'echo' 'run' #0 #0 #0 #0 ##-1))")
                .call(),
            "Trapped: the cell does not start: *",
            Bill::Nothing,
        ),
        Row::new(
            "A14",
            "_initialize writes state",
            echo().initialize("(drop (call $kv_set #0 #1 #0 #1))").call(),
            "Trapped: the cell does not start: *",
            Bill::Nothing,
        ),
        Row::new(
            "A14",
            "_initialize sleeps for 584 years",
            echo().initialize(&format!("(drop {SLEEP})")).call().manifest("call_ms_max = 200"),
            "TimedOut",
            Bill::Nothing,
        ),
        Row::new(
            "A14",
            "a data segment out of bounds",
            echo().with("(data (i32.const 0x7fffffff) \"x\")").call(),
            "Trapped: the cell does not start: *",
            Bill::Nothing,
        ),
    ]
}

fn chains() -> Vec<Row> {
    vec![
        Row::new(
            "A15",
            "a cell that calls itself",
            handler(CHAIN).call(),
            "Ok 0 0 0 0 0 0 0 0 38",
            Bill::Within(9 * CALL, 12 * CALL),
        ),
        Row::new(
            "A15",
            "a cell that calls itself, with one instance",
            handler(CHAIN).call().manifest("replicas_max = 1"),
            "Ok 38",
            Bill::call(20_000),
        ),
        Row::of(
            "A15",
            "two cells that call each other",
            mutual,
            "Ok 38",
            Bill::Within(9 * CALL, 12 * CALL),
        ),
        Row::of(
            "A15",
            "a callee that burns all there is",
            |world| burns(world, "##-1"),
            "OutOfFuel",
            Bill::Limit,
        ),
        Row::of(
            "A15",
            "a callee that burns all it is given",
            |world| burns(world, "##1000000"),
            "Ok 19",
            Bill::Within(1_000_000, 1_100_000),
        ),
        Row::new(
            "A15",
            "a callee that is not there",
            asks("nobody", "##-1").call(),
            "Ok 2",
            Bill::call(20_000),
        ),
        Row::of(
            "A15",
            "every call calls twice, eight deep",
            twice,
            "Ok",
            Bill::Within(511 * CALL, 700 * CALL),
        ),
        Row::new(
            "A15",
            "a million calls of a neighbour",
            forever("(drop (call $call 'echo' 'run' #0 #0 #0 #0 ##-1))").call(),
            "OutOfFuel",
            Bill::Limit,
        ),
    ]
}

fn mutual(world: &World) -> Seen {
    let (one, two) = (world.name(), world.name());
    // Each answers with what the other one answered, or with how the call of it failed.
    let text = |other: &str| {
        handler(&format!(
            "(local.set $m (call $call '{other}' 'run' #0 #0 #0 #0 ##-1))
            (i32.store #0 (i32.wrap_i64 (i64.shr_u (local.get $m) ##32)))
            (if (i64.lt_u (local.get $m) ##0x100000000) (then (drop (call $call_reply #0 #4))))
            ##0x400000000"
        ))
        .text()
    };
    for (name, other) in [(&one, &two), (&two, &one)] {
        world.deploy(name, "", &wat::compile(&text(other))).unwrap();
    }
    world.call(&one, b"", 100_000_000)
}

fn burns(world: &World, share: &str) -> Seen {
    let spinner = world.live("", &forever("").text());
    let cell = world.live("", &asks(&spinner, share).text());
    world.call(&cell, b"", 50_000_000)
}

fn twice(world: &World) -> Seen {
    let ask = "(drop (call $call 'SELF' 'run' #0 #0 #0 #0 ##-1))";
    let cell = world.live("", &handler(&format!("{ask} {ask} ##0")).text());
    world.call(&cell, b"", 100_000_000)
}
