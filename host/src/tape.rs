//! What a guest learned from outside: recorded while it runs, and played back to run it again.
//!
//! All that an answer and a bill depend on besides module, input and limit is here: clocks,
//! randomness, the call's context, values of its state, replies of other cells, and what came in
//! through standard input. Nothing that the guest computes is.
//!
//! A tape is a row of events, each a byte that says which, the length of what follows as four
//! bytes, little endian, and what the guest got. It says nothing about who recorded it: a receipt's
//! leaf has its hash.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Stop;
use crate::stdio::Digest;
use crate::wasi::first_vector;

cell_abi::limits! {
    /// Longest tape of a call or a job whose receipt is kept, in bytes: what it learned from clocks,
    /// randomness, its state, other cells, and a job from its standard input.
    ///
    /// It goes on and is billed as any other; its receipt says that it cannot be checked by running
    /// it again.
    pub const TAPE_BYTES_MAX: usize = 4 << 20;
}

/// Bytes of an event besides its content.
const EVENT_BYTES: usize = 5;

/// Kinds of events; their numbers stand in kept tapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Event {
    /// 64 bytes of call context.
    Context = 1,
    /// A WASI function's errno, four bytes, and what it wrote to memory; errno -1 if it ended the guest.
    Wasi = 2,
    /// A call of another cell: status, four bytes; fuel, eight; reply.
    Call = 3,
    /// The state was taken: its size, eight bytes.
    State = 4,
    /// A key was looked up: 0, or 1 and the value.
    Value = 5,
}

/// Why running it again would not show whether the bill is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    /// It was stopped from outside, at no particular step.
    Stopped,
    /// Its tape would be longer than [`TAPE_BYTES_MAX`].
    TapeTooLong,
    /// It was refused memory because other guests had it.
    MemoryRefused,
    /// It gave up waiting for its state.
    StateRefused,
    /// It moved its standard streams about.
    StreamsMoved,
    /// It used directories, whose content nobody kept.
    Directories,
    /// What it took besides fuel used up its limit, at no particular step.
    Charges,
}

impl Flaw {
    /// In a word, as receipts have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::TapeTooLong => "tape_too_long",
            Self::MemoryRefused => "memory_refused",
            Self::StateRefused => "state_refused",
            Self::StreamsMoved => "streams_moved",
            Self::Directories => "directories",
            Self::Charges => "charges",
        }
    }
}

/// A tape that a guest and its host calls share.
#[derive(Debug, Clone)]
pub(crate) struct Tape(Arc<Mutex<Reel>>);

#[derive(Debug)]
struct Reel {
    bytes: Vec<u8>,
    flaw: Option<Flaw>,
    /// While playing: where the next event starts.
    at: Option<usize>,
    /// While playing a job: what it read and wrote.
    streams: Streams,
}

/// What went through a job's standard streams while its tape was played.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) input: Digest,
    pub(crate) output: Digest,
    pub(crate) errors: Digest,
}

impl Tape {
    pub(crate) fn recording() -> Self {
        Self::new(Vec::new(), None)
    }

    pub(crate) fn playing(bytes: Vec<u8>) -> Self {
        Self::new(bytes, Some(0))
    }

    fn new(bytes: Vec<u8>, at: Option<usize>) -> Self {
        Self(Arc::new(Mutex::new(Reel { bytes, flaw: None, at, streams: Streams::default() })))
    }

    pub(crate) fn is_playing(&self) -> bool {
        self.reel().at.is_some()
    }

    /// Adds an event whose content has these parts, if it is recorded.
    pub(crate) fn record(&self, event: Event, parts: &[&[u8]]) {
        let mut reel = self.reel();
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if reel.at.is_some() || reel.flaw == Some(Flaw::TapeTooLong) {
            return;
        }
        if reel.bytes.len() + EVENT_BYTES + len > TAPE_BYTES_MAX {
            reel.bytes = Vec::new();
            reel.flaw = Some(Flaw::TapeTooLong);
            return;
        }
        reel.bytes.push(event as u8);
        reel.bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        parts.iter().for_each(|part| reel.bytes.extend_from_slice(part));
    }

