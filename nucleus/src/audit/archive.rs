//! The archive's bytes: a tar file of one shape, so that nothing in it can be changed without being seen.
//!
//! Each header has a name and a length, and everything else as always: mode 0644, no owner, no time.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

/// Bytes of a header, and what contents are padded to.
const BLOCK: usize = 512;
/// Longest name in an archive, in bytes: what fits a header.
pub(crate) const NAME_BYTES_MAX: usize = 100;

/// Writes files one after the other, and what they hash to.
pub(super) struct Writer<W> {
    to: W,
    files: Vec<Listed>,
}

/// A file as the manifest has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) blake3: String,
}

impl<W: Write> Writer<W> {
    pub(super) const fn new(to: W) -> Self {
        Self { to, files: Vec::new() }
    }

    /// Adds a file whose length is known.
    pub(super) fn add(&mut self, name: &str, len: u64, mut content: impl Read) -> io::Result<()> {
        self.to.write_all(&header(name, len)?)?;
        let to = &mut self.to;
        let blake3 = hashed(len, |part| {
            content.read_exact(part)?;
            to.write_all(part)
        })?;
        self.to.write_all(&vec![0; padding(len)])?;
        self.files.push(Listed { name: name.to_owned(), bytes: len, blake3 });
        Ok(())
    }

    pub(super) fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.add(name, bytes.len() as u64, bytes)
    }

    pub(super) fn files(&self) -> &[Listed] {
        &self.files
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.to)
    }
}

/// Reads an archive of that shape and no other.
pub(super) struct Reader<R> {
    from: R,
    /// Where it is, in bytes.
    at: u64,
}

/// Why an archive cannot be read further.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    #[error("byte {0}: the archive's own structure was changed")]
    Structure(u64),
    #[error("the archive ends early, at byte {0}")]
    Short(u64),
    #[error("{0}")]
    Read(io::Error),
}

impl<R: Read> Reader<R> {
    pub(super) const fn new(from: R) -> Self {
        Self { from, at: 0 }
    }

    /// The next file's name and length; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(String, u64)>, ArchiveError> {
        let at = self.at;
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        if block == [0; BLOCK] {
            self.end(at)?;
            return Ok(None);
        }
        let found = Header::from_byte_slice(&block);
        let name = found.path().ok().and_then(|path| path.to_str().map(str::to_owned));
        let (Some(name), Ok(len)) = (name, found.entry_size()) else {
            return Err(ArchiveError::Structure(at));
        };
        match header(&name, len) {
            Ok(expected) if expected == block => Ok(Some((name, len))),
            Ok(expected) => {
                let differs = expected.iter().zip(&block).take_while(|(a, b)| a == b).count();
                Err(ArchiveError::Structure(at + differs as u64))
            }
            Err(_) => Err(ArchiveError::Structure(at)),
        }
    }

    /// The file's content, given to `take` in parts; returns its hash.
    pub(super) fn content(
        &mut self,
        len: u64,
        mut take: impl FnMut(&[u8]),
    ) -> Result<String, ArchiveError> {
        let blake3 = hashed(len, |part| {
            self.fill(part)?;
            take(part);
            Ok(())
        })?;
        let at = self.at;
        let mut rest = vec![0; padding(len)];
        self.fill(&mut rest)?;
        match rest.iter().position(|byte| *byte != 0) {
            Some(place) => Err(ArchiveError::Structure(at + place as u64)),
            None => Ok(blake3),
        }
    }

    /// After an empty block another one comes, and then nothing.
    fn end(&mut self, at: u64) -> Result<(), ArchiveError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        let mut more = [0];
        let read = self.from.read(&mut more).map_err(ArchiveError::Read)?;
        if block != [0; BLOCK] || read > 0 { Err(ArchiveError::Structure(at)) } else { Ok(()) }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ArchiveError> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Short(self.at),
            _ => ArchiveError::Read(error),
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Moves so many bytes in parts, each filled by `next`; returns their hash.
fn hashed<E>(len: u64, mut next: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<String, E> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    let mut left = len;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let part = buffer.get_mut(..most).unwrap_or_default();
        next(part)?;
        hasher.update(part);
        left -= most as u64;
    }
    Ok(hasher.finalize().to_string())
}

fn header(name: &str, len: u64) -> io::Result<[u8; BLOCK]> {
    let mut header = Header::new_ustar();
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(io::Error::other(format!("a name of {} bytes", name.len())));
    }
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(len);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(*header.as_bytes())
}

fn padding(len: u64) -> usize {
    let over = usize::try_from(len % BLOCK as u64).unwrap_or(0);
    if over == 0 { 0 } else { BLOCK - over }
}
