//! A module on its way to one machine, over as many connections as that takes.
//!
//! What the machine has of it already only the machine says. As long as it asks for the module it runs nothing,
//! and the job keeps its number, so to dial again costs nothing and runs nothing twice.

use std::io;
use std::time::Duration;

use super::ask::Streams;
use super::wire::{self, Kind};

/// How often a machine is dialled for one job.
pub(super) const UPLOAD_TRIES_MAX: u32 = 6;
/// The same where other machines could run it as well.
pub(super) const UPLOAD_TRIES_OF_MANY_MAX: u32 = 2;
/// How long after the first line was lost it is dialled again; then after twice as long, and so on. A machine
/// that has not noticed yet counts the job as one that it has.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often one connection may ask for the module: what came before may have been wrong.
pub(super) const ASKED_MAX: u32 = 2;
/// A module from this size on has its progress shown, in bytes.
const SHOWN_BYTES_MIN: usize = 1 << 20;

pub(super) struct Upload<'a> {
    wasm: &'a [u8],
    /// Connections until now, and at most.
    tries: u32,
    tries_max: u32,
    /// How often this one asked for it.
    asked: u32,
    /// Over this one all of it went.
    is_sent: bool,
    /// All that was heard of the machine is that it wants the module.
    is_under_way: bool,
    /// A connection was lost when the machine may have had all that it needs.
    may_have_run: bool,
}

impl<'a> Upload<'a> {
    pub(super) const fn new(wasm: &'a [u8], tries_max: u32) -> Self {
        let (is_sent, is_under_way, may_have_run) = (false, false, false);
        Self { wasm, tries: 0, tries_max, asked: 0, is_sent, is_under_way, may_have_run }
    }

    /// Another connection is tried.
    pub(super) const fn dial(&mut self) {
        (self.tries, self.asked, self.is_sent) = (self.tries + 1, 0, false);
    }

    /// The connection was lost, after the machine was told of the job.
    pub(super) const fn lost(&mut self) {
        self.may_have_run |= self.asked == 0 || self.is_sent || !self.is_under_way;
    }

    /// After how long to dial again, and what people are told; `None` where that would not help.
    pub(super) fn again(&self) -> Option<(Duration, String)> {
        if !self.is_under_way || self.tries >= self.tries_max {
            return None;
        }
        let text = format!(
            "the line was lost while the module was being sent; dialling again ({} of {})",
            self.tries + 1,
            self.tries_max
        );
        Some((AGAIN_AFTER * 2_u32.saturating_pow(self.tries.saturating_sub(1)), text))
    }

    /// Whether the job may have run on a connection that was lost.
    pub(super) const fn may_have_run(&self) -> bool {
        self.may_have_run
    }

    /// Whether it was dialled before.
    pub(super) const fn is_again(&self) -> bool {
        self.tries > 1
    }

    /// What it means that this connection is lost.
    pub(super) const fn loss(&self) -> &'static str {
        if self.is_under_way && !self.is_sent && !self.may_have_run {
            "the connection was lost while the module was being sent; nothing ran, and nothing is charged"
        } else {
            "the connection was lost; what the job did until then is charged there"
        }
    }

    /// Whether this connection ends before all of it went.
    pub(super) const fn is_stuck(&self) -> bool {
        self.is_under_way && self.asked > 0 && !self.is_sent
    }

    /// The machine has it, and goes on to what follows.
    pub(super) const fn arrived(&mut self) {
        self.is_under_way = false;
    }

    /// From where the machine wants it, if it may ask so.
    pub(super) fn asked(&mut self, content: &[u8]) -> Option<&'a [u8]> {
        self.asked += 1;
        let at = wire::read_offset(content)?;
        let is_fit = self.asked == 1 || self.asked <= ASKED_MAX && at == 0;
        let rest = self.wasm.get(at..).filter(|_| is_fit)?;
        (self.is_under_way, self.is_sent) = (true, false);
        Some(rest)
    }

    /// Sends the rest, and shows how far that is.
    pub(super) fn send(
        &mut self,
        to: &mut impl io::Write,
        rest: &[u8],
        streams: &mut dyn Streams,
    ) -> io::Result<()> {
        let all = self.wasm.len();
        let mut there = all - rest.len();
        for part in rest.chunks(wire::FRAME_BYTES_MAX) {
            wire::write(to, Kind::Module, part)?;
            there += part.len();
            if all >= SHOWN_BYTES_MIN {
                let text = format!("sending the module: {} of {} MiB", mib(there), mib(all));
                streams.progress(&text);
            }
        }
        self.is_sent = true;
        Ok(())
    }
}

