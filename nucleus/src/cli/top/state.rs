//! What `cell top` shows, and how keys and news change it. It reads no clock and draws nothing.

use std::cmp::Ordering;
use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::columns::{COLUMNS, Column};
use crate::daemon::control::{CellRow, NucleusRow, Snapshot};

/// Refreshes that the curve of calls remembers.
const HISTORY_KEPT: usize = 240;
/// Rows that a page key moves by.
const PAGE: usize = 10;

/// What came of asking the nucleus.
#[derive(Debug)]
pub(super) enum News {
    /// How everything fares; without a nucleus, what lies in `cells/`.
    Snapshot(Snapshot),
    /// Why it could not be asked.
    Failed(String),
}

/// Everything that the screen depends on.
#[derive(Debug)]
pub(super) struct State {
    nucleus: Option<NucleusRow>,
    cells: Vec<CellRow>,
    /// Why what is shown may be old.
    trouble: Option<String>,
    sort: Column,
    reversed: bool,
    /// By name, so that the choice stays with its cell when the order changes.
    selected: Option<String>,
    history: VecDeque<u64>,
    help: bool,
}

impl State {
    pub(super) const fn new() -> Self {
        Self {
            nucleus: None,
            cells: Vec::new(),
            trouble: Some(String::new()),
            sort: Column::CallsPerS,
            reversed: false,
            selected: None,
            history: VecDeque::new(),
            help: false,
        }
    }

    /// Takes what the nucleus said, or that it said nothing.
    pub(super) fn take(&mut self, news: News) {
        match news {
            News::Snapshot(snapshot) => {
                let down = "no nucleus is running; waiting for one (start it with `cell up`)";
                self.trouble = snapshot.nucleus.is_none().then(|| down.to_owned());
                self.nucleus = snapshot.nucleus;
                self.cells = snapshot.cells;
            }
            News::Failed(why) => {
                self.trouble = Some(format!("the nucleus cannot be asked: {why}"));
                self.nucleus = None;
                // What they did a moment ago they may not do now.
                for row in &mut self.cells {
                    "unknown".clone_into(&mut row.state);
                    row.stats.calls_per_s = 0.0;
                    row.stats.fuel_per_s = 0.0;
                }
            }
        }
        if self.history.len() == HISTORY_KEPT {
            self.history.pop_front();
        }
        self.history.push_back(whole(self.calls_per_s()));
        self.keep_selection();
    }

    /// Takes a key; `false` says that the user has seen enough.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return true;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => return false,
            KeyCode::Char('q') => return false,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc => return false,
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Down | KeyCode::Char('j') => self.select(|at| at.map_or(0, |at| at + 1)),
            KeyCode::Up | KeyCode::Char('k') => self.select(|at| at.unwrap_or(0).saturating_sub(1)),
            KeyCode::PageDown => self.select(|at| at.unwrap_or(0) + PAGE),
            KeyCode::PageUp => self.select(|at| at.unwrap_or(0).saturating_sub(PAGE)),
            KeyCode::Home | KeyCode::Char('g') => self.select(|_| 0),
            KeyCode::End | KeyCode::Char('G') => self.select(|_| usize::MAX),
            KeyCode::Char('s' | '>') | KeyCode::Right => self.sort_by(1),
            KeyCode::Char('<') | KeyCode::Left => self.sort_by(COLUMNS.len() - 1),
            KeyCode::Char('r') => self.reversed = !self.reversed,
            _ => {}
        }
        true
    }

    /// The cells, in the order that was chosen.
    pub(super) fn rows(&self) -> Vec<&CellRow> {
        let mut rows: Vec<&CellRow> = self.cells.iter().collect();
        rows.sort_by(|a, b| {
            let order = self.sort.order(a, b);
            let order = if self.reversed { order.reverse() } else { order };
            // Equal ones do not dance.
            order.then_with(|| a.cell.cmp(&b.cell))
        });
        rows
    }

    pub(super) const fn nucleus(&self) -> Option<&NucleusRow> {
        self.nucleus.as_ref()
    }

    /// Why what is shown may be old; empty before the first answer.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) const fn sort(&self) -> (Column, bool) {
        (self.sort, self.reversed)
    }

    pub(super) fn is_selected(&self, row: &CellRow) -> bool {
        self.selected.as_ref() == Some(&row.cell)
    }

    pub(super) const fn help(&self) -> bool {
        self.help
    }

    /// Calls a second at each of the last refreshes, the oldest first; at most so many.
    pub(super) fn history(&self, count_max: usize) -> Vec<u64> {
        let skip = self.history.len().saturating_sub(count_max);
        self.history.iter().skip(skip).copied().collect()
    }

    pub(super) fn calls_per_s(&self) -> f64 {
        self.cells.iter().map(|row| row.stats.calls_per_s).sum()
    }

    pub(super) fn fuel_per_s(&self) -> f64 {
        self.cells.iter().map(|row| row.stats.fuel_per_s).sum()
    }

    /// How many cells there are, and how many in each state, in the order of the words.
    pub(super) fn states(&self) -> (usize, Vec<(&str, usize)>) {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for row in &self.cells {
            match counts.iter_mut().find(|(state, _)| *state == row.state) {
                Some((_, count)) => *count += 1,
                None => counts.push((&row.state, 1)),
            }
        }
        counts.sort_unstable();
        (self.cells.len(), counts)
    }

    fn sort_by(&mut self, steps: usize) {
        let at = COLUMNS.iter().position(|column| *column == self.sort).unwrap_or(0);
        self.sort = COLUMNS.get((at + steps) % COLUMNS.len()).copied().unwrap_or(self.sort);
        self.reversed = false;
    }

    /// Chooses the row at what comes of the place of the one that was chosen, or the last one.
    fn select(&mut self, next: impl Fn(Option<usize>) -> usize) {
        let rows = self.rows();
        let at = rows.iter().position(|row| self.is_selected(row));
        let row = rows.get(next(at)).or_else(|| rows.last());
        self.selected = row.map(|row| row.cell.clone());
    }

    fn keep_selection(&mut self) {
        if let Some(selected) = &self.selected
            && !self.cells.iter().any(|row| row.cell == *selected)
        {
            self.selected = None;
        }
    }
}

/// Larger first.
pub(super) fn descending(a: f64, b: f64) -> Ordering {
    b.total_cmp(&a)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float becomes the nearest integer there is"
)]
const fn whole(value: f64) -> u64 {
    value.round() as u64
}
