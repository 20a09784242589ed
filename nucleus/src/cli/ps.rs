//! `cell ps`.

use std::fmt::Write as _;

use cell_abi::Fuel;

use super::output::escape;
use super::{Exit, Global, Output};
use crate::daemon::control::{Answer, CellRow, Request, ask};
use crate::home::Home;
use crate::link::CellStats;

pub(crate) fn run(global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    let (rows, up) = match ask(&home, &Request::Ps)? {
        Some(Answer::Cells(rows)) => (rows, true),
        Some(Answer::Failed(reason)) => anyhow::bail!("{reason}"),
        Some(_) | None => (stopped(&home), false),
    };
    output.result(&rows, &table(&rows));
    if !up {
        output.note("no nucleus is running; start it with `cell up`");
    }
    Ok(Exit::Done)
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
        hash: None,
        reason: None,
        stats: CellStats { cell: cell.clone(), ..CellStats::default() },
        cell,
    };
    names.into_iter().map(row).collect()
}

fn table(rows: &[CellRow]) -> String {
    if rows.is_empty() {
        return "no cells; `cell deploy DIR` puts one in".into();
    }
    // A directory may have any name, and that of one that failed is shown as well.
    let name = |row: &CellRow| escape(&row.cell).replace(['\n', '\t'], " ");
    let width = rows.iter().map(|row| name(row).len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  STATE    CODE      INST     CALLS   FAILED  FUEL", "CELL");
    for row in rows {
        let code = row.hash.as_deref().map_or("-", |hash| hash.get(..8).unwrap_or(hash));
        let stats = &row.stats;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n{:width$}  {:7}  {code:8}  {:4}  {:8}  {:7}  {}",
            name(row),
            row.state,
            stats.instances,
            stats.calls,
            stats.failed,
            Fuel(stats.fuel)
        );
        if let Some(reason) = row.reason.as_ref().or(stats.last_error.as_ref()) {
            let _ = write!(text, "\n{:width$}    {}", "", escape(reason).replace('\n', " "));
        }
    }
    text
}
