//! Calls of a stranger's cells, paid by a channel.

use std::time::Duration;

use cell_abi::CellName;
use cell_client::{CallOptions, Client, Config, Fuel};
use cell_ledger::ContentHash;
use cell_peer::{Credentials, PeerError, Request, tunnel};
use cell_tests::process::Process;
use cell_tests::{FIRST_GRANT, eventually, wat};
use rustix::process::Signal;
use serde_json::Value;

use super::Strangers;
use crate::peers::identity;

/// Two strangers, of whom one has cells for others, and what that one's node earned by compiling them.
fn strangers() -> (Strangers, i64) {
    let two = Strangers::new(3600);
    two.donor.nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "peers = true");
    two.donor.nucleus.deploy_wat("spin", &wat::cell("", wat::SPIN), "peers = true");
    two.donor.nucleus.deploy_wat("own", &wat::cell("", wat::ECHO), "");
    let compiled = two.donor.nucleus.balance("node");
    (two, compiled)
}

fn earned(two: &Strangers, cell: &str) -> i64 {
    two.donor.nucleus.balance(&format!("cell:{cell}"))
}

/// What all cells and jobs there earned is what was paid for them.
#[track_caller]
fn agree(two: &Strangers, compiled: i64) {
    let paid = eventually("both ledgers say the same", || {
        let all = two.earned() - compiled + earned(two, "echo") + earned(two, "spin");
        (all == two.paid()).then_some(all)
    });
    for machine in [&two.consumer, &two.donor] {
        machine.nucleus.cell(["ledger", "verify"]).expect(0);
    }
    println!("both ledgers: {paid} nano-ATP");
}

/// Nobody granted anything: a call costs what its reply says, on both ledgers, and the rest is back.
#[test]
fn a_strangers_cell_is_paid_by_a_channel() {
    let (two, compiled) = strangers();
    let home = &two.consumer.nucleus;
    let call = ["call", "cell://den/echo.run", "hi", "--raw"];
    assert!(home.cell(call).expect(1).stderr.contains("has nothing to spend"));
    let paid = [&call[..], &["--pay-by", "here"]].concat();
    let ran = home.cell([&paid[..], &["--json"]].concat());
    let told: Value = ran.expect(0).json();
    assert_eq!(told["reply"], "6869");
    let cost = told["fuel"].as_i64().unwrap();
    assert_eq!((earned(&two, "echo"), two.paid(), two.held()), (cost, cost, 0));
    assert_eq!(FIRST_GRANT - home.balance("owner"), cost, "and nothing else");
    let ran = home.cell(&paid);
    assert_eq!(ran.expect(0).stdout, "hi");
    assert!(ran.stderr.contains("the rest is back"), "{}", ran.stderr);
    assert_eq!((earned(&two, "echo"), two.paid(), two.held()), (2 * cost, 2 * cost, 0));
    agree(&two, compiled);
    // One that runs away costs its limit.
    let limit = ["--fuel", "50000000"];
    let spin = ["call", "cell://den/spin.run", "hi", "--raw", "--pay-by", "here"];
    home.cell([&spin[..], &limit].concat()).expect(122);
    assert_eq!((earned(&two, "spin"), two.held()), (50_000_000, 0));
    // One that takes too long costs what it had burned.
    let late = home.cell([&spin[..], &["--timeout", "1.5", "--budget", "500"]].concat());
    late.expect(124);
    assert!(late.stderr.contains("the rest is back"), "{}", late.stderr);
    assert!(earned(&two, "spin") > 50_000_000);
    agree(&two, compiled);
    assert_eq!(two.held(), 0);
    // What is not for others costs nothing.
    let own = ["call", "cell://den/own.run", "hi", "--raw", "--pay-by", "here"];
    assert!(home.cell(own).expect(1).stderr.contains("not for other machines"));
    assert_eq!((earned(&two, "own"), two.held()), (0, 0));
    let local = home.cell(["call", "own.run", "hi", "--raw", "--pay-by", "here"]);
    assert!(local.expect(2).stderr.contains("another machine"), "{}", local.stderr);
}

/// A channel pays for calls of who opened it, while its session is there, and never beyond what was agreed to.
#[test]
fn a_channel_is_nobody_elses_purse() {
    let (two, compiled) = strangers();
    let dial = |channel: [u8; 32]| {
        let credentials = Credentials::new(&identity(&two.consumer.nucleus), tunnel::now_s());
        let request = Request::PaidCell(channel, CellName::parse("echo").unwrap());
        let peer = cell_abi::AccountId::parse(&two.donor.key).unwrap();
        let patience = Duration::from_secs(20);
        tunnel::dial(&two.donor.address, &credentials.unwrap(), peer, &request, patience)
    };
    let told = |channel: [u8; 32], expect: &str| match dial(channel) {
        Err(PeerError::Refused(why)) => assert!(why.contains(expect), "{why}"),
        other => panic!("{other:?}"),
    };
    told([7; 32], "nothing to spend");
    // While a job runs by a channel, that one pays for calls too, and another one does not.
    let running = two.spinning();
    eventually("the job is paid", || (two.earned() > compiled + 150_000_000).then_some(()));
    let [ours] = two.channels(&two.consumer.nucleus).try_into().unwrap();
    let channel = ContentHash::parse(ours["channel"].as_str().unwrap()).unwrap();
    told([7; 32], "does not know that channel");
    let stream = dial(*channel.as_bytes()).unwrap();
    let mut client = Client::from_stream(stream, "echo", Config::default()).unwrap();
    let slot = client.open_raw("run").unwrap();
    let much = CallOptions { fuel: Fuel(900_000_000_000), ..CallOptions::default() };
    let refused = client.call_raw(&slot, b"hi", much).unwrap_err();
    assert!(refused.to_string().contains("cannot cover"), "{refused}");
    drop(client);
    Process::of(running.0.id()).unwrap().signal(Signal::INT);
    // Ctrl-C pays what was done, and the rest is back at once.
    let (code, told) = running.end();
    assert_eq!(code, Some(130), "{told}");
    assert!(told.contains("interrupted; ") && told.contains("the rest is back"), "{told}");
    agree(&two, compiled);
    assert_eq!(two.held(), 0);
}
