//! Rows whose right answer the product does not give yet. `CELL_HOSTILE` runs them by class or name.

use super::guest::echo;
use super::{Bill, Row, Seen, World, wire};

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of(
        "I1",
        "a client beside one that does not read its replies",
        starved,
        "Ok 7",
        Bill::Within(5_000, 6_000),
    )]
}

fn starved(world: &World) -> Seen {
    let cell = world.live("call_ms_max = 2000", &echo().text());
    let socket = world.home().socket(&cell);
    let unread: Vec<_> = (0..2).map(|_| wire::never_reads(&socket, &cell)).collect();
    let seen = world.call(&cell, &7_u32.to_le_bytes(), 1_000_000);
    drop(unread);
    seen
}
