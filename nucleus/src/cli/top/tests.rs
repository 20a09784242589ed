use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::state::{News, State};
use super::view::draw;
use crate::daemon::control::{CellRow, NucleusRow, Snapshot, WorkerRow};
use crate::link::CellStats;
use crate::walls::Wall;

fn row(cell: &str, state: &str, reason: Option<&str>, stats: CellStats) -> CellRow {
    CellRow {
        cell: cell.into(),
        state: state.into(),
        hash: Some("ab".repeat(32)),
        reason: reason.map(str::to_owned),
        stats,
    }
}

fn snapshot() -> Snapshot {
    let worker = |pid: u32, uid: u32| WorkerRow {
        pid,
        uid,
        listens: uid == 1000,
        ready: true,
        up_s: 60,
        connections: 3,
        memory_bytes: 5 << 20,
        allocations: 7,
        resident_bytes: 40 << 20,
    };
    let hello = CellStats {
        calls: 120_000,
        failed: 2,
        crashed: 1,
        fuel: 1_234_567_890,
        instances: 2,
        waiting: 1,
        memory_bytes: 4 << 20,
        calls_per_s: 12_345.6,
        fuel_per_s: 2_500_000.0,
        p50_us: 21,
        p99_us: 1_750,
        ..CellStats::default()
    };
    let slow = CellStats {
        calls_per_s: 0.5,
        fuel_per_s: 9e8,
        p50_us: 2_100_000,
        p99_us: 2_100_000,
        instances: 1,
        memory_bytes: 65_536,
        fuel: 80_000_000_000,
        ..CellStats::default()
    };
    let crashed =
        CellStats { calls: 20_500, failed: 20_500, crashed: 20_500, ..CellStats::default() };
    Snapshot {
        nucleus: Some(NucleusRow {
            version: "0.1.0".into(),
            pid: 4000,
            up_s: 3_700,
            worker_restarts: 1,
            workers: vec![worker(4001, 1000), worker(4007, 1001)],
            walls_missing: vec![Wall {
                name: "landlock".into(),
                stands: false,
                detail: "the kernel has none".into(),
            }],
            listens: None,
            through: Vec::new(),
        }),
        cells: vec![
            row("broken", "failed", Some("in Cell.toml:\nno name"), CellStats::default()),
            row("crasher", "resting", Some("it rests: \u{1b}[2J trapped"), crashed),
            row("hello", "live", None, hello),
            row("slow", "live", None, slow),
        ],
    }
}

/// The screen as text, without the blanks at the ends of lines.
fn screen(state: &State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| {
        let cells = (0..width).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

fn shown() -> State {
    let mut state = State::new();
    state.take(News::Snapshot(snapshot()));
    state
}

#[track_caller]
fn press(state: &mut State, keys: &str) {
    for key in keys.chars() {
        assert!(state.key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE)), "{key} ends it");
    }
}

fn order(state: &State) -> Vec<&str> {
    state.rows().iter().map(|row| row.cell.as_str()).collect()
}

