//! `cell run`: other people's WASI programs, with a price, a bill and an end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cell_tests::process::Process;
use cell_tests::{FIRST_GRANT, Home, Nucleus, Ran, eventually, wat};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern char **environ;

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "upper")) {
        int c;
        while ((c = getchar()) != EOF)
            putchar(c >= 'a' && c <= 'z' ? c - 32 : c);
        return 0;
    }
    if (!strcmp(what, "args")) {
        for (int i = 0; i < argc; i++)
            printf("%s\n", argv[i]);
        return 0;
    }
    if (!strcmp(what, "env")) {
        for (char **e = environ; *e; e++)
            printf("%s\n", *e);
        return 0;
    }
    if (!strcmp(what, "exit"))
        return atoi(argv[2]);
    if (!strcmp(what, "stderr")) {
        fprintf(stderr, "to stderr\n");
        return 0;
    }
    if (!strcmp(what, "trap"))
        __builtin_trap();
    if (!strcmp(what, "spin"))
        for (volatile unsigned i = 0;; i++)
            ;
    if (!strcmp(what, "sleep")) {
        struct timespec t = {1000, 0};
        nanosleep(&t, NULL);
        return 0;
    }
    if (!strcmp(what, "hog")) {
        char *all = NULL;
        for (size_t mib = 1; mib <= 1024; mib++) {
            char *more = malloc(1 << 20);
            if (!more) {
                printf("refused at %zu\n", mib);
                return 0;
            }
            memset(more, 1, 1 << 20);
            all = more;
        }
        return all != NULL;
    }
    if (!strcmp(what, "read") || !strcmp(what, "write")) {
        FILE *file = fopen(argv[2], *what == 'r' ? "r" : "w");
        if (!file) {
            printf("errno %d\n", errno);
            return 1;
        }
        char line[256] = "";
        if (*what == 'r')
            printf("read %s\n", fgets(line, sizeof line, file) ? line : "nothing");
        else
            fputs(argv[3], file);
        return fclose(file) ? 2 : 0;
    }
    return 99;
}
"#;

/// A home, and a C program compiled for WASI; `None` where no compiler is installed.
struct Job {
    home: Home,
    place: TempDir,
    wasm: PathBuf,
}

fn job(test: &str) -> Option<Job> {
    let place = tempfile::Builder::new().prefix("ct-c-").tempdir_in("/tmp").unwrap();
    let (source, wasm) = (place.path().join("program.c"), place.path().join("program.wasm"));
    fs::write(&source, PROGRAM).unwrap();
    let compiled = Command::new("clang")
        .args(["--target=wasm32-wasi", "--sysroot=/usr", "-O2", "-o"])
        .args([&wasm, &source])
        .stdin(Stdio::null())
        .output();
    match compiled {
        Ok(compiled) if compiled.status.success() => Some(Job { home: Home::new(), place, wasm }),
        Ok(compiled) => {
            println!(
                "{test} SKIPPED: clang cannot build for wasm32-wasi: {}",
                String::from_utf8_lossy(&compiled.stderr)
            );
            None
        }
        Err(error) => {
            println!("{test} SKIPPED: clang: {error}");
            None
        }
    }
}

impl Job {
    /// `cell run OPTIONS program.wasm -- ARGUMENTS`.
    #[track_caller]
    fn run(&self, options: &[&str], arguments: &[&str], input: &[u8]) -> Ran {
        let wasm = self.wasm.to_str().unwrap();
        let all = [&["run"], options, &[wasm, "--"], arguments].concat();
        self.home.cell_with_input(all, input)
    }

    fn receipt_path(&self) -> PathBuf {
        self.place.path().join("receipt.json")
    }

