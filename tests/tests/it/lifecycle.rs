//! A directory in `cells/` is a cell: it comes, changes, breaks, heals and goes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use cell_client::{CallOptions, Client, Error, Status};
use cell_tests::{Background, GUARD, Home, Nucleus, Raw, eventually, status, wat};
use serde_json::Value;

fn echo() -> String {
    wat::cell("", wat::ECHO)
}

/// A cell that answers with this number.
fn numbered(number: u32) -> Vec<u8> {
    wat::compile(&wat::cell("", &wat::constant(number)))
}

fn ask_number(client: &mut Client) -> Result<u32, Error> {
    let slot = client.open_raw("run")?;
    let reply = client.call_raw(&slot, b"", CallOptions::default())?;
    Ok(u32::from_le_bytes(reply.bytes().try_into().unwrap()))
}

#[test]
fn a_directory_comes_and_goes() {
    let nucleus = Nucleus::new();
    let row = nucleus.deploy_wat("echo", &echo(), "");
    assert_eq!(row["hash"].as_str().unwrap().len(), 64);
    let (mut raw, receptor) = Raw::opened(&nucleus.socket("echo"), "echo", "run");
    raw.call(receptor, 1, 1_000_000, b"hi");
    assert_eq!(raw.receive().1, b"hi");
    fs::remove_dir_all(nucleus.cell_directory("echo")).unwrap();
    eventually("the cell is gone", || nucleus.row("echo").is_none().then_some(()));
    // Who is connected learns it at the next call, and who connects at once.
    eventually("the worker was told", || {
        raw.call(receptor, 2, 1_000_000, b"hi");
        (status(&raw.receive().0) == Status::Gone).then_some(())
    });
    let (header, _) = raw.open("echo", "run", 3);
    assert_eq!(status(&header), Status::Gone);
    assert!(matches!(Client::connect(nucleus.socket("echo"), "echo"), Err(Error::Connect { .. })));
    let ran = nucleus.cell(["call", "echo.run"]);
    assert!(ran.expect(1).stderr.contains("cell ps"), "{}", ran.stderr);
    // And it comes back.
    nucleus.deploy_wat("echo", &echo(), "");
    nucleus.client("echo").open_raw("run").unwrap();
    nucleus.down();
}

#[test]
fn deploy_and_rm_by_command() {
    let nucleus = Nucleus::new();
    let project = nucleus.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("Cell.toml"), wat::manifest("n", "")).unwrap();
    for number in 1..4 {
        fs::write(project.join("cell.wasm"), numbered(number)).unwrap();
        let deployed =
            nucleus.cell([Path::new("deploy"), &project, Path::new("--json")]).expect(0).json();
        assert_eq!(
            (&deployed["cell"], &deployed["live"]),
            (&"n".into(), &true.into()),
            "{deployed}"
        );
        // When the command ends, the new code answers.
        assert_eq!(ask_number(&mut nucleus.client("n")).unwrap(), number);
    }
    nucleus.cell(["rm", "n"]).expect(0);
    assert!(nucleus.row("n").is_none() && !nucleus.cell_directory("n").exists());
    nucleus.cell(["rm", "n"]).expect(1);
    nucleus.down();
}

/// New code under load: none of the calls fails, and no answer is of older code than one before.
#[test]
fn replaced_under_load() {
    let nucleus = Nucleus::new();
    nucleus.put("n", &wat::manifest("n", ""), &numbered(0));
    nucleus.wait_for("n", "live");
    let (stop, newest, calls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (home, stop, newest, calls) =
                ((*nucleus).clone(), Arc::clone(&stop), Arc::clone(&newest), Arc::clone(&calls));
            thread::spawn(move || {
                let mut client = home.client("n");
                let slot = client.open_raw("run").unwrap();
                let mut last = 0;
                while !stop.load(Relaxed) {
                    let reply = client.call_raw(&slot, b"", CallOptions::default()).unwrap();
                    let number = u32::from_le_bytes(reply.bytes().try_into().unwrap());
                    assert!(
                        number >= last && u64::from(number) <= newest.load(Relaxed),
                        "{number} after {last}"
                    );
                    last = number;
                    calls.fetch_add(1, Relaxed);
                }
                last
            })
        })
        .collect();
    for number in 1..=20 {
        let before = calls.load(Relaxed);
        newest.store(number.into(), Relaxed);
        nucleus.replace_wasm("n", &numbered(number));
        let mut client = nucleus.client("n");
        eventually("the new code answers", || {
            (ask_number(&mut nucleus.client("n")).unwrap() == number).then_some(())
        });
        client.ping().unwrap();
        eventually("the load goes on", || (calls.load(Relaxed) > before + 10).then_some(()));
    }
    stop.store(true, Relaxed);
    for thread in threads {
        assert_eq!(thread.join().expect("no call failed"), 20);
    }
    nucleus.down();
}

