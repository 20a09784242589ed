//! The nucleus as unit tests see it: one per thread, in memory.

use std::cell::RefCell;
use std::collections::BTreeMap;

use cell_abi::{AccountId, Status};
use rkyv::util::AlignedVec;

use super::CallContext;
use crate::log::Level;

/// Answers one receptor of one cell: a request in, a status and a reply out.
pub(crate) type Answering = Box<dyn Fn(&[u8]) -> (Status, AlignedVec)>;

pub(crate) struct Fake {
    pub(crate) context: CallContext,
    pub(crate) fuel_left: u64,
    pub(crate) state_bytes_max: usize,
    pub(crate) log: Vec<(Level, String)>,
    /// By cell and receptor.
    pub(crate) cells: BTreeMap<(String, String), Answering>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What the last `kv_get` found.
    found: Vec<u8>,
}

impl Fake {
    pub(crate) const fn new() -> Self {
        let caller = AccountId::from_bytes([0; 32]);
        Self {
            context: CallContext { caller, started_at_ns: 0, left_ns: 30_000_000_000, depth: 0 },
            fuel_left: 1_000_000_000,
            state_bytes_max: 16 << 20,
            log: Vec::new(),
            cells: BTreeMap::new(),
            state: BTreeMap::new(),
            found: Vec::new(),
        }
    }
}

thread_local! {
    static FAKE: RefCell<Fake> = const { RefCell::new(Fake::new()) };
}

pub(crate) fn with<T>(use_it: impl FnOnce(&mut Fake) -> T) -> T {
    FAKE.with_borrow_mut(use_it)
}

pub(crate) fn context() -> CallContext {
    with(|fake| fake.context)
}

pub(crate) fn fuel_left() -> u64 {
    with(|fake| fake.fuel_left)
}

pub(crate) fn log(level: u32, text: &str) {
    let level = match level {
        1 => Level::Error,
        2 => Level::Warn,
        3 => Level::Info,
        _ => Level::Debug,
    };
    with(|fake| fake.log.push((level, text.to_owned())));
}

pub(crate) fn call(
    cell: &str,
    receptor: &str,
    _schema: &str,
    request: &[u8],
    _fuel: u64,
) -> (u32, AlignedVec) {
    let key = (cell.to_owned(), receptor.to_owned());
    // Taken out meanwhile, so that the answering function may use a context of its own.
    let Some(answering) = with(|fake| fake.cells.remove(&key)) else {
        let mut message = AlignedVec::new();
        message
            .extend_from_slice(format!("the test answers no call of {cell}.{receptor}").as_bytes());
        return (Status::UnknownCell.code(), message);
    };
    let (status, reply) = answering(request);
    with(|fake| fake.cells.insert(key, answering));
    (status.code(), reply)
}

pub(crate) fn kv_get(key: &[u8]) -> Option<usize> {
    with(|fake| {
        fake.found = fake.state.get(key)?.clone();
        Some(fake.found.len())
    })
}

pub(crate) fn kv_value(out: &mut [u8]) {
    with(|fake| {
        for (to, from) in out.iter_mut().zip(&fake.found) {
            *to = *from;
        }
    });
}

pub(crate) fn kv_set(key: &[u8], value: &[u8]) -> bool {
    with(|fake| {
        let others = fake.state.iter().filter(|(other, _)| other.as_slice() != key);
        let bytes: usize = others.map(|(key, value)| key.len() + value.len()).sum();
        let fits = bytes + key.len() + value.len() <= fake.state_bytes_max;
        if fits {
            fake.state.insert(key.to_owned(), value.to_owned());
        }
        fits
    })
}

pub(crate) fn kv_delete(key: &[u8]) -> bool {
    with(|fake| fake.state.remove(key).is_some())
}