    /// The content of the next event; `None` unless it is played. The guest ends where the tape has
    /// another event than it had then.
    pub(crate) fn play(&self, event: Event) -> wasmtime::Result<Option<Vec<u8>>> {
        let mut reel = self.reel();
        let Some(at) = reel.at else { return Ok(None) };
        let next = || {
            let (kind, rest) = reel.bytes.get(at..)?.split_first()?;
            let (len, rest) = rest.split_first_chunk::<4>()?;
            let content = rest.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
            (*kind == event as u8).then(|| content.to_vec())
        };
        let content = next().ok_or(Stop::Diverged)?;
        reel.at = Some(at + EVENT_BYTES + content.len());
        Ok(Some(content))
    }

    /// Notes why it cannot be run again; the first reason stays.
    pub(crate) fn spoil(&self, flaw: Flaw) {
        self.reel().flaw.get_or_insert(flaw);
    }

    /// Whether it was played to its end, or is recorded.
    pub(crate) fn is_over(&self) -> bool {
        let reel = self.reel();
        reel.at.is_none_or(|at| at == reel.bytes.len())
    }

    /// What was recorded, and why that does not suffice.
    pub(crate) fn take(&self) -> (Vec<u8>, Option<Flaw>) {
        let mut reel = self.reel();
        (std::mem::take(&mut reel.bytes), reel.flaw)
    }

    pub(crate) fn with_streams<T>(&self, use_them: impl FnOnce(&mut Streams) -> T) -> T {
        use_them(&mut self.reel().streams)
    }

    fn reel(&self) -> MutexGuard<'_, Reel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call of a WASI function: its name, its arguments, and the memory of who calls.
pub(crate) struct WasiCall<'a> {
    pub(crate) name: &'static str,
    pub(crate) arguments: &'a [i64],
}

/// The errno that stands for a call that ended the guest: it is made again when the tape is played.
const ENDED: i32 = -1;

