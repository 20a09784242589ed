//! `cell up` and `cell down`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::{Exit, Failure, Global, Output, logging};
use crate::daemon::control::{Answer, Request, ask};
use crate::home::Home;

/// How long a nucleus may take to come up.
pub(super) const UP_TIME_MAX: Duration = Duration::from_secs(20);
/// How long one may take to go down.
pub(super) const DOWN_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    /// Stay in this terminal, and log to it.
    #[arg(long)]
    foreground: bool,
    /// How the nucleus logs: lines of text, or of JSON.
    #[arg(long, value_name = "FORMAT", env = logging::FORMAT_VARIABLE, default_value = "text")]
    log_format: logging::Format,
    /// End with the process of this number, which started it.
    #[arg(long, value_name = "PID", hide = true, requires = "foreground")]
    with_parent: Option<u32>,
}

pub(crate) fn up(
    arguments: &UpArguments,
    global: &Global,
    output: &Output,
) -> anyhow::Result<Exit> {
    let home = global.home()?;
    if arguments.foreground {
        leave_session();
        if let Some(parent) = arguments.with_parent {
            end_with(parent)?;
        }
        logging::start(arguments.log_format);
        crate::daemon::run(&home)?;
        return Ok(Exit::Done);
    }
    if is_up(&home) {
        report(&home, output, "is up already");
        return Ok(Exit::Done);
    }
    start(&home, arguments.log_format, &[], output)?;
    report(&home, output, "is up");
    Ok(Exit::Done)
}

/// Starts a nucleus that outlives this command, and waits until it answers.
pub(crate) fn up_in_background(home: &Home, output: &Output) -> anyhow::Result<()> {
    start(home, logging::Format::of_environment(), &[], output).map(drop)
}

/// Starts a nucleus that goes down when this process ends; `None` where another command was faster, and its
/// nucleus is up.
pub(crate) fn up_as_child(home: &Home, output: &Output) -> anyhow::Result<Option<Child>> {
    let with_parent = ["--with-parent", &std::process::id().to_string()];
    let mut child = start(home, logging::Format::of_environment(), &with_parent, output)?;
    Ok(child.try_wait()?.is_none().then_some(child))
}

/// Goes down, in order, when the parent is gone.
fn end_with(parent: u32) -> anyhow::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM))?;
    let found = getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    anyhow::ensure!(found == Some(parent), "who started this nucleus is gone");
    Ok(())
}

fn start(
    home: &Home,
    format: logging::Format,
    more: &[&str],
    output: &Output,
) -> anyhow::Result<Child> {
    home.create()?;
    let bar = output.progress("starting the nucleus");
    let mut child = spawn(home, format, more)?;
    let started = Instant::now();
    while !is_up(home) {
        if let Some(status) = child.try_wait()? {
            if home.lock()?.is_none() {
                // Another `cell up` was faster; its nucleus is on its way.
                if started.elapsed() < UP_TIME_MAX {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                }
            }
            let log = std::fs::read_to_string(home.log()).unwrap_or_default();
            let last = log.lines().last().unwrap_or("its log is empty").to_owned();
            return Err(Failure::new(
                Exit::NucleusFault,
                format!("the nucleus ended with {status}: {last}"),
            )
            .into());
        }
        if started.elapsed() > UP_TIME_MAX {
            child.kill()?;
            let message = format!(
                "the nucleus did not come up in {UP_TIME_MAX:?}; see {}",
                home.log().display()
            );
            return Err(Failure::new(Exit::NucleusFault, message).into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    bar.finish_and_clear();
    Ok(child)
}

pub(crate) fn down(global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    if ask(&home, &Request::Down)?.is_none() {
        if home.root().exists() && !clear_sockets(&home)? {
            let message = format!(
                "a nucleus holds {} but does not answer; end it with `kill {}`",
                home.root().display(),
                home.lock_holder()
            );
            return Err(Failure::new(Exit::NucleusFault, message).into());
        }
        output.result(&json!({ "down": true }), "no nucleus is running");
        return Ok(Exit::Done);
    }
    let bar = output.progress("stopping the nucleus");
    let started = Instant::now();
    // The lock is free when the process has ended.
    while home.lock()?.is_none() {
        if started.elapsed() > DOWN_TIME_MAX {
            let message = format!(
                "the nucleus did not end in {DOWN_TIME_MAX:?}; see {}",
                home.log().display()
            );
            return Err(Failure::new(Exit::NucleusFault, message).into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    bar.finish_and_clear();
    output.result(&json!({ "down": true }), "the nucleus is down");
    Ok(Exit::Done)
}

/// Whether a nucleus answers in this home.
pub(crate) fn is_up(home: &Home) -> bool {
    matches!(ask(home, &Request::Ping), Ok(Some(Answer::Done)))
}

/// An error for commands that need a nucleus.
pub(crate) fn not_up(home: &Home) -> anyhow::Error {
    let option = if std::env::var_os("HOME")
        .is_some_and(|h| home.root() == std::path::Path::new(&h).join(".cell"))
    {
        String::new()
    } else {
        format!(" --home {}", home.root().display())
    };
    Failure::new(
        Exit::NucleusFault,
        format!("no nucleus is running; start it with `cell up{option}`"),
    )
    .into()
}

fn report(home: &Home, output: &Output, what: &str) {
    let text = format!("the nucleus {what}; cells go into {}", home.cells().display());
    output.result(&json!({ "up": true, "home": home.root(), "cells": home.cells() }), &text);
}

fn spawn(home: &Home, format: logging::Format, more: &[&str]) -> anyhow::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(home.log())?;
    Command::new(std::env::current_exe()?)
        .args(["up", "--foreground", "--home"])
        .arg(home.root())
        .args(["--log-format", format.word()])
        .args(more)
        .envs(home.ledger_url().map(|url| (super::LEDGER_VARIABLE, url)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .spawn()
        .context("start the nucleus")
}

/// Where there is a terminal the nucleus stays in its session; otherwise it leaves the caller's.
fn leave_session() {
    use std::io::IsTerminal as _;
    if !std::io::stderr().is_terminal() {
        let _ = rustix::process::setsid();
    }
}

/// Removes what a nucleus that was killed could not remove itself; `false` if one is still there.
fn clear_sockets(home: &Home) -> anyhow::Result<bool> {
    let Some(_lock) = home.lock()? else { return Ok(false) };
    let _ = std::fs::remove_file(home.socket());
    let _ = std::fs::remove_file(home.metrics_socket());
    for entry in std::fs::read_dir(home.cells()).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path().join("cell.sock"));
    }
    Ok(true)
}
