//! `cell ps`.

use std::fmt::Write as _;

use cell_abi::Fuel;

use super::figures::{bytes, one_line, time};
use super::{Exit, Global, Output};
use crate::daemon::control::{Answer, CellRow, Request, Snapshot, ask};
use crate::home::Home;
use crate::link::CellStats;

pub(crate) fn run(global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    let snapshot = look(&home)?;
    // Machines get the rows alone; what all of them share, `cell top --json` has.
    output.result(&snapshot.cells, &table(&snapshot.cells));
    match &snapshot.nucleus {
        None => output.note("no nucleus is running; start it with `cell up`"),
        Some(nucleus) if !nucleus.walls_missing.is_empty() => {
            let names: Vec<_> = nucleus.walls_missing.iter().map(|w| w.name.as_str()).collect();
            output.note(&format!(
                "walls that this machine lacks around the worker: {}; see `cell inspect --sandbox`",
                names.join(", ")
            ));
        }
        Some(_) => {}
    }
    Ok(Exit::Done)
}

/// How everything fares now; without a nucleus, what lies in `cells/`.
pub(super) fn look(home: &Home) -> anyhow::Result<Snapshot> {
    match ask(home, &Request::Status)? {
        Some(Answer::Status(snapshot)) => Ok(snapshot),
        Some(Answer::Failed(reason)) => anyhow::bail!("{reason}"),
        Some(_) => anyhow::bail!("the nucleus answers something else; is it of another version?"),
        None => Ok(Snapshot { nucleus: None, cells: stopped(home) }),
    }
}

/// What lies in `cells/` when no nucleus serves it.
fn stopped(home: &Home) -> Vec<CellRow> {
    let entries = std::fs::read_dir(home.cells()).into_iter().flatten().flatten();
    let names = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    let row = |cell: String| CellRow {
        state: "stopped".into(),
        stats: CellStats { cell: cell.clone(), ..CellStats::default() },
        cell,
        ..CellRow::default()
    };
    names.into_iter().map(row).collect()
}

fn table(rows: &[CellRow]) -> String {
    if rows.is_empty() {
        return "no cells; `cell deploy DIR` puts one in".into();
    }
    let names: Vec<String> = rows.iter().map(|row| one_line(&row.cell)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
    let mut text = format!(
        "{:width$}  STATE    CODE      INST  MEMORY     CALLS   FAILED    P50    P99  FUEL",
        "CELL"
    );
    for (row, name) in rows.iter().zip(names) {
        let code = row.hash.as_deref().map_or("-", |hash| hash.get(..8).unwrap_or(hash));
        let stats = &row.stats;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n{name:width$}  {:7}  {code:8}  {:4}  {:>6}  {:8}  {:7}  {:>5}  {:>5}  {}",
            row.state,
            stats.instances,
            bytes(stats.memory_bytes),
            stats.calls,
            stats.failed,
            time(stats.p50_us),
            time(stats.p99_us),
            Fuel(stats.fuel)
        );
        if let Some(reason) = row.reason.as_ref().or(stats.last_error.as_ref()) {
            let _ = write!(text, "\n{:width$}    {}", "", one_line(reason));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_rests_says_why() {
        let row = CellRow {
            cell: "a\x1b".into(),
            state: "resting".into(),
            reason: Some("it failed\n3 times".into()),
            ..CellRow::default()
        };
        let text = table(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("a\\u{1b}  resting  -"), "{text}");
        assert!(lines[2].ends_with("  it failed 3 times"), "{text}");
        assert_eq!(lines.len(), 3);
    }
}