    /// Runs it and returns its receipt, whose charge must be what the ledger moved.
    #[track_caller]
    fn receipt(&self, options: &[&str], arguments: &[&str], input: &[u8], code: i32) -> Value {
        let before = self.home.spent();
        let (path, node) = (self.receipt_path(), self.home.balance("node"));
        let ran =
            self.run(&[options, &["--receipt", path.to_str().unwrap()]].concat(), arguments, input);
        ran.expect(code);
        let receipt: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        fs::remove_file(path).unwrap();
        let charge = receipt["charge_nano_atp"].as_i64().unwrap();
        let compiling = receipt["compile_fuel"].as_i64().unwrap();
        assert_eq!(
            (self.home.spent() - before, self.home.balance("node") - node),
            (charge, charge + compiling),
            "{receipt}"
        );
        let fuel = receipt["fuel"].as_u64().unwrap();
        assert!(bill(&ran).contains(&format!("for {} fuel", grouped(fuel))), "{}", ran.stderr);
        receipt
    }
}

/// The one line on standard error that tells the cost.
#[track_caller]
fn bill(ran: &Ran) -> &str {
    let bills: Vec<_> = ran.stderr.lines().filter(|line| line.starts_with("bill: ")).collect();
    assert_eq!(bills.len(), 1, "{}", ran.stderr);
    bills[0]
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn streams_and_arguments_with_and_without_a_nucleus() {
    let Some(job) = job("jobs::streams_and_arguments_with_and_without_a_nucleus") else { return };
    let check = |home: &Home| {
        let text = "shout this\n".repeat(10_000);
        let ran = job.run(&[], &["upper"], text.as_bytes());
        assert_eq!(ran.expect(0).stdout, text.to_uppercase());
        assert!(bill(&ran).contains("ATP"), "{}", ran.stderr);
        let ran = job.run(&[], &["args", "a b", "--help", "-x", ""], b"");
        assert_eq!(ran.expect(0).stdout, "program.wasm\nargs\na b\n--help\n-x\n\n");
        let ran = job.run(&[], &["stderr"], b"");
        assert!(ran.expect(0).stdout.is_empty() && ran.stderr.contains("to stderr"), "{ran:?}");
        // Quiet people get the job's own output only.
        let ran = job.run(&["--quiet"], &["stderr"], b"");
        assert_eq!(ran.expect(0).stderr, "to stderr\n");
        home.cell(["ledger", "verify"]).expect(0);
    };
    check(&job.home);
    let nucleus = Nucleus::up(&job.home);
    check(&job.home);
    nucleus.down();
}

#[test]
fn exit_codes_pass_through() {
    let Some(job) = job("jobs::exit_codes_pass_through") else { return };
    for code in [0, 1, 2, 3, 42, 122, 124, 126, 255] {
        let ran = job.run(&[], &["exit", &code.to_string()], b"");
        ran.expect(code);
        assert!(bill(&ran).contains(&format!("exited with {code}")), "{}", ran.stderr);
    }
}

#[test]
fn a_timeout_ends_what_sleeps_spins_or_waits() {
    let Some(job) = job("jobs::a_timeout_ends_what_sleeps_spins_or_waits") else { return };
    for what in ["sleep", "spin"] {
        let ran = job.run(&["--timeout", "0.3"], &[what], b"");
        assert!(bill(ran.expect(124)).contains("time"), "{what}: {}", ran.stderr);
    }
    // A pipe whose other end stays open for as long as the test holds it.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command =
        job.home.command(["run", "--timeout", "0.3", job.wasm.to_str().unwrap(), "--", "upper"]);
    let mut child =
        command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let status =
        eventually("a job that waits for input is timed out", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(124));
    drop(writer);
    for bad in ["0", "-1", "nan", "1e99", "soon"] {
        job.run(&["--timeout", bad], &["exit", "0"], b"").expect(2);
    }
}

#[test]
fn a_budget_is_kept_to_the_unit() {
    let Some(job) = job("jobs::a_budget_is_kept_to_the_unit") else { return };
    let receipt = job.receipt(&["--fuel", "30000000"], &["spin"], b"", 122);
    assert_eq!(
        (&receipt["charge_nano_atp"], &receipt["fuel"]),
        (&30_000_000.into(), &30_000_000.into())
    );
    assert_eq!(receipt["outcome"]["code"], 19);
    let receipt = job.receipt(&["--budget", "0.05"], &["spin"], b"", 122);
    assert_eq!(receipt["charge_nano_atp"], 50_000_000);
    // What it burns is enough; one less is not, and is charged whole.
    let text = b"some text to shout\n";
    let burned = job.receipt(&[], &["upper"], text, 0)["fuel"].as_u64().unwrap();
    let exactly = job.receipt(&["--fuel", &burned.to_string()], &["upper"], text, 0);
    assert_eq!(exactly["fuel"], burned);
    let less = job.receipt(&["--fuel", &(burned - 1).to_string()], &["upper"], text, 122);
    assert_eq!(less["fuel"], burned - 1);
    // Less than the start costs: nothing runs, and nothing is charged.
    let before = job.home.spent();
    let ran = job.run(&["--fuel", "1"], &["upper"], b"");
    assert!(ran.expect(122).stderr.contains("start"), "{}", ran.stderr);
    // More than the account has.
    let ran = job.run(&["--budget", "5000"], &["upper"], b"");
    assert!(ran.expect(122).stderr.contains("cell ledger grant"), "{}", ran.stderr);
    assert_eq!(job.home.spent(), before);
    for bad in [
        &["--budget", "-1"][..],
        &["--budget", "x"],
        &["--budget", "1", "--fuel", "1"],
        &["--fuel", "1.5"],
    ] {
        job.run(bad, &["upper"], b"").expect(2);
    }
    let verified = job.home.cell(["ledger", "verify", "--json"]).expect(0).json();
    assert_eq!(verified["open_holds"], 0);
}

#[test]
fn a_trap_is_paid_and_told() {
    let Some(job) = job("jobs::a_trap_is_paid_and_told") else { return };
    let receipt = job.receipt(&[], &["trap"], b"", 123);
    assert_eq!(receipt["outcome"]["code"], 17);
    assert!(receipt["charge_nano_atp"].as_i64().unwrap() > 0);
    // Memory has an end, which the job is told of.
    let ran = job.run(&["--memory", "8"], &["hog"], b"");
    let refused =
        ran.expect(0).stdout.trim().strip_prefix("refused at ").unwrap().parse::<u32>().unwrap();
    assert!((2..=8).contains(&refused), "{refused}");
}

#[test]
fn directories_are_as_given() {
    let Some(job) = job("jobs::directories_are_as_given") else { return };
    let data = job.place.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("in"), "from the host").unwrap();
    fs::write(job.place.path().join("secret"), "not yours").unwrap();
    std::os::unix::fs::symlink(job.place.path().join("secret"), data.join("link")).unwrap();
    let dir = format!("{}::/data", data.display());
    let read_only = format!("{dir}::ro");
    let ran = job.run(&["--dir", &dir], &["read", "/data/in"], b"");
    assert_eq!(ran.expect(0).stdout, "read from the host\n");
    job.run(&["--dir", &dir], &["write", "/data/out", "from the job"], b"").expect(0);
    assert_eq!(fs::read_to_string(data.join("out")).unwrap(), "from the job");
    assert_eq!(
        job.run(&["--dir", &read_only], &["read", "/data/in"], b"").expect(0).stdout,
        "read from the host\n"
    );
    job.run(&["--dir", &read_only], &["write", "/data/in", "overwritten"], b"").expect(1);
    job.run(&["--dir", &read_only], &["write", "/data/new", "new"], b"").expect(1);
    assert_eq!(fs::read_to_string(data.join("in")).unwrap(), "from the host");
    assert!(!data.join("new").exists());
    // Neither up and out, nor along a link, nor to where nothing was given.
    for path in
        ["/data/../secret", "/data/link", "/etc/passwd", "../secret", "/data/../../../etc/passwd"]
    {
        let ran = job.run(&["--dir", &dir], &["read", path], b"");
        assert!(ran.expect(1).stdout.starts_with("errno "), "{path}: {}", ran.stdout);
        job.run(&["--dir", &dir], &["write", path, "x"], b"").expect(1);
    }
    assert_eq!(fs::read_to_string(job.place.path().join("secret")).unwrap(), "not yours");
    for path in ["/etc/passwd", "/", ".", data.join("in").to_str().unwrap()] {
        assert!(
            job.run(&[], &["read", path], b"").expect(1).stdout.starts_with("errno "),
            "{path}"
        );
    }
    for bad in ["nowhere::/data", "x", "::", &format!("{}::/a", job.wasm.display())] {
        let ran = job.run(&["--dir", bad], &["exit", "0"], b"");
        assert!(ran.expect(2).stderr.contains("--dir"), "{}", ran.stderr);
    }
}

