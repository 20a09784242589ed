//! Cells that call cells of other machines: what that costs, whoever answers, and whatever it claims.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cell_abi::{CellName, Fuel, Status};
use cell_host::{
    Asking, Callee, CellOptions, Isolation, Outcome, RemoteCall, RemoteCell, RemoteReply,
    StopHandle,
};

use crate::calls::{CALL, forward};
use crate::replay::{again, agree};
use crate::support::{World, spec, wat};

/// What one was asked: receptor, schema, request, limit.
type Question = (String, String, Vec<u8>, u64);

/// A cell of a machine that answers as the test says, or never does.
#[derive(Debug)]
struct Far {
    name: CellName,
    /// What it claims to have burned; without it, it does not answer.
    fuel: Option<u64>,
    status: Status,
    asked: Mutex<Vec<Question>>,
}

impl Far {
    fn new(status: Status, fuel: Option<u64>) -> Arc<Self> {
        let name = CellName::parse("callee").unwrap();
        Arc::new(Self { name, fuel, status, asked: Mutex::default() })
    }
}

impl RemoteCell for Far {
    fn name(&self) -> &CellName {
        &self.name
    }

    fn call<'a>(&'a self, call: RemoteCall<'a>) -> Asking<'a> {
        let RemoteCall { receptor, schema, request, fuel, .. } = &call;
        let asked = ((*receptor).to_owned(), (*schema).to_owned(), request.clone(), fuel.0);
        self.asked.lock().unwrap().push(asked);
        Box::pin(async move {
            if self.status != Status::Unreachable {
                call.sent();
            }
            match self.fuel {
                Some(fuel) => {
                    tokio::task::yield_now().await;
                    RemoteReply { status: self.status, fuel: Fuel(fuel), bytes: call.request }
                }
                None => std::future::pending().await,
            }
        })
    }
}

/// Calls a cell that calls the far one, with these limits, until it ends or is stopped.
async fn ask(far: &Arc<Far>, options: CellOptions, limits: (i64, u64), stop: bool) -> Outcome {
    let world = World::new();
    world.far(Arc::clone(far) as _);
    let caller = world.deploy("caller", &wat(CALL, &forward(limits.0)), options);
    let (mut lease, handle) = (caller.checkout(0).await.unwrap(), StopHandle::new());
    lease.begin(spec(limits.1, &handle), 2).await.unwrap();
    lease.request_mut().copy_from_slice(b"hi");
    let running = lease.finish(0, false);
    if !stop {
        return running.await;
    }
    let mut running = std::pin::pin!(running);
    tokio::select! {
        biased;
        outcome = &mut running => panic!("it was answered: {outcome:?}"),
        () = tokio::time::sleep(Duration::from_millis(1)) => handle.cancel(),
    }
    running.await
}

#[tokio::test]
async fn it_costs_what_the_other_machine_says() {
    let far = Far::new(Status::Ok, Some(5000));
    let outcome = ask(&far, CellOptions::default(), (1_000_000, 10_000_000), false).await;
    assert_eq!(outcome.status, Status::Ok);
    let [share] = &outcome.callees[..] else { panic!("{outcome:?}") };
    assert!(matches!(share.cell, Callee::Elsewhere(_)));
    assert_eq!((share.cell.name().as_str(), share.fuel.0, share.calls), ("callee", 5000, 1));
    let own = outcome.own_fuel().0;
    assert_eq!(outcome.fuel.0, own + 5000);
    let asked = far.asked.lock().unwrap().clone();
    assert_eq!(asked, [("run".into(), String::new(), b"hi".to_vec(), 1_000_000)]);
    // The caller's own part is the same, whatever the callee takes.
    for (status, fuel) in [(Status::Ok, 900_000), (Status::Ok, 1_000_000)] {
        let far = Far::new(status, Some(fuel));
        let outcome = ask(&far, CellOptions::default(), (1_000_000, 10_000_000), false).await;
        assert_eq!((outcome.own_fuel().0, outcome.fuel.0), (own, own + fuel));
    }
    // One that is not there costs nothing.
    let far = Far::new(Status::Unreachable, Some(0));
    let outcome = ask(&far, CellOptions::default(), (1_000_000, 10_000_000), false).await;
    assert_eq!(outcome.status, Status::Ok, "its caller may handle it");
    assert_eq!(outcome.callees[0].fuel, Fuel::ZERO);
}

/// Another machine that claims more than it was allowed gets its limit, and the payer pays no more than
/// its own.
#[tokio::test]
async fn a_claim_beyond_the_limit_counts_as_the_limit() {
    for claim in [1_000_001, u64::MAX] {
        let far = Far::new(Status::Ok, Some(claim));
        let outcome = ask(&far, CellOptions::default(), (1_000_000, 10_000_000), false).await;
        assert_eq!((outcome.status, outcome.callees[0].fuel.0), (Status::Ok, 1_000_000));
        // With all that is left, the caller has nothing to go on with.
        let outcome = ask(&far, CellOptions::default(), (-1, 500_000), false).await;
        assert_eq!((outcome.status, outcome.fuel.0), (Status::OutOfFuel, 500_000));
    }
}

/// A caller that gives up while another machine works paid nothing for that work, which somebody had to.
#[tokio::test]
async fn who_gives_up_pays_the_limit() {
    let far = Far::new(Status::Ok, None);
    let outcome = ask(&far, CellOptions::default(), (1_000_000, 10_000_000), true).await;
    assert_eq!(outcome.status, Status::Cancelled);
    assert_eq!(outcome.callees[0].fuel.0, 1_000_000);
    assert!(outcome.own_fuel().0 > 0 && outcome.fuel.0 < 1_100_000, "{outcome:?}");
    // Before anything was sent there is nothing to pay for.
    let far = Far::new(Status::Unreachable, None);
    let early = ask(&far, CellOptions::default(), (1_000_000, 10_000_000), true).await;
    assert_eq!((early.status, early.callees[0].fuel.0), (Status::Cancelled, 0));
    assert_eq!(early.own_fuel(), outcome.own_fuel());
    // With all that is left at stake, the limit is what it costs, and how it ended is still what is said.
    let far = Far::new(Status::Ok, None);
    let outcome = ask(&far, CellOptions::default(), (-1, 500_000), true).await;
    assert_eq!((outcome.status, outcome.fuel.0), (Status::Cancelled, 500_000));
}

#[tokio::test]
async fn a_recorded_call_is_run_again_without_the_other_machine() {
    let mut options = CellOptions::default();
    (options.isolation, options.receipts) = (Isolation::Call, true);
    let far = Far::new(Status::Ok, Some(5000));
    let outcome = ask(&far, options, (1_000_000, 10_000_000), false).await;
    let [record] = &outcome.records[..] else { panic!("{outcome:?}") };
    assert_eq!(record.own_fuel, outcome.own_fuel());
    agree(record, &again(&wat(CALL, &forward(1_000_000)), record).await);
    assert_eq!(far.asked.lock().unwrap().len(), 1);
}
