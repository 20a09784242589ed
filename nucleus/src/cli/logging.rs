//! What the nucleus and its workers say on standard error, one record a line.
//!
//! Records carry strangers' words: names of directories, a guest's last message. They are written so
//! that nothing in them can end a record, begin another one, or steer a terminal.

use std::fmt::Write as _;
use std::io;
use std::sync::OnceLock;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Names the format for a nucleus and its workers.
pub(crate) const FORMAT_VARIABLE: &str = "CELL_LOG_FORMAT";
/// Says what is logged: `info`, or `cell_nucleus::daemon=debug`.
const FILTER_VARIABLE: &str = "CELL_LOG";

/// How records look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people.
    Text,
    /// An object a line.
    Json,
}

/// How this process logs, and what.
static STARTED: OnceLock<(Format, String)> = OnceLock::new();

impl Format {
    /// What the environment says, for who was given no option.
    pub(crate) fn of_environment() -> Self {
        match std::env::var(FORMAT_VARIABLE).as_deref() {
            Ok("json") => Self::Json,
            _ => Self::Text,
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// How a worker logs: it has no environment.
#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    #[arg(long, default_value = "text")]
    log_format: Format,
    #[arg(long, default_value = "info")]
    log_filter: String,
}

impl WorkerArguments {
    pub(super) fn start(&self) {
        start_with(self.log_format, &self.log_filter);
    }
}

/// Logs from now on, on standard error.
pub(super) fn start(format: Format) {
    start_with(format, &std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| "info".into()));
}

fn start_with(format: Format, filter: &str) {
    let _ = STARTED.set((format, filter.to_owned()));
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| "info".into());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(move || Records { format, to: io::stderr() });
    // Nobody logs twice; a second start changes nothing.
    let _ = match format {
        Format::Text => subscriber.try_init(),
        Format::Json => subscriber.json().flatten_event(true).try_init(),
    };
    if format == Format::Json {
        // A panic's lines would be no JSON.
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let why = panic.payload_as_str().unwrap_or("(it did not say)");
            tracing::error!(place, why, "a thread panicked");
        }));
    }
}

/// What a worker must be told so that it logs as this process does.
pub(crate) fn worker_arguments() -> Vec<String> {
    let Some((format, filter)) = STARTED.get() else { return Vec::new() };
    vec![format!("--log-format={}", format.word()), format!("--log-filter={filter}")]
}

/// Takes whole records, and writes each as one line.
struct Records<W> {
    format: Format,
    to: W,
}

impl<W: io::Write> io::Write for Records<W> {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        // In one piece: a worker writes to the same file.
        self.to.write_all(line(self.format, record).as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A record without control characters but for the newline at its end.
fn line(format: Format, record: &[u8]) -> String {
    let text = String::from_utf8_lossy(record);
    let record = text.strip_suffix('\n').unwrap_or(&text);
    let mut line = String::with_capacity(record.len() + 1);
    for c in record.chars() {
        if !c.is_control() {
            line.push(c);
        } else if format == Format::Json {
            // Those that JSON itself lets pass stand within strings only. Writing to a String cannot fail.
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.extend(c.escape_default());
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const FORGERY: &str =
        "x\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}1m\u{7f}\u{0}\",\"level\":\"ERROR";

    /// What a log of one record holds whose message and fields are a stranger's.
    fn logged(format: Format) -> String {
        let kept = Kept::default();
        let to = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Records { format, to: to.clone() });
        let say = || {
            tracing::info!(cell = FORGERY, error = %FORGERY, debug = ?FORGERY, "said: {FORGERY}");
        };
        match format {
            Format::Text => tracing::subscriber::with_default(subscriber.finish(), say),
            Format::Json => {
                let subscriber = subscriber.json().flatten_event(true).finish();
                tracing::subscriber::with_default(subscriber, say);
            }
        }
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_is_one_line() {
        let text = logged(Format::Text);
        let record = text.strip_suffix('\n').unwrap();
        assert!(!record.chars().any(char::is_control), "{record:?}");
        assert!(record.contains("said: x\\n2026-01-01T00:00:00Z ERROR forged"), "{record}");
    }

    #[test]
    fn json_is_one_object() {
        let text = logged(Format::Json);
        let record = text.strip_suffix('\n').unwrap();
        assert!(!record.chars().any(char::is_control), "{record:?}");
        let value: serde_json::Value = serde_json::from_str(record).unwrap();
        assert_eq!(value["level"], "INFO");
        assert_eq!(value["cell"], FORGERY);
        assert_eq!(value["error"], FORGERY);
        assert_eq!(value["message"], format!("said: {FORGERY}"));
    }

    #[test]
    fn both_formats_have_their_word() {
        for format in [Format::Text, Format::Json] {
            let value = format.to_possible_value().unwrap();
            assert_eq!(value.get_name(), format.word());
        }
    }
}
