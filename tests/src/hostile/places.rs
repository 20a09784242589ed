//! What stands in `cells/` and in the home in place of the files that should be there.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::guest::echo;
use super::world::escape;
use super::{Bill, Row, Seen, World};
use crate::{GUARD, eventually, wat};

pub(super) fn rows() -> Vec<Row> {
    [manifests(), modules(), directories(), sockets()].into_iter().flatten().collect()
}

/// A cell whose directory this makes; the nucleus must say what is wrong with it.
fn placed(name: &'static str, make: fn(&Path), answer: &'static str) -> Row {
    Row::of("B7", name, move |world| place(world, make), answer, Bill::None)
}

fn place(world: &World, make: fn(&Path)) -> Seen {
    let name = world.name();
    let directory = world.home().cell_directory(&name);
    let incoming = directory.with_file_name(format!(".{name}-incoming"));
    let wasm = wat::compile(&echo().text());
    fs::create_dir(&incoming).unwrap();
    fs::write(incoming.join("Cell.toml"), wat::manifest(&name, "")).unwrap();
    fs::write(incoming.join("cell.wasm"), &wasm).unwrap();
    make(&incoming);
    fs::rename(&incoming, &directory).unwrap();
    match world.settle(&name, &wasm) {
        Ok(()) => Seen::said(format!("live, {}", world.call(&name, b"", 1_000_000).answer)),
        Err(reason) => Seen::said(format!("refused: {reason}")),
    }
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

fn manifest(directory: &Path, text: &[u8]) {
    fs::write(directory.join("Cell.toml"), text).unwrap();
}

fn no_manifest(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("Cell.toml");
    fs::remove_file(&path).unwrap();
    path
}

fn manifests() -> Vec<Row> {
    vec![
        placed(
            "a manifest of 64 KiB and a byte",
            |d| manifest(d, &[b'#'; 65_537]),
            "refused: *more than 65536 bytes*",
        ),
        placed("a manifest that is no text", |d| manifest(d, &[0xff; 100]), "refused: *not text*"),
        placed(
            "a manifest of brackets",
            |d| manifest(d, format!("x = {}", "[".repeat(60_000)).as_bytes()),
            "refused: *",
        ),
        placed(
            "a manifest of dotted keys",
            |d| manifest(d, format!("{}x = 1", "a.".repeat(30_000)).as_bytes()),
            "refused: *",
        ),
        placed(
            "a manifest that never ends",
            |d| symlink("/dev/zero", no_manifest(d)).unwrap(),
            "refused: *not a file*",
        ),
        placed("a manifest that is a pipe", |d| fifo(&no_manifest(d)), "refused: *not a file*"),
        placed(
            "a manifest that is a directory",
            |d| fs::create_dir(no_manifest(d)).unwrap(),
            "refused: *not a file*",
        ),
        placed(
            "a manifest that is itself",
            |d| symlink("Cell.toml", no_manifest(d)).unwrap(),
            "refused: *Cell.toml*",
        ),
        placed(
            "a manifest that is another user's file",
            |d| symlink("/etc/passwd", no_manifest(d)).unwrap(),
            "refused: *",
        ),
        placed(
            "a manifest with the name of another cell",
            |d| manifest(d, b"[cell]\nname = \"echo\"\n"),
            "refused: *must be the same*",
        ),
        placed(
            "a manifest with a path for a name",
            |d| manifest(d, b"[cell]\nname = \"../../etc\"\n"),
            "refused: *",
        ),
        placed(
            "a manifest with a path for its module",
            |d| manifest(d, b"[cell]\nname = \"x\"\nwasm = \"/etc/passwd\"\n"),
            "refused: *beside*",
        ),
        placed(
            "a manifest with numbers past every range",
            |d| manifest(d, b"[cell]\nname = \"x\"\nmemory_mb_max = 4294967295\n"),
            "refused: *between*",
        ),
        placed(
            "a manifest with a key that clears the screen",
            |d| manifest(d, b"[cell]\nname = \"x\"\n\"\\u001b[2J\" = 1\n"),
            "refused: *unknown field*",
        ),
    ]
}

fn modules() -> Vec<Row> {
    vec![
        placed(
            "a module that never ends",
            |d| symlink("/dev/zero", gone(d, "cell.wasm")).unwrap(),
            "refused: *not a file*",
        ),
        placed("a module that is a pipe", |d| fifo(&gone(d, "cell.wasm")), "refused: *not a file*"),
        placed(
            "a module that is a directory",
            |d| fs::create_dir(gone(d, "cell.wasm")).unwrap(),
            "refused: *not a file*",
        ),
        placed("a module that is not there", |d| drop(gone(d, "cell.wasm")), "refused: *"),
        placed(
            "a module of a terabyte of nothing",
            |d| {
                fs::File::create(d.join("cell.wasm")).unwrap().set_len(1 << 40).unwrap();
            },
            "refused: *more than 33554432 bytes*",
        ),
    ]
}

fn gone(directory: &Path, name: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    fs::remove_file(&path).unwrap();
    path
}

fn directories() -> Vec<Row> {
    vec![
        placed(
            "a socket's place taken by a file",
            |d| fs::write(d.join("cell.sock"), "").unwrap(),
            "live, Ok",
        ),
        placed(
            "a socket's place taken by a link",
            |d| symlink("/etc/passwd", d.join("cell.sock")).unwrap(),
            "live, Ok",
        ),
        placed(
            "a socket's place taken by a directory",
            |d| fs::create_dir_all(d.join("cell.sock").join("x")).unwrap(),
            "refused: *cell.sock*",
        ),
        placed(
            "a directory of logs that is a file",
            |d| fs::write(d.join("log"), "").unwrap(),
            "refused: *",
        ),
        placed(
            "a log that is full at once",
            |d| {
                fs::create_dir(d.join("log")).unwrap();
                symlink("/dev/full", d.join("log").join("cell.log")).unwrap();
            },
            "live, Ok",
        ),
        Row::of("B7", "names that are no names", odd_names, "shown, and nothing raw", Bill::None),
        Row::of(
            "B7",
            "a link in cells/ to the root of everything",
            |world| {
                let name = world.name();
                symlink("/", world.home().cell_directory(&name)).unwrap();
                let reason = world.settle(&name, b"").unwrap_err();
                Seen::said(format!("refused: {reason}"))
            },
            "refused: *Cell.toml*",
            Bill::None,
        ),
        Row::of(
            "B7",
            "a hundred directories at once, and away again",
            hundred,
            "gone again",
            Bill::None,
        ),
    ]
}

fn odd_names(world: &World) -> Seen {
    let cells = world.home().path().join("cells");
    let names: [&[u8]; 4] = [b"\x1b[2J", b"two\nlines", b"\xff\xfe", b"UPPER case"];
    for name in names {
        fs::create_dir(cells.join(OsStr::from_bytes(name))).unwrap();
    }
    let failed = || {
        let rows = world.ask("\"ps\"");
        rows["cells"].as_array().unwrap().iter().filter(|row| row["state"] == "failed").count()
    };
    eventually("each is shown as failed", || (failed() >= names.len()).then_some(()));
    let shown = world.home().cell(["ps", "--json"]).expect(0).stdout.clone();
    let raw = shown.chars().any(|c| c.is_control() && c != '\n');
    for name in names {
        fs::remove_dir(cells.join(OsStr::from_bytes(name))).unwrap();
    }
    eventually("they are gone", || (failed() == 0).then_some(()));
    Seen::said(if raw { escape(&shown) } else { "shown, and nothing raw".into() })
}

fn hundred(world: &World) -> Seen {
    let cells = world.home().path().join("cells");
    let paths: Vec<_> = (0..100).map(|n| cells.join(format!("many{n}"))).collect();
    for path in &paths {
        fs::create_dir(path).unwrap();
    }
    let count = || {
        let rows = world.ask("\"ps\"");
        rows["cells"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["cell"].as_str().unwrap().starts_with("many"))
            .count()
    };
    eventually("all are seen", || (count() == 100).then_some(()));
    for path in &paths {
        fs::remove_dir(path).unwrap();
    }
    eventually("all are gone", || (count() == 0).then_some(()));
    Seen::said("gone again")
}

fn sockets() -> Vec<Row> {
    vec![
        Row::of("I5", "who else may open the sockets", modes, "nobody else", Bill::None),
        Row::of(
            "I5",
            "garbage at the control socket",
            garbage,
            "{\"failed\":\"not a request*",
            Bill::None,
        ),
        Row::of(
            "I5",
            "a request without end at the control socket",
            endless,
            "{\"failed\":\"not a request*",
            Bill::None,
        ),
        Row::of(
            "I5",
            "two hundred silent askers at the control socket",
            silent,
            "the others are answered",
            Bill::None,
        ),
        Row::of(
            "I5",
            "a cell's socket removed while it serves",
            squatted,
            "bound again, Ok",
            Bill::None,
        ),
    ]
}

fn modes(world: &World) -> Seen {
    let home = world.home();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
    // A home that was there before keeps its own mode.
    let names = ["nucleus.sock", "identity", "artefacts", "artefacts.key", "cells", "sessions"];
    let paths = names.into_iter().map(|name| home.path().join(name));
    let open: Vec<_> = paths.chain([home.socket("echo")]).filter(|path| mode(path) != 0).collect();
    Seen::said(if open.is_empty() { "nobody else".into() } else { format!("{open:?}") })
}

fn control(world: &World) -> UnixStream {
    let stream = UnixStream::connect(world.home().path().join("nucleus.sock")).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream
}

fn first_line(mut stream: UnixStream) -> Seen {
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).unwrap_or(0);
    Seen::said(escape(String::from_utf8_lossy(&answer[..read]).lines().next().unwrap_or_default()))
}

fn garbage(world: &World) -> Seen {
    let mut stream = control(world);
    stream.write_all(b"{\"down\":{\"x\":[[[[[[[[\n").unwrap();
    first_line(stream)
}

fn endless(world: &World) -> Seen {
    let mut stream = control(world);
    // It is answered and hung up on long before all is written.
    let _ = stream.write_all(&vec![b'['; 5_000]);
    first_line(stream)
}

fn silent(world: &World) -> Seen {
    let askers: Vec<_> = (0..200).map(|_| control(world)).collect();
    drop(askers);
    let held: Vec<_> = (0..60).map(|_| control(world)).collect();
    let answer = world.ask("\"ping\"");
    drop(held);
    Seen::said(if answer == "done" { "the others are answered".into() } else { answer.to_string() })
}

fn squatted(world: &World) -> Seen {
    let cell = world.live("", &echo().text());
    let socket = world.home().socket(&cell);
    fs::remove_file(&socket).unwrap();
    eventually("the socket is back", || UnixStream::connect(&socket).is_ok().then_some(()));
    world.settle(&cell, &wat::compile(&echo().text())).unwrap();
    Seen::said(format!("bound again, {}", world.call(&cell, b"", 1_000_000).answer))
}
