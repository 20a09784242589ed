//! The crates a cell is built with, carried in the binary and unpacked under the home.
//!
//! It builds nothing and knows no toolchain; `cell new` points a project at what it unpacks.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use toml::{Table, Value};

/// Relative path and content of each file, sorted by path; written by `build.rs`.
static FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/sdk_files.rs"));

/// The crates that are unpacked, by folder; together they are a workspace.
const MEMBERS: [&str; 4] = ["abi", "client", "guest-sdk", "guest-sdk/macros"];
const MANIFEST: &str = "Cargo.toml";
const LOCK: &str = "Cargo.lock";
const TEMPLATE: &str = "guest-sdk/template/";

/// The files of a new project: path within the project, and text with placeholders.
pub(crate) fn template() -> anyhow::Result<Vec<(&'static str, &'static str)>> {
    let files =
        FILES.iter().filter_map(|(path, bytes)| Some((path.strip_prefix(TEMPLATE)?, *bytes)));
    files
        .map(|(path, bytes)| {
            Ok((path, str::from_utf8(bytes).with_context(|| format!("read {TEMPLATE}{path}"))?))
        })
        .collect()
}

/// The lock file of the workspace this binary was built from: the versions that were tested.
pub(crate) fn lock() -> anyhow::Result<&'static str> {
    let bytes = embedded(LOCK)?;
    str::from_utf8(bytes).context("read the embedded Cargo.lock")
}

/// Folder of the crate `cell-guest` within an unpacked SDK.
pub(crate) fn guest(sdk: &Path) -> PathBuf {
    sdk.join("guest-sdk")
}

/// Unpacks the SDK below `home` and returns its folder, `sdk/<version>-<hash>`.
///
/// The hash is over paths and contents, so two builds of one version never share a folder, and a
/// folder that holds what it should is left alone. Others see it whole or not at all.
pub(crate) fn unpack(home: &Path) -> anyhow::Result<PathBuf> {
    let manifest = manifest()?;
    let files: Vec<(&str, &[u8])> = FILES
        .iter()
        .copied()
        .filter(|(path, _)| *path != MANIFEST && *path != LOCK && !path.starts_with(TEMPLATE))
        .chain([(MANIFEST, manifest.as_bytes())])
        .collect();
    let parent = home.join("sdk");
    let target = parent.join(format!("{}-{}", env!("CARGO_PKG_VERSION"), hash(&files)));
    if holds(&target, &files) {
        return Ok(target);
    }
    make_directory(&parent)?;
    let staging = parent.join(format!(".unpacking-{}", std::process::id()));
    remove(&staging)?;
    let unpacked = write(&staging, &files).and_then(|()| install(&staging, &target, &files));
    if unpacked.is_err() {
        // The first error is the one to tell.
        let _ = remove(&staging);
    }
    unpacked.with_context(|| format!("unpack the SDK into {}", target.display()))?;
    Ok(target)
}

fn embedded(path: &str) -> anyhow::Result<&'static [u8]> {
    let found = FILES.iter().find(|(file, _)| *file == path);
    found.map(|(_, bytes)| *bytes).with_context(|| format!("{path} is not in this binary"))
}

