//! The table of limits in `docs/SECURITY.md`: what the built `cell` prints, between two markers.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};

use crate::report::say;
use crate::workspace::Workspace;

const BEGIN: &str = "<!-- limits: written by `cargo xtask limits` -->";
const END: &str = "<!-- end of the limits -->";

/// Builds `cell` and writes its table into the document.
pub(crate) fn write(workspace: &Workspace) -> anyhow::Result<()> {
    workspace.build()?;
    let (path, text) = document(workspace)?;
    let renewed = renew(&text, &table(workspace)?)?;
    if renewed == text {
        say("docs/SECURITY.md has the limits of this build already.");
        return Ok(());
    }
    fs::write(&path, renewed).with_context(|| format!("write {}", path.display()))
}

/// Checks that the document has the table of the `cell` that was built.
pub(crate) fn check(workspace: &Workspace) -> anyhow::Result<()> {
    let (_, text) = document(workspace)?;
    if renew(&text, &table(workspace)?)? != text {
        bail!("docs/SECURITY.md has other limits than this build; run `cargo xtask limits`");
    }
    Ok(())
}

fn document(workspace: &Workspace) -> anyhow::Result<(PathBuf, String)> {
    let path = workspace.root.join("docs/SECURITY.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok((path, text))
}

fn table(workspace: &Workspace) -> anyhow::Result<String> {
    let mut cell = workspace.command(workspace.binary("cell"));
    let output = cell.args(["inspect", "--limits"]).output().context("run cell")?;
    ensure!(output.status.success(), "`cell inspect --limits` failed with {}", output.status);
    String::from_utf8(output.stdout).context("read the table of limits")
}

/// The text with this table between the markers.
fn renew(text: &str, table: &str) -> anyhow::Result<String> {
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) =
        parts.with_context(|| format!("docs/SECURITY.md lacks `{BEGIN}` or `{END}`"))?;
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", table.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_is_renewed() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let renewed = renew(&text, "new\n").unwrap();
        assert_eq!(renewed, format!("a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert_eq!(renew(&renewed, "new\n").unwrap(), renewed);
        assert!(renew("a b", "new").is_err());
    }
}