impl WasiCall<'_> {
    /// Plays what the function answered; `None` if it has to be called.
    pub(crate) fn play(&self, tape: &Tape, memory: &mut [u8]) -> wasmtime::Result<Option<i32>> {
        if self.written(memory, 0).is_none() {
            return Ok(None);
        }
        let Some(content) = tape.play(Event::Wasi)? else { return Ok(None) };
        let (errno, mut rest) = content.split_first_chunk::<4>().ok_or(Stop::Diverged)?;
        let errno = i32::from_le_bytes(*errno);
        if errno == ENDED {
            return Ok(None);
        }
        if errno == 0 {
            let first = rest.first_chunk::<4>().map_or(0, |first| u32::from_le_bytes(*first));
            for (at, len) in self.written(memory, first).into_iter().flatten() {
                let bytes = rest.split_off(..len).ok_or(Stop::Diverged)?;
                memory.get_mut(at..at + len).ok_or(Stop::Diverged)?.copy_from_slice(bytes);
            }
            self.count(tape, memory, first)?;
        }
        Ok(Some(errno))
    }

    /// Records what the function answered.
    pub(crate) fn record(&self, tape: &Tape, memory: &[u8], answer: &wasmtime::Result<i32>) {
        let moved = self.name == "fd_renumber" && self.arguments.iter().any(|fd| *fd < 3);
        if moved {
            tape.spoil(Flaw::StreamsMoved);
        }
        if self.written(memory, 0).is_none() {
            return;
        }
        let errno = answer.as_ref().map_or(ENDED, |errno| *errno);
        let mut parts = vec![errno.to_le_bytes().to_vec()];
        if errno == 0 {
            let first = self.written(memory, 0).and_then(|ranges| {
                let (at, _) = *ranges.first()?;
                Some(u32::from_le_bytes(*memory.get(at..)?.first_chunk()?))
            });
            let ranges = self.written(memory, first.unwrap_or(0)).unwrap_or_default();
            let bytes = |(at, len): (usize, usize)| memory.get(at..at + len);
            parts.extend(ranges.into_iter().filter_map(bytes).map(<[u8]>::to_vec));
        }
        let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
        tape.record(Event::Wasi, &parts);
    }

    /// Where in memory the function writes when it succeeds, given the number that it writes first, if
    /// any; `None` for one that tells the guest nothing that it does not know.
    fn written(&self, memory: &[u8], first: u32) -> Option<Vec<(usize, usize)>> {
        let argument = |at| self.argument(at);
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        Some(match self.name {
            "clock_res_get" => vec![(argument(1), 8)],
            "clock_time_get" => vec![(argument(2), 8)],
            "fd_fdstat_get" => vec![(argument(1), 24)],
            "fd_filestat_get" => vec![(argument(1), 64)],
            "random_get" => vec![(argument(0), argument(1))],
            "poll_oneoff" => {
                vec![(argument(3), 4), (argument(1), first.saturating_mul(32).min(memory.len()))]
            }
            "fd_write" => vec![(argument(3), 4)],
            "fd_read" => {
                let at = first_vector(memory, argument(1), argument(2)).map_or(0, |(at, _)| at);
                vec![(argument(3), 4), (at, first.min(memory.len()))]
            }
            _ => return None,
        })
    }

    /// An argument as an address or a length.
    fn argument(&self, at: usize) -> usize {
        let value = self.arguments.get(at).copied().unwrap_or(0);
        usize::try_from(value & i64::from(u32::MAX)).unwrap_or(0)
    }

    /// While playing: what the guest reads and writes goes into the digests of its streams.
    fn count(&self, tape: &Tape, memory: &[u8], bytes: u32) -> wasmtime::Result<()> {
        let fd = self.arguments.first().copied().unwrap_or(-1);
        if !matches!((self.name, fd), ("fd_read", 0) | ("fd_write", 1 | 2)) || bytes == 0 {
            return Ok(());
        }
        let vector = first_vector(memory, self.argument(1), self.argument(2));
        let vector = vector.ok_or(Stop::Diverged)?;
        let len = usize::try_from(bytes)?.min(vector.1);
        let moved = memory.get(vector.0..vector.0.saturating_add(len)).ok_or(Stop::Diverged)?;
        tape.with_streams(|streams| match fd {
            0 => streams.input.take(moved),
            1 => streams.output.take(moved),
            _ => streams.errors.take(moved),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_played() {
        let tape = Tape::recording();
        assert_eq!(tape.play(Event::Context).unwrap(), None);
        tape.record(Event::Context, &[b"ab", b"c"]);
        tape.record(Event::Value, &[&[0]]);
        let (bytes, flaw) = tape.take();
        assert_eq!(flaw, None);
        let tape = Tape::playing(bytes);
        assert_eq!(tape.play(Event::Context).unwrap(), Some(b"abc".to_vec()));
        assert!(!tape.is_over());
        assert!(tape.play(Event::State).is_err(), "another event than was recorded");
        assert_eq!(tape.play(Event::Value).unwrap(), Some(vec![0]));
        assert!(tape.is_over());
        assert!(tape.play(Event::Value).is_err(), "past the end");
    }

    #[test]
    fn any_bytes_can_be_played() {
        for bytes in
            [vec![1], vec![1, 255, 255, 255, 255], vec![9, 0, 0, 0, 0], vec![1, 1, 0, 0, 0]]
        {
            assert!(Tape::playing(bytes).play(Event::Context).is_err());
        }
    }

    #[test]
    fn a_long_tape_is_given_up() {
        let tape = Tape::recording();
        let megabyte = vec![0; 1 << 20];
        (0..4).for_each(|_| tape.record(Event::Value, &[&megabyte]));
        tape.record(Event::Value, &[&[0]]);
        assert_eq!(tape.take(), (Vec::new(), Some(Flaw::TapeTooLong)));
    }

    #[test]
    fn a_read_goes_where_it_went() {
        let mut memory = vec![0; 64];
        // Two buffers, the first of them empty; the answer at 4.
        memory[16..32].copy_from_slice(&[40, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0, 8, 0, 0, 0]);
        let call = WasiCall { name: "fd_read", arguments: &[0, 16, 2, 4] };
        let mut after = memory.clone();
        after[4] = 3;
        after[48..51].copy_from_slice(b"xyz");
        let tape = Tape::recording();
        call.record(&tape, &after, &Ok(0));
        let tape = Tape::playing(tape.take().0);
        assert_eq!(call.play(&tape, &mut memory).unwrap(), Some(0));
        assert_eq!(memory, after);
        assert_eq!(tape.with_streams(|streams| streams.input.bytes()), 3);
    }
}
