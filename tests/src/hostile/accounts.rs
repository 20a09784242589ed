//! Class C: who pays for what was burned, and what nobody may be charged.

use cell_abi::{Fuel, Header, Kind, Status};
use cell_client::CallOptions;
use cell_host::price::{CALL, MEMORY_PAGE};

use super::cpu::SLEEP;
use super::guest::{echo, forever, handler, reply};
use super::traps;
use super::{Bill, Row, Seen, World};
use crate::{GUARD, Raw, eventually, status};

const FUEL: u64 = 5_000_000;

pub(super) fn rows() -> Vec<Row> {
    [bills(), knobs(), refusals()].into_iter().flatten().collect()
}

fn bills() -> Vec<Row> {
    vec![
        Row::of(
            "C1",
            "what a cell earned by calls that ended in every way",
            every_end,
            "what the replies said",
            Bill::None,
        ),
        Row::of(
            "C2",
            "the bill of a client that hung up",
            hung_up,
            "paid, within the limit",
            Bill::None,
        ),
        Row::of(
            "C3",
            "a call with more fuel after one that ran out",
            resumed,
            "OutOfFuel | Ok 9",
            Bill::None,
        ),
    ]
}

/// Every setting of a manifest is passed, and must hold.
fn knobs() -> Vec<Row> {
    vec![
        Row::new(
            "C4",
            "memory_mb_max = 1",
            reply("(memory.grow #13)").call().manifest("memory_mb_max = 1"),
            "Ok -1",
            Bill::call(4_000),
        ),
        Row::new(
            "C4",
            "memory_mb_max = 1, to the last page",
            reply("(memory.grow #12)").call().manifest("memory_mb_max = 1"),
            "Ok 4",
            Bill::Within(12 * MEMORY_PAGE, 12 * MEMORY_PAGE + 2 * CALL),
        ),
        Row::new(
            "C4",
            "call_ms_max = 1",
            forever("").call().manifest("call_ms_max = 1").fuel(50_000_000_000),
            "TimedOut",
            Bill::call(5_000_000_000),
        ),
        Row::new(
            "C4",
            "isolation = call",
            reply("(global.set $g (i32.add #1 (global.get $g))) (global.get $g)")
                .with("(global $g (mut i32) #0)")
                .call()
                .manifest("isolation = \"call\"")
                .times(3),
            "Ok 1 | Ok 1 | Ok 1",
            Bill::call(400),
        ),
        Row::of("C4", "replicas_max = 1", one_at_a_time, "one instance, two that wait", Bill::None),
    ]
}

fn refusals() -> Vec<Row> {
    vec![
        Row::of(
            "C5",
            "forty calls that may burn more than there is, at once",
            beyond,
            "each is told, none runs unpaid",
            Bill::None,
        ),
        Row::of("C6", "a thousand calls that are refused", refused, "1000 refused", Bill::Nothing),
        Row::of(
            "C7",
            "a call that may burn more than the account has",
            |_| {
                alone(|world| {
                    let cell = world.live("", &echo().text());
                    world.call(&cell, b"", 2_000_000_000_000)
                })
            },
            "OutOfAtp: *",
            Bill::Nothing,
        ),
        Row::new(
            "C8",
            "the bill of a trap",
            handler("unreachable").call(),
            "Trapped: *",
            Bill::call(400),
        ),
        Row::of("C9", "the same program twice", twice, "one bill, one output", Bill::None),
    ]
}

fn every_end(world: &World) -> Seen {
    let cell = world.live("call_ms_max = 100", &traps::marks());
    let mut burned = 0;
    for end in [0, 5, 0, 2, 0, 3, 0, 4, 0, 1] {
        burned += world.call(&cell, &[end], FUEL).fuel.unwrap();
    }
    world.home().wait_for_earned(&cell, Fuel(burned));
    Seen::said("what the replies said")
}

