//! Runs a cell inside any Rust program: no nucleus, no socket, no ledger.
//!
//! `cargo run --release -p cell-host --example embed`
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cell_abi::{AccountId, CellName, Fuel, Status};
use cell_host::{Allocation, CallSpec, Cell, CellOptions, NoServices, Sandbox, StopHandle, gate};

/// A cell by hand: its one receptor answers with the request, after counting down from its length.
const ECHO: &str = r#"(module
    (memory (export "memory") 2)
    (@custom "cell:interface" "receptor echo(bytes) -> bytes\n\n")
    (func (export "cell_mailbox") (param i32) (result i32) (i32.const 1024))
    (func (export "cell_receive") (param $receptor i32) (param $ptr i32) (param $len i32) (result i64)
        (local $left i32)
        (local.set $left (local.get $len))
        (loop $count
            (local.set $left (i32.sub (local.get $left) (i32.const 1)))
            (br_if $count (i32.gt_s (local.get $left) (i32.const 0))))
        (i64.or (i64.shl (i64.extend_i32_u (local.get $len)) (i64.const 32))
                (i64.extend_i32_u (local.get $ptr)))))"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let wasm = wat::parse_str(ECHO)?;
    let info = gate::inspect(&wasm)?;
    let sandbox = Arc::new(Sandbox::new(Allocation::OnDemand)?);
    let module = sandbox.compile_and_load(&wasm, info)?;
    let cell = Cell::new(
        &sandbox,
        CellName::parse("echo")?,
        module,
        CellOptions::default(),
        Arc::new(NoServices),
    )?;

    for limit in [10_000, 100] {
        let deadline = Instant::now() + Duration::from_secs(1);
        let payer = AccountId::from_bytes([0; 32]);
        let spec = CallSpec::new(payer, Fuel(limit), deadline, StopHandle::new());
        let request = b"hello from a program of its own";

        let mut lease = cell.checkout(0).await.map_err(|(status, _)| status.describe())?;
        let outcome = match lease.begin(spec, u32::try_from(request.len())?).await {
            Ok(()) => {
                lease.request_mut().copy_from_slice(request);
                lease.finish(0, false).await
            }
            Err(outcome) => outcome,
        };
        match outcome.status {
            Status::Ok => println!(
                "{} for {} fuel",
                String::from_utf8_lossy(lease.reply(&outcome)),
                outcome.fuel
            ),
            status => println!("{} and {} fuel are due", status.describe(), outcome.fuel),
        }
    }
    Ok(())
}