/// A connection whose cell was replaced by one with other types is told so, and not misread.
#[test]
fn replaced_by_other_types() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("c", &echo(), "");
    let (mut raw, receptor) = Raw::opened(&nucleus.socket("c"), "c", "run");
    let row = nucleus.wait_for("c", "live");
    nucleus.replace_wasm(
        "c",
        &wat::compile(&echo().replace("run(bytes) -> bytes", "run(words) -> bytes")),
    );
    eventually("it was replaced", || {
        (nucleus.wait_for("c", "live")["hash"] != row["hash"]).then_some(())
    });
    raw.call(receptor, 1, 1_000_000, b"hi");
    assert_eq!(status(&raw.receive().0), Status::Gone);
    let (header, _) = raw.open("c", "run", 2);
    assert_eq!(status(&header), Status::Ok);
}

#[track_caller]
fn check_broken(nucleus: &Nucleus, name: &str, manifest: &str, wasm: &[u8], reason: &str) {
    nucleus.put(name, manifest, wasm);
    let row = nucleus.wait_for(name, "failed");
    let told = row["reason"].as_str().unwrap();
    assert!(told.contains(reason), "{name}: {told:?} does not hold {reason:?}");
    // People are told, too.
    assert!(nucleus.cell(["ps"]).expect(0).stdout.contains("failed"));
}

#[test]
fn broken_directories_are_named_and_heal() {
    let nucleus = Nucleus::new();
    let good = wat::compile(&echo());
    let plain = wat::manifest("a", "");
    check_broken(&nucleus, "a", "not toml at all", &good, "Cell.toml");
    check_broken(&nucleus, "b", &plain, &good, "must be the same");
    check_broken(&nucleus, "c", &wat::manifest("c", "replicas_max = 0"), &good, "replicas_max");
    check_broken(&nucleus, "d", &wat::manifest("d", "colour = 1"), &good, "colour");
    check_broken(&nucleus, "e", &wat::manifest("e", ""), b"no module", "not a WebAssembly module");
    check_broken(&nucleus, "f", &wat::manifest("f", "wasm = \"../../a.wasm\""), &good, "beside");
    check_broken(&nucleus, "g", &wat::manifest("g", "wasm = \"other.wasm\""), &good, "other.wasm");
    let command =
        wat::compile("(module (memory (export \"memory\") 1) (func (export \"_start\")))");
    check_broken(&nucleus, "h", &wat::manifest("h", ""), &command, "cell run");
    let nameless = wat::compile(&echo().replace("cell:interface", "something"));
    check_broken(&nucleus, "i", &wat::manifest("i", ""), &nameless, "cell:interface");
    check_broken(&nucleus, "Upper", &plain, &good, "Upper");
    check_broken(&nucleus, "sp ace", &plain, &good, "sp ace");
    let started = wat::compile("(module (memory (export \"memory\") 1) (func $f) (start $f))");
    check_broken(&nucleus, "j", &wat::manifest("j", ""), &started, "start section");
    let huge = wat::compile(&echo().replace("\"memory\") 4", "\"memory\") 2048"));
    check_broken(&nucleus, "k", &wat::manifest("k", ""), &huge, "");
    // Nothing but the directory is at fault: others work, and so does each once it is put right.
    nucleus.deploy_wat("fine", &echo(), "");
    for name in ["a", "c", "d", "e", "f", "g", "h", "i", "j", "k"] {
        fs::write(nucleus.cell_directory(name).join("Cell.toml"), wat::manifest(name, "")).unwrap();
        nucleus.replace_wasm(name, &good);
    }
    for name in ["a", "c", "d", "e", "f", "g", "h", "i", "j", "k", "fine"] {
        nucleus.wait_for(name, "live");
        assert_eq!(
            nucleus.client(name).open_raw("run").unwrap().schema(),
            "receptor run(bytes) -> bytes\n"
        );
    }
    nucleus.down();
}

