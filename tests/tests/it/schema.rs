//! Two programs built against different types: refused at connect, with both schemas named.

use cell_client::{Error, Fuel, TypedClient};
use cell_tests::Nucleus;

/// The sample's types with one field renamed.
mod renamed {
    cell_guest::signal_receptor! {
        name: worker,
        input: WorkLoad { number: u32, payload: Vec<u8> },
        output: WorkResult { id: u32, checksum: u64 },
    }
}

/// The same names, and another type of one field.
mod retyped {
    cell_guest::signal_receptor! {
        name: worker,
        input: WorkLoad { id: u64, payload: Vec<u8> },
        output: WorkResult { id: u32, checksum: u64 },
    }
}

/// The same fields in another order.
mod reordered {
    cell_guest::signal_receptor! {
        name: worker,
        input: WorkLoad { payload: Vec<u8>, id: u32 },
        output: WorkResult { id: u32, checksum: u64 },
    }
}

/// The same definition under other docs.
mod redocumented {
    cell_guest::signal_receptor! {
        name: worker,
        /// Other words.
        input: WorkLoad { id: u32, payload: Vec<u8> },
        output: WorkResult { id: u32, checksum: u64 },
    }
}

#[track_caller]
fn check_refused<R: cell_client::Receptor>(nucleus: &Nucleus, ours: &str) {
    let error = TypedClient::<R>::connect(nucleus.socket("worker"), "worker").unwrap_err();
    assert!(matches!(error, Error::SchemaMismatch { .. }), "{error:?}");
    let text = error.to_string();
    let theirs = "> struct WorkLoad { id: u32, payload: Vec<u8> }";
    for part in [ours, theirs, "this program:", "the cell:", "`worker`", "line 2"] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert_eq!(error.fuel(), Fuel::ZERO);
}

#[test]
fn other_types_are_refused_with_both_schemas() {
    let nucleus = Nucleus::new();
    nucleus.deploy("worker");
    check_refused::<renamed::worker::Receptor>(
        &nucleus,
        "> struct WorkLoad { number: u32, payload: Vec<u8> }",
    );
    check_refused::<retyped::worker::Receptor>(
        &nucleus,
        "> struct WorkLoad { id: u64, payload: Vec<u8> }",
    );
    check_refused::<reordered::worker::Receptor>(
        &nucleus,
        "> struct WorkLoad { payload: Vec<u8>, id: u32 }",
    );
    // The right ones fit, and answer.
    let mut client =
        worker_interface::worker::Client::connect(nucleus.socket("worker"), "worker").unwrap();
    let reply =
        client.call(&worker_interface::WorkLoad { id: 3, payload: b"foobar".to_vec() }).unwrap();
    assert_eq!(
        (reply.archived().id.to_native(), reply.archived().checksum.to_native()),
        (3, 0x8594_4171_f739_67e8)
    );
    TypedClient::<redocumented::worker::Receptor>::connect(nucleus.socket("worker"), "worker")
        .unwrap();
    // Nothing was called but that one.
    let home = nucleus.down();
    assert_eq!(home.spent(), i64::try_from(reply.fuel().0).unwrap());
}