#[test]
fn the_environment_is_as_given() {
    let Some(job) = job("jobs::the_environment_is_as_given") else { return };
    assert_eq!(job.run(&[], &["env"], b"").expect(0).stdout, "");
    let ran = job.run(&["--env", "A=1", "--env", "B=x=y z"], &["env"], b"");
    assert_eq!(ran.expect(0).stdout, "A=1\nB=x=y z\n");
    job.run(&["--env", "A"], &["env"], b"").expect(2);
}

#[test]
fn a_receipt_tells_everything() {
    let Some(job) = job("jobs::a_receipt_tells_everything") else { return };
    let one = job.receipt(&[], &["upper"], b"abc", 0);
    let id = job.home.cell(["id", "--json"]).expect(0).json();
    assert_eq!(one["version"], 1);
    assert_eq!(one["engine_id"], id["engine_id"]);
    assert_eq!((&one["payer"], &one["payee"]), (&id["owner"], &id["node"]));
    assert_eq!(one["outcome"], serde_json::json!({ "status": "exited", "exit_code": 0 }));
    assert_eq!(one["charge_nano_atp"], one["fuel"]);
    let inspected =
        job.home.cell(["inspect", job.wasm.to_str().unwrap(), "--json"]).expect(0).json();
    assert_eq!((&one["cell_hash"], &inspected["kind"]), (&inspected["hash"], &"command".into()));
    assert_eq!(one["counters"], serde_json::json!({ "fuel": one["fuel"] }));
    assert_eq!(one["rates"], serde_json::json!({ "fuel": { "nano_atp": 1, "per": 1 } }));
    assert_eq!(one["start_fuel"], inspected["start_fuel"]);
    assert_eq!((&one["stdin_bytes"], &one["stdout_bytes"]), (&3.into(), &3.into()));
    assert!(one["memory_bytes_peak"].as_u64().unwrap() >= 65_536);
    for hash in ["input_hash", "output_hash", "transfer", "cell_hash"] {
        let text = one[hash].as_str().unwrap();
        assert!(text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit()), "{hash}: {text}");
    }
    // The same job again: the same bill and hashes, another payment. Another input: another hash.
    let same = job.receipt(&[], &["upper"], b"abc", 0);
    let other = job.receipt(&[], &["upper"], b"abd", 0);
    for field in ["fuel", "input_hash", "output_hash", "cell_hash", "engine_id"] {
        assert_eq!(one[field], same[field], "{field}");
    }
    assert_ne!(one["transfer"], same["transfer"]);
    assert_ne!(
        (&one["input_hash"], &one["output_hash"]),
        (&other["input_hash"], &other["output_hash"])
    );
    assert_ne!(one["input_hash"], other["input_hash"]);
    assert_ne!(one["output_hash"], other["output_hash"]);
    // With --json the receipt stands where the bill does; standard output stays the job's.
    let ran = job.run(&["--json"], &["upper"], b"abc");
    assert_eq!(ran.expect(0).stdout, "ABC");
    let told: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(told["fuel"], one["fuel"]);
}

