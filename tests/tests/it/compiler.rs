//! What compiling costs, and what it may take: modules that are small to send and dear to compile.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Stdio;

use cell_tests::process::Process;
use cell_tests::{Home, Nucleus, Ran, eventually, wat};
use serde_json::Value;

/// A job whose text has these fields besides.
fn job(fields: &str) -> Vec<u8> {
    wat::compile(&format!(
        r#"(module (memory (export "memory") 1) (func (export "_start")) {fields})"#
    ))
}

/// Functions that each have as many loops as the gate lets pass: a compiler's time grows with the
/// square of their number.
fn loops(functions: usize) -> Vec<u8> {
    let function = format!("(func {})", "(loop)".repeat(5_000));
    job(&function.repeat(functions))
}

fn put(home: &Home, name: &str, wasm: &[u8]) -> PathBuf {
    let path = home.path().join(name);
    fs::write(&path, wasm).unwrap();
    path
}

#[track_caller]
fn run(home: &Home, path: &std::path::Path) -> Ran {
    home.cell(["run", path.to_str().unwrap()])
}

/// What `cell inspect` says compiling costs.
#[track_caller]
fn price(home: &Home, path: &std::path::Path) -> i64 {
    let told = home.cell(["inspect", path.to_str().unwrap(), "--json"]).expect(0).json();
    told["compile_fuel"].as_i64().unwrap()
}

/// The refusals that are remembered.
fn remembered(home: &Home) -> Vec<PathBuf> {
    let files = fs::read_dir(home.path().join("artefacts")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|found| found == "refused")).collect()
}

/// Of several that run one new module at once each compiled it, and the owner paid as often.
#[test]
fn who_comes_at_once_compiles_once() {
    let home = Home::new();
    let path = put(&home, "loops.wasm", &loops(3));
    let price = price(&home, &path);
    let run =
        || home.command(["run", path.to_str().unwrap()]).stderr(Stdio::null()).spawn().unwrap();
    let running: Vec<_> = (0..4).map(|_| run()).collect();
    for mut one in running {
        assert!(one.wait().unwrap().success());
    }
    assert_eq!(home.spent_on_compiling(), price);
    let left =
        fs::read_dir(home.path().join("artefacts")).unwrap().map(|entry| entry.unwrap().path());
    let locks = left.filter(|path| path.extension().is_some_and(|ending| ending == "lock"));
    assert_eq!(locks.count(), 0);
}

/// Each of these once took a compiler seconds, or gigabytes, for a few kilobytes.
#[test]
fn bombs_are_refused_or_compiled() {
    let home = Home::new();
    let params = |count: usize| "i32 ".repeat(count);
    let refused = [
        ("58 KB of empty loops", job(&format!("(func {})", "(loop)".repeat(20_000))), "LOOPS_MAX"),
        (
            "10,000 functions with 60 parameters",
            job(&format!("(func (param {}))", params(60)).repeat(10_000)),
            "PARAMS_SUM_MAX",
        ),
        (
            "a call with 900 parameters",
            job(&format!("(func (param {}))", params(900))),
            "PARAMS_MAX",
        ),
        (
            "a br_table with a million targets",
            job(&format!("(func (br_table {} (i32.const 0)))", "0 ".repeat(1_000_000))),
            "BR_TABLE_TARGETS_MAX",
        ),
        ("four billion locals", four_billion_locals(), "LOCALS_MAX"),
    ];
    for (what, wasm, limit) in refused {
        let ran = run(&home, &put(&home, "bomb.wasm", &wasm));
        assert_eq!(ran.code, Some(126), "{what}: {ran:?}");
        assert!(ran.stderr.contains(limit), "{what}: {}", ran.stderr);
    }
    // The gate works for nothing, and nothing was compiled.
    assert_eq!(home.balance("node"), 0);
    let block =
        "(block (br_if 0 (local.get 0)) (local.set 0 (i32.add (local.get 0) (i32.const 1))))";
    let compiled = [
        ("146 KB of blocks", job(&format!("(func (local i32) {})", block.repeat(10_500)))),
        ("878 KB of nested loads", nested_loads()),
        ("fourteen kilobytes of loops", loops(1)),
        (
            "as many parameters as may be",
            job(&format!("(func (param {}))", params(128)).repeat(2_343)),
        ),
    ];
    let mut paid = 0;
    for (what, wasm) in compiled {
        let path = put(&home, "bomb.wasm", &wasm);
        let ran = run(&home, &path);
        assert_eq!(ran.code, Some(0), "{what}: {ran:?}");
        paid += price(&home, &path);
        let node = home.balance("node");
        // Each job burned less than its start's price and a little.
        assert!((paid..paid + 1_000_000).contains(&node), "{what}: {node} instead of {paid}");
    }
}

/// By hand: as text they would take gigabytes here.
fn four_billion_locals() -> Vec<u8> {
    let mut wasm = job("(func (local i32))");
    // One group of one local of type i32, and the end.
    let at = wasm.windows(4).position(|found| found == [1, 1, 0x7f, 0x0b]).unwrap();
    wasm.splice(at + 1..at + 2, [0xff, 0xff, 0xff, 0xff, 0x0f]);
    // The body and its section are four bytes longer.
    wasm[at - 1] += 4;
    let section = wasm.windows(2).rposition(|found| found[0] == 10).unwrap();
    let code = (8..at).rev().find(|at| wasm[*at] == 10 && wasm[*at + 2] == 2).unwrap_or(section);
    wasm[code + 1] += 4;
    wasm
}

fn nested_loads() -> Vec<u8> {
    let mut body = String::from("(func i32.const 0 ");
    body.push_str(&"i32.load ".repeat(290_000));
    body.push_str("drop)");
    job(&body)
}

