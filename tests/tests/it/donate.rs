//! A machine that its owner lends: when it works for others, when it does not, and how fast it stops.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cell_tests::process::{Process, naming};
use cell_tests::{Home, eventually};
use rustix::process::Signal;
use serde_json::Value;

use crate::remote_jobs::{SPIN, Two, two};
use crate::top::Screen;

/// Nothing pauses it: whoever else uses the machine that this runs on has no say.
pub(crate) const ALWAYS: &str = "[donate]\nonly_when_idle = false\nothers_cores_max = 1024\non_battery = true\n\
                      battery_percent_min = 0\ntemperature_c_max = 150\n";

/// Counts down from `MANY`, and says so: a thousand millions take about a second, and 16 ATP.
const COUNT: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 64) "counted")
    (func (export "_start") (local $left i64)
        (local.set $left (i64.const MANY))
        (loop $more
            (local.set $left (i64.sub (local.get $left) (i64.const 1)))
            (br_if $more (i64.ne (local.get $left) (i64.const 0))))
        (i32.store (i32.const 0) (i32.const 64))
        (i32.store (i32.const 4) (i32.const 7))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// `cell donate`, and the lines that it prints.
pub(crate) struct Donate {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Donate {
    pub(crate) fn start(home: &Home) -> Self {
        let mut command = home.command(["donate", "--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (kept, out) = (Arc::clone(&lines), BufReader::new(child.stdout.take().unwrap()));
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                kept.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, lines }
    }

    fn process(&self) -> Process {
        Process::of(self.child.id()).unwrap()
    }

    /// Waits for its end, and returns what it said last.
    #[track_caller]
    fn end(mut self) -> Value {
        let status = eventually("cell donate ends", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
        eventually("the last line came", || {
            let lines = self.lines.lock().unwrap();
            lines.last().filter(|line| line["stopped_ms"].is_u64()).cloned()
        })
    }
}

impl Drop for Donate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn status(home: &Home) -> Value {
    home.cell(["donate", "status", "--json"]).expect(0).json()
}

#[track_caller]
pub(crate) fn wait_for(home: &Home, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || Some(status(home)).filter(|row| is_so(row)))
}

fn is_paused(row: &Value, why: &str) -> bool {
    row["state"] == "paused" && row["reason"].as_str().is_some_and(|reason| reason.contains(why))
}

pub(crate) fn is_working(row: &Value) -> bool {
    row["state"] == "working"
}

/// The processes that run programs of others, below a nucleus.
fn guests(two: &Two) -> Vec<Process> {
    two.jobs().into_iter().flat_map(Process::children).collect()
}

/// A guest that has burned something.
fn busy_guest(two: &Two) -> Process {
    eventually("a guest runs", || {
        guests(two).into_iter().find(|guest| guest.is_alive() && guest.ticks() >= 10)
    })
}

fn letter(process: Process) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[track_caller]
fn expect_frozen(guest: Process) {
    eventually("the guest is frozen", || (letter(guest) == Some('T')).then_some(()));
    let before = guest.ticks();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(guest.ticks(), before, "a frozen guest takes no processor time");
}

/// A program of the machine's owner, under a name of its own.
struct Program(Child);

impl Program {
    fn start(place: &Path, name: &str, script: &str) -> Self {
        let path = place.join(name);
        fs::copy("/bin/sh", &path).unwrap();
        let mut command = Command::new(&path);
        command.args(["-c", script]);
        Self(eventually("the program can be started", || command.spawn().ok()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn job(two: &Two, module: &Path) -> Child {
    let module = module.to_str().unwrap();
    let mut command = two
        .home
        .command(["run", "--on", "den", "--budget", "200", "--memory", "64", "--json", module]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How a job ended: its code, what it wrote, and its receipt.
fn ended(mut child: Child) -> (Option<i32>, String, Value) {
    let (mut out, mut said) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let code = child.wait().unwrap().code();
    let receipt = said.lines().find_map(|line| serde_json::from_str(line).ok());
    (code, out, receipt.unwrap_or(Value::String(said)))
}

/// Enough to count twice. What is spent is from then on compared with what was spent before.
fn enrich(two: &Two) -> i64 {
    two.donor.nucleus.cell(["ledger", "grant", "400", &two.account]).expect(0);
    two.spent()
}

fn module(two: &Two, text: &str) -> PathBuf {
    two.module("job", text)
}

/// A program that the owner named comes and goes: work waits meanwhile, and costs what it costs without that.
#[test]
fn work_waits_beside_a_named_program() {
    let two = two(&format!(
        "[prices]\nmemory_gib_s = 1\n{ALWAYS}never_beside = [\"ct-game\"]\nmemory_mb_max = 300\n"
    ));
    let donor = &two.donor.nucleus;
    let donate = Donate::start(donor);
    wait_for(donor, "it works", is_working);
    let before = enrich(&two);
    let count = module(&two, &COUNT.replace("MANY", "3000000000"));
    let (code, out, undisturbed) = ended(job(&two, &count));
    assert_eq!((code, out.as_str()), (Some(0), "counted"), "{undisturbed}");
    let paid = two.spent();
    let child = job(&two, &count);
    let guest = busy_guest(&two);
    // A job may have 256 MiB, so one fits.
    let refused = two.home.cell(["run", "--on", "den", count.to_str().unwrap()]);
    assert!(refused.stderr.contains("too many jobs"), "{}", refused.stderr);
    let game = Program::start(two.place.path(), "ct-game", "while :; do sleep 0.2; done");
    let row = wait_for(donor, "it pauses", |row| is_paused(row, "ct-game is running"));
    assert_eq!((&row["jobs"], &row["by"]), (&1.into(), &donate.child.id().into()), "{row}");
    expect_frozen(guest);
    let refused = two.home.cell(["run", "--on", "den", count.to_str().unwrap()]);
    assert!(refused.stderr.contains("paused by its owner's rules"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("ct-game"), "others do not hear what runs here");
    drop(game);
    wait_for(donor, "it goes on", is_working);
    let (code, out, receipt) = ended(child);
    assert_eq!((code, out.as_str()), (Some(0), "counted"), "{receipt}");
    assert_eq!(receipt["fuel"], undisturbed["fuel"], "{receipt}");
    // It was frozen for ten seconds at least, and pays a GiB of memory for a second with one ATP.
    let memory = |receipt: &Value| receipt["counters"]["memory"].as_u64().unwrap();
    let second = 16 * 1_000_000;
    assert!(memory(&receipt) < memory(&undisturbed) + 5 * second, "{undisturbed} {receipt}");
    let charge = |receipt: &Value| receipt["charge_nano_atp"].as_i64().unwrap();
    assert_eq!(two.spent() - paid, charge(&receipt));
    let earned = wait_for(donor, "it is counted", |row| row["jobs"] == 0);
    assert_eq!(
        earned["earned_nano_atp"],
        two.spent() - before,
        "compiling is earned too: {earned}"
    );
    assert_eq!(earned["earned_today_nano_atp"], earned["earned_nano_atp"]);
    donor.cell(["donate", "stop"]).expect(0);
    donate.end();
    donor.cell(["ledger", "verify"]).expect(0);
}

/// Cores that are busy, over a second.
fn busy_cores() -> f64 {
    let ticks = || {
        let text = fs::read_to_string("/proc/stat").unwrap();
        let words = text.lines().next().unwrap().split_whitespace().skip(1);
        let ticks: Vec<u32> = words.map(|word| word.parse().unwrap()).collect();
        f64::from(ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6])
    };
    let before = ticks();
    thread::sleep(Duration::from_secs(1));
    (ticks() - before) / 100.0
}

/// Load appears and work makes room; load goes, and work goes on to the right end.
#[test]
fn work_makes_room_for_load() {
    let cores = thread::available_parallelism().unwrap().get();
    let most = f64::from(u32::try_from(cores).unwrap()) - 0.5;
    let skipped = || println!("skipped donate::work_makes_room_for_load: this machine is busy");
    // Other tests are other programs.
    let until = Instant::now() + Duration::from_secs(60);
    while busy_cores() > most / 2.0 {
        if Instant::now() > until {
            return skipped();
        }
    }
    let two = two(&format!(
        "[donate]\nonly_when_idle = false\nothers_cores_max = {most}\nload_patience_s = 2\nload_resume_s = 0\n\
         on_battery = true\nbattery_percent_min = 0\ntemperature_c_max = 150\n"
    ));
    let donor = &two.donor.nucleus;
    let donate = Donate::start(donor);
    wait_for(donor, "it works", is_working);
    enrich(&two);
    let started = Instant::now();
    let demo = |what: &str| println!("demo: {:>6} ms {what}", started.elapsed().as_millis());
    let mut child = job(&two, &module(&two, &COUNT.replace("MANY", "8000000000")));
    let guest = busy_guest(&two);
    demo("a job works");
    let place = two.place.path();
    let spin = |n: usize| Program::start(place, &format!("ct-load-{n}"), "while :; do :; done");
    let load: Vec<_> = (0..cores).map(spin).collect();
    demo("other programs take every core");
    let row = wait_for(donor, "it pauses", |row| is_paused(row, "other programs are using"));
    demo(&format!("paused: {}", row["reason"].as_str().unwrap()));
    expect_frozen(guest);
    drop(load);
    demo("they are gone");
    let until = Instant::now() + Duration::from_secs(60);
    while !is_working(&status(donor)) {
        if Instant::now() > until && busy_cores() > most * 0.7 {
            child.kill().unwrap();
            child.wait().unwrap();
            return skipped();
        }
        assert!(Instant::now() < until + Duration::from_secs(20), "it goes on");
    }
    demo("working");
    let (code, out, receipt) = ended(child);
    demo("the job has ended, and is paid");
    assert_eq!((code, out.as_str()), (Some(0), "counted"), "{receipt}");
    donor.cell(["donate", "stop"]).expect(0);
    donate.end();
}

/// From the owner's word to no guest, however it is given, and whatever hangs; what was done until then is paid.
#[test]
fn it_stops_at_once() {
    let two = two(ALWAYS);
    let (donor, spin) = (&two.donor.nucleus, module(&two, SPIN));
    let mut spent = enrich(&two);
    let mut stopped = |what: &str, is_paid: bool, stop: &mut dyn FnMut()| {
        let child = job(&two, &spin);
        let guest = busy_guest(&two);
        let started = Instant::now();
        stop();
        eventually("no guest runs", || (!guest.is_alive()).then_some(()));
        let took = started.elapsed();
        println!("stop: {what} to no guest code: {} ms", took.as_millis());
        assert!(took < Duration::from_secs(5), "{what}: {took:?}");
        let (code, _, said) = ended(child);
        let now = two.spent();
        assert_eq!(code, Some(if is_paid { 130 } else { 125 }), "{what}: {said}");
        if is_paid {
            assert!(now > spent, "{what}: what was done is paid: {spent} {now}");
        }
        spent = now;
        assert!(guests(&two).is_empty());
    };
    let lend = || {
        let donate = Donate::start(donor);
        wait_for(donor, "it works", is_working);
        donate
    };

    let donate = lend();
    stopped("cell donate stop", true, &mut || {
        donor.cell(["donate", "stop"]).expect(0);
    });
    donate.end();
    let refused = two.home.cell(["run", "--on", "den", spin.to_str().unwrap()]);
    assert!(refused.stderr.contains("not lent at the moment"), "{}", refused.stderr);

    let donate = lend();
    stopped("SIGTERM", true, &mut || donate.process().signal(Signal::TERM));
    assert_eq!(donate.end()["nucleus_answered"], true);

    if let Some(mut screen) = Screen::start(donor, &["donate"], "donate::it_stops_at_once") {
        screen.wait_for("working");
        screen.wait_for("q stops");
        stopped("key press", true, &mut || screen.press(b"q"));
        let text = screen.end();
        assert!(text.contains("stopped: nothing runs for others any more"), "{text}");
    }

    // A guest that does not even end when it is told to.
    let donate = lend();
    let hung = &mut || {
        guests(&two).iter().for_each(|guest| guest.signal(Signal::STOP));
        donate.process().signal(Signal::TERM);
    };
    stopped("SIGTERM, with a guest that hangs,", false, hung);
    donate.end();

    // A nucleus that hangs: its jobs are ended without it, and pay.
    let donate = lend();
    let nucleus = donor.process();
    let hung = &mut || {
        nucleus.signal(Signal::STOP);
        donate.process().signal(Signal::TERM);
    };
    stopped("SIGTERM, with a nucleus that hangs,", true, hung);
    let said = donate.end();
    assert_eq!((&said["nucleus_answered"], &said["killed"]), (&false.into(), &0.into()), "{said}");
    nucleus.signal(Signal::CONT);
    wait_for(donor, "the nucleus goes on, and is not lent", |row| row["state"] == "off");
    donor.cell(["ledger", "verify"]).expect(0);
}

/// What the owner says and the hours of the schedule hold at once; and who lends and hangs does not lend.
#[test]
fn words_and_hours() {
    let lent = two(&format!("{ALWAYS}memory_mb_max = 64\n"));
    let donor = &lent.donor.nucleus;
    assert_eq!(status(donor)["state"], "off");
    assert!(donor.cell(["donate", "pause"]).expect(1).stderr.contains("not lent"));
    let donate = Donate::start(donor);
    let row = wait_for(donor, "it works", is_working);
    for key in ["since_ms", "jobs", "callers", "earned_nano_atp", "earned_today_nano_atp"] {
        assert!(row[key].is_u64(), "{key}: {row}");
    }
    assert!(row["guests"].is_array() && row["listens"].is_string() && row["reason"].is_null());
    let second = donor.cell(["donate"]);
    assert!(second.expect(1).stderr.contains("lent already"), "{}", second.stderr);
    enrich(&lent);
    let spin = module(&lent, SPIN);
    let large = ["run", "--on", "den", "--memory", "65", spin.to_str().unwrap()];
    let refused = lent.home.cell(large);
    assert!(refused.expect(126).stderr.contains("1 to 64 MiB"), "{}", refused.stderr);
    lent.home.cell(["call", "cell://den/counter.add", "{\"by\":1}"]).expect(0);
    wait_for(donor, "a caller is seen", |row| row["callers"] == 1);
    let child = job(&lent, &spin);
    let guest = busy_guest(&lent);
    donor.cell(["donate", "pause"]).expect(0);
    wait_for(donor, "it pauses", |row| is_paused(row, "you paused it") && row["frozen"] == true);
    expect_frozen(guest);
    wait_for(donor, "no caller's worker is left", |row| row["callers"] == 0);
    let called = lent.home.cell(["call", "cell://den/counter.add", "{\"by\":1}"]);
    assert!(called.stderr.contains("paused by its owner's rules"), "{}", called.stderr);
    donor.cell(["donate", "resume"]).expect(0);
    wait_for(donor, "it goes on", is_working);
    let before = guest.ticks();
    eventually("the guest goes on", || (guest.ticks() > before + 5).then_some(()));
    // A frozen job ends and is paid as any other.
    donor.cell(["donate", "pause"]).expect(0);
    expect_frozen(guest);
    let spent = lent.donor.nucleus.balance(&lent.account);
    donate.process().signal(Signal::STOP);
    eventually("who hangs does not lend", || (!guest.is_alive()).then_some(()));
    assert_eq!(ended(child).0, Some(130));
    assert!(lent.donor.nucleus.balance(&lent.account) < spent);
    donate.process().signal(Signal::CONT);
    donate.end();

    let never = two(&format!("{ALWAYS}schedule = [\"{}\"]\n", day_after_tomorrow()));
    let donate = Donate::start(&never.donor.nucleus);
    wait_for(&never.donor.nucleus, "hours", |row| is_paused(row, "outside the schedule until"));
    let job = module(&never, SPIN);
    let refused = never.home.cell(["run", "--on", "den", job.to_str().unwrap()]);
    assert!(refused.stderr.contains("paused by its owner's rules"), "{}", refused.stderr);
    donate.process().signal(Signal::INT);
    donate.end();
}

/// Far enough from now in every time zone, and from midnight.
fn day_after_tomorrow() -> &'static str {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    // The first of 1970 was a Thursday.
    let days = ["thu", "fri", "sat", "sun", "mon", "tue", "wed"];
    days[usize::try_from((since.as_secs() / 86_400 + 3) % 7).unwrap()]
}

/// Without a nucleus there is one for as long as the machine is lent, whatever ends that.
#[test]
fn a_nucleus_comes_and_goes_with_it() {
    let home = Home::new();
    let told = home.cell(["donate"]);
    assert!(told.expect(2).stderr.contains("type: printf '[peers]"), "{}", told.stderr);
    let file = home.path().join("nucleus.toml");
    fs::write(&file, "[peers]\ntrust = \"listed\"\n").unwrap();
    let told = home.cell(["donate"]);
    assert!(told.expect(2).stderr.contains("write this below [peers]"), "{}", told.stderr);
    assert!(home.cell(["donate", "stop"]).expect(0).stdout.contains("nothing runs"));
    fs::write(&file, format!("[peers]\nlisten = \"127.0.0.1:0\"\n{ALWAYS}")).unwrap();
    let nobody = || eventually("nothing is left", || naming(home.path()).is_empty().then_some(()));
    let donate = Donate::start(&home);
    wait_for(&home, "it works", is_working);
    donate.process().signal(Signal::TERM);
    donate.end();
    nobody();
    let donate = Donate::start(&home);
    wait_for(&home, "it works", is_working);
    drop(donate);
    nobody();
    fs::write(&file, "[peers]\nlisten = \"127.0.0.1:0\"\n[donate]\nidle_s = 0\n").unwrap();
    assert!(home.cell(["donate"]).stderr.contains("idle_s = 0 must be between"));
}