#[track_caller]
fn check_refused(home: &Home, path: &Path, code: i32, message: &str) {
    let ran = home.cell([Path::new("run"), path]);
    assert!(ran.expect(code).stderr.contains(message), "{}: {}", path.display(), ran.stderr);
    assert!(!ran.stderr.contains("bill:") && ran.stdout.is_empty(), "{ran:?}");
}

#[test]
fn what_is_no_job_is_refused() {
    let home = Home::new();
    let place = home.path().join("modules");
    fs::create_dir(&place).unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = place.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    check_refused(&home, &put("garbage.wasm", b"not wasm at all"), 126, "not a WebAssembly module");
    check_refused(&home, &put("empty.wasm", b""), 126, "WebAssembly");
    let component = b"\0asm\x0d\0\x01\0";
    check_refused(&home, &put("component.wasm", component), 126, "component");
    let mut cut =
        wat::compile("(module (memory (export \"memory\") 1) (func (export \"_start\")))");
    cut.truncate(cut.len() - 3);
    check_refused(&home, &put("cut.wasm", &cut), 126, "");
    let stranger = r#"(module (import "env" "secret" (func)) (memory (export "memory") 1) (func (export "_start")))"#;
    check_refused(&home, &put("stranger.wasm", &wat::compile(stranger)), 126, "`env` `secret`");
    let neither = wat::compile("(module (memory (export \"memory\") 1))");
    check_refused(&home, &put("neither.wasm", &neither), 126, "neither a cell");
    // Right sections, wrong code: past the gate, and stopped by the compiler.
    let good = wat::compile(
        "(module (memory (export \"memory\") 1) (func (export \"_start\") (drop (i32.const 1))))",
    );
    let at = good.windows(2).position(|pair| pair == [0x41, 1]).unwrap();
    let mut invalid = good;
    invalid[at] = 0x43;
    check_refused(&home, &put("invalid.wasm", &invalid), 126, "");
    check_refused(&home, &place.join("missing.wasm"), 1, "missing.wasm");
    check_refused(&home, &place, 1, "modules");
    let cell = put("echo.wasm", &wat::compile(&wat::cell("", wat::ECHO)));
    check_refused(&home, &cell, 126, "cell deploy");
    assert_eq!(home.spent(), 0);
    // The other way round: a job is no cell.
    let job = place.join("job");
    fs::create_dir(&job).unwrap();
    fs::write(job.join("Cell.toml"), wat::manifest("job", "")).unwrap();
    fs::write(
        job.join("cell.wasm"),
        wat::compile("(module (memory (export \"memory\") 1) (func (export \"_start\")))"),
    )
    .unwrap();
    let ran = home.cell([Path::new("deploy"), &job]);
    assert!(ran.expect(126).stderr.contains("cell run"), "{}", ran.stderr);
}

