//! Bytes that are too many for a message between processes: in a file without a name, beside one.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;

/// A file of memory with these bytes.
pub(crate) fn write(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("cell", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// The bytes of such a file, of which there may be so many. Who sent it is not believed: it may be
/// anything, and of any length.
pub(crate) fn read(file: OwnedFd, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::from(file);
    let metadata = file.metadata()?;
    let len = metadata.len();
    if !metadata.is_file() || len > bytes_max {
        return Err(io::Error::other(format!(
            "a file of {len} bytes, at most {bytes_max} are read"
        )));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    // The place in it is shared with who wrote it, and not every process here may read past it.
    file.rewind()?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_and_no_more_than_may() {
        assert_eq!(read(write(b"abc").unwrap(), 3).unwrap(), b"abc");
        assert!(read(write(b"abc").unwrap(), 2).is_err());
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert!(read(pipe, 3).is_err());
    }
}
