//! What a service manager is told, and the unit for systemd.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use cell_client::CallOptions;
use cell_tests::{GUARD, Home, Nucleus, binary, wat, workspace};

/// Where a nucleus tells how it fares.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(home: &Home) -> Self {
        let path = home.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(GUARD)).unwrap();
        Self { socket, path }
    }

    /// What is said next, line by line.
    #[track_caller]
    fn hear(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("the nucleus says something");
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Hears until this is said; gives how many other messages came before.
    #[track_caller]
    fn hear_until(&self, line: &str) -> usize {
        (0..).find(|_| self.hear().iter().any(|said| said == line)).unwrap()
    }
}

#[test]
fn ready_when_a_call_would_succeed() {
    let home = Home::new();
    home.put_sample("hello");
    home.put("broken", "this is no manifest", b"");
    for number in 0..30 {
        // Distinct ones, so that each is compiled.
        let name = format!("c{number}");
        let text = wat::cell("", &format!("(i64.const {number})"));
        home.put(&name, &wat::manifest(&name, ""), &wat::compile(&text));
    }
    let manager = Manager::new(&home);
    let nucleus = Nucleus::up_with(&home, |command| {
        command.env("NOTIFY_SOCKET", &manager.path);
    });
    manager.hear_until("READY=1");
    // At the first attempt, and every cell is what it will be.
    let mut client = nucleus.client("hello");
    let slot = client.open_raw("greet").unwrap();
    client.call_json(&slot, "{\"name\":\"Ada\"}", CallOptions::default()).unwrap();
    let shown = nucleus.cell(["ps", "--json"]).expect(0).json();
    for row in shown.as_array().unwrap() {
        let expected = if row["cell"] == "broken" { "failed" } else { "live" };
        assert_eq!(row["state"], expected, "{row}");
    }
    nucleus.down();
    assert_eq!(manager.hear_until("STOPPING=1"), 0, "nobody asked for signs of life");
}

#[test]
fn signs_of_life() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let nucleus = Nucleus::up_with(&home, |command| {
        command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "500000");
    });
    for _ in 0..3 {
        manager.hear_until("WATCHDOG=1");
    }
    nucleus.down();
    manager.hear_until("STOPPING=1");
    // They are for one process only.
    let nucleus = Nucleus::up_with(&home, |command| {
        let command = command.env("NOTIFY_SOCKET", &manager.path);
        command.env("WATCHDOG_USEC", "500000").env("WATCHDOG_PID", "1");
    });
    manager.hear_until("READY=1");
    nucleus.down();
    assert_eq!(manager.hear_until("STOPPING=1"), 0);
}

/// A service manager that is not there keeps nobody from coming up.
#[test]
fn nobody_listens() {
    let home = Home::new();
    let nucleus = Nucleus::up_with(&home, |command| {
        command.env("NOTIFY_SOCKET", home.path().join("absent.sock"));
    });
    nucleus.deploy("hello");
    nucleus.down();
}

/// Every key of the unit, by section; another one is a typing error until it is added here.
const KNOWN: &[(&str, &[&str])] = &[
    ("Unit", &["Description", "Documentation", "After"]),
    (
        "Service",
        &[
            "Type",
            "NotifyAccess",
            "ExecStart",
            "User",
            "Group",
            "StateDirectory",
            "StateDirectoryMode",
            "Environment",
            "WorkingDirectory",
            "Restart",
            "RestartSec",
            "TimeoutStartSec",
            "TimeoutStopSec",
            "WatchdogSec",
            "KillMode",
            "Delegate",
            "DelegateSubgroup",
            "LimitNOFILE",
            "TasksMax",
            "OOMPolicy",
            "NoNewPrivileges",
            "CapabilityBoundingSet",
            "AmbientCapabilities",
            "ProtectSystem",
            "ReadWritePaths",
            "ProtectHome",
            "PrivateTmp",
            "PrivateDevices",
            "ProtectKernelTunables",
            "ProtectKernelModules",
            "ProtectKernelLogs",
            "ProtectClock",
            "ProtectHostname",
            "RestrictAddressFamilies",
            "RestrictNamespaces",
            "RestrictRealtime",
            "RestrictSUIDSGID",
            "LockPersonality",
            "SystemCallArchitectures",
            "UMask",
        ],
    ),
    ("Install", &["WantedBy"]),
];

fn unit() -> String {
    fs::read_to_string(workspace().join("packaging/systemd/cell-nucleus.service")).unwrap()
}

#[test]
fn the_unit_has_known_keys_only() {
    let text = unit();
    let mut section = "";
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line:?}"));
        let known = KNOWN.iter().find(|(name, _)| *name == section).map(|(_, keys)| *keys);
        assert!(known.is_some_and(|keys| keys.contains(&key)), "[{section}] {line}");
        found.push((key, value));
    }
    for expected in [
        ("Type", "notify"),
        ("Restart", "on-failure"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("Delegate", "yes"),
    ] {
        assert!(found.contains(&expected), "{expected:?} is missing");
    }
    assert!(
        found.iter().any(|(key, value)| *key == "ExecStart" && value.contains("up --foreground"))
    );
}

#[test]
fn systemd_takes_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("skipped readiness::systemd_takes_the_unit: systemd-analyze is not installed");
        return;
    }
    // The binary is where it will be installed; here it is where it was built.
    let home = Home::new();
    let path = home.path().join("cell-nucleus.service");
    let text = unit().replace("/usr/local/bin/cell", &binary().to_string_lossy());
    fs::write(&path, text).unwrap();
    let ran = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output();
    let ran = ran.unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("cell-nucleus")).collect();
    assert!(ran.status.success() && ours.is_empty(), "{}: {said}", ran.status);
}
