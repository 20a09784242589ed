//! What a worker tells of calls of cells that keep receipts: too much for a packet of the link, so it
//! comes in a file of memory beside one.

use std::io;
use std::os::fd::OwnedFd;

use cell_host::CallRecord;
use serde::{Deserialize, Serialize};

use crate::memory_file;

/// Bytes of one such file: what [`PENDING_MAX`] calls take, and [`BODIES_BYTES_MAX`].
pub(crate) const RECORDS_BYTES_MAX: u64 = 96 << 20;
/// Calls of one user and one cell that may wait to be told to the nucleus.
pub(crate) const PENDING_MAX: usize = 65_536;
/// Requests and tapes of one user's calls that may wait to be told to the nucleus, in bytes.
pub(crate) const BODIES_BYTES_MAX: usize = 32 << 20;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) cell_hash: [u8; 32],
    pub(crate) receptor: u16,
    pub(crate) json: bool,
    pub(crate) memory_bytes_max: u64,
    pub(crate) state_bytes_max: u64,
    pub(crate) fuel_max: u64,
    pub(crate) fuel: u64,
    pub(crate) own_fuel: u64,
    /// What it took besides: [`cell_host::Taken`].
    pub(crate) taken: [u64; 3],
    pub(crate) status: u32,
    pub(crate) input_bytes: u64,
    pub(crate) input_hash: [u8; 32],
    pub(crate) output_bytes: u64,
    pub(crate) output_hash: [u8; 32],
    pub(crate) tape_bytes: u64,
    pub(crate) tape_hash: [u8; 32],
    pub(crate) flaw: Option<String>,
    pub(crate) input: Option<Vec<u8>>,
    pub(crate) tape: Option<Vec<u8>>,
}

impl Record {
    /// The record of a call; without request and tape if there is no room to keep them.
    pub(crate) fn of(call: CallRecord, with_bodies: bool) -> Self {
        Self {
            cell_hash: *call.hash.as_bytes(),
            receptor: call.receptor,
            json: call.json,
            memory_bytes_max: call.memory_bytes_max,
            state_bytes_max: call.state_bytes_max,
            fuel_max: call.limit.0,
            fuel: call.fuel.0,
            own_fuel: call.own_fuel.0,
            taken: call.taken.0,
            status: call.status.code(),
            input_bytes: call.input_bytes.into(),
            input_hash: *blake3::hash(&call.input).as_bytes(),
            output_bytes: call.output_bytes,
            output_hash: call.output_hash,
            tape_bytes: call.tape.len() as u64,
            tape_hash: *blake3::hash(&call.tape).as_bytes(),
            flaw: call.flaw.map(|flaw| flaw.name().to_owned()),
            input: with_bodies.then_some(call.input),
            tape: with_bodies.then_some(call.tape),
        }
    }

    /// Whether request and tape, where they are there, are what their hashes say.
    fn is_sound(&self) -> bool {
        let fits = |bytes: &Option<Vec<u8>>, hash: &[u8; 32]| {
            bytes.as_ref().is_none_or(|bytes| blake3::hash(bytes).as_bytes() == hash)
        };
        fits(&self.input, &self.input_hash)
            && fits(&self.tape, &self.tape_hash)
            && self.own_fuel <= self.fuel
            && self.fuel <= self.fuel_max
            && self.flaw.as_ref().is_none_or(|flaw| flaw.len() <= 32)
    }
}

/// Writes records into a file of memory.
pub(crate) fn write(records: &[Record]) -> io::Result<OwnedFd> {
    memory_file::write(&postcard::to_stdvec(records).map_err(io::Error::other)?)
}

/// Reads such a file. The worker may have been taken over: nothing in it is believed to fit before it
/// was seen.
pub(crate) fn read(file: OwnedFd) -> anyhow::Result<Vec<Record>> {
    let bytes = memory_file::read(file, RECORDS_BYTES_MAX)?;
    let records: Vec<Record> = postcard::from_bytes(&bytes)?;
    anyhow::ensure!(records.len() <= PENDING_MAX, "{} records", records.len());
    anyhow::ensure!(records.iter().all(Record::is_sound), "a record that does not fit itself");
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            cell_hash: [1; 32],
            receptor: 2,
            json: true,
            memory_bytes_max: 1,
            state_bytes_max: 2,
            fuel_max: 10,
            fuel: 9,
            own_fuel: 8,
            taken: [0; 3],
            status: 0,
            input_bytes: 2,
            input_hash: *blake3::hash(b"in").as_bytes(),
            output_bytes: 0,
            output_hash: [0; 32],
            tape_bytes: 0,
            tape_hash: *blake3::hash(b"").as_bytes(),
            flaw: None,
            input: Some(b"in".to_vec()),
            tape: Some(Vec::new()),
        }
    }

    #[test]
    fn records_arrive() {
        let records = vec![record(), Record { input: None, tape: None, ..record() }];
        assert_eq!(read(write(&records).unwrap()).unwrap(), records);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for wrong in [
            Record { own_fuel: 10, ..record() },
            Record { fuel: 11, ..record() },
            Record { input: Some(b"im".to_vec()), ..record() },
            Record { flaw: Some("x".repeat(33)), ..record() },
        ] {
            assert!(read(write(&[wrong]).unwrap()).is_err());
        }
        assert!(read(write(&vec![record(); PENDING_MAX + 1]).unwrap()).is_err());
        assert!(read(memory_file::write(&[0xff; 100]).unwrap()).is_err());
    }
}
