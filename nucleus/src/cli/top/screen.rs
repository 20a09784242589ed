//! The terminal of `cell top`: asks, draws, and takes keys; whatever happens, it is given back as it
//! was.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};

use super::state::{News, State};
use super::view::draw;
use crate::cli::{Exit, ps};
use crate::home::Home;
use crate::signals::{self, ENDS};

/// How often news and signals are looked for while no key comes.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Shows the table until the user, a signal or the count of looks ends it.
pub(super) fn run(
    home: &Home,
    interval: Duration,
    iterations: Option<u64>,
) -> anyhow::Result<Exit> {
    // They would otherwise end the process with the terminal in disorder.
    let ended = Arc::new(AtomicBool::new(false));
    let _signals = signals::hear(&ENDS, {
        let ended = Arc::clone(&ended);
        move |_| ended.store(true, Relaxed)
    })?;
    let news = ask_on_and_on(home.clone(), interval)?;
    // Also gives the terminal back when something panics, before the panic is told.
    let mut terminal = ratatui::try_init().context("take the terminal")?;
    let shown = show(&mut terminal, &news, &ended, iterations);
    ratatui::try_restore().context("give the terminal back")?;
    shown.context("use the terminal")?;
    Ok(Exit::Done)
}

fn show(
    terminal: &mut DefaultTerminal,
    news: &Receiver<News>,
    ended: &AtomicBool,
    iterations: Option<u64>,
) -> io::Result<()> {
    let mut state = State::new();
    let (mut looks, mut stale) = (0, true);
    while !ended.load(Relaxed) {
        match news.try_recv() {
            Ok(news) => {
                state.take(news);
                looks += 1;
                stale = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        if stale {
            terminal.draw(|frame| draw(frame, &state))?;
            stale = false;
        }
        if iterations.is_some_and(|most| looks >= most) {
            return Ok(());
        }
        if event::poll(LOOK_EVERY)? {
            match event::read()? {
                Event::Key(key) => {
                    if !state.key(key) {
                        return Ok(());
                    }
                    stale = true;
                }
                Event::Resize(..) => stale = true,
                _ => {}
            }
        }
    }
    Ok(())
}

/// Asks on a thread of its own: a nucleus that hangs must not hang the keys.
fn ask_on_and_on(home: Home, interval: Duration) -> anyhow::Result<Receiver<News>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let ask = move |sender: SyncSender<News>| {
        loop {
            let news = match ps::look(&home) {
                Ok(snapshot) => News::Snapshot(snapshot),
                Err(error) => News::Failed(format!("{error:#}")),
            };
            if sender.send(news).is_err() {
                return;
            }
            thread::sleep(interval);
        }
    };
    thread::Builder::new().name("ask".into()).spawn(move || ask(sender))?;
    Ok(receiver)
}
