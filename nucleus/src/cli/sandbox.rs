//! `cell inspect --sandbox`: which walls stand on this machine, shown by running into them.

use std::fmt::Write as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::output::escape;
use super::{Exit, Output};
use crate::daemon::control::{Answer, Request, ask};
use crate::home::Home;
use crate::walls::probe::{self, Report};
use crate::walls::{Wall, cgroup};

#[derive(Debug, Args)]
pub(crate) struct ProbeArguments {
    /// A file that must stay secret.
    identity: PathBuf,
    /// A socket that somebody listens on.
    socket: PathBuf,
    /// A wall to leave out, to see which attacks the others stop.
    #[arg(long)]
    without: Vec<String>,
}

/// The attacker: prints what it could do.
pub(crate) fn probe(arguments: &ProbeArguments, output: &Output) -> anyhow::Result<Exit> {
    let without: Vec<_> = arguments.without.iter().map(String::as_str).collect();
    let report = probe::run(&without, &arguments.identity, &arguments.socket)?;
    output.result(&report, &serde_json::to_string(&report)?);
    Ok(Exit::Done)
}

pub(crate) fn run(home: &Home, output: &Output) -> anyhow::Result<Exit> {
    home.create()?;
    let identity = home.identity();
    home.secret(&identity)?;
    let report = attack(home, &identity)?;
    let running = match ask(home, &Request::Walls)? {
        Some(Answer::Walls(walls)) => Some(walls),
        _ => None,
    };
    let missing = report.walls.iter().filter(|wall| !wall.stands).count();
    let allowed = report.attempts.iter().filter(|attempt| attempt.outcome != "denied").count();
    let value = json!({
        "walls": report.walls, "attempts": report.attempts, "running_worker": running,
        "missing": missing, "allowed": allowed,
    });
    output.result(&value, &text(&report, running.as_deref()));
    Ok(if allowed == 0 { Exit::Done } else { Exit::Failed })
}

/// Runs the attacker against this home's identity and a socket made for it.
fn attack(home: &Home, identity: &std::path::Path) -> anyhow::Result<Report> {
    let socket = home.root().join(format!("probe-{}.sock", std::process::id()));
    let listener =
        UnixListener::bind(&socket).with_context(|| format!("bind {}", socket.display()))?;
    let ran = Command::new(std::env::current_exe()?)
        .args(["wall-probe", "--json"])
        .args([identity, &socket])
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    drop(listener);
    let _ = std::fs::remove_file(&socket);
    let ran = ran.context("start the probe")?;
    anyhow::ensure!(ran.status.success(), "the probe ended with {}", ran.status);
    serde_json::from_slice(&ran.stdout).context("read what the probe found")
}

fn text(report: &Report, running: Option<&[Wall]>) -> String {
    let mut text = String::from("WALLS around every process that runs or compiles strangers' code");
    // Writing to a String cannot fail.
    for wall in &report.walls {
        let stands = if wall.stands { "stands " } else { "MISSING" };
        let _ = write!(text, "\n  {stands}  {:14}  {}", wall.name, escape(&wall.detail));
    }
    text.push_str("\n\nATTACKS from behind them, by a process of its own");
    for attempt in &report.attempts {
        let by = attempt.wall.as_deref().map(|wall| format!("by {wall}"));
        let error = attempt.error.as_deref().map(escape);
        let _ = write!(
            text,
            "\n  {:7}  {:26}  {:12}  {}",
            attempt.outcome,
            attempt.what,
            by.unwrap_or_default(),
            error.unwrap_or_default()
        );
    }
    match running {
        None => text.push_str("\n\nno nucleus is running"),
        Some([]) => text.push_str("\n\nthe nucleus' worker has not reported its walls yet"),
        Some(walls) => {
            let standing = walls.iter().filter(|wall| wall.stands).count();
            let _ = write!(
                text,
                "\n\nthe nucleus' worker reports {standing} of {} walls standing",
                walls.len()
            );
            if let Some(group) = walls.iter().find(|wall| wall.name == cgroup::NAME) {
                let _ = write!(text, "; cgroup: {}", escape(&group.detail));
            }
        }
    }
    text
}
