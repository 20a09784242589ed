//! `cell donate`: lends this machine for as long as it runs, shows how that goes, and ends it at once when it
//! is told to.

pub(super) mod earned;
pub(super) mod end;
mod screen;

use std::fmt::Write as _;
use std::process::Child;
use std::time::Duration;

use cell_donor::Settings;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Exit, Failure, Global, Output, daemon};
use crate::config::Config;
use crate::daemon::control::{Answer, Request, ask};
use crate::daemon::donation::{Donating, DonationRow};
use crate::home::Home;
use earned::{Earned, Earnings};

/// How long a nucleus may take to go down with the `cell donate` that started it, before it is killed.
pub(super) const DOWN_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// End the lending, and what runs for others, within a second.
    Stop,
    /// Show whether this machine works for others, why not, and what that earned.
    Status,
    /// Pause until `cell donate resume`.
    Pause,
    /// Go on, where the rules allow it.
    Resume,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    match arguments.command {
        None => lend(&home, output),
        Some(Command::Stop) => stop(&home, output),
        Some(Command::Status) => {
            let row = told(&home, Donating::Status)?.unwrap_or_else(off);
            let earned =
                row.since_ms.and_then(|since| Earnings::open(&home, since).ok()?.look().ok());
            output.result(&value(&row, earned), &text(&row, earned));
            Ok(Exit::Done)
        }
        Some(Command::Pause) => change(&home, Donating::Pause, "paused", output),
        Some(Command::Resume) => {
            change(&home, Donating::Resume, "not paused by you any more", output)
        }
    }
}

/// What the nucleus answers; `None` if there is none.
fn told(home: &Home, asked: Donating) -> anyhow::Result<Option<DonationRow>> {
    match ask(home, &Request::Donate(asked))? {
        None => Ok(None),
        Some(Answer::Donation(row)) => Ok(Some(row)),
        Some(Answer::Failed(why)) => Err(Failure::new(Exit::Failed, why).into()),
        Some(_) => anyhow::bail!("the nucleus answers something else; is it of another version?"),
    }
}

fn change(home: &Home, asked: Donating, what: &str, output: &Output) -> anyhow::Result<Exit> {
    if told(home, asked)?.is_none() {
        return Err(daemon::not_up(home));
    }
    output.result(&json!({ "done": what }), what);
    Ok(Exit::Done)
}

fn stop(home: &Home, output: &Output) -> anyhow::Result<Exit> {
    let ended = end::end(home, Vec::new())?;
    output.result(&ended, &ended.text());
    Ok(Exit::Done)
}

fn lend(home: &Home, output: &Output) -> anyhow::Result<Exit> {
    home.create()?;
    let config = Config::read(home)?;
    if !config.peers.is_reachable() {
        return Err(Failure::new(Exit::Usage, how_to_listen(home)).into());
    }
    // Before there is a nucleus that would have to be ended again.
    let news = screen::News::start()?;
    let own = if daemon::is_up(home) { None } else { daemon::up_as_child(home, output)? };
    let mut nucleus = Own(own);
    let row = told(home, Donating::Start { by: std::process::id() })?
        .ok_or_else(|| daemon::not_up(home))?;
    tell_rules(&config, &row, output);
    let seen = screen::show(home, news, row, output);
    // Whatever ended the show, nothing of others runs on.
    let ended = end::end(home, seen.guests)?;
    if !ended.nucleus_answered {
        nucleus.kill();
    }
    nucleus.end()?;
    output.result(&ended, &ended.text());
    seen.result.map(|()| Exit::Done)
}

/// The nucleus, if this command started it; it ends with this value.
struct Own(Option<Child>);

impl Own {
    fn kill(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
        }
    }

    /// Has it go down, so that calls of this machine's users end first.
    fn end(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.0.take() else { return Ok(()) };
        let started = std::time::Instant::now();
        if let Some(nucleus) = crate::processes::Process::of(child.id()) {
            nucleus.signal(rustix::process::Signal::TERM);
        }
        while child.try_wait()?.is_none() {
            if started.elapsed() > DOWN_TIME_MAX {
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // An error is being told already.
        let _ = self.end();
    }
}

fn how_to_listen(home: &Home) -> String {
    let file = home.root().join("nucleus.toml");
    let has_part = std::fs::read_to_string(&file)
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "[peers]"));
    let file = file.display();
    let how = match has_part {
        true => format!("write this below [peers] in {file}: listen = \"0.0.0.0:7316\""),
        false => format!("type: printf '[peers]\\nlisten = \"0.0.0.0:7316\"\\n' >> '{file}'"),
    };
    format!(
        "others cannot reach this machine, for nucleus.toml does not say where it listens; {how}; or name a relay: \
         through = [\"RELAYKEY@HOST:PORT\"]"
    )
}

