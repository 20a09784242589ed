//! What people and scripts type: help, JSON, errors that say the next step, and the ledger.

use std::fs;

use cell_tests::{FIRST_GRANT, Home, Nucleus, wat};
use serde_json::Value;

const COMMANDS: &[&[&str]] = &[
    &["new"],
    &["build"],
    &["dev"],
    &["up"],
    &["down"],
    &["deploy"],
    &["rm"],
    &["call"],
    &["run"],
    &["ps"],
    &["top"],
    &["logs"],
    &["inspect"],
    &["id"],
    &["ledger"],
    &["ledger", "balance"],
    &["ledger", "grant"],
    &["ledger", "history"],
    &["ledger", "verify"],
    &["completions"],
];

#[test]
fn every_command_has_help() {
    let home = Home::new();
    let overview = home.cell(["--help"]).expect(0).stdout.clone();
    for command in COMMANDS {
        let ran = home.cell(command.iter().chain(&["--help"]));
        let text = &ran.expect(0).stdout;
        assert!(
            text.contains("Usage: cell")
                && text.contains("--json")
                && text.lines().next().is_some_and(|line| line.len() > 10),
            "{command:?}: {text}"
        );
        if let [name] = command {
            assert!(overview.contains(&format!("\n  {name} ")), "{name} is missing in\n{overview}");
        }
    }
    // What the nucleus starts for itself is not for people.
    for hidden in ["job-worker", "compile-worker"] {
        assert!(!overview.contains(hidden), "{overview}");
    }
    assert!(home.cell(["--version"]).expect(0).stdout.starts_with("cell 0."));
    // Asking for help makes nothing.
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn wrong_usage_is_told() {
    let home = Home::new();
    let wrong: &[&[&str]] = &[
        &[],
        &["nosuch"],
        &["ps", "extra"],
        &["up", "--nosuch"],
        &["call"],
        &["call", "hello"],
        &["call", "hello.greet", "{not json"],
        &["call", "hello.greet", "{}", "--budget", "-3"],
        &["call", "hello.greet", "{}", "--budget", "1", "--fuel", "1"],
        &["call", "hello.greet", "{}", "--timeout", "0"],
        &["run"],
        &["run", "x.wasm", "--memory", "0"],
        &["rm"],
        &["rm", "Not A Name"],
        &["logs", "../etc"],
        &["ledger"],
        &["ledger", "grant"],
        &["ledger", "grant", "1e3"],
        &["ledger", "grant", "0.0000000001"],
        &["completions", "klingon"],
    ];
    for arguments in wrong {
        let ran = home.cell(*arguments);
        ran.expect(2);
        assert!(!ran.stderr.trim().is_empty() && ran.stdout.is_empty(), "{arguments:?}: {ran:?}");
    }
}

/// An error names what was wrong and what to type next.
#[test]
fn errors_say_what_to_do() {
    let nucleus = Nucleus::new();
    nucleus.deploy("hello");
    let check = |arguments: &[&str], code: i32, parts: &[&str]| {
        let ran = nucleus.cell(arguments);
        ran.expect(code);
        for part in parts {
            assert!(
                ran.stderr.contains(part),
                "{arguments:?}: {part:?} is missing in {}",
                ran.stderr
            );
        }
        let ran = nucleus.cell([arguments, &["--json"]].concat());
        let error = ran.expect(code).json();
        assert_eq!(error["exit"], code, "{error}");
        assert!(error["error"].as_str().is_some_and(|text| text.contains(parts[0])), "{error}");
    };
    check(&["call", "nosuch.greet", "{}"], 1, &["nosuch", "cell ps"]);
    check(&["call", "hello.nosuch", "{}"], 1, &["greet, shout"]);
    check(&["call", "hello.greet", "{\"nam\":\"Ada\"}"], 1, &["name"]);
    check(&["call", "hello.greet", "{\"name\":\"\"}"], 1, &["a greeting needs a name"]);
    check(&["call", "hello.greet", "{\"name\":\"Ada\"}", "--fuel", "10"], 122, &["fuel"]);
    check(
        &["call", "hello.greet", "{\"name\":\"Ada\"}", "--budget", "5000"],
        122,
        &["cell ledger"],
    );
    check(&["rm", "nosuch"], 1, &["nosuch", "cell ps"]);
    check(&["logs", "nosuch"], 1, &["nosuch", "cell ps"]);
    check(&["inspect", "nosuch"], 1, &["nosuch"]);
    check(&["deploy", "/nonexistent"], 1, &["/nonexistent"]);
    check(&["ledger", "balance", "nobody"], 1, &["cell:NAME"]);
    let home = nucleus.down();
    let ran = home.cell(["call", "hello.greet", "{}"]);
    assert!(ran.expect(125).stderr.contains("cell up"), "{}", ran.stderr);
}

/// Every command that answers does so in one line of JSON, and says nothing else there.
#[test]
fn json_for_machines() {
    let home = Home::new();
    let one_line = |arguments: &[&str]| -> Value {
        let ran = home.cell([arguments, &["--json"]].concat());
        ran.expect(0);
        assert_eq!(ran.stdout.lines().count(), 1, "{arguments:?}: {}", ran.stdout);
        ran.json()
    };
    assert_eq!(one_line(&["ps"]), serde_json::json!([]));
    assert_eq!(one_line(&["id"])["owner"].as_str().map(str::len), Some(64));
    let nucleus = Nucleus::up(&home);
    nucleus.deploy("hello");
    assert_eq!(one_line(&["up"])["up"], true);
    let answer = one_line(&["call", "hello.greet", "{\"name\":\"Ada\"}"]);
    assert_eq!(answer["reply"]["text"], "Hello, Ada!");
    assert_eq!(answer["fuel"], answer["charge_nano_atp"]);
    let ran = home.cell_with_input(["call", "hello.greet", "-", "--quiet"], b"{\"name\":\"Bob\"}");
    assert_eq!(
        (ran.expect(0).stdout.as_str(), ran.stderr.as_str()),
        ("{\"text\":\"Hello, Bob!\"}\n", "")
    );
    let rows = one_line(&["ps"]);
    assert_eq!((&rows[0]["cell"], &rows[0]["state"]), (&"hello".into(), &"live".into()));
    let inspected = one_line(&["inspect", "hello"]);
    assert_eq!(
        (&inspected["hash"], inspected["receptors"].as_array().map(Vec::len)),
        (&rows[0]["hash"], Some(2))
    );
    nucleus.wait_for_earned("hello", cell_client::Fuel(answer["fuel"].as_u64().unwrap() * 2));
    assert_eq!(one_line(&["ledger", "verify"])["verified"], true);
    let entries = one_line(&["ledger", "history", "-n", "5"]);
    assert!(
        entries.as_array().is_some_and(|entries| !entries.is_empty() && entries.len() <= 5),
        "{entries}"
    );
    assert_eq!(one_line(&["rm", "hello"])["removed"], "hello");
    assert_eq!(one_line(&["down"])["down"], true);
    assert_eq!(one_line(&["down"])["down"], true);
    let made = one_line(&["new", home.path().join("made").to_str().unwrap()]);
    assert_eq!(made["name"], "made");
}

#[test]
fn completions_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = home.cell(["completions", shell]);
        assert!(ran.expect(0).stdout.contains("deploy"), "{shell}");
    }
}

