//! What `cell donate` shows, and what it listens to: keys, signals, and the nucleus. Each has a thread, so that
//! none waits for another.

use std::io::IsTerminal as _;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};

use super::earned::{Earned, Earnings};
use super::{state, text, told, value};
use crate::cli::{Exit, Failure, Output};
use crate::daemon::donation::{Donating, DonationRow};
use crate::home::Home;
use crate::processes::Process;
use crate::signals::{self, ENDS, Hearing};

/// How often the nucleus is asked, and hears that it is still lent.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How often what was earned is counted.
const COUNT_EVERY: Duration = Duration::from_secs(2);
/// How long the nucleus may be silent before that is shown.
const SILENCE: Duration = Duration::from_secs(2);
/// How often the line is drawn anew while nothing happens.
const DRAW_EVERY: Duration = Duration::from_secs(1);

/// What was heard.
enum Heard {
    Stop,
    PauseOrResume,
    Told(anyhow::Result<Option<DonationRow>>),
    Earned(Earned),
}

/// Everything that is listened to.
pub(super) struct News {
    sender: Sender<Heard>,
    heard: Receiver<Heard>,
    _signals: Hearing,
}

/// Why the show ended, and the guests that were seen last.
pub(super) struct Shown {
    pub(super) result: anyhow::Result<()>,
    pub(super) guests: Vec<Process>,
}

impl News {
    /// Listens to signals from now on, so that none is lost.
    pub(super) fn start() -> anyhow::Result<Self> {
        let (sender, heard) = mpsc::channel();
        let stop = sender.clone();
        let signals = signals::hear(&ENDS, move |_| drop(stop.send(Heard::Stop)))?;
        Ok(Self { sender, heard, _signals: signals })
    }
}

/// Shows how the lending goes until it is to end.
pub(super) fn show(home: &Home, news: News, row: DonationRow, output: &Output) -> Shown {
    let since_ms = row.since_ms.unwrap_or_default();
    let is_terminal =
        !output.json() && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut view =
        View { output, is_terminal, row, earned: None, told: None, heard: Instant::now() };
    let result = view.listen(home, &news, since_ms);
    Shown { result, guests: view.row.guests }
}

struct View<'a> {
    output: &'a Output,
    is_terminal: bool,
    row: DonationRow,
    earned: Option<Earned>,
    /// What was told last where there is no terminal.
    told: Option<String>,
    heard: Instant,
}

impl View<'_> {
    /// Takes the terminal, if there is one, and gives it back.
    fn listen(&mut self, home: &Home, news: &News, since_ms: u64) -> anyhow::Result<()> {
        ask_on_and_on(home.clone(), news.sender.clone())?;
        count(home.clone(), since_ms, news.sender.clone())?;
        if !self.is_terminal {
            return self.run(home, news);
        }
        let _raw = Raw::enter()?;
        let keys = news.sender.clone();
        thread::Builder::new().name("keys".into()).spawn(move || listen_to_keys(&keys))?;
        let ended = self.run(home, news);
        self.output.redraw("");
        ended
    }

    fn run(&mut self, home: &Home, news: &News) -> anyhow::Result<()> {
        loop {
            self.draw();
            match news.heard.recv_timeout(DRAW_EVERY) {
                Ok(Heard::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Heard::PauseOrResume) => self.pause_or_resume(home),
                Ok(Heard::Earned(earned)) => self.earned = Some(earned),
                Ok(Heard::Told(told)) => {
                    let gone = || Failure::new(Exit::NucleusFault, "the nucleus is gone");
                    self.row = told?.ok_or_else(gone)?;
                    self.heard = Instant::now();
                    if self.row.by != Some(std::process::id()) {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Asks on a thread of its own: a nucleus that hangs must not hang the keys.
    fn pause_or_resume(&self, home: &Home) {
        let is_paused = self.row.reason.as_deref() == Some("you paused it");
        let (home, asked) =
            (home.clone(), if is_paused { Donating::Resume } else { Donating::Pause });
        let _ = thread::Builder::new().name("ask".into()).spawn(move || told(&home, asked));
    }

    fn draw(&mut self) {
        if self.is_terminal {
            let mut line = text(&self.row, self.earned);
            if self.heard.elapsed() > SILENCE {
                line = "the nucleus does not answer".into();
            }
            return self.output.redraw(&format!("{line}   (q stops, p pauses and resumes)"));
        }
        // Figures in a reason change all the time.
        let told: String = state(&self.row).chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.told.as_ref() != Some(&told) {
            self.told = Some(told);
            self.output.result(&value(&self.row, self.earned), &state(&self.row));
        }
    }
}

/// The terminal, with keys coming as they are pressed; given back with this value.
struct Raw;

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        enable_raw_mode().context("take the terminal")?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = disable_raw_mode();
    }
}

fn listen_to_keys(heard: &Sender<Heard>) {
    while let Ok(event) = event::read() {
        let Event::Key(key) = event else { continue };
        let is_control_c =
            key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        let said = match key.code {
            KeyCode::Char('q') => Heard::Stop,
            _ if is_control_c => Heard::Stop,
            KeyCode::Char('p') => Heard::PauseOrResume,
            _ => continue,
        };
        if heard.send(said).is_err() {
            return;
        }
    }
    // Without keys there is nobody to press one.
    let _ = heard.send(Heard::Stop);
}

fn ask_on_and_on(home: Home, heard: Sender<Heard>) -> anyhow::Result<()> {
    let by = std::process::id();
    thread::Builder::new().name("nucleus".into()).spawn(move || {
        while heard.send(Heard::Told(told(&home, Donating::Renew { by }))).is_ok() {
            thread::sleep(ASK_EVERY);
        }
    })?;
    Ok(())
}

/// Counts what is earned. A ledger that cannot be read shows nothing, and stops nothing.
fn count(home: Home, since_ms: u64, heard: Sender<Heard>) -> anyhow::Result<()> {
    thread::Builder::new().name("earned".into()).spawn(move || {
        let Ok(mut earnings) = Earnings::open(&home, since_ms) else { return };
        loop {
            if let Ok(earned) = earnings.look()
                && heard.send(Heard::Earned(earned)).is_err()
            {
                return;
            }
            thread::sleep(COUNT_EVERY);
        }
    })?;
    Ok(())
}