/// What is lent, and under which rules, once.
fn tell_rules(config: &Config, row: &DonationRow, output: &Output) {
    let settings = &config.donate;
    let mut text = format!(
        "lent at {}: {}, {} MiB of memory for jobs, {} MiB of disk for their modules{}\n",
        row.listens.as_deref().unwrap_or("-"),
        settings.cores_max.map_or_else(|| "all cores".into(), |cores| format!("{cores} cores")),
        settings.memory_mb_max,
        settings.disk_mb_max,
        settings
            .bandwidth_kb_s_max
            .map_or_else(String::new, |most| format!(", {most} KiB/s of the line each way"))
    );
    let _ = write!(
        text,
        "it works for others {}; [donate] in nucleus.toml changes that",
        rules(settings)
    );
    output.note(&text);
}

fn rules(settings: &Settings) -> String {
    let mut rules = Vec::new();
    if settings.schedule != cell_donor::Schedule::default() {
        rules.push("within the schedule".to_owned());
    }
    if settings.only_when_idle {
        rules.push(format!("when nobody has used it for {} s", settings.idle_s));
    }
    rules.push(match settings.on_battery {
        true => format!("with mains or above {} % of charge", settings.battery_percent_min),
        false => "with mains".into(),
    });
    rules.push(format!("below {:.0} °C", settings.temperature_c_max));
    rules.push(match settings.others_cores_max {
        Some(cores) => format!("while other programs use up to {cores} cores"),
        None => "while other programs use up to half of its cores".into(),
    });
    if !settings.never_beside.is_empty() {
        rules.push(format!("without {}", settings.never_beside.join(", ")));
    }
    rules.join(", ")
}

fn off() -> DonationRow {
    DonationRow {
        state: "off".into(),
        reason: None,
        by: None,
        since_ms: None,
        listens: None,
        jobs: 0,
        callers: 0,
        frozen: false,
        guests: Vec::new(),
    }
}

fn value(row: &DonationRow, earned: Option<Earned>) -> Value {
    json!({
        "state": row.state, "reason": row.reason, "by": row.by, "since_ms": row.since_ms,
        "listens": row.listens, "jobs": row.jobs, "callers": row.callers, "frozen": row.frozen,
        "guests": row.guests.iter().map(|guest| guest.pid).collect::<Vec<_>>(),
        "earned_nano_atp": earned.map(|earned| earned.since.0),
        "earned_today_nano_atp": earned.map(|earned| earned.today.0),
    })
}

/// The state, with its reason; as people read it.
fn state(row: &DonationRow) -> String {
    match (&row.reason, row.state.as_str()) {
        (Some(reason), state) => format!("{state}: {reason}"),
        (None, "off") => "this machine is not lent; `cell donate` lends it".into(),
        (None, state) => state.into(),
    }
}

fn text(row: &DonationRow, earned: Option<Earned>) -> String {
    let mut text = state(row);
    if row.by.is_none() {
        return text;
    }
    let (jobs, callers) = (row.jobs, row.callers);
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    // Writing to a String cannot fail.
    let _ = write!(text, "   {jobs} job{}", plural(jobs));
    if callers > 0 {
        let _ = write!(text, ", {callers} caller{}", plural(callers));
    }
    if let Some(Earned { since, today }) = earned {
        let _ = write!(text, "   earned {since} ATP, today {today}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_states_are_told() {
        let text = rules(&Settings::default());
        let expect = "when nobody has used it for 300 s, with mains, below 85 °C, while other programs use up to half of its cores";
        assert_eq!(text, expect);
        let row = DonationRow {
            state: "paused".into(),
            reason: Some("on battery".into()),
            by: Some(1),
            jobs: 1,
            ..off()
        };
        assert_eq!(super::text(&row, None), "paused: on battery   1 job");
        assert_eq!(super::text(&off(), None), "this machine is not lent; `cell donate` lends it");
    }
}