/// Of bytes, with one decimal.
fn mib(bytes: usize) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dials until that is no use any more, and says how often, and how long it waited.
    #[track_caller]
    fn check(connection: impl FnMut(&mut Upload<'_>), expect: (u32, u64), may_have_run: bool) {
        check_of(UPLOAD_TRIES_MAX, connection, expect, may_have_run);
    }

    #[track_caller]
    fn check_of(
        tries_max: u32,
        mut connection: impl FnMut(&mut Upload<'_>),
        expect: (u32, u64),
        may_have_run: bool,
    ) {
        let mut upload = Upload::new(b"0123456789", tries_max);
        let mut waited = Duration::ZERO;
        let tries = loop {
            upload.dial();
            connection(&mut upload);
            match upload.again() {
                Some((wait, _)) => waited += wait,
                None => break upload.tries,
            }
        };
        assert_eq!(((tries, waited.as_secs()), upload.may_have_run()), (expect, may_have_run));
    }

    #[test]
    fn a_line_that_is_lost_again_and_again() {
        let all = (UPLOAD_TRIES_MAX, 1 + 2 + 4 + 8 + 16);
        // Not reached at all.
        check(|_| {}, (1, 0), false);
        // Lost before it asked for the module, so it may have it.
        check(|upload| upload.lost(), (1, 0), true);
        let ask = |upload: &mut Upload<'_>, at| upload.asked(&wire::offset(at)).map(<[u8]>::len);
        check(
            |upload| {
                assert_eq!(ask(upload, 4), Some(6));
                assert!(upload.loss().contains("nothing is charged"));
                upload.lost();
            },
            all,
            false,
        );
        // Once, and then it cannot be reached.
        // Where there are others, the next one gets its turn soon.
        let lost = |upload: &mut Upload<'_>| {
            assert_eq!(ask(upload, 4), Some(6));
            upload.lost();
        };
        check_of(UPLOAD_TRIES_OF_MANY_MAX, lost, (UPLOAD_TRIES_OF_MANY_MAX, 1), false);
        // All of it went, and the machine wants it once more: it has run nothing.
        let wrong = |upload: &mut Upload<'_>| {
            assert_eq!(ask(upload, 4), Some(6));
            upload.is_sent = true;
            assert_eq!(ask(upload, 0), Some(10));
            assert!(upload.is_stuck());
            upload.lost();
        };
        check(wrong, all, false);
        let asked = |upload: &mut Upload<'_>| {
            if upload.tries == 1 {
                assert_eq!(ask(upload, 0), Some(10));
                upload.lost();
            }
        };
        check(asked, all, false);
        // Sent, and not a word after it.
        let sent = |upload: &mut Upload<'_>| {
            assert_eq!(ask(upload, 0), Some(10));
            upload.is_sent = true;
            upload.lost();
            assert!(upload.loss().contains("is charged there"));
        };
        check(sent, all, true);
        // Lost when it ran.
        let ran = |upload: &mut Upload<'_>| {
            assert_eq!(ask(upload, 0), Some(10));
            upload.arrived();
            upload.lost();
        };
        check(ran, (1, 0), true);
    }

    #[test]
    fn what_may_be_asked() {
        let mut upload = Upload::new(b"0123456789", UPLOAD_TRIES_MAX);
        upload.dial();
        assert_eq!(upload.asked(&wire::offset(10)), Some(&b""[..]));
        assert_eq!(upload.asked(&wire::offset(0)), Some(&b"0123456789"[..]), "from the start");
        assert_eq!(upload.asked(&wire::offset(0)), None, "and not once more");
        upload.dial();
        for wrong in [&wire::offset(11)[..], &wire::offset(usize::MAX), b"1"] {
            assert_eq!(upload.asked(wrong), None);
            upload.dial();
        }
        assert_eq!(upload.asked(&wire::offset(3)), Some(&b"3456789"[..]));
        assert_eq!(upload.asked(&wire::offset(4)), None);
    }

    #[test]
    fn figures() {
        assert_eq!([0, 1 << 20, (5 << 19) + 1].map(mib), ["0.0", "1.0", "2.5"]);
    }
}
