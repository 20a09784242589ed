//! Folders that look like a machine, and some that look like none.

use std::fs::{self, File, FileTimes};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::policy::Power;
use crate::schedule::Weekday;

/// A machine that shows what these files say.
fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), files);
    root
}

fn write(root: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// A terminal that was last read so long ago; in the future where it is negative.
fn terminal(root: &Path, path: &str, idle_s: i64) {
    write(root, &[(path, "")]);
    let apart = Duration::from_secs(idle_s.unsigned_abs());
    let now = SystemTime::now();
    let read = if idle_s < 0 { now + apart } else { now - apart };
    // Written just now: that is output.
    let times = FileTimes::new().set_accessed(read).set_modified(now);
    File::options().write(true).open(root.join(path)).unwrap().set_times(times).unwrap();
}

fn at(seconds: u64) -> Moment {
    Moment { monotonic_ms: seconds * 1000, weekday: Weekday::Mon, minute_of_day: 0 }
}

fn read(root: &Path, settings: &Settings) -> Signals {
    Sensors::new(root, root).read(settings, &BTreeSet::new(), at(0))
}

#[test]
fn an_empty_machine_shows_nothing() {
    let root = machine(&[]);
    let missing = root.path().join("missing");
    let signals =
        Sensors::new(root.path(), &missing).read(&Settings::default(), &[1].into(), at(0));
    assert_eq!(signals, Signals::default());
}

#[test]
fn this_machine_can_be_read() {
    let mut sensors = Sensors::new(Path::new("/"), Path::new("/"));
    let settings = Settings { never_beside: vec!["no such program".into()], ..Settings::default() };
    let own = [std::process::id()].into();
    sensors.read(&settings, &own, at(0));
    let signals = sensors.read(&settings, &own, at(1));
    assert_eq!(signals.running, BTreeSet::new());
    assert!(signals.disk_free_mb.is_some());
}

#[test]
fn power() {
    #[track_caller]
    fn check(files: &[(&str, &str)], expect: Option<(bool, Option<u8>)>) {
        let root = machine(&[]);
        for (path, content) in files {
            write(&root.path().join("sys/class/power_supply"), &[(path, content)]);
        }
        let expect = expect.map(|(on_battery, percent)| Power { on_battery, percent });
        assert_eq!(read(root.path(), &Settings::default()).power, expect);
    }
    let battery = [("BAT0/type", "Battery\n"), ("BAT0/capacity", "41\n")];
    let [kind, capacity] = battery;
    let full = ("BAT0/status", "Full\n");
    let discharging = ("BAT0/status", "Discharging\n");
    let mains = ("AC/type", "Mains\n");
    check(&[mains, ("AC/online", "1\n")], None);
    check(&[mains, ("AC/online", "0\n"), kind, capacity], Some((true, Some(41))));
    check(&[mains, ("AC/online", "1\n"), kind, capacity, discharging], Some((false, Some(41))));
    check(&[kind, capacity, full], Some((false, Some(41))));
    check(&[kind, capacity, discharging], Some((true, Some(41))));
    check(&[kind, discharging], Some((true, None)));
    let second = [("BAT1/type", "Battery"), ("BAT1/capacity", "100")];
    check(&[kind, capacity, second[0], second[1], discharging], Some((true, Some(70))));
    let mouse = [("hid/type", "Battery"), ("hid/scope", "Device"), ("hid/status", "Discharging")];
    check(&mouse, None);
    check(&[kind, capacity, full, mouse[0], mouse[1], mouse[2]], Some((false, Some(41))));
    for nonsense in ["101", "-1", "99999999999999999999", "", "\0\u{fffd}", "4 1"] {
        check(&[kind, ("BAT0/capacity", nonsense), discharging], Some((true, None)));
    }
    check(&[mains, ("AC/online", "99999999999999"), kind], Some((true, None)));
    check(&[("BAT0/type", "Battery\0")], None);
}

#[test]
fn temperatures() {
    #[track_caller]
    fn check(files: &[(&str, &str)], expect: Option<f64>) {
        let root = machine(&[]);
        write(&root.path().join("sys/class"), files);
        assert_eq!(read(root.path(), &Settings::default()).temperature_c, expect);
    }
    let disk = [("hwmon/hwmon0/name", "nvme\n"), ("hwmon/hwmon0/temp1_input", "95000\n")];
    let name = ("hwmon/hwmon1/name", "coretemp\n");
    let first = ("hwmon/hwmon1/temp1_input", "61000\n");
    let second = ("hwmon/hwmon1/temp2_input", "63500\n");
    let zone = ("thermal/thermal_zone0/temp", "48000\n");
    check(&[disk[0], disk[1]], None);
    check(&[disk[0], disk[1], name, first, second, zone], Some(63.5));
    check(&[name, first, ("hwmon/hwmon1/temp1_crit", "100000")], Some(61.0));
    check(&[("hwmon/hwmon2/name", "k10temp"), ("hwmon/hwmon2/temp1_input", "-3000")], Some(-3.0));
    check(&[disk[0], disk[1], zone], Some(48.0));
    check(
        &[zone, ("thermal/thermal_zone1/temp", "52000"), ("thermal/cooling/temp", "99000")],
        Some(52.0),
    );
    for nonsense in ["255000", "-273150", "99999999999999999999", "hot", "", "\0", "1e4"] {
        check(&[name, first, ("hwmon/hwmon1/temp2_input", nonsense)], Some(61.0));
        check(&[name, ("hwmon/hwmon1/temp2_input", nonsense), zone], Some(48.0));
    }
}

/// Seconds, ticks of user time of the machine, and those of process 7 and of its children.
type Reading<'a> = (u64, &'a str, Option<(&'a str, &'a str)>);

