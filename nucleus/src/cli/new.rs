//! `cell new`: makes a project from the template in the binary.
//!
//! It builds nothing, and touches nothing that was there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cell_abi::CellName;
use clap::Args;

use super::{Exit, Failure, Global, Output};
use crate::sdk;

/// Options of `cell new`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The project's directory; it must not exist, or be empty.
    path: PathBuf,
    /// The cell's name; the directory's by default.
    #[arg(long)]
    name: Option<String>,
}

/// Makes a project.
pub(super) fn run(arguments: &Arguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let path = std::path::absolute(&arguments.path).context("find the current directory")?;
    let name = name(arguments.name.as_deref(), &path)?;
    require_empty(&path)?;
    let home = global.home()?;
    // Made first, so that it is readable by this user alone.
    home.create()?;
    let sdk = sdk::unpack(home.root())?;
    make(&path, &name, &sdk)?;
    let shown = arguments.path.display();
    let example = "'{\"name\":\"Ada\"}'";
    let next = format!(
        "made the cell `{name}` in {shown}\n\nnext:  cd {shown} && cell dev\nthen:  cell call {name}.greet {example}"
    );
    output.result(
        &serde_json::json!({ "name": name.as_str(), "directory": path, "sdk": sdk }),
        &next,
    );
    Ok(Exit::Done)
}

fn name(given: Option<&str>, path: &Path) -> anyhow::Result<CellName> {
    let name = match given {
        Some(name) => name,
        None => path.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
    };
    let hint = "choose another with `--name NAME`";
    let parsed = CellName::parse(name).map_err(|error| {
        Failure::new(Exit::Usage, format!("a cell cannot be called {name:?}: {error}; {hint}"))
    })?;
    if let Some(reason) = not_a_crate(name) {
        return Err(Failure::new(
            Exit::Usage,
            format!("a crate cannot be called {name:?}: {reason}; {hint}"),
        )
        .into());
    }
    Ok(parsed)
}

/// Why a cell's name cannot also be its crate's.
fn not_a_crate(name: &str) -> Option<&'static str> {
    const KEYWORDS: &[&str] = &[
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate",
        "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl",
        "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub",
        "ref", "return", "self", "static", "struct", "super", "trait", "true", "try", "type",
        "typeof", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
    ];
    const LIBRARIES: &[&str] = &["alloc", "core", "proc_macro", "std", "test"];
    const SDK: &[&str] = &["cell_abi", "cell_client", "cell_guest", "cell_guest_macros"];
    let name = name.replace('-', "_");
    let name = name.as_str();
    if KEYWORDS.contains(&name) {
        Some("it is a keyword of Rust")
    } else if LIBRARIES.contains(&name) {
        Some("it is a library of Rust's own")
    } else if SDK.contains(&name) {
        Some("it is a crate of the SDK")
    } else {
        None
    }
}

fn require_empty(path: &Path) -> anyhow::Result<()> {
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let message = format!(
                "{} is not empty; name a directory that does not exist yet",
                path.display()
            );
            Err(Failure::new(Exit::Usage, message).into())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn make(path: &Path, name: &CellName, sdk: &Path) -> anyhow::Result<()> {
    let guest = sdk::guest(sdk);
    let guest = guest
        .to_str()
        .with_context(|| format!("{} is not UTF-8; choose another --home", guest.display()))?;
    for (file, text) in sdk::template()? {
        // Git would obey a `.gitignore` in the template's own folder.
        let file = if file == "gitignore" { ".gitignore" } else { file };
        let text = text.replace("{{name}}", name.as_str()).replace("{{sdk}}", &toml_escaped(guest));
        write(&path.join(file), &text)?;
    }
    // The versions this binary was tested with; cargo drops what the project does not use.
    write(&path.join("Cargo.lock"), sdk::lock()?)
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// For between the quotes of a TOML string.
fn toml_escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: Option<&str>, path: &str, expect: Result<&str, &str>) {
        match (name(given, Path::new(path)), expect) {
            (Ok(name), Ok(expect)) => assert_eq!(name.as_str(), expect),
            (Err(error), Err(expect)) => {
                assert!(format!("{error:#}").contains(expect), "{error:#}")
            }
            (result, _) => panic!("{result:?}"),
        }
    }

    #[test]
    fn names() {
        check(None, "/a/hello", Ok("hello"));
        check(Some("my-cell"), "/a/hello", Ok("my-cell"));
        check(None, "/a/Hello", Err("--name"));
        check(None, "/", Err("--name"));
        check(None, "/a/match", Err("keyword"));
        check(Some("core"), "/a/b", Err("library"));
        check(Some("cell-guest"), "/a/b", Err("SDK"));
    }

    /// The path of a home stands in the project's manifest; a quote in it must not end the string.
    #[test]
    fn a_project_parses_wherever_the_home_is() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("hello");
        require_empty(&path).unwrap();
        make(&path, &CellName::parse("hello").unwrap(), Path::new("/a \"b\\c")).unwrap();
        let manifest: toml::Table =
            fs::read_to_string(path.join("Cargo.toml")).unwrap().parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some("hello"));
        assert_eq!(
            manifest["dependencies"]["cell-guest"]["path"].as_str(),
            Some("/a \"b\\c/guest-sdk")
        );
        assert!(path.join(".gitignore").is_file() && path.join("Cell.toml").is_file());
        assert!(require_empty(&path).is_err());
    }
}
