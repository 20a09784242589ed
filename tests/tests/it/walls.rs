//! What the operating system keeps from a process that runs strangers' code.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;

use cell_tests::{Home, Nucleus, Ran, wat};
use serde_json::Value;

const WALLS: [&str; 6] =
    ["rlimits", "capabilities", "no_new_privs", "not dumpable", "landlock", "seccomp"];

/// Runs the prober behind the walls, without some of them.
fn probe(without: &[&str]) -> Value {
    let home = Home::new();
    let identity = home.path().join("identity");
    fs::write(&identity, [7; 32]).unwrap();
    let socket = home.path().join("somebody.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let mut command = home.command(["wall-probe", "--json"]);
    command.arg(&identity).arg(&socket);
    for wall in without {
        command.args(["--without", wall]);
    }
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let text = String::from_utf8(ran.stdout).unwrap();
    // What replaced the prober, if nothing stopped it, speaks after it and not for it.
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Which wall stopped each attack; an empty name where none did.
fn stopped(report: &Value) -> BTreeMap<String, String> {
    let attempts = report["attempts"].as_array().unwrap();
    let of = |attempt: &Value| {
        let wall = attempt["wall"].as_str().unwrap_or_default();
        assert_eq!(attempt["outcome"] == "denied", !wall.is_empty(), "{attempt}");
        (attempt["what"].as_str().unwrap().to_owned(), wall.to_owned())
    };
    attempts.iter().map(of).collect()
}

/// Whether a kernel offers a wall is its own affair; what is missing is skipped by name.
fn stands(report: &Value, wall: &str) -> bool {
    let walls = report["walls"].as_array().unwrap();
    let found = walls.iter().find(|found| found["name"] == wall);
    let stands = found.is_some_and(|found| found["stands"] == true);
    if !stands {
        println!("skipped: this machine has no wall `{wall}`: {found:?}");
    }
    stands
}

/// From behind the walls a process tries to get at files, the network and other processes: the
/// kernel denies each, and with one wall down, another still stands where there are two.
#[test]
fn nothing_is_reached_from_behind_the_walls() {
    let all = probe(&[]);
    for wall in WALLS {
        stands(&all, wall);
    }
    let with_all = stopped(&all);
    assert_eq!(with_all.len(), 12, "{with_all:?}");
    let without_seccomp = stopped(&probe(&["seccomp"]));
    let without_landlock = stopped(&probe(&["landlock"]));
    println!("{:28} {:12} {:18} without landlock", "attack", "all walls", "without seccomp");
    for (what, wall) in &with_all {
        let (other, third) = (&without_seccomp[what], &without_landlock[what]);
        println!("{what:28} {wall:12} {other:18} {third}");
    }
    if stands(&all, "seccomp") {
        assert!(with_all.values().all(|wall| wall == "seccomp"), "{with_all:?}");
        assert!(without_landlock.values().all(|wall| wall == "seccomp"), "{without_landlock:?}");
    }
    if stands(&all, "landlock") {
        for what in [
            "read the identity",
            "open a file of the system",
            "list a directory",
            "write a file",
            "listen at a Unix socket",
            "become another program",
            "connect to a port",
            "listen at a port",
        ] {
            assert_eq!(without_seccomp[what], "landlock", "{what}");
        }
    }
}

/// The prober is no prober if it finds everything denied where nothing stands in its way.
#[test]
fn without_walls_everything_is_reached() {
    let home = Home::new();
    let identity = home.path().join("identity");
    fs::write(&identity, [7; 32]).unwrap();
    let socket = home.path().join("somebody.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let mut command = home.command(["wall-probe", "--json"]);
    command.arg(&identity).arg(&socket);
    for wall in WALLS {
        command.args(["--without", wall]);
    }
    // Its last attack succeeds: it is another program by then, which says so.
    let ran = command.output().unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(text.contains("another program"), "{text} {}", String::from_utf8_lossy(&ran.stderr));
}

/// The real worker has raised its walls before it runs anything, and holds nothing it should not.
#[test]
fn the_worker_stands_behind_them() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    client.call_raw(&slot, b"hi", cell_client::CallOptions::default()).unwrap();
    let worker = nucleus.worker().pid;
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2", "a filter is in force");
    assert_eq!(u64::from_str_radix(&field("CapEff"), 16), Ok(0));
    assert_eq!(u64::from_str_radix(&field("CapPrm"), 16), Ok(0));
    let environment = fs::read(format!("/proc/{worker}/environ")).unwrap_or_default();
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
    for entry in fs::read_dir(format!("/proc/{worker}/fd")).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        let allowed = ["socket:", "anon_inode:", "/dev/null", "/memfd:", "pipe:"];
        let is_log = target.ends_with("nucleus.log");
        let is_code = target.ends_with(".cwasm");
        assert!(
            is_log || is_code || allowed.iter().any(|start| target.starts_with(start)),
            "the worker has {target} open"
        );
    }
    let limits = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.contains(" 0 "), "{core}");
    nucleus.down();
}

