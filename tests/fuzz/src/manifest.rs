//! The two files that people write: `Cell.toml` and `nucleus.toml`.

use cell_abi::CellName;
use cell_nucleus::fuzzing;

/// Parses the bytes as a `Cell.toml`; whatever is taken stays in its directory and its limits.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(taken) = fuzzing::manifest(text) else { return };
    assert_eq!(CellName::parse(taken.name.as_str()).as_ref(), Ok(&taken.name));
    let file = std::path::Path::new(&taken.wasm);
    assert_eq!(file.file_name(), Some(file.as_os_str()), "the module lies beside the manifest");
    let options = &taken.options;
    assert!((1..=64).contains(&options.replicas_max));
    assert!((1 << 20..=64 << 20).contains(&options.limits.memory_bytes_max));
    assert!(options.state_bytes_max <= 1 << 30);
    assert!((1..=3_600_000).contains(&taken.call_ms_max));
    assert!((1..=86_400).contains(&taken.idle_s));
}

/// Parses the bytes as a `nucleus.toml`; whatever is taken is within its limits.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(memory_mb_max) = fuzzing::config(text) {
        assert!((64..=1 << 20).contains(&memory_mb_max));
    }
}
