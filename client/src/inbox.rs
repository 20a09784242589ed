//! Bytes on their way in, cut into frames.
//!
//! It reads from no socket and knows no request: whoever owns it decides, by the header alone and
//! before memory is taken, how much of a payload is kept.

use cell_abi::frame::HEADER_BYTES;
use cell_abi::{FrameError, Header};
use rkyv::util::AlignedVec;

/// Small frames are read through a buffer of this many bytes; the rest of a payload that does not
/// fit goes from the system straight to where it stays.
const BUFFER_BYTES: usize = 64 << 10;
/// After a frame with a larger payload, so much is read at first.
const LARGE_BYTES: u32 = 16 << 10;
const WITH_HEADER_BYTES: usize = 4 << 10;
/// Payload buffers that came back are kept up to this many bytes in total.
pub(crate) const SPARE_BYTES_MAX: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes to drop before the next header: padding, and payload that nobody wants.
    skip: u64,
    partial: Option<Partial>,
    /// The last frame was large, and so may be the next.
    after_large: bool,
    spares: Vec<AlignedVec>,
    spare_bytes: usize,
}

/// A frame whose payload has not come in whole.
#[derive(Debug)]
struct Partial {
    header: Header,
    payload: AlignedVec,
    filled: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            skip: 0,
            partial: None,
            after_large: false,
            spares: Vec::new(),
            spare_bytes: 0,
        }
    }

    /// Where the next bytes go: first what an unfinished payload lacks, then the buffer.
    ///
    /// The second part has room whenever [`frame`](Self::frame) was asked until it had no more.
    pub(crate) fn space(&mut self) -> (&mut [u8], &mut [u8]) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let lacking = match &mut self.partial {
            Some(partial) => partial.payload.get_mut(partial.filled..).unwrap_or_default(),
            None => &mut [],
        };
        // What comes with a large frame's header is copied once more; so little of it comes with it.
        let end = if self.after_large { self.end + WITH_HEADER_BYTES } else { usize::MAX };
        let end = end.min(self.buffer.len());
        (lacking, self.buffer.get_mut(self.end..end).unwrap_or_default())
    }

    /// Notes that this many bytes were written to [`space`](Self::space).
    pub(crate) fn advance(&mut self, mut bytes: usize) {
        if let Some(partial) = &mut self.partial {
            let part = bytes.min(partial.payload.len() - partial.filled);
            partial.filled += part;
            bytes -= part;
        }
        self.end = (self.end + bytes).min(self.buffer.len());
    }

    /// Takes bytes that are no frame; `None` until all are there.
    pub(crate) fn plain<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.unread().first_chunk::<N>()?;
        self.start += N;
        Some(bytes)
    }

    /// Takes the next whole frame; `None` until it is there.
    ///
    /// `keep` sees each header once and says how many bytes of its payload are wanted.
    pub(crate) fn frame<E: From<FrameError>>(
        &mut self,
        keep: impl FnOnce(&Header) -> Result<u32, E>,
    ) -> Result<Option<(Header, AlignedVec)>, E> {
        if self.partial.is_none() {
            self.partial = self.begin(keep)?;
        }
        match self.partial.take() {
            Some(frame) if frame.filled == frame.payload.len() => {
                Ok(Some((frame.header, frame.payload)))
            }
            partial => {
                self.partial = partial;
                Ok(None)
            }
        }
    }

    /// Whether the stream would end within a frame if it ended here.
    pub(crate) fn is_mid_frame(&self) -> bool {
        self.partial.is_some() || self.skip > 0 || !self.unread().is_empty()
    }

    /// Takes a payload buffer back, for a later frame.
    pub(crate) fn recycle(&mut self, buffer: AlignedVec) {
        let bytes = self.spare_bytes + buffer.capacity();
        if buffer.capacity() > 0 && bytes <= SPARE_BYTES_MAX {
            self.spare_bytes = bytes;
            self.spares.push(buffer);
        }
    }

    fn begin<E: From<FrameError>>(
        &mut self,
        keep: impl FnOnce(&Header) -> Result<u32, E>,
    ) -> Result<Option<Partial>, E> {
        let dropped = usize::try_from(self.skip).map_or(usize::MAX, |skip| skip);
        let dropped = dropped.min(self.unread().len());
        self.start += dropped;
        self.skip -= dropped as u64;
        if self.skip > 0 {
            return Ok(None);
        }
        let Some(header) = self.unread().first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::decode(header)?;
        self.after_large = header.payload_bytes > LARGE_BYTES;
        let kept = keep(&header)?.min(header.payload_bytes);
        self.start += HEADER_BYTES;
        self.skip = u64::from(header.payload_bytes - kept) + header.padding() as u64;

        let mut payload = self.buffer_of(kept as usize);
        let filled = payload.len().min(self.unread().len());
        let (arrived, _) = self.unread().split_at(filled);
        let (to, _) = payload.split_at_mut(filled);
        to.copy_from_slice(arrived);
        self.start += filled;
        Ok(Some(Partial { header, payload, filled }))
    }

    /// A buffer of this length. Its content is left over: no byte is cleared that was there before.
    fn buffer_of(&mut self, bytes: usize) -> AlignedVec {
        let mut buffer = match bytes {
            0 => AlignedVec::new(),
            _ => self.spares.pop().unwrap_or_default(),
        };
        self.spare_bytes = self.spare_bytes.saturating_sub(buffer.capacity());
        if bytes > buffer.capacity() {
            // A fresh one, so that growing copies nothing.
            buffer = AlignedVec::with_capacity(bytes);
        }
        buffer.resize(bytes, 0);
        buffer
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use cell_abi::Kind;

    use super::*;
    use crate::outbox::Outbox;

    fn frames(payloads: &[&[u8]]) -> Vec<u8> {
        let mut outbox = Outbox::default();
        for payload in payloads {
            let payload_bytes = u32::try_from(payload.len()).unwrap();
            outbox.push_frame(&Header { payload_bytes, ..Header::new(Kind::Reply) }, payload);
        }
        outbox.unsent().to_vec()
    }

    /// Feeds the stream in pieces of one size and collects the payloads, each cut at `keep`.
    fn read(stream: &[u8], piece: usize, keep: u32) -> Vec<Vec<u8>> {
        let mut inbox = Inbox::new();
        let mut found = Vec::new();
        let mut rest = stream;
        while !rest.is_empty() {
            let (lacking, free) = inbox.space();
            let first = lacking.len().min(piece).min(rest.len());
            lacking[..first].copy_from_slice(&rest[..first]);
            let second = free.len().min(piece.min(rest.len()) - first);
            free[..second].copy_from_slice(&rest[first..first + second]);
            inbox.advance(first + second);
            rest = &rest[first + second..];
            while let Some((_, payload)) = inbox.frame::<FrameError>(|_| Ok(keep)).unwrap() {
                assert!(payload.is_empty() || payload.as_ptr().align_offset(16) == 0);
                found.push(payload.to_vec());
                inbox.recycle(payload);
            }
        }
        assert!(!inbox.is_mid_frame());
        found
    }

    #[test]
    fn any_cut_gives_the_same_frames() {
        let large: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let payloads: &[&[u8]] = &[b"", b"a", &[7; 64], &large, b"", &[9; 65_000], b"end"];
        let stream = frames(payloads);
        for piece in [1, 7, 16, 32, 33, 4096, 65_536, 1 << 20] {
            assert_eq!(read(&stream, piece, u32::MAX), payloads, "pieces of {piece}");
            let cut = payloads.iter().map(|p| &p[..p.len().min(5)]).collect::<Vec<_>>();
            assert_eq!(read(&stream, piece, 5), cut, "pieces of {piece}, cut");
        }
    }

    #[test]
    fn a_refused_header_takes_no_memory() {
        let mut inbox = Inbox::new();
        let mut header = Header::new(Kind::Reply).encode();
        header[..4].copy_from_slice(&(1u32 << 30).to_le_bytes());
        inbox.space().1[..32].copy_from_slice(&header);
        inbox.advance(32);
        let found = inbox.frame::<FrameError>(|_| panic!("the length is checked first"));
        assert!(matches!(found, Err(FrameError::PayloadTooLarge { claimed: 0x4000_0000, .. })));
        assert!(inbox.partial.is_none());
    }

    #[test]
    fn spares_are_bounded_and_reused() {
        let mut inbox = Inbox::new();
        for _ in 0..10 {
            inbox.recycle(AlignedVec::with_capacity(SPARE_BYTES_MAX / 4));
        }
        assert_eq!(inbox.spares.len(), 4);
        let buffer = inbox.buffer_of(64);
        assert_eq!((buffer.len(), inbox.spares.len()), (64, 3));
        assert_eq!(inbox.spare_bytes, SPARE_BYTES_MAX / 4 * 3);
    }
}
