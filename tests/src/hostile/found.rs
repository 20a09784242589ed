//! What the suite found in the product, each row since mended there.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::thread;
use std::time::Duration;

use cell_host::price::{MEMORY_PAGE, START};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::guest::{echo, forever, handler, program};
use super::job::job;
use super::logs::logged;
use super::world::{Neighbour, escape};
use super::{Bill, Row, Seen, World, accounts};
use crate::{eventually, wat};

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::of(
            "C5",
            "money of calls that are over",
            |_| given_back(|world| assert_eq!(accounts::flood(world), 40)),
            "exit 0",
            Bill::Within(START, START + 8 * MEMORY_PAGE),
        ),
        Row::of(
            "C7",
            "money of a call that was refused",
            |_| given_back(|world| drop(world.call("echo", b"", 2_000_000_000_000))),
            "exit 0",
            Bill::Within(START, START + 8 * MEMORY_PAGE),
        ),
        Row::of("E2", "a directory whose name clears the screen", shown, "nothing raw", Bill::None),
        logged(
            "E1",
            "control characters without end, which grow when escaped",
            forever("(memory.fill #65536 #27 #100) (call $log #2 #65536 #100)"),
            200_000_000,
            "OutOfFuel; a bounded log",
        ),
        Row::of("E4", "a log that is a pipe nobody reads", piped, "others are served", Bill::None),
    ]
}

/// After calls that were to burn more than there is, what was set aside for them is to be had again,
/// though the same user goes on calling.
fn given_back(calls: fn(&World)) -> Seen {
    let own = World::new();
    let caller = Neighbour::start(own.home());
    calls(&own);
    let mut seen = Seen::default();
    for _ in 0..20 {
        seen = job(program("nop")).run_in(own.home(), &own.directory());
        if seen.answer == "exit 0" {
            break;
        }
        thread::sleep(Duration::from_millis(250));
    }
    caller.end();
    own.clean();
    own.down();
    seen
}

fn shown(world: &World) -> Seen {
    let path = world.home().path().join("cells").join(OsStr::from_bytes(b"\x1b[2J"));
    fs::create_dir(&path).unwrap();
    let failed = || {
        let rows = world.ask("\"ps\"");
        rows["cells"].as_array().unwrap().iter().filter(|row| row["state"] == "failed").count()
    };
    eventually("it is shown as failed", || (failed() > 0).then_some(()));
    let text = world.home().cell(["ps"]).expect(0).stdout.clone();
    fs::remove_dir(path).unwrap();
    eventually("it is gone", || (failed() == 0).then_some(()));
    let raw = text.chars().any(|c| c.is_control() && c != '\n');
    Seen::said(if raw { escape(&text) } else { "nothing raw".into() })
}

/// A directory that a stranger packed may hold anything; the nucleus must not wait for it.
fn piped(_: &World) -> Seen {
    let own = World::new();
    let name = own.name();
    let directory = own.home().cell_directory(&name);
    let incoming = directory.with_file_name(".incoming");
    fs::create_dir_all(incoming.join("log")).unwrap();
    let wasm = wat::compile(&handler("(call $log #1 'x') ##0").text());
    fs::write(incoming.join("Cell.toml"), wat::manifest(&name, "")).unwrap();
    fs::write(incoming.join("cell.wasm"), &wasm).unwrap();
    let log = incoming.join("log").join("cell.log");
    mknodat(CWD, log, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    fs::rename(&incoming, &directory).unwrap();
    if own.settle(&name, &wasm).is_ok() {
        own.call(&name, b"", 1_000_000);
    }
    let other = own.live("", &echo().text());
    let served = own.call(&other, b"", 1_000_000).answer == "Ok";
    own.clean();
    own.down();
    Seen::said(if served { "others are served" } else { "others are not served" })
}
