//! What is merely there costs nothing.

use std::thread;
use std::time::Duration;

use cell_client::CallOptions;
use cell_tests::{Nucleus, Raw};

#[test]
fn an_idle_connection_costs_nothing() {
    let nucleus = Nucleus::new();
    nucleus.deploy("hello");
    let mut client = nucleus.client("hello");
    let slot = client.open_raw("greet").unwrap();
    let mut idle: Vec<_> = (0..50).map(|_| Raw::greeted(&nucleus.socket("hello"))).collect();
    // Long enough for what the nucleus does every second or less to happen several times.
    thread::sleep(Duration::from_millis(2500));
    for raw in &mut idle {
        raw.expect_alive();
        raw.open("hello", "greet", 9);
    }
    for _ in 0..100 {
        client.ping().unwrap();
    }
    assert_eq!(nucleus.spent(), 0);
    assert!(!nucleus.balances().contains_key("cell:hello"));
    // The same connection is charged as soon as it calls.
    let fuel =
        client.call_json(&slot, "{\"name\":\"Ada\"}", CallOptions::default()).unwrap().fuel();
    nucleus.wait_for_earned("hello", fuel);
    // An instance that waits for the next call costs nothing either.
    thread::sleep(Duration::from_millis(500));
    let home = nucleus.down();
    assert_eq!(home.spent(), i64::try_from(fuel.0).unwrap());
}
