//! Checksums payloads: the handler. What callers see is in `interface/`.

use cell_guest::{Reject, receptor};
pub use worker_interface::*;

#[receptor]
fn worker(job: &ArchivedWorkLoad) -> Result<WorkResult, Reject> {
    Ok(WorkResult { id: job.id.to_native(), checksum: fnv1a(&job.payload) })
}

/// The 64-bit FNV-1a hash, with the constants of its authors.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cell_guest::testing::Archive;

    /// The values are from the FNV authors' test suite.
    #[test]
    fn checksums() {
        for (payload, checksum) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
        ] {
            let job = Archive::of(&WorkLoad { id: 7, payload: payload.into() });
            assert_eq!(worker(&job), Ok(WorkResult { id: 7, checksum }), "{payload:?}");
        }
    }
}
