//! Class H: addresses and lengths that a guest hands to its host.

use cell_host::price::{FRAME_BYTE, MEMORY_PAGE};

use super::guest::{echo, handler};
use super::{Bill, Row, Seen, World};

pub(super) fn rows() -> Vec<Row> {
    [replies(), mailboxes(), rejects()].into_iter().flatten().collect()
}

/// A memory of 256 KiB answers with this length and address.
fn replies() -> Vec<Row> {
    let reply = |class, name, answer: &str, expect| {
        Row::new(
            class,
            name,
            handler(answer).call(),
            expect,
            Bill::call((1 << 18) * FRAME_BYTE + 40_000),
        )
    };
    vec![
        reply("H1", "a reply that starts past the memory", "##0x0000000400040000", "BadReply"),
        reply(
            "H1",
            "a reply that ends one byte past the memory",
            "##0x000000020003ffff",
            "BadReply",
        ),
        reply("H1", "a reply whose end wraps around", "##0x00000010fffffff8", "BadReply"),
        reply("H1", "a reply of 4 GiB", "##0xffffffff00000000", "BadReply"),
        reply("H1", "a reply of -2", "##0xfffffffffffffffe", "BadReply"),
        reply("H1", "an empty reply at the memory's end", "##0x0000000000040000", "Ok"),
        reply("H1", "an empty reply past the memory", "##0x0000000000040001", "BadReply"),
        reply("H2", "a reply at an odd address", "(i64.store #3 ##7) ##0x0000000400000003", "Ok 7"),
        reply("H1", "the whole memory as the reply", "##0x0004000000000000", "Ok, 262144 bytes"),
        Row::new(
            "H6",
            "a reply of 16 MiB",
            handler("##0x0100000000000000").memory("300").call(),
            "Ok, 16777216 bytes",
            Bill::call((16 << 20) * FRAME_BYTE + 100),
        )
        .growth(40),
        Row::new(
            "H6",
            "a reply of 16 MiB and a byte",
            handler("##0x0100000100000000").memory("300").call(),
            "BadReply",
            Bill::call(400),
        ),
        Row::new(
            "H1",
            "the request as the reply, again and again",
            echo().call().request(&[7; 100_000]).times(20),
            "Ok, 100000 bytes*",
            Bill::call(200_000 * FRAME_BYTE + 100),
        ),
    ]
}

fn mailboxes() -> Vec<Row> {
    let mailbox = |name, body: &str, answer| {
        let call = echo().mailbox(body).call().request(&[5; 80]);
        Row::new("H5", name, call, answer, Bill::call(1_200))
    };
    vec![
        mailbox("a mailbox that traps", "unreachable", "Trapped: *unreachable*"),
        mailbox("a mailbox at 0", "#0", "TooLarge"),
        mailbox("a mailbox at -1", "#-1", "TooLarge"),
        mailbox("a mailbox that ends past the memory", "#262065", "TooLarge"),
        mailbox("a mailbox that ends with the memory", "#262064", "Ok, 80 bytes"),
        mailbox("a mailbox at an odd address", "#3", "Ok, 80 bytes"),
        mailbox("a mailbox that exits", "(call $proc_exit #1) unreachable", "Exited: with code 1"),
        Row::new("H5", "a mailbox for 16 MiB that is not there", echo().mailbox("#65536").call().request(&[1; 16 << 20]), "TooLarge", Bill::call(400)),
        Row::new(
            "H5",
            "a mailbox that moves, over its own code's data",
            echo()
                .with("(global $at (mut i32) #16) (data (i32.const 16) \"not a string any more\")")
                .mailbox("(global.set $at (i32.xor (global.get $at) #65552)) (global.get $at)")
                .call()
                .request(&[9; 8])
                .times(4),
            "Ok 151587081 151587081 | Ok 151587081 151587081 | Ok *",
            Bill::call(800),
        ),
        Row::of("H5", "a mailbox that grows the memory each time", grows, "Ok 7 | Ok 7 | Ok 7", Bill::call(MEMORY_PAGE + 1_000)),
        Row::new(
            "H5",
            "a large request into a mailbox that shrinks it",
            echo().mailbox("(if (result i32) (i32.gt_u (local.get 0) #32768) (then #262143) (else #65536))").call().request(&[1; 1 << 20]),
            "TooLarge",
            Bill::call(800),
        ),
    ]
}

fn grows(world: &World) -> Seen {
    let cell = world.live("", &echo().mailbox("(drop (memory.grow #1)) #65536").text());
    let calls: Vec<_> =
        (0..3).map(|_| world.call(&cell, &7_u32.to_le_bytes(), 1_000_000)).collect();
    let answers: Vec<_> = calls.iter().map(|seen| seen.answer.as_str()).collect();
    Seen { answer: answers.join(" | "), fuel: calls[2].fuel, ..Seen::default() }
}

fn rejects() -> Vec<Row> {
    let reject = |class, name, body: &str, answer| {
        let call = handler(&format!("{body} ##0")).call().fuel(6_000_000_000);
        Row::new(class, name, call, answer, Bill::call(4_400_000_000))
    };
    vec![
        reject("D5", "a reject of 4 GiB", "(call $reject #1 #0 #-1)", "Rejected 1: *"),
        reject(
            "D5",
            "a reject past the memory",
            "(call $reject #1 #262143 #2)",
            "Trapped: *out of bounds memory access*",
        ),
        reject(
            "E2",
            "a reject that would clear the screen",
            "(call $reject #7 '\\1b[2Jall is well\\0a')",
            "Rejected 7: \\u{1b}[2Jall is well\\n",
        ),
        reject(
            "E2",
            "a reject that is no text",
            "(call $reject #8 '\\ff\\fe\\00')",
            "Rejected 8: *",
        ),
        reject(
            "H5",
            "a thousand rejects, and then an answer",
            "(local.set $n #1000) (loop $again (call $reject (local.get $n) #0 #1000) (br_if $again (local.tee $n (i32.sub (local.get $n) #1))))",
            "Rejected 1: *",
        ),
        Row::new(
            "H5",
            "an answer that is no input's",
            handler("##-1").call(),
            "BadRequest",
            Bill::call(400),
        ),
    ]
}
