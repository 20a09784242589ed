//! Small checks of the sources that no other tool makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};

use crate::workspace::Workspace;

/// Most lines of a source file; longer ones hold two things.
const LINES_MAX: usize = 600;
/// Folders that hold nothing of ours.
const LEFT_OUT: [&str; 2] = ["target", "wip"];
const XTASKS: [&str; 8] = ["demo", "test", "bench", "fuzz", "ci", "hostile", "limits", "help"];

/// Checks sources, manifests and links.
pub(crate) fn check(workspace: &Workspace) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for file in files(&workspace.root)? {
        let extension = file.extension().unwrap_or_default();
        let shown = file.strip_prefix(&workspace.root).unwrap_or(&file).display().to_string();
        if extension == "rs" {
            source(&shown, &read(&file)?, &mut faults);
        } else if extension == "md" {
            document(&shown, &file, &read(&file)?, &mut faults);
        } else if file.ends_with("Cargo.toml") && !shown.contains("template") {
            let text = read(&file)?;
            if text.contains("edition.workspace") && !text.contains("[lints]\nworkspace = true") {
                faults.push(format!("{shown}: the workspace's lints are not inherited"));
            }
        }
    }
    report(&faults)
}

/// Checks that every `cell` command in a shell block of the documentation exists.
pub(crate) fn check_commands(workspace: &Workspace) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    let mut known: Vec<String> = Vec::new();
    for file in files(&workspace.root)?
        .iter()
        .filter(|file| file.extension().is_some_and(|found| found == "md"))
    {
        for line in shell_lines(&read(file)?) {
            for part in line.split(['|', ';', '&']) {
                let mut words = part.split_whitespace();
                let (Some("cell"), Some(command)) = (words.next(), words.next()) else { continue };
                if command.starts_with('-') || known.iter().any(|known| known == command) {
                    continue;
                }
                let mut help = workspace.command(workspace.binary("cell"));
                let status = help
                    .args([command, "--help"])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
                if status.context("run cell")?.success() {
                    known.push(command.to_owned());
                } else {
                    faults
                        .push(format!("{}: there is no command `cell {command}`", file.display()));
                }
            }
        }
    }
    report(&faults)
}

fn report(faults: &[String]) -> anyhow::Result<()> {
    if !faults.is_empty() {
        bail!("{} found:\n  {}", faults.len(), faults.join("\n  "));
    }
    Ok(())
}

fn source(shown: &str, text: &str, faults: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{shown}: {lines} lines; at most {LINES_MAX}"));
    }
    // In halves, so that this file does not find itself.
    for word in [concat!("#[ign", "ore"), concat!("#[should", "_panic")] {
        if text.lines().any(|line| line.trim_start().starts_with(word)) {
            faults.push(format!("{shown}: {word}] hides what a test does not show"));
        }
    }
}

/// Links to files, and the commands of this program.
fn document(shown: &str, file: &Path, text: &str, faults: &mut Vec<String>) {
    let folder = file.parent().unwrap_or(file);
    for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next()) {
        let outside = link.is_empty() || link.contains("://") || link.starts_with("mailto:");
        if !outside && !folder.join(link).exists() {
            faults.push(format!("{shown}: the link to {link} leads nowhere"));
        }
    }
    for rest in text.split("cargo xtask ").skip(1) {
        let command = rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        if !command.is_empty() && !XTASKS.contains(&command) {
            faults.push(format!("{shown}: there is no `cargo xtask {command}`"));
        }
    }
}

/// The lines within ```sh blocks.
fn shell_lines(text: &str) -> Vec<&str> {
    let mut within = false;
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("```") {
            within = line == "```sh";
        } else if within {
            lines.push(line);
        }
    }
    lines
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let kind = entry.file_type()?;
            if kind.is_dir() && !name.starts_with('.') && !LEFT_OUT.contains(&&*name) {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_document(text: &str, expect: usize) {
        let mut faults = Vec::new();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
        document("README.md", &file, text, &mut faults);
        assert_eq!(faults.len(), expect, "{faults:?}");
    }

    #[test]
    fn documents() {
        check_document("[a](Cargo.toml) [b](https://example.org/x) [c](#d) `cargo xtask ci`", 0);
        check_document("[a](absent.md#part)", 1);
        check_document("`cargo xtask fly`, `cargo xtask bench --quick`", 1);
        assert_eq!(shell_lines("```sh\ncell ps\n```\ncell no\n```rust\nx\n```"), ["cell ps"]);
    }

    #[test]
    fn sources() {
        let mut faults = Vec::new();
        source("a.rs", &"x\n".repeat(LINES_MAX), &mut faults);
        assert!(faults.is_empty());
        source("a.rs", &"x\n".repeat(LINES_MAX + 1), &mut faults);
        source("a.rs", concat!("    #[ign", "ore]\nfn a() {}"), &mut faults);
        assert_eq!(faults.len(), 2);
    }
}
