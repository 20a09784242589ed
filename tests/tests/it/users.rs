//! Callers who are not the owner: each has a worker, a purse and a share of the machine of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;

use cell_client::{CallOptions, Client, Error, Fuel, Status};
use cell_tests::{GUARD, Nucleus, eventually, wat};

/// Less than these users have.
const OPTIONS: CallOptions = CallOptions { fuel: Fuel(5_000_000), timeout: GUARD };

/// Runs something as another user; `None`, told by name, where this one may not.
fn as_user<T: Send + 'static>(uid: u32, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can call as another user");
        return None;
    }
    // The kernel keeps users by thread; the C library's promise that all threads have one is not
    // needed here.
    let work = move || {
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_uid(uid).unwrap();
        work()
    };
    Some(thread::spawn(work).join().unwrap())
}

/// Lets everybody reach a cell's socket.
fn open_to_all(nucleus: &Nucleus, cell: &str) {
    let directory = nucleus.cell_directory(cell);
    for path in [nucleus.path(), &nucleus.path().join("cells"), &directory] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o711)).unwrap();
    }
    fs::set_permissions(nucleus.socket(cell), fs::Permissions::from_mode(0o666)).unwrap();
}

fn call(nucleus: &Nucleus, cell: &str, uid: u32, fuel: u64) -> Option<Result<Vec<u8>, Error>> {
    let (socket, cell) = (nucleus.socket(cell), cell.to_owned());
    as_user(uid, move || {
        let mut client = Client::connect(socket, &cell)?;
        let slot = client.open_raw("run")?;
        let options = CallOptions { fuel: Fuel(fuel), timeout: GUARD };
        client.call_raw(&slot, b"hi", options).map(|reply| reply.bytes().to_vec())
    })
}

fn workers(nucleus: &Nucleus) -> usize {
    let children = nucleus.process().children();
    children.iter().filter(|child| child.arguments().get(1).is_some_and(|w| w == "worker")).count()
}

/// Another user's call runs in a process that the owner's calls never enter, is paid from that
/// user's account, and the process goes when the user has gone.
#[test]
fn each_user_has_a_worker() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    nucleus.deploy_wat("calls", &wat::caller("echo"), "");
    open_to_all(&nucleus, "echo");
    open_to_all(&nucleus, "calls");
    let owners = nucleus.worker();
    // Without an account there is nothing to spend.
    let Some(refused) = call(&nucleus, "echo", 12_345, 1_000_000) else { return };
    assert_eq!(refused.unwrap_err().status(), Some(Status::OutOfAtp));
    nucleus.cell(["ledger", "grant", "1", "uid:12345"]).expect(0);
    nucleus.cell(["ledger", "grant", "1", "uid:12346"]).expect(0);
    assert_eq!(call(&nucleus, "echo", 12_345, 1_000_000).unwrap().unwrap(), b"hi");
    assert_eq!(call(&nucleus, "calls", 12_346, 1_000_000).unwrap().unwrap()[4..], *b"hi");
    assert_eq!(workers(&nucleus), 3);
    assert_eq!(nucleus.worker(), owners);
    let spent = |account: &str| 1_000_000_000 - nucleus.balance(account);
    eventually("both have paid", || {
        (spent("uid:12345") > 0 && spent("uid:12346") > spent("uid:12345")).then_some(())
    });
    assert_eq!(nucleus.spent(), 0, "the owner paid nothing");
    eventually("all three calls are counted", || {
        (nucleus.row("echo").unwrap()["stats"]["calls"] == 3).then_some(())
    });
    eventually("their workers are gone", || (workers(&nucleus) == 1).then_some(()));
    let after = nucleus.row("echo").unwrap();
    assert_eq!(after["stats"]["calls"], 3, "what they counted stays: {after}");
    // And come back.
    assert_eq!(call(&nucleus, "echo", 12_345, 1_000_000).unwrap().unwrap(), b"hi");
    nucleus.down();
}

/// A user whose calls crash a cell until it rests lets it rest for nobody else.
#[test]
fn a_crash_loop_is_the_callers_own() {
    let nucleus = Nucleus::new();
    let handler =
        format!("(if (i32.eq (local.get $len) (i32.const 1)) (then unreachable)) {}", wat::ECHO);
    nucleus.deploy_wat("c", &wat::cell("", &handler), "");
    open_to_all(&nucleus, "c");
    nucleus.cell(["ledger", "grant", "1", "uid:12345"]).expect(0);
    let socket = nucleus.socket("c");
    let rests = as_user(12_345, move || {
        let mut client = Client::connect(socket, "c").unwrap();
        let slot = client.open_raw("run").unwrap();
        (0..20)
            .map(|_| client.call_raw(&slot, b"x", OPTIONS).unwrap_err().status())
            .collect::<Vec<_>>()
    });
    let Some(rests) = rests else { return };
    assert!(rests.contains(&Some(Status::BackingOff)), "{rests:?}");
    let mut client = nucleus.client("c");
    let slot = client.open_raw("run").unwrap();
    assert_eq!(client.call_raw(&slot, b"ok", OPTIONS).unwrap().bytes(), b"ok");
    nucleus.down();
}

/// State is one for all callers, whichever process their calls run in.
#[test]
fn users_share_a_cells_state() {
    let nucleus = Nucleus::new();
    let imports = r#"(import "cell_v1" "kv_get" (func $get (param i32 i32) (result i64)))
        (import "cell_v1" "kv_value" (func $value (param i32 i32) (result i32)))
        (import "cell_v1" "kv_set" (func $set (param i32 i32 i32 i32) (result i32)))
        (data (i32.const 64) "n")"#;
    let count = "(if (i64.ge_s (call $get (i32.const 64) (i32.const 1)) (i64.const 0))
            (then (drop (call $value (i32.const 0) (i32.const 4)))))
        (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
        (drop (call $set (i32.const 64) (i32.const 1) (i32.const 0) (i32.const 4)))
        (i64.shl (i64.const 4) (i64.const 32))";
    nucleus.deploy_wat("n", &wat::cell(imports, count), "isolation = \"call\"");
    open_to_all(&nucleus, "n");
    nucleus.cell(["ledger", "grant", "1", "uid:12345"]).expect(0);
    let others: Vec<_> = (0..2)
        .map(|_| {
            let socket = nucleus.socket("n");
            thread::spawn(move || {
                as_user(12_345, move || {
                    let mut client = Client::connect(socket, "n").unwrap();
                    let slot = client.open_raw("run").unwrap();
                    for _ in 0..50 {
                        client.call_raw(&slot, b"", OPTIONS).unwrap();
                    }
                })
            })
        })
        .collect();
    let mut client = nucleus.client("n");
    let slot = client.open_raw("run").unwrap();
    for _ in 0..50 {
        client.call_raw(&slot, b"", OPTIONS).unwrap();
    }
    let done: Vec<_> = others.into_iter().map(|other| other.join().unwrap()).collect();
    if done.iter().any(Option::is_none) {
        return;
    }
    let last = client.call_raw(&slot, b"", OPTIONS).unwrap();
    assert_eq!(last.bytes(), 151_u32.to_le_bytes(), "no count was lost");
    nucleus.down();
}