#[test]
fn load() {
    #[track_caller]
    fn check(readings: &[Reading<'_>], expect: Option<f64>) {
        let root = machine(&[]);
        let mut sensors = Sensors::new(root.path(), root.path());
        let mut signals = Signals::default();
        for (seconds, user, own) in readings {
            let stat = format!("cpu  {user} 0 0 500 9 0 0 70 8 0\ncpu0 1 0\ncpu1 1 0\nintr 5\n");
            write(root.path(), &[("proc/stat", &stat)]);
            let process = root.path().join("proc/7/stat");
            match own {
                Some((own, children)) => {
                    let stat = format!(
                        "7 (a) b (c) S 1 7 7 0 -1 4 1 0 0 {seconds}00 {own} 0 {children} 0 {seconds}00 0\n"
                    );
                    write(root.path(), &[("proc/7/stat", &stat)]);
                }
                None => drop(fs::remove_file(process)),
            }
            signals = sensors.read(&Settings::default(), &[7].into(), at(*seconds));
            assert_eq!(signals.cores, Some(2));
        }
        assert_eq!(signals.others_cores, expect);
    }
    check(&[(0, "1000", None)], None);
    check(&[(0, "1000", None), (10, "2500", None)], Some(1.5));
    check(&[(0, "1000", Some(("50", "0"))), (10, "2500", Some(("1050", "0")))], Some(0.5));
    // A child that ended is its parent's.
    check(&[(0, "1000", Some(("50", "0"))), (10, "2500", Some(("50", "1400")))], Some(0.1));
    // Who vanished takes its ticks along, and is new when it comes back.
    check(&[(0, "1000", Some(("900", "0"))), (10, "2500", None)], Some(1.5));
    check(&[(0, "1000", Some(("900", "0"))), (10, "2500", Some(("100", "0")))], Some(1.5));
    check(&[(0, "1000", None), (10, "2500", Some(("9999", "9999")))], Some(0.0));
    // The same moment twice, and clocks and counters that go back.
    check(&[(0, "1000", None), (10, "2500", None), (10, "9000", None)], Some(1.5));
    check(&[(0, "1000", None), (10, "900", None)], None);
    check(&[(10, "1000", None), (5, "1100", None)], None);
    check(&[(0, "1000", None), (10, "900", None), (20, "1000", None)], Some(0.1));
    let most = "18446744073709551615";
    check(&[(0, "0", None), (10, most, None)], None);
    check(&[(0, "0", Some(("0", "0"))), (10, "1000", Some((most, most)))], Some(0.0));
    check(&[(0, "1000", None), (10, "-5", None)], None);
    check(&[(0, "1000", None), (10, "many", None)], None);
    check(&[(0, "1000", None), (10, "2500", Some(("x", "-1")))], Some(1.5));
}

const KEYBOARD: &str =
    "I: Bus=0011 Vendor=0001\nN: Name=\"keyboard\"\nH: Handlers=sysrq kbd leds \n\n";
const MOUSE: &str = "I: Bus=0003 Vendor=0001\nN: Name=\"mouse\"\nH: Handlers=mouse0 event3 \n\n";
const BUTTON: &str =
    "I: Bus=0019 Vendor=0000\nN: Name=\"Power Button\"\nH: Handlers=kbd event0 \n\n";

/// The lines of interrupts, with so many of the keyboard and so many of USB.
fn lines(keyboard: &str, usb: &str) -> String {
    format!(
        "     CPU0 CPU1\n  1:  {keyboard} 5 IO-APIC 1-edge  i8042\n 16: 9 9 PCI-MSI 5 Edge ahci\n \
         27: 0 {usb} PCI-MSI 6 Edge  xhci_hcd\nNMI: 1\n"
    )
}

/// Each reading: seconds, and the lines of interrupts.
#[track_caller]
fn check_input(
    devices: &[&str],
    readings: &[(u64, &str)],
    terminal_s: Option<i64>,
    expect: Option<u64>,
) {
    let root = machine(&[("proc/bus/input/devices", &devices.concat())]);
    if let Some(idle_s) = terminal_s {
        terminal(root.path(), "dev/pts/0", idle_s);
    }
    let mut sensors = Sensors::new(root.path(), root.path());
    let mut idle_s = None;
    for (seconds, lines) in readings {
        write(root.path(), &[("proc/interrupts", lines)]);
        let signals = sensors.read(&Settings::default(), &BTreeSet::new(), at(*seconds));
        idle_s = signals.input_idle_s;
    }
    assert_eq!(idle_s, expect);
}

#[test]
fn interrupts() {
    let (first, typed, moved) = (&*lines("10", "20"), &*lines("11", "20"), &*lines("10", "21"));
    check_input(&[KEYBOARD], &[(0, first)], None, Some(0));
    check_input(&[KEYBOARD], &[(0, first), (400, first)], None, Some(400));
    check_input(&[KEYBOARD], &[(0, first), (400, typed)], None, Some(0));
    check_input(&[KEYBOARD], &[(0, first), (400, typed), (500, typed)], None, Some(100));
    // What else is on USB tells of nobody while no device of input is.
    check_input(&[KEYBOARD, BUTTON], &[(0, first), (400, moved)], None, Some(400));
    check_input(&[KEYBOARD, MOUSE], &[(0, first), (400, moved)], None, Some(0));
    check_input(&[MOUSE], &[(0, first), (400, typed)], None, Some(400));
    check_input(&[BUTTON], &[(0, first), (400, first)], None, None);
    // A mouse whose interrupts are not seen may be in use.
    check_input(&[KEYBOARD, MOUSE], &[(0, "1: 5 IO-APIC i8042\n")], None, None);
    check_input(&[KEYBOARD, MOUSE], &[(0, "1: 5 IO-APIC i8042\n")], Some(400), None);
    check_input(&[KEYBOARD], &[(0, "")], None, None);
    let huge = &*lines("18446744073709551615", "99999999999999999999999");
    check_input(&[KEYBOARD, MOUSE], &[(0, huge), (9, huge)], None, Some(9));
    check_input(&[KEYBOARD, MOUSE], &[(0, huge), (9, first)], None, Some(0));
    check_input(&["\0\u{fffd}"], &[(0, "\0:\u{fffd}")], None, None);
    check_input(&[KEYBOARD], &[(90, first), (20, first)], None, Some(0));
}

#[test]
fn devices_that_are_not_listed() {
    let root = machine(&[("proc/interrupts", &lines("1", "2"))]);
    let mut sensors = Sensors::new(root.path(), root.path());
    let mut idle_s =
        |seconds| sensors.read(&Settings::default(), &BTreeSet::new(), at(seconds)).input_idle_s;
    assert_eq!((idle_s(0), idle_s(50)), (Some(0), Some(50)));
    write(root.path(), &[("proc/interrupts", "1: 5 ahci\n")]);
    assert_eq!(idle_s(60), None);
    terminal(root.path(), "dev/tty1", 500);
    assert_eq!(idle_s(70), None);
}

#[test]
fn terminals() {
    #[track_caller]
    fn check(terminals: &[(&str, i64)], expect: Option<u64>) {
        let root = machine(&[("proc/bus/input/devices", BUTTON), ("proc/interrupts", "")]);
        for (path, idle_s) in terminals {
            terminal(root.path(), path, *idle_s);
        }
        let found = read(root.path(), &Settings::default()).input_idle_s;
        // The file was made before the clock was read.
        let near = |(found, expect): (u64, u64)| (expect..expect + 30).contains(&found);
        assert!(found.zip(expect).map_or(found == expect, near), "{found:?} {expect:?}");
    }
    check(&[], None);
    check(&[("dev/pts/ptmx", 5), ("dev/tty", 5), ("dev/ttyS0", 5), ("dev/null", 5)], None);
    check(&[("dev/tty1", 5000)], Some(5000));
    check(&[("dev/tty1", 5000), ("dev/pts/3", 700)], Some(700));
    check(&[("dev/pts/0", 900), ("dev/pts/3", 100)], Some(100));
    check(&[("dev/pts/0", 900), ("dev/pts/3", -100_000)], Some(0));
    // Both sources: the younger one.
    let line = &*lines("1", "1");
    check_input(&[KEYBOARD], &[(0, line), (400, line)], Some(-5), Some(0));
    check_input(&[KEYBOARD], &[(0, line), (400, line)], Some(9000), Some(400));
}

#[test]
fn programs() {
    #[track_caller]
    fn check(named: &[&str], expect: &[&str]) {
        let root = machine(&[
            ("proc/1/comm", "systemd\n"),
            ("proc/20/comm", "Zoom\n"),
            ("proc/21/comm", "a-name-that-is-\n"),
            ("proc/22/comm", "Sid Meier's Civ\n"),
            ("proc/24/comm", "ends in a blan \n"),
            ("proc/self/comm", "steam\n"),
            ("proc/23/other", ""),
        ]);
        fs::write(root.path().join("proc/23/comm"), b"\xff\xfe\n").unwrap();
        let named = named.iter().map(ToString::to_string).collect();
        let settings = Settings { never_beside: named, ..Settings::default() };
        let expect = expect.iter().map(ToString::to_string).collect();
        assert_eq!(read(root.path(), &settings).running, expect);
    }
    check(&[], &[]);
    check(&["zoom", "steam"], &["zoom"]);
    check(&["a-name-that-is-too-long"], &["a-name-that-is-too-long"]);
    check(&["a-name-that-is"], &[]);
    check(&["Sid Meier's Civ VI"], &["Sid Meier's Civ VI"]);
    check(&["ends in a blan or so"], &["ends in a blan or so"]);
    check(&["systemd", "ZOOM"], &["systemd", "ZOOM"]);
    check(&["ääääääää"], &[]);
}

#[test]
fn memory_and_disk() {
    #[track_caller]
    fn check(meminfo: &str, expect: Option<u64>) {
        let root = machine(&[("proc/meminfo", meminfo)]);
        let signals = read(root.path(), &Settings::default());
        assert_eq!(signals.memory_available_mb, expect);
        assert!(signals.disk_free_mb.is_some());
    }
    check("MemTotal: 9 kB\nMemAvailable:    2049000 kB\nBuffers: 1 kB\n", Some(2000));
    check("MemTotal: 9 kB\n", None);
    check("MemAvailable: -5 kB\n", None);
    check("MemAvailable: 99999999999999999999 kB\n", None);
    check("MemAvailable: 18446744073709551615 kB", Some(u64::MAX >> 10));
    check("MemAvailable: 5 MB\n", None);
    check("\0\0\u{fffd}\nMemAvailable: 1024 kB\n", Some(1));
    // What is past the bound is not seen.
    let far = "x\n".repeat(usize::try_from(FILE_BYTES_MAX).unwrap() / 2);
    check(&format!("{far}MemAvailable: 1024 kB\n"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_content_is_read(
        content in prop::collection::vec(any::<u8>(), 0..200),
        text in "[ 0-9:)(cpuxhiMemAvailable\n-]{0,200}",
        moments in prop::collection::vec(any::<u64>(), 1..4),
    ) {
        let root = machine(&[]);
        for (path, content) in [
            ("sys/class/power_supply/BAT0/type", b"Battery".as_slice()),
            ("sys/class/power_supply/BAT0/capacity", &content),
            ("sys/class/hwmon/hwmon0/name", b"coretemp"),
            ("sys/class/hwmon/hwmon0/temp1_input", &content),
            ("proc/stat", &[b"cpu ", text.as_bytes()].concat()),
            ("proc/7/stat", text.as_bytes()),
            ("proc/7/comm", &content),
            ("proc/meminfo", text.as_bytes()),
            ("proc/interrupts", &[b"1: 5 i8042\n", content.as_slice(), text.as_bytes()].concat()),
            ("proc/bus/input/devices", &content),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let settings = Settings { never_beside: vec!["zoom".into()], ..Settings::default() };
        let mut sensors = Sensors::new(root.path(), root.path());
        for monotonic_ms in moments {
            let now = Moment { monotonic_ms, ..at(0) };
            let signals = sensors.read(&settings, &[7].into(), now);
            prop_assert!(signals.others_cores.is_none_or(|cores| cores >= 0.0 && cores.is_finite()));
        }
    }
}
