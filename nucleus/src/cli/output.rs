//! The one place that prints: results to standard output, everything else to standard error.

use std::io::{ErrorKind, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::exit::Exit;

/// How the user wants to be told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) const fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    pub(crate) const fn json(&self) -> bool {
        self.json
    }

    /// Whether only results and errors are wanted.
    pub(crate) const fn quiet(&self) -> bool {
        self.quiet || self.json
    }

    /// Prints a result: the value as one line of JSON, or the text for people.
    pub(crate) fn result(&self, value: &impl Serialize, text: &str) {
        let line = if self.json {
            serde_json::to_string(value).unwrap_or_default()
        } else {
            text.to_owned()
        };
        if !line.is_empty() {
            write_line(&mut std::io::stdout(), &line);
        }
    }

    /// Prints a result's bytes as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut out = std::io::stdout();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(())
    }

    /// What a job elsewhere wrote to standard error.
    pub(crate) fn error_bytes(&self, bytes: &[u8]) {
        // Who closed standard error does not want to know.
        let _ = std::io::stderr().write_all(bytes);
    }

    /// Writes the one line that a terminal shows in place of the last one; without one, nothing is left.
    pub(crate) fn redraw(&self, line: &str) {
        let mut out = std::io::stdout();
        // A terminal that is gone ends the command in another way.
        let _ = write!(out, "\r\x1b[2K{line}").and_then(|()| out.flush());
    }

    /// Tells people something on the way; machines and the quiet get nothing.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            write_line(&mut std::io::stderr(), text);
        }
    }

    /// One line of JSON on standard error, where standard output belongs to a job.
    pub(crate) fn machine_note(&self, value: &impl Serialize) {
        write_line(&mut std::io::stderr(), &serde_json::to_string(value).unwrap_or_default());
    }

    /// Prints an error once, with its causes.
    pub(crate) fn error(&self, error: &anyhow::Error, exit: Exit) {
        let text = format!("{error:#}");
        if self.json {
            let value = serde_json::json!({ "error": text, "exit": exit.code() });
            write_line(&mut std::io::stdout(), &value.to_string());
        } else {
            write_line(&mut std::io::stderr(), &format!("error: {text}"));
        }
    }

    /// A spinner for work over a second; on a terminal only.
    pub(crate) fn progress(&self, text: impl Into<String>) -> ProgressBar {
        if self.quiet || self.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}");
        let bar = ProgressBar::new_spinner().with_message(text.into());
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}

/// A result that could not be written: the command has failed, whatever it did.
static LOST: AtomicBool = AtomicBool::new(false);

/// Whether a line was lost that somebody wanted.
pub(crate) fn is_lost() -> bool {
    LOST.load(Relaxed)
}

fn write_line(out: &mut impl Write, line: &str) {
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        // A reader that closed the pipe has seen enough.
        if error.kind() != ErrorKind::BrokenPipe {
            LOST.store(true, Relaxed);
        }
    }
}

/// What guests wrote must not steer the terminal that shows it.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}
