//! Reads of the system's files that are short, whatever is in them.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What is read of a file, in bytes.
pub const FILE_BYTES_MAX: u64 = 64 << 10;
/// What is read of a folder.
pub const ENTRIES_MAX: usize = 32_768;

/// The beginning of a file.
pub(super) fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The same as text. Bytes that are none do not hide the lines beside them.
pub(super) fn text(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&bytes(path)?).into_owned())
}

/// The content of a file that holds one word.
pub(super) fn word(path: &Path) -> Option<String> {
    Some(text(path)?.trim().to_owned())
}

pub(super) fn number<T: FromStr>(path: &Path) -> Option<T> {
    word(path)?.parse().ok()
}

/// Name and path of what is in a folder; nothing where there is none.
pub(super) fn entries(folder: &Path) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().take(ENTRIES_MAX).flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

/// Whether it is a number without a sign, as processes and terminals are named.
pub(super) fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}
