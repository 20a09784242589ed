//! Runs the hostile suite, and what it says of a cell that lies to a typed caller: a table of attacks,
//! answers, bills, times and memory. It ends with an error if any answer is not the expected one.
//!
//! `CELL_BIN` names the binary, `CELL_SAMPLES` the built samples, and `CELL_HOSTILE` rows by part of
//! their names.
#![allow(clippy::unwrap_used, reason = "a program that cannot go on says so")]

use cell_abi::Receptor as _;
use cell_client::CallOptions;
use cell_tests::hostile::{self, Bill, Row, Seen, World};
use cell_tests::wat;

/// A cell that has the interface of `hello` and answers with bytes that are no greeting.
fn lies(world: &World, reply: &'static str) -> Seen {
    let schema = hello::greet::Receptor::SCHEMA.replace('"', "\\22").replace('\n', "\\0a");
    let text = wat::cell("", reply)
        .replace("receptor run(bytes) -> bytes\\n\\n", &format!("{schema}\\0a"));
    let name = world.live("", &text);
    let mut client = world.home().client(&name);
    let slot = client.open::<hello::greet::Receptor>().unwrap();
    let request = hello::Greet { name: "Ada".into() };
    match client.call(&slot, &request, CallOptions::default()) {
        Ok(reply) => Seen::said(format!("{:?}", reply.to_owned().map(|greeting| greeting.text))),
        Err(cell_client::Error::InvalidReply { fuel }) => Seen::charged("InvalidReply", fuel.0),
        Err(error) => Seen::said(error.to_string()),
    }
}

fn typed() -> Vec<Row> {
    let row = |class, name, reply: &'static str| {
        Row::of(class, name, move |world| lies(world, reply), "InvalidReply", Bill::call(400_000))
    };
    vec![
        row("H3", "a typed reply of no bytes", "(i64.const 0)"),
        row("H3", "a typed reply of zeros cut short", "(i64.const 0x0000000700000000)"),
        row(
            "H3",
            "a typed reply that is no text",
            "(memory.fill (i32.const 0) (i32.const 254) (i32.const 65536)) (i64.const 0x0001000000000000)",
        ),
        row(
            "H7",
            "a typed reply with a string of 4 GiB",
            "(i32.store (i32.const 0) (i32.const 0xffffffbf)) (i32.store (i32.const 4) (i32.const 0x7ffffff0)) (i64.const 0x0000000800000000)",
        ),
        row(
            "H7",
            "a typed reply whose string lies before it",
            "(i32.store (i32.const 0) (i32.const 0x80000010)) (i32.store (i32.const 4) (i32.const 0x80000000)) (i64.const 0x0000000800000000)",
        ),
    ]
}

fn main() {
    let mut rows = hostile::rows();
    rows.extend(typed());
    hostile::run(rows);
}
