//! Memory that two processes share, and that the other one may change at any moment.
//!
//! Nothing in it is ever borrowed as bytes: it is loaded and stored atomically, so that what the
//! other side does meanwhile can change values and nothing else.
#![allow(
    unsafe_code,
    reason = "mapping memory has no safe interface: another process may write to it"
)]

use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use rustix::mm::{MapFlags, ProtFlags};

const WORD: usize = size_of::<u64>();

/// A mapping of a whole number of words.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<AtomicU64>,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread, and is reached through atomics only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the first bytes of a file, which must have as many for as long as it is mapped.
    pub fn map(file: impl AsFd, bytes: usize) -> io::Result<Self> {
        let flags = MapFlags::SHARED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an address where nothing is mapped yet.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, access, flags, file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrInUse)?;
        Ok(Self { base, bytes })
    }

    /// The word at this place, in bytes from the start.
    pub fn word(&self, at: usize) -> &AtomicU64 {
        let word = self.words().get(at / WORD);
        word.unwrap_or_else(|| unreachable!("places are constants within the mapping"))
    }

    /// Copies bytes from this place on; they must lie within the mapping.
    pub fn load(&self, at: usize, into: &mut [u8]) {
        let (first, middle, last) = self.split(at, into.len());
        let (start, rest) = into.split_at_mut(first.len());
        let (whole, end) = rest.split_at_mut(middle.len() * WORD);
        for (to, from) in start.iter_mut().zip(first) {
            *to = from.load(Relaxed);
        }
        for (to, from) in whole.chunks_exact_mut(WORD).zip(middle) {
            to.copy_from_slice(&from.load(Relaxed).to_ne_bytes());
        }
        for (to, from) in end.iter_mut().zip(last) {
            *to = from.load(Relaxed);
        }
    }

    /// Copies bytes to this place; it must have room for them.
    pub fn store(&self, at: usize, from: &[u8]) {
        let (first, middle, last) = self.split(at, from.len());
        let (start, rest) = from.split_at(first.len());
        let (whole, end) = rest.split_at(middle.len() * WORD);
        for (from, to) in start.iter().zip(first) {
            to.store(*from, Relaxed);
        }
        for (from, to) in whole.as_chunks::<WORD>().0.iter().zip(middle) {
            to.store(u64::from_ne_bytes(*from), Relaxed);
        }
        for (from, to) in end.iter().zip(last) {
            to.store(*from, Relaxed);
        }
    }

    /// A stretch as bytes up to the first whole word, whole words, and the bytes behind them.
    fn split(&self, at: usize, bytes: usize) -> (&[AtomicU8], &[AtomicU64], &[AtomicU8]) {
        let (end, start) = (at + bytes, at.next_multiple_of(WORD));
        if start + WORD > end {
            return (self.bytes(at, end), &[], &[]);
        }
        let stop = end - end % WORD;
        let words = self.words().get(start / WORD..stop / WORD).unwrap_or_default();
        (self.bytes(at, start), words, self.bytes(stop, end))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is aligned to pages, as long as this, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes / WORD) }
    }

    fn bytes(&self, from: usize, to: usize) -> &[AtomicU8] {
        // SAFETY: as for words; a byte has no alignment.
        let all = unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.bytes) };
        all.get(from..to).unwrap_or_default()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows from it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