#[test]
fn grants_balances_and_history() {
    let home = Home::new();
    assert_eq!(home.balance("owner"), FIRST_GRANT);
    let granted = home.cell(["ledger", "grant", "1.5", "uid:12345", "--json"]).expect(0).json();
    assert_eq!(
        (&granted["granted_nano_atp"], &granted["posted_nano_atp"]),
        (&1_500_000_000.into(), &1_500_000_000.into())
    );
    assert_eq!(home.balance("uid:12345"), 1_500_000_000);
    // Somebody who never had any has none, which is no error.
    assert_eq!(home.balance("uid:54321"), 0);
    assert_eq!(home.balance("cell:nosuch"), 0);
    // The same id grants once; the same id for something else is refused.
    for _ in 0..3 {
        home.cell(["ledger", "grant", "7", "owner", "--id", "invoice-1"]).expect(0);
    }
    assert_eq!(home.balance("owner"), FIRST_GRANT + 7_000_000_000);
    let ran = home.cell(["ledger", "grant", "8", "owner", "--id", "invoice-1"]);
    assert!(ran.expect(1).stderr.contains("already exists"), "{}", ran.stderr);
    home.cell(["ledger", "grant", "1"]).expect(0);
    home.cell(["ledger", "grant", "1"]).expect(0);
    assert_eq!(home.balance("owner"), FIRST_GRANT + 9_000_000_000);
    assert_eq!(home.balance("issuer"), -(FIRST_GRANT + 10_500_000_000));
    // More than 64 bits hold is refused, and moves nothing.
    home.cell(["ledger", "grant", "18446744073"]).expect(1);
    home.cell(["ledger", "grant", "99999999999999999999"]).expect(2);
    assert_eq!(home.balance("owner"), FIRST_GRANT + 9_000_000_000);
    let history = home.cell(["ledger", "history", "uid:12345"]).expect(0).stdout.clone();
    assert_eq!(history.lines().count(), 1, "{history}");
    assert!(history.contains("1.5 ATP from issuer"), "{history}");
    let balance = home.cell(["ledger", "balance"]).expect(0).stdout.clone();
    assert!(
        balance
            .lines()
            .last()
            .is_some_and(|line| line.starts_with("sum") && line.contains(" 0 ATP")),
        "{balance}"
    );
    home.cell(["ledger", "verify"]).expect(0);
}