fn hung_up(world: &World) -> Seen {
    let cell = world.live("", &forever("").text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    for id in 0..4 {
        raw.call(receptor, id, 20_000_000_000, b"");
    }
    world.wait_for(&cell, "instances", 4);
    drop(raw);
    world.wait_for(&cell, "instances", 0);
    let account = format!("cell:{cell}");
    let earned = eventually("the cell is paid", || {
        let earned = world.home().balance(&account);
        (earned > 0 && u64::try_from(earned).unwrap() == world.figure(&cell, "fuel"))
            .then_some(earned)
    });
    Seen::said(if earned < 80_000_000_000 {
        "paid, within the limit".into()
    } else {
        format!("{earned} paid")
    })
}

fn resumed(world: &World) -> Seen {
    let work = "(local.set $n #1000000) (loop $again (br_if $again (local.tee $n (i32.sub (local.get $n) #1)))) (i32.store #0 #9) ##0x400000000";
    let cell = world.live("", &handler(work).text());
    let (first, second) = (world.call(&cell, b"", 1_000_000), world.call(&cell, b"", 50_000_000));
    assert_eq!(first.fuel, Some(1_000_000));
    Seen::said(format!("{} | {}", first.answer, second.answer))
}

fn one_at_a_time(world: &World) -> Seen {
    let cell = world.live("replicas_max = 1\ncall_ms_max = 3000", &reply(SLEEP).text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    for id in 0..3 {
        raw.call(receptor, id, 1_000_000, b"");
    }
    eventually("two wait", || (world.figure(&cell, "waiting") == 2).then_some(()));
    let instances = world.figure(&cell, "instances");
    drop(raw);
    world.wait_for(&cell, "instances", 0);
    Seen::said(if instances == 1 {
        "one instance, two that wait".into()
    } else {
        format!("{instances} instances")
    })
}

/// Each may burn 50 ATP and the account has a thousand: not all can be covered at once.
fn beyond(_: &World) -> Seen {
    alone(|world| {
        let told = flood(world);
        Seen::said(if told == 40 {
            "each is told, none runs unpaid".into()
        } else {
            format!("{told} of 40 are told")
        })
    })
}

/// With an account of its own: all that is on it may be set aside, and other rows must go on.
fn alone(act: impl FnOnce(&World) -> Seen) -> Seen {
    let own = World::new();
    let seen = act(&own);
    own.clean();
    own.down();
    seen
}

/// Forty calls of 50 ATP each; how many ended in one of the ways they must.
pub(super) fn flood(world: &World) -> usize {
    let cell = world.live("replicas_max = 64\ncall_ms_max = 100", &reply(SLEEP).text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    for id in 0..40 {
        raw.call(receptor, id, 50_000_000_000, b"");
    }
    let ends = (0..40).map(|_| raw.receive().0);
    ends.filter(|header| match status(header) {
        Status::TimedOut => true,
        Status::OutOfAtp => header.fuel == Fuel::ZERO,
        _ => false,
    })
    .count()
}

/// Slots that were never opened, receptors that are not there, JSON that nobody speaks.
fn refused(world: &World) -> Seen {
    let cell = world.live("", &echo().text());
    let (mut raw, receptor) = Raw::opened(&world.home().socket(&cell), &cell, "run");
    let (mut refused, mut fuel) = (0, 0);
    for id in 0..1000_u32 {
        let header = Header {
            receptor,
            slot: if id % 2 == 0 { id + 1 } else { 0 },
            flags: if id % 2 == 0 { cell_abi::Flags::NONE } else { cell_abi::Flags::JSON },
            request_id: id.into(),
            fuel: Fuel(FUEL),
            ..Header::new(Kind::Call)
        };
        raw.send(header, b"{}");
        let (header, _) = raw.receive();
        fuel += header.fuel.0;
        refused += u32::from(matches!(status(&header), Status::BadSlot | Status::NoJson));
    }
    // What is charged for nothing would reach the cell's account.
    let mut client = world.home().client(&cell);
    let slot = client.open_raw("run").unwrap();
    let options = CallOptions { timeout: GUARD, ..CallOptions::default() };
    let paid = client.call_raw(&slot, b"", options).unwrap().fuel();
    world.home().wait_for_earned(&cell, paid);
    Seen::charged(format!("{refused} refused"), fuel)
}

fn twice(world: &World) -> Seen {
    let text = super::guest::program(
        "(local.set $n #20000) (i32.store #0 #64) (i32.store #4 #1000)
        (loop $again (memory.fill #64 (local.get $n) #1000) (br_if $again (local.tee $n (i32.sub (local.get $n) #1))))
        (drop (call $fd_write #1 #0 #1 #16)) (call $proc_exit #5)",
    );
    let job = super::job::job(text);
    let (one, two) = (job.clone().run(world), job.run(world));
    let same =
        one.fuel == two.fuel && one.answer == two.answer && one.answer == "exit 5, 1000 bytes out";
    Seen::said(if same {
        "one bill, one output".into()
    } else {
        format!("{} for {:?}, {} for {:?}", one.answer, one.fuel, two.answer, two.fuel)
    })
}