fn hash(files: &[(&str, &[u8])]) -> String {
    let mut hasher = blake3::Hasher::new();
    for (path, bytes) in files {
        // Lengths keep two different lists from running together into the same bytes.
        for part in [path.as_bytes(), bytes] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.finalize().to_hex().chars().take(12).collect()
}

/// Whether every file is there with its content; a crash or an editor may have changed one.
fn holds(directory: &Path, files: &[(&str, &[u8])]) -> bool {
    files
        .iter()
        .all(|(path, bytes)| fs::read(directory.join(path)).is_ok_and(|found| found == *bytes))
}

fn write(directory: &Path, files: &[(&str, &[u8])]) -> anyhow::Result<()> {
    make_directory(directory)?;
    for (path, bytes) in files {
        let file = directory.join(path);
        if let Some(parent) = file.parent() {
            make_directory(parent)?;
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&file)
            .and_then(|mut open| open.write_all(bytes))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn install(staging: &Path, target: &Path, files: &[(&str, &[u8])]) -> anyhow::Result<()> {
    if fs::rename(staging, target).is_ok() {
        return Ok(());
    }
    // Something is there: another process was faster, or the folder is damaged.
    if !holds(target, files) {
        remove(target)?;
        fs::rename(staging, target)
            .or_else(|error| if holds(target, files) { Ok(()) } else { Err(error) })?;
    }
    remove(staging)
}

fn make_directory(directory: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .with_context(|| format!("create {}", directory.display()))
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The root manifest of the unpacked workspace.
fn manifest() -> anyhow::Result<String> {
    let text = str::from_utf8(embedded(MANIFEST)?).context("read the embedded Cargo.toml")?;
    derive(text).context("derive the manifest of the SDK")
}

/// Keeps of the workspace's manifest what the unpacked crates inherit; profiles and members that
/// are not unpacked would mean nothing there.
fn derive(text: &str) -> anyhow::Result<String> {
    let mut root: Table = text.parse()?;
    let Some(Value::Table(mut workspace)) = root.remove("workspace") else {
        anyhow::bail!("it has no [workspace]");
    };
    workspace.retain(|key, _| matches!(key, "package" | "dependencies" | "lints" | "resolver"));
    workspace
        .insert("members".into(), MEMBERS.into_iter().map(Value::from).collect::<Vec<_>>().into());
    if let Some(Value::Table(dependencies)) = workspace.get_mut("dependencies") {
        dependencies.retain(|_, dependency| {
            let path = dependency.get("path").and_then(Value::as_str);
            path.is_none_or(|path| MEMBERS.contains(&path))
        });
    }
    let derived = Table::from_iter([("workspace".to_owned(), Value::Table(workspace))]);
    Ok(toml::to_string(&derived)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_derived_manifest_names_only_what_is_unpacked() {
        let derived: Table = manifest().unwrap().parse().unwrap();
        assert_eq!(derived.len(), 1);
        let workspace = derived["workspace"].as_table().unwrap();
        assert_eq!(workspace["members"].as_array().unwrap().len(), MEMBERS.len());
        assert!(!workspace.contains_key("default-members") && !workspace.contains_key("exclude"));
        let dependencies = workspace["dependencies"].as_table().unwrap();
        assert!(dependencies.contains_key("cell-abi") && dependencies.contains_key("rkyv"));
        assert!(!dependencies.contains_key("cell-host"));
    }

    #[test]
    fn every_member_and_no_test_is_embedded() {
        for member in MEMBERS {
            assert!(embedded(&format!("{member}/Cargo.toml")).is_ok(), "{member}");
            assert!(embedded(&format!("{member}/src/lib.rs")).is_ok(), "{member}");
        }
        let strange = |path: &&str| {
            path.split('/').any(|part| matches!(part, "tests" | "target" | "snapshots"))
        };
        assert_eq!(FILES.iter().map(|(path, _)| path).find(|path| strange(path)), None);
        assert!(template().unwrap().iter().any(|(path, _)| *path == "Cargo.toml"));
    }

    /// A power cut or an editor leaves a folder of the right name with the wrong content; a cell
    /// built with it would differ from what its version says.
    #[test]
    fn unpacks_once_and_mends_what_was_damaged() {
        let home = tempfile::tempdir().unwrap();
        let sdk = unpack(home.path()).unwrap();
        let lib = sdk.join("abi/src/lib.rs");
        assert_eq!(fs::metadata(&lib).unwrap().permissions().mode() & 0o111, 0);
        let written = fs::metadata(&lib).unwrap().modified().unwrap();

        assert_eq!(unpack(home.path()).unwrap(), sdk);
        assert_eq!(fs::metadata(&lib).unwrap().modified().unwrap(), written);

        fs::write(&lib, "").unwrap();
        assert_eq!(unpack(home.path()).unwrap(), sdk);
        assert_ne!(fs::read(&lib).unwrap(), b"");
        assert_eq!(fs::read_dir(home.path().join("sdk")).unwrap().count(), 1);
    }

    #[test]
    fn lists_that_read_alike_hash_apart() {
        assert_ne!(hash(&[("a", b"bc")]), hash(&[("ab", b"c")]));
        assert_eq!(hash(&[("a", b"bc")]).len(), 12);
    }
}