#[test]
fn inspect_shows_the_walls() {
    let home = Home::new();
    let ran = home.cell(["inspect", "--sandbox"]);
    for word in ["landlock", "seccomp", "read the identity", "no nucleus is running"] {
        assert!(ran.stdout.contains(word), "{ran:?}");
    }
    let nucleus = Nucleus::up(&home);
    // The worker's own, and the control group that the nucleus may have put it into. The nucleus is up a
    // moment before its worker has told.
    cell_tests::eventually("the worker's walls are shown", || {
        let shown = home.cell(["inspect", "--sandbox", "--json"]).json();
        (shown["running_worker"].as_array().unwrap().len() == WALLS.len() + 1).then_some(())
    });
    assert!(home.cell(["inspect", "--sandbox", "x.wasm"]).code == Some(2));
    nucleus.down();
}

/// Runs something on a kernel that has no landlock, as it seems to this thread and its children.
fn without_landlock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let blinded = move || {
        // Numbers of the landlock calls, the same on every architecture.
        let rules = (444..=446).map(|call| (call, Vec::new())).collect();
        let missing = SeccompAction::Errno(38);
        let architecture = std::env::consts::ARCH.try_into().unwrap();
        let filter =
            SeccompFilter::new(rules, SeccompAction::Allow, missing, architecture).unwrap();
        let program: BpfProgram = filter.try_into().unwrap();
        rustix::thread::set_no_new_privs(true).unwrap();
        apply_filter(&program).unwrap();
        work()
    };
    thread::spawn(blinded).join().unwrap()
}

/// A missing wall is a warning, or an end where the operator wants it so.
#[test]
fn a_missing_wall_is_told() {
    let home = Home::new();
    let up = |home: &Home| -> Ran {
        let home = home.clone();
        without_landlock(move || home.cell(["up"]))
    };
    up(&home).expect(0);
    let warned = cell_tests::eventually("it is told", || {
        let log = home.log();
        log.contains("wall around the worker is missing").then_some(log)
    });
    assert!(warned.contains("landlock"), "{warned}");
    home.cell(["down"]).expect(0);
    fs::write(home.path().join("nucleus.toml"), "require_walls = true\n").unwrap();
    // It may answer before its worker has told; then it ends.
    let _ = up(&home);
    cell_tests::eventually("it is down", || {
        home.cell(["down"]).stdout.contains("no nucleus").then_some(())
    });
    let log = home.log();
    assert!(log.contains("require_walls = true"), "{log}");
    let wasm = wat::compile("(module (memory (export \"memory\") 1) (func (export \"_start\")))");
    let file = home.path().join("job.wasm");
    fs::write(&file, wasm).unwrap();
    let run = {
        let (home, file) = (home.clone(), file.clone());
        without_landlock(move || home.cell(["run".as_ref(), file.as_os_str()]))
    };
    assert!(run.expect(126).stderr.contains("landlock"), "{run:?}");
    home.cell(["run".as_ref(), file.as_os_str()]).expect(0);
}

/// A nucleus with a control group of its own puts its worker into a subgroup, which ends with it.
#[test]
fn a_worker_has_its_control_group() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let Some(mount) = mount.and_then(|line| line.split(' ').nth(4)) else {
        println!("skipped: control groups of version 2 are not mounted");
        return;
    };
    let group = std::path::Path::new(mount).join(format!("cell-test-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&group) {
        println!("skipped: no control group can be made here: {error}");
        return;
    }
    let home = Home::new();
    // The shell moves itself there and becomes the nucleus.
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&group);
    command.arg(cell_tests::binary()).arg("--home").arg(home.path()).args(["up", "--foreground"]);
    command.stderr(std::process::Stdio::null());
    let mut nucleus = command.spawn().unwrap();
    home_is_up(&home);
    let shown = home.cell(["inspect", "--sandbox", "--json"]).json();
    let walls = shown["running_worker"].as_array().unwrap().clone();
    let cgroup = walls.iter().find(|wall| wall["name"] == "cgroup").unwrap();
    println!("{cgroup}");
    assert_eq!(cgroup["stands"], true, "{cgroup}");
    let members = fs::read_to_string(group.join("worker-1/cgroup.procs")).unwrap();
    let worker: u32 = members.trim().parse().expect("one process is in the group");
    let worker = cell_tests::process::Process::of(worker).unwrap();
    assert_eq!(worker.arguments().get(1).map(String::as_str), Some("worker"));
    home.cell(["down"]).expect(0);
    assert!(nucleus.wait().unwrap().success());
    assert!(!worker.is_alive() && !group.join("worker-1").exists());
    fs::remove_dir(group.join("nucleus")).unwrap();
    fs::remove_dir(&group).unwrap();
}

fn home_is_up(home: &Home) {
    cell_tests::eventually("the worker told its walls", || {
        let shown = home.cell(["inspect", "--sandbox", "--json"]).json();
        shown["running_worker"].as_array().is_some_and(|walls| !walls.is_empty()).then_some(())
    });
}
