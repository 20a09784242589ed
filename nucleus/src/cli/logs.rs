//! `cell logs`.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use cell_abi::CellName;
use clap::Args;

use super::{Exit, Global, Output};

/// Bytes from the end of the log that are looked at.
const TAIL_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The cell.
    name: CellName,
    /// Go on printing what is logged.
    #[arg(long, short)]
    follow: bool,
    /// How many lines to start with.
    #[arg(long, short = 'n', default_value_t = 100, value_name = "N")]
    lines: usize,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    let name = arguments.name.as_str();
    if !home.cell(name).is_dir() {
        bail!("there is no cell `{name}`; `cell ps` lists them");
    }
    let path = home.cell_log(name);
    if !path.exists() && !arguments.follow {
        output.note(&format!("{name} has logged nothing"));
        return Ok(Exit::Done);
    }
    let mut at = 0;
    if let Ok(mut file) = File::open(&path) {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES)
            .read_to_end(&mut text)
            .with_context(|| format!("read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(arguments.lines);
        print(lines.get(from..).unwrap_or_default(), output)?;
        at = length;
    }
    if arguments.follow { follow(&path, at, output) } else { Ok(Exit::Done) }
}

/// Prints what is appended, also after the file was moved aside.
fn follow(path: &Path, mut at: u64, output: &Output) -> anyhow::Result<Exit> {
    let mut inode = std::fs::metadata(path).map_or(0, |found| found.ino());
    loop {
        thread::sleep(Duration::from_millis(200));
        let Ok(mut file) = File::open(path) else { continue };
        let found = file.metadata()?;
        if found.ino() != inode {
            (inode, at) = (found.ino(), 0);
        }
        if found.len() <= at {
            continue;
        }
        file.seek(SeekFrom::Start(at))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        // A record that is half written is left for the next look.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines = String::from_utf8_lossy(text.get(..whole).unwrap_or_default()).into_owned();
        print(&lines.lines().collect::<Vec<_>>(), output)?;
        at += u64::try_from(whole)?;
    }
}

fn print(lines: &[&str], output: &Output) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        if output.json() {
            let mut parts = line.splitn(3, ' ');
            let record = serde_json::json!({ "time": parts.next(), "level": parts.next(), "text": parts.next() });
            writeln!(out, "{record}")?;
        } else {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}