/// `cell run` is killed, or the process of its job: no process and no hold stays behind, and
/// nothing is charged that nobody can show a report for.
#[test]
fn a_killed_run_leaves_nothing() {
    let Some(job) = job("jobs::a_killed_run_leaves_nothing") else { return };
    for kill_the_job in [false, true] {
        let mut command =
            job.home.command(["run", "--budget", "900", job.wasm.to_str().unwrap(), "--", "spin"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let run = Process::of(child.id()).unwrap();
        let worker = eventually("the job's process runs", || {
            run.children()
                .into_iter()
                .find(|child| child.arguments().get(1).is_some_and(|word| word == "job-worker"))
        });
        if kill_the_job {
            worker.kill()
        } else {
            run.kill()
        }
        let status = child.wait().unwrap();
        assert_eq!(status.code(), kill_the_job.then_some(125));
        eventually("the job's process is gone", || (!worker.is_alive()).then_some(()));
        let verified = job.home.cell(["ledger", "verify", "--json"]).expect(0).json();
        assert_eq!((&verified["open_holds"], job.home.spent()), (&0.into(), 0));
    }
    // The whole account is free again, but for what compiling the job cost.
    let left = job.home.balance("owner");
    assert_eq!(left + job.home.spent_on_compiling(), FIRST_GRANT);
    job.run(&["--fuel", &left.to_string()], &["exit", "0"], b"").expect(0);
}

/// A quote costs nothing, leaves nothing, and what the run then costs is within it.
#[test]
fn a_run_is_quoted_before() {
    let Some(job) = job("jobs::a_run_is_quoted_before") else { return };
    let wasm = job.wasm.to_str().unwrap();
    let elsewhere = Home::new();
    let quote = |home: &Home| {
        let quoted =
            home.cell(["run", "--json", "--quote", "--budget", "0.5", wasm]).expect(0).json();
        let nano = |name: &str| quoted[name].as_i64().unwrap_or_else(|| panic!("{quoted}"));
        (nano("compile_nano_atp"), nano("start_nano_atp"), nano("at_most_nano_atp"))
    };
    let (compile, start, at_most) = quote(&elsewhere);
    assert_eq!(at_most, compile + 500_000_000);
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "a quote left something");
    elsewhere.cell(["run", "--budget", "0.5", wasm, "--", "exit", "0"]).expect(0);
    assert_eq!(elsewhere.spent_on_compiling(), compile);
    let spent = elsewhere.spent();
    assert!((start..=500_000_000).contains(&spent), "{spent}");
    // What was compiled is not paid again.
    assert_eq!(quote(&elsewhere), (0, start, 500_000_000));
    assert_eq!(elsewhere.spent(), spent);
}

/// Ctrl-C ends the job, and what it burned until then is paid and told.
#[test]
fn an_interrupted_run_is_paid() {
    let Some(job) = job("jobs::an_interrupted_run_is_paid") else { return };
    let receipt = job.receipt_path();
    let arguments =
        ["run", "--receipt", receipt.to_str().unwrap(), job.wasm.to_str().unwrap(), "--", "spin"];
    let mut child = job.home.command(arguments).stderr(Stdio::null()).spawn().unwrap();
    let run = Process::of(child.id()).unwrap();
    let worker = eventually("the job's process runs", || {
        run.children()
            .into_iter()
            .find(|child| child.arguments().get(1).is_some_and(|word| word == "job-worker"))
    });
    // A terminal sends it to both; the job's process must have come so far that it listens.
    eventually("the job burns", || {
        worker.signal(rustix::process::Signal::INT);
        child.try_wait().unwrap()
    });
    let told: Option<Value> =
        fs::read(&receipt).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match told {
        Some(told) => {
            assert_eq!(child.wait().unwrap().code(), Some(130));
            assert_eq!(told["outcome"]["code"], 35);
            assert_eq!(told["charge_nano_atp"].as_i64(), Some(job.home.spent()));
        }
        // The signal was faster than the job's own handling of it.
        None => assert_eq!((child.wait().unwrap().code(), job.home.spent()), (Some(125), 0)),
    }
    let verified = job.home.cell(["ledger", "verify", "--json"]).expect(0).json();
    assert_eq!(verified["open_holds"], 0);
}

/// The sample that knows nothing of Cell draws the same picture, for the same price, each time.
#[test]
fn a_rust_program_runs_unchanged() {
    let home = Home::new();
    let wasm = home.path().join("mandelbrot.wasm");
    fs::write(&wasm, cell_tests::sample("mandelbrot").0).unwrap();
    let run = || home.cell(["run", wasm.to_str().unwrap(), "--", "64", "48"]);
    let (one, two) = (run(), run());
    assert_eq!(one.expect(0).stdout_bytes.len(), "P6\n64 48\n255\n".len() + 64 * 48 * 3);
    assert_eq!(one.stdout_bytes, two.expect(0).stdout_bytes);
    assert_eq!(bill(&one), bill(&two));
}