/// A nucleus that runs takes part in what the command line does to the same ledger.
#[test]
fn a_grant_reaches_a_running_nucleus() {
    let nucleus = Nucleus::new();
    nucleus.deploy("hello");
    let call = |budget: &str| {
        nucleus.cell(["call", "hello.greet", "{\"name\":\"Ada\"}", "--budget", budget])
    };
    call("1500").expect(122);
    nucleus.cell(["ledger", "grant", "1000"]).expect(0);
    call("1500").expect(0);
    nucleus.down();
}

/// Bytes changed in the middle of the ledger's file, anywhere: never a clean bill of health with
/// other sums.
#[test]
fn a_tampered_ledger_does_not_verify() {
    let home = Home::new();
    for grant in 0..40 {
        home.cell(["ledger", "grant", "1", "owner", "--id", &format!("grant number {grant}")])
            .expect(0);
    }
    let truth = home.cell(["ledger", "verify", "--json"]).expect(0).json();
    let sums = home.balances();
    let path = home.path().join("ledger.db");
    // All that was written is in the one file: the log beside it went when its last user closed.
    assert!(!home.path().join("ledger.db-wal").exists());
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    // Eight bytes in each page, at the places that hold rows.
    for at in (4096..good.len() - 8).step_by(1361) {
        let mut bad = good.clone();
        if bad[at..at + 8].iter().all(|byte| *byte == 0) {
            continue;
        }
        bad[at..at + 8].iter_mut().for_each(|byte| *byte = !*byte);
        fs::write(&path, &bad).unwrap();
        let ran = home.cell(["ledger", "verify", "--json"]);
        match ran.code {
            Some(0) => {
                // The bytes belong to nothing that counts; then all must be as it was.
                let verified = ran.json();
                assert_eq!(
                    (&verified["issued_nano_atp"], &verified["entries"]),
                    (&truth["issued_nano_atp"], &truth["entries"]),
                    "at {at}"
                );
                assert_eq!(verified["head_hash"], truth["head_hash"], "at {at}");
                assert_eq!(home.balances(), sums, "at {at}");
            }
            Some(1 | 125) => {
                refused += 1;
                assert!(
                    ran.json()["error"].as_str().is_some_and(|text| text.len() > 20),
                    "at {at}: {ran:?}"
                );
            }
            _ => panic!("at {at}: {ran:?}"),
        }
        for file in ["ledger.db-wal", "ledger.db-shm"] {
            let _ = fs::remove_file(home.path().join(file));
        }
    }
    assert!(refused > 3, "only {refused} changes were found");
    fs::write(&path, &good).unwrap();
    home.cell(["ledger", "verify"]).expect(0);
    // The rest of a file, and no ledger at all.
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert_ne!(home.cell(["ledger", "verify"]).code, Some(0));
    fs::write(&path, "this is no database, whatever its name says".repeat(100)).unwrap();
    let ran = home.cell(["ledger", "verify"]);
    assert!(ran.code != Some(0) && ran.stderr.contains("ledger.db"), "{ran:?}");
}

/// A cell without the JSON adapter can be called from the command line all the same.
#[test]
fn raw_calls() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let refused = nucleus.cell(["call", "echo.run", "\"abc\""]).expect(1).stderr.clone();
    assert!(refused.contains("call it with --raw"), "{refused}");
    assert_eq!(nucleus.cell(["call", "echo.run", "--raw", "abc"]).expect(0).stdout, "abc");
    let value = nucleus.cell(["call", "echo.run", "--raw", "abc", "--json"]).expect(0).json();
    assert_eq!(value["reply"], "616263");
}