/// Code that does not start is told to its callers, who pay nothing, and hurts nobody else.
#[test]
fn a_cell_that_does_not_start() {
    let nucleus = Nucleus::new();
    let bad = echo().replace("(memory", "(func (export \"_initialize\") unreachable) (memory");
    nucleus.deploy_wat("bad", &bad, "");
    nucleus.deploy_wat("fine", &echo(), "");
    for _ in 0..3 {
        let mut client = nucleus.client("bad");
        let slot = client.open_raw("run").unwrap();
        let error = client.call_raw(&slot, b"", CallOptions::default()).unwrap_err();
        assert_eq!((error.status(), error.fuel().0), (Some(Status::Trapped), 0), "{error}");
    }
    let mut client = nucleus.client("fine");
    let slot = client.open_raw("run").unwrap();
    client.call_raw(&slot, b"", CallOptions::default()).unwrap();
    nucleus.down();
}

/// A broken change of a cell that served: what is told, and that mending it brings it back.
#[test]
fn pulled_from_under_it() {
    let nucleus = Nucleus::new();
    let good = wat::compile(&echo());
    nucleus.deploy_wat("c", &echo(), "");
    // The socket goes: a new one comes.
    fs::remove_file(nucleus.socket("c")).unwrap();
    eventually("there is a socket again", || {
        Client::connect(nucleus.socket("c"), "c").and_then(|mut client| client.open_raw("run")).ok()
    });
    nucleus.wait_for("c", "live");
    // The module goes: told as failed, and back with it.
    fs::remove_file(nucleus.cell_directory("c").join("cell.wasm")).unwrap();
    let row = nucleus.wait_for("c", "failed");
    assert!(row["reason"].as_str().unwrap().contains("cell.wasm"), "{row}");
    nucleus.replace_wasm("c", &good);
    nucleus.wait_for("c", "live");
    nucleus.client("c").open_raw("run").unwrap();
    // The manifest goes.
    fs::remove_file(nucleus.cell_directory("c").join("Cell.toml")).unwrap();
    let row = nucleus.wait_for("c", "failed");
    assert!(row["reason"].as_str().unwrap().contains("Cell.toml"), "{row}");
    fs::write(nucleus.cell_directory("c").join("Cell.toml"), wat::manifest("c", "")).unwrap();
    nucleus.wait_for("c", "live");
    // Log and data go, while it runs: calls go on.
    fs::remove_dir_all(nucleus.cell_directory("c").join("log")).unwrap();
    fs::remove_dir_all(nucleus.cell_directory("c").join("data")).unwrap();
    let mut client = nucleus.client("c");
    let slot = client.open_raw("run").unwrap();
    client.call_raw(&slot, b"x", CallOptions::default()).unwrap();
    nucleus.down();
}

#[test]
fn garbage_at_the_control_socket() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &echo(), "");
    let socket = nucleus.path().join("nucleus.sock");
    let say = |bytes: &[u8]| {
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        // It may close before it has read all.
        let _ = (&stream).write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = (&stream).read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    for bytes in
        [&b"garbage\n"[..], b"{}\n", b"null\n", b"{\"ping\":1}\n", b"\"pin\"\n", b"[[[[[[[[\n"]
    {
        let answer: Value = serde_json::from_str(&say(bytes)).unwrap();
        assert!(answer["failed"].as_str().unwrap().contains("not a request"), "{answer}");
    }
    say(&[0xff; 10_000]);
    say(&[b'['; 100_000]);
    say(&[0; 100]);
    // Two hundred silent askers at once: some are turned away, and none stays in the way.
    let silent: Vec<_> = (0..200).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    assert!(silent.len() > 64, "{}", silent.len());
    drop(silent);
    eventually("the nucleus answers", || (nucleus.cell(["ps"]).code == Some(0)).then_some(()));
    nucleus.client("echo").open_raw("run").unwrap();
    nucleus.down();
}