#[test]
fn the_screen() {
    let expected = "\
nucleus 4000 up 1h01m   workers 4001 4007   80.0M resident, 10.0M of guests   6 connections   1 restarts
12.3k calls/s   0.9025 ATP/s   4 cells: 1 failed, 2 live, 1 resting
walls missing: landlock
█
█
CELL                  STATE    CALLS/Sv     P50     P99  FUEL/S  INST  WAIT      MEM      ATP  FAILED   TRAPS
hello                 live        12.3k    21us   1.7ms    2.5M     2     1     4.0M   1.2346       2       1
slow                  live          0.5    2.1s    2.1s  900.0M     1     0      64K  80.0000       0       0
broken                failed          0       -       -       0     0     0        -        0       0       0
  in Cell.toml: no name
crasher               resting         0       -       -       0     0     0        -        0   20.5k   20.5k
  it rests: \\u{1b}[2J trapped

 q quit  s sort  r reverse  j/k choose  ? help";
    let found = screen(&shown(), 110, 14).join("\n");
    assert_eq!(found, expected, "\n{found}\n");
}

#[test]
fn narrow_and_tiny_screens() {
    let state = shown();
    let lines = screen(&state, 60, 14);
    assert!(lines[5].starts_with("CELL ") && lines[5].contains("P99"), "{lines:?}");
    assert!(!lines[5].contains("TRAPS") && !lines[5].contains("WAIT"), "{lines:?}");
    assert!(lines[6].starts_with("hello "), "{lines:?}");
    for (width, height) in [(1, 1), (5, 3), (20, 7), (300, 2), (2, 60)] {
        let mut state = shown();
        screen(&state, width, height);
        press(&mut state, "?");
        screen(&state, width, height);
    }
}

#[test]
fn sorting_and_choosing() {
    let mut state = shown();
    assert_eq!(order(&state), ["hello", "slow", "broken", "crasher"]);
    press(&mut state, "r");
    assert_eq!(order(&state), ["broken", "crasher", "slow", "hello"]);
    // Two to the left is the name; one is the state, the most troubled first.
    press(&mut state, "<");
    assert_eq!(order(&state), ["broken", "crasher", "hello", "slow"]);
    press(&mut state, "<r");
    assert_eq!(order(&state), ["slow", "hello", "crasher", "broken"]);
    press(&mut state, "sssss");
    assert_eq!(order(&state), ["slow", "hello", "broken", "crasher"], "by fuel a second");
    // The choice stays with its cell, whatever the order.
    press(&mut state, "jj");
    let chosen = |state: &State| {
        let rows = state.rows();
        rows.iter().find(|row| state.is_selected(row)).map(|row| row.cell.clone())
    };
    assert_eq!(chosen(&state).as_deref(), Some("hello"));
    press(&mut state, "r");
    assert_eq!(chosen(&state).as_deref(), Some("hello"));
    press(&mut state, "G");
    assert_eq!(chosen(&state).as_deref(), Some("slow"));
    press(&mut state, "kkkkkkk");
    assert_eq!(chosen(&state).as_deref(), Some("broken"));
    // It vanishes with its cell.
    let mut fewer = snapshot();
    fewer.cells.retain(|row| row.cell != "broken");
    state.take(News::Snapshot(fewer));
    assert_eq!(chosen(&state), None);
}

#[test]
fn the_chosen_cell_is_in_sight() {
    let mut state = State::new();
    let cells = (0..100).map(|n| row(&format!("c{n:02}"), "live", None, CellStats::default()));
    state.take(News::Snapshot(Snapshot { cells: cells.collect(), ..snapshot() }));
    press(&mut state, "G");
    let lines = screen(&state, 80, 20);
    assert!(lines[18].starts_with("c99 "), "{lines:?}");
    press(&mut state, "g");
    assert!(screen(&state, 80, 20)[6].starts_with("c00 "));
}

#[test]
fn keys_that_end_it() {
    let key = |code, modifiers| shown().key(KeyEvent::new(code, modifiers));
    assert!(!key(KeyCode::Char('q'), KeyModifiers::NONE));
    assert!(!key(KeyCode::Esc, KeyModifiers::NONE));
    assert!(!key(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert!(key(KeyCode::Char('c'), KeyModifiers::NONE));
    // Escape closes the help first.
    let mut state = shown();
    press(&mut state, "?");
    assert!(screen(&state, 110, 30).iter().any(|line| line.contains("sort by another column")));
    assert!(state.key(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE)));
    assert!(!state.help());
}

#[test]
fn a_nucleus_that_goes_and_comes() {
    let mut state = shown();
    let stopped = |name: &str| row(name, "stopped", None, CellStats::default());
    state.take(News::Snapshot(Snapshot { nucleus: None, cells: vec![stopped("hello")] }));
    let lines = screen(&state, 110, 14);
    assert!(lines[0].contains("no nucleus is running"), "{lines:?}");
    assert!(lines[6].contains("stopped"), "{lines:?}");
    state.take(News::Snapshot(snapshot()));
    assert!(screen(&state, 110, 14)[0].starts_with("nucleus 4000"));
    // One that does not answer: what it did is not what it does.
    state.take(News::Failed("closed\u{1b}[2J".into()));
    let lines = screen(&state, 110, 14);
    assert!(lines[0].contains("cannot be asked: closed\\u{1b}[2J"), "{lines:?}");
    assert!(lines[1].starts_with("0 calls/s   0 ATP/s"), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("unknown")), "{lines:?}");
    assert_eq!(state.history(10), [12_346, 0, 12_346, 0]);
    assert_eq!(state.history(1), [0]);
}
