//! What is said about a job: frames of a byte that says what, four bytes of length, little endian, and
//! content.

use std::io::{self, ErrorKind, Read, Write};

use serde::{Deserialize, Serialize};

use crate::cli::Exit;

/// Longest content of a frame, in bytes.
pub(super) const FRAME_BYTES_MAX: usize = 64 << 10;
/// Longest description of a job, in bytes.
pub(super) const SPEC_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// Longest receipt, in bytes: a tape of 4 MiB in hexadecimal digits, and room for the rest.
pub(super) const RECEIPT_BYTES_MAX: usize = 9 << 20;

/// What the machine that runs it says of its progress when the job begins.
pub(super) const RUNNING: &[u8] = b"running";

/// What a frame is. Numbers are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// To the machine that runs it: a [`Spec`] as JSON, first of all.
    Spec = 1,
    /// A part of the module, if that was asked for.
    Module = 2,
    /// A part of standard input; without content its end.
    Input = 3,
    /// From the machine that runs it: send the module, from the [`offset`] that is the content.
    NeedModule = 16,
    /// What it does before the job runs, for people.
    Progress = 17,
    /// A part of standard output, or of standard error.
    Output = 18,
    Errors = 19,
    /// A part of the receipt, as JSON.
    Receipt = 20,
    /// The last frame: an [`End`] as JSON.
    End = 21,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [
            Self::Spec,
            Self::Module,
            Self::Input,
            Self::NeedModule,
            Self::Progress,
            Self::Output,
            Self::Errors,
            Self::Receipt,
            Self::End,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// The job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    /// 64 hexadecimal digits that no other job of this payer has: a machine runs such a job once.
    #[serde(default)]
    pub(super) id: Option<String>,
    /// BLAKE3 of the module.
    pub(super) module: String,
    pub(super) module_bytes: u64,
    /// The program's name first.
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) memory_mb_max: u32,
    /// The most it may cost, and whether less will do.
    pub(super) budget_nano_atp: u64,
    pub(super) is_budget_given: bool,
    pub(super) timeout_ms: Option<u64>,
    /// Record what it takes to run it again.
    pub(super) recorded: bool,
    /// The channel that pays; without one the account of who asks does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) channel: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    /// What `cell run` exits with.
    pub(super) exit: u8,
    /// For people: how it ended and what it cost, or why it did not run.
    pub(super) message: String,
    /// It ran, and its receipt came before this.
    pub(super) ran: bool,
}

impl End {
    /// What `cell run` exits with where the job did not run: not with success, whatever was said.
    pub(super) const fn refusal(&self) -> Exit {
        match self.exit {
            0 => Exit::NucleusFault,
            exit => Exit::Job(exit),
        }
    }
}

/// Writes one frame, or several if the content is long. Nothing is written for no content, unless the
/// frame is one that says something by itself.
pub(super) fn write(to: &mut impl Write, kind: Kind, content: &[u8]) -> io::Result<()> {
    if content.is_empty() {
        return write_one(to, kind, content);
    }
    content.chunks(FRAME_BYTES_MAX).try_for_each(|part| write_one(to, kind, part))
}

fn write_one(to: &mut impl Write, kind: Kind, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).map_err(io::Error::other)?.to_le_bytes();
    let mut frame = Vec::with_capacity(5 + content.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(content);
    to.write_all(&frame)
}

/// From where a module is wanted, as the content of a frame: none for its start, or eight bytes, little endian.
pub(super) fn offset(at: usize) -> Vec<u8> {
    if at == 0 { Vec::new() } else { (at as u64).to_le_bytes().to_vec() }
}

/// The same, read; `None` of what is none.
pub(super) fn read_offset(content: &[u8]) -> Option<usize> {
    if content.is_empty() {
        return Some(0);
    }
    usize::try_from(u64::from_le_bytes(content.try_into().ok()?)).ok()
}

/// Reads one frame into the buffer; `None` where the connection ends between two.
pub(super) fn read(from: &mut impl Read, content: &mut Vec<u8>) -> io::Result<Option<Kind>> {
    let mut head = [0; 5];
    let (first, rest) = head.split_at_mut(1);
    loop {
        match from.read(first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    from.read_exact(rest)?;
    let [kind, length @ ..] = head;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    let wrong = |what: &str| Err(io::Error::new(ErrorKind::InvalidData, what));
    let Some(kind) = Kind::of(kind) else { return wrong("a frame of an unknown kind") };
    if length > FRAME_BYTES_MAX {
        return wrong("a frame that is too long");
    }
    content.resize(length, 0);
    from.read_exact(content)?;
    Ok(Some(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive() {
        let long: Vec<_> = (0..FRAME_BYTES_MAX * 2 + 7).map(|at| at.to_le_bytes()[0]).collect();
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Spec, b"{}").unwrap();
        write(&mut bytes, Kind::Input, &[]).unwrap();
        write(&mut bytes, Kind::Output, &long).unwrap();
        let (mut from, mut content, mut output) = (bytes.as_slice(), Vec::new(), Vec::new());
        assert_eq!(read(&mut from, &mut content).unwrap(), Some(Kind::Spec));
        assert_eq!(content, b"{}");
        assert_eq!(read(&mut from, &mut content).unwrap(), Some(Kind::Input));
        assert!(content.is_empty());
        for _ in 0..3 {
            assert_eq!(read(&mut from, &mut content).unwrap(), Some(Kind::Output));
            output.extend_from_slice(&content);
        }
        assert_eq!(output, long);
        assert_eq!(read(&mut from, &mut content).unwrap(), None);
    }

    #[test]
    fn offsets_arrive() {
        for at in [0, 1, 255, usize::MAX] {
            assert_eq!(read_offset(&offset(at)), Some(at));
        }
        for wrong in [&[7][..], &[0; 7], &[0; 9]] {
            assert_eq!(read_offset(wrong), None);
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for wrong in [
            &[0, 0, 0, 0, 0][..],
            &[1, 1, 0, 1, 0],
            &[1, 255, 255, 255, 255],
            &[1, 2],
            &[1, 2, 0, 0, 0, 7],
        ] {
            assert!(read(&mut &*wrong, &mut Vec::new()).is_err(), "{wrong:?}");
        }
        let end = |exit| End { exit, message: String::new(), ran: false };
        assert_eq!((end(0).refusal(), end(126).refusal()), (Exit::NucleusFault, Exit::Job(126)));
        assert!(serde_json::from_str::<End>(r#"{"exit":256,"message":"","ran":true}"#).is_err());
    }
}