/// What passes the gate and takes too long is ended by the compiler's own limits. That is paid,
/// told, and remembered: the second try costs nothing and says how to have a third.
#[test]
fn a_compiler_that_takes_too_long_is_ended() {
    let home = Home::new();
    // A megabyte of them takes half a minute; seven seconds are allowed.
    let path = put(&home, "slow.wasm", &loops(68));
    let ran = run(&home, &path);
    assert_eq!(ran.code, Some(126), "{ran:?}");
    assert!(ran.stderr.contains("it takes more than"), "{}", ran.stderr);
    let paid = home.balance("node");
    assert_eq!(paid, price(&home, &path));
    check_remembered(&home, &path, "it takes more than");
    assert_eq!(home.balance("node"), paid);
}

#[track_caller]
fn check_remembered(home: &Home, path: &std::path::Path, reason: &str) {
    let files = remembered(home);
    let [file] = files.as_slice() else { panic!("{files:?}") };
    let ran = run(home, path);
    assert_eq!(ran.code, Some(126), "{ran:?}");
    for expect in [reason, "remembered", file.to_str().unwrap()] {
        assert!(ran.stderr.contains(expect), "{}", ran.stderr);
    }
}

/// A compiler that crashes is one refusal; without the file that remembers it the module is tried
/// again, and here it compiles.
#[test]
fn a_compiler_that_crashes_is_remembered() {
    let home = Home::new();
    let path = put(&home, "loads.wasm", &nested_loads());
    let price = price(&home, &path);
    let mut command = home.command(["run", path.to_str().unwrap()]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let process = Process::of(child.id()).unwrap();
    let compiler = eventually("the compiler runs", || {
        let named =
            |child: &Process| child.arguments().get(1).is_some_and(|word| word == "compile-worker");
        process.children().into_iter().find(named)
    });
    compiler.signal(rustix::process::Signal::ABORT);
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(126), "{said}");
    assert!(said.contains("crashed"), "{said}");
    assert_eq!(home.balance("node"), price);
    check_remembered(&home, &path, "crashed");
    fs::remove_file(&remembered(&home)[0]).unwrap();
    run(&home, &path).expect(0);
    let node = home.balance("node");
    assert!((2 * price..2 * price + 1_000_000).contains(&node), "{node}");
}

/// What the compiler finds invalid is paid too, once, and so is a module that compiles.
#[test]
fn compiling_is_paid_once() {
    let home = Home::new();
    let invalid = put(&home, "invalid.wasm", &job("(func (result i32))"));
    let receipt = home.path().join("receipt.json");
    let of_invalid = price(&home, &invalid);
    for _ in 0..2 {
        let ran = run(&home, &invalid);
        assert_eq!(ran.code, Some(126), "{ran:?}");
        assert!(ran.stderr.contains("type mismatch"), "{}", ran.stderr);
        assert_eq!(home.balance("node"), of_invalid);
    }
    let good = put(&home, "good.wasm", &job(""));
    let of_good = price(&home, &good);
    let mut expected = of_invalid;
    for compile_fuel in [of_good, 0] {
        let arguments = ["run", "--receipt", receipt.to_str().unwrap(), good.to_str().unwrap()];
        let ran = home.cell(arguments);
        ran.expect(0);
        assert_eq!(ran.stderr.contains("compiled: "), compile_fuel > 0, "{}", ran.stderr);
        let told: Value = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
        assert_eq!(told["compile_fuel"], compile_fuel);
        assert_eq!(told["compile_transfer"].is_string(), compile_fuel > 0);
        expected += told["charge_nano_atp"].as_i64().unwrap() + compile_fuel;
        assert_eq!(home.balance("node"), expected);
    }
    home.cell(["ledger", "verify"]).expect(0);
}

/// A cell is compiled at its owner's cost too, by the nucleus, and once for all its names.
#[test]
fn deploying_is_paid_once() {
    let nucleus = Nucleus::new();
    let text = wat::cell("", wat::ECHO);
    nucleus.deploy_wat("one", &text, "");
    nucleus.deploy_wat("two", &text, "");
    let price = price(&nucleus, &nucleus.cell_directory("one").join("cell.wasm"));
    assert_eq!(nucleus.balance("node"), price);
    let broken = wat::cell("", "(i32.const 1)");
    nucleus.put("three", &wat::manifest("three", ""), &wat::compile(&broken));
    let row = nucleus.wait_for("three", "failed");
    assert!(row["reason"].as_str().unwrap().contains("type mismatch"), "{row}");
    let home = nucleus.down();
    assert_eq!(home.spent_on_compiling(), home.balance("node"));
    assert_eq!(home.spent(), 0);
}

/// Who cannot pay for the compiler does not get it.
#[test]
fn compiling_needs_atp() {
    let home = Home::new();
    let mut padded = job("");
    // A custom section is not compiled, but it is paid for by its bytes.
    let content = vec![0; 31 << 20];
    padded.push(0);
    let mut size = content.len() + 2;
    while size >= 0x80 {
        padded.push(u8::try_from(size & 0x7f).unwrap() | 0x80);
        size >>= 7;
    }
    padded.push(u8::try_from(size).unwrap());
    padded.extend([1, b'x']);
    padded.extend(content);
    let mut codes = Vec::new();
    for last in 0..4 {
        *padded.last_mut().unwrap() = last;
        let path = put(&home, "padded.wasm", &padded);
        let ran = run(&home, &path);
        codes.push(ran.code.unwrap());
        if last == 3 {
            assert!(ran.stderr.contains("compiling the module costs"), "{}", ran.stderr);
        }
    }
    // Three times a third of what the owner was granted.
    assert_eq!(codes, [0, 0, 0, 122]);
}
