//! Calls the cell `worker` for a list of payloads and adds up the checksums.
//!
//! It depends on the worker's interface, not on the worker: see "Calling another cell" in
//! `cell_guest`.

use cell_guest::{Context, Reject, call_as, receptor, signal_receptor};
use worker_interface::{WorkLoad, worker};

signal_receptor! {
    name: sum_up,
    input: Batch { payloads: Vec<Vec<u8>> },
    /// The checksums of all payloads, added up without regard to overflow.
    output: Sum { count: u32, checksum: u64 },
}

#[receptor]
fn sum_up(batch: &ArchivedBatch, cx: &mut Context) -> Result<Sum, Reject> {
    let mut sum = Sum { count: 0, checksum: 0 };
    for payload in batch.payloads.iter() {
        let result = call_as!(worker, WorkLoad { id: sum.count, payload: payload.to_vec() })?;
        sum.count += 1;
        sum.checksum = sum.checksum.wrapping_add(result.checksum);
    }
    cell_guest::info!("{} payloads, {} fuel left", sum.count, cx.fuel_left());
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cell_guest::testing::Archive;
    use worker_interface::WorkResult;

    #[test]
    fn adds_up_what_the_worker_answers() {
        let mut cx = Context::for_test().with_cell::<worker::Receptor>("worker", |job| {
            match job.payload.len() {
                0 => Err(Reject::new(9, "nothing to do")),
                bytes => {
                    Ok(WorkResult { id: job.id.to_native(), checksum: u64::MAX - 3 + bytes as u64 })
                }
            }
        });
        let batch = Archive::of(&Batch { payloads: vec![vec![1], vec![2, 3]] });
        assert_eq!(sum_up(&batch, &mut cx), Ok(Sum { count: 2, checksum: u64::MAX - 4 }));
        let batch = Archive::of(&Batch { payloads: vec![vec![]] });
        assert_eq!(sum_up(&batch, &mut cx), Err(Reject::new(9, "nothing to do")));
    }
}
