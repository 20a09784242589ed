//! The screen of `cell top`, drawn from its state.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Clear, Paragraph, Sparkline};

use super::columns::{Column, fitting};
use super::state::State;
use crate::cli::figures::{age, atp, bytes, count, one_line};
use crate::daemon::control::{CellRow, NucleusRow};

const HELP: &str = "\
q Esc Ctrl-C   leave
j k  arrows    choose a cell
g G            the first, the last
s or < >       sort by another column
r              the other way round
?              this help

CALLS/S FUEL/S over the last two seconds
P50 P99        from frame to reply, over the
               last 5 to 10 seconds
ATP            earned since the nucleus came up
TRAPS          traps, exits, limits passed and
               bad replies, among FAILED";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let [head, curve, table, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(2),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(Text::from(header(state))), head);
    let history = state.history(usize::from(curve.width));
    let curve_style = Style::new().fg(Color::Green);
    frame.render_widget(Sparkline::default().data(&history).style(curve_style), curve);
    frame.render_widget(Paragraph::new(Text::from(cells(state, table))), table);
    let keys = " q quit  s sort  r reverse  j/k choose  ? help";
    frame.render_widget(Paragraph::new(keys).style(Style::new().fg(Color::DarkGray)), foot);
    if state.help() {
        help(frame);
    }
}

fn header(state: &State) -> Vec<Line<'static>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let first = match state.nucleus() {
        Some(nucleus) => Line::from(processes(nucleus)),
        None => {
            let trouble = state.trouble().map(one_line).unwrap_or_default();
            Line::styled(trouble, Style::new().fg(Color::Red))
        }
    };
    let (number, states) = state.states();
    let states: Vec<_> =
        states.iter().map(|(state, count)| format!("{count} {}", one_line(state))).collect();
    let colon = if states.is_empty() { "" } else { ": " };
    let cells = format!("   {number} cells{colon}{}", states.join(", "));
    let second = Line::from(vec![
        Span::styled(format!("{} calls/s", count(state.calls_per_s())), bold),
        Span::styled(format!("   {} ATP/s", atp(state.fuel_per_s())), bold),
        Span::raw(cells),
    ]);
    let missing = state.nucleus().map(|nucleus| &nucleus.walls_missing);
    let third = match missing.filter(|missing| !missing.is_empty()) {
        Some(missing) => {
            let names: Vec<_> = missing.iter().map(|wall| one_line(&wall.name)).collect();
            let text = format!("walls missing: {}", names.join(", "));
            Line::styled(text, Style::new().fg(Color::Yellow))
        }
        None => Line::default(),
    };
    vec![first, second, third]
}

fn processes(nucleus: &NucleusRow) -> String {
    let mut text = format!("nucleus {} up {}", nucleus.pid, age(nucleus.up_s));
    let pids: Vec<_> = nucleus.workers.iter().map(|worker| worker.pid.to_string()).collect();
    match pids.as_slice() {
        [] => text.push_str("   no worker; one starts in a moment"),
        [pid] => text.push_str(&format!("   worker {pid}")),
        pids => text.push_str(&format!("   workers {}", pids.join(" "))),
    }
    let sum = |of: fn(&crate::daemon::control::WorkerRow) -> u64| {
        nucleus.workers.iter().map(of).fold(0, u64::saturating_add)
    };
    text.push_str(&format!(
        "   {} resident, {} of guests   {} connections",
        bytes(sum(|worker| worker.resident_bytes)),
        bytes(sum(|worker| worker.memory_bytes)),
        sum(|worker| worker.connections)
    ));
    if nucleus.worker_restarts > 0 {
        text.push_str(&format!("   {} restarts", nucleus.worker_restarts));
    }
    text
}

/// The title, and as many cells as there is room for; the chosen one is among them.
fn cells(state: &State, area: Rect) -> Vec<Line<'static>> {
    let (columns, name_width) = fitting(usize::from(area.width));
    let mut lines = vec![title(state, &columns, name_width)];
    let (mut chosen, mut below) = (0, Vec::new());
    for row in state.rows() {
        if state.is_selected(row) {
            chosen = below.len();
        }
        below.push(cell(row, &columns, name_width, state.is_selected(row)));
        if let Some(reason) = &row.reason {
            let style = Style::new().fg(colour(&row.state));
            below.push(Line::styled(format!("  {}", one_line(reason)), style));
        }
    }
    let room = usize::from(area.height).saturating_sub(1);
    let skip = chosen.saturating_sub(room / 2).min(below.len().saturating_sub(room));
    lines.extend(below.into_iter().skip(skip).take(room));
    lines
}

fn title(state: &State, columns: &[Column], name_width: usize) -> Line<'static> {
    let (sort, reversed) = state.sort();
    let titles = columns.iter().map(|column| {
        let mark = match (*column == sort, reversed) {
            (false, _) => "",
            (true, false) => "v",
            (true, true) => "^",
        };
        placed(*column, format!("{}{mark}", column.title()), name_width)
    });
    let style = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
    Line::styled(titles.collect::<String>(), style)
}

fn cell(row: &CellRow, columns: &[Column], name_width: usize, chosen: bool) -> Line<'static> {
    let spans = columns.iter().map(|column| {
        let style = match column {
            Column::State => Style::new().fg(colour(&row.state)),
            Column::Failed if row.stats.failed > 0 => Style::new().fg(Color::Yellow),
            Column::Crashed if row.stats.crashed > 0 => Style::new().fg(Color::Red),
            _ => Style::new(),
        };
        Span::styled(placed(*column, column.value(row), name_width), style)
    });
    let style = if chosen { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
    Line::from(spans.collect::<Vec<_>>()).style(style)
}

/// A value in its column: words to the left, figures to the right, cut where they are too long.
fn placed(column: Column, value: String, name_width: usize) -> String {
    let (gap, width) = match column {
        Column::Cell => ("", name_width),
        column => (" ", column.width()),
    };
    let value = if value.chars().count() > width {
        let kept: String = value.chars().take(width.saturating_sub(1)).collect();
        format!("{kept}~")
    } else {
        value
    };
    if column.is_text() { format!("{gap}{value:width$}") } else { format!("{gap}{value:>width$}") }
}

fn colour(state: &str) -> Color {
    match state {
        "live" | "away" => Color::Green,
        "failed" => Color::Red,
        "resting" | "loading" => Color::Yellow,
        _ => Color::DarkGray,
    }
}

fn help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let lines = u16::try_from(HELP.lines().count()).unwrap_or(u16::MAX);
    let (width, height) = (area.width.min(52), area.height.min(lines.saturating_add(2)));
    let area = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" cell top ")), area);
}