#[test]
fn one_nucleus_per_home() {
    let nucleus = Nucleus::new();
    let ran = nucleus.cell(["up"]);
    assert!(ran.expect(0).stdout.contains("up already"), "{ran:?}");
    let ran = nucleus.cell(["up", "--foreground"]);
    assert!(ran.expect(1).stderr.contains("cell down"), "{ran:?}");
    // The one that was there goes on.
    nucleus.deploy_wat("echo", &echo(), "");
    nucleus.client("echo").open_raw("run").unwrap();
    let home = nucleus.down();
    home.cell(["down"]).expect(0);
    // Ten at once: one comes up, and all who asked for one in the background are content.
    let starts: Vec<_> = (0..10)
        .map(|_| home.clone())
        .map(|home| thread::spawn(move || home.cell(["up"])))
        .collect();
    let background = Background::up(&home);
    let codes: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
    assert!(codes.iter().all(|ran| ran.code == Some(0)), "{codes:?}");
    home.wait_for("echo", "live");
    home.client("echo").open_raw("run").unwrap();
    background.down();
}

#[test]
fn deployed_while_down() {
    let home = Home::new();
    let project = home.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("Cell.toml"), wat::manifest("n", "")).unwrap();
    fs::write(project.join("cell.wasm"), numbered(7)).unwrap();
    let deployed = home.cell([Path::new("deploy"), &project, Path::new("--json")]).expect(0).json();
    assert_eq!(deployed["live"], false);
    assert_eq!(home.row("n").unwrap()["state"], "stopped");
    let ran = home.cell(["call", "n.run"]);
    assert!(ran.expect(125).stderr.contains("cell up"), "{}", ran.stderr);
    let nucleus = Nucleus::up(&home);
    nucleus.wait_for("n", "live");
    assert_eq!(ask_number(&mut home.client("n")).unwrap(), 7);
    let home = nucleus.down();
    home.cell(["rm", "n"]).expect(0);
    let nucleus = Nucleus::up(&home);
    assert!(nucleus.row("n").is_none());
}

/// Idle instances go after `idle_s`, the socket stays, and the next call starts one.
#[test]
fn idle_instances_go() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &echo(), "idle_s = 1");
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    let instances = || nucleus.row("echo").unwrap()["stats"]["instances"].as_u64().unwrap();
    client.call_raw(&slot, b"", CallOptions::default()).unwrap();
    eventually("an instance is idle", || (instances() == 1).then_some(()));
    eventually("it is gone", || (instances() == 0).then_some(()));
    client.call_raw(&slot, b"", CallOptions::default()).unwrap();
}

/// A directory in `cells/` whose files are not files. When the manifest or the module was a pipe
/// that nobody writes to, the nucleus waited for it for ever: no cell was deployed any more, no
/// call was paid, and `cell down` did not end it.
#[test]
fn what_is_no_file_holds_nobody_up() {
    let nucleus = Nucleus::new();
    let mkfifo = |path: &Path| {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    };
    let directory = |name: &str| {
        let directory = nucleus.cell_directory(name);
        fs::create_dir_all(&directory).unwrap();
        directory
    };
    let link = |to: &str, path: &Path| std::os::unix::fs::symlink(to, path).unwrap();
    fs::create_dir_all(nucleus.path().join("cells")).unwrap();
    fs::create_dir(directory("dirs").join("Cell.toml")).unwrap();
    link("Cell.toml", &directory("loop").join("Cell.toml"));
    fs::write(directory("large").join("Cell.toml"), vec![b'#'; 1 << 20]).unwrap();
    for name in ["wdir", "wzero"] {
        fs::write(directory(name).join("Cell.toml"), wat::manifest(name, "")).unwrap();
    }
    fs::create_dir(directory("wdir").join("cell.wasm")).unwrap();
    link("/dev/zero", &directory("wzero").join("cell.wasm"));
    for name in ["dirs", "loop", "large", "wdir", "wzero"] {
        let row = nucleus.wait_for(name, "failed");
        assert!(row["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{row}");
    }
    mkfifo(&directory("wpipe").join("cell.wasm"));
    fs::write(directory("wpipe").join("Cell.toml"), wat::manifest("wpipe", "")).unwrap();
    let reason = |name| nucleus.wait_for(name, "failed")["reason"].as_str().map(str::to_owned);
    eventually("the pipe is refused", || reason("wpipe").filter(|text| !text.contains("No such")));
    mkfifo(&directory("pipe").join("Cell.toml"));
    nucleus.wait_for("pipe", "failed");
    nucleus.deploy_wat("echo", &echo(), "");
    nucleus.client("echo").open_raw("run").unwrap();
    nucleus.down();
}
