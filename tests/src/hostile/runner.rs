//! Drives rows one after another, measures them, and prints the table.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::world::{Neighbour, World};
use super::{Act, Bill, Call, Row, Seen};
use crate::{GUARD, wat};

/// What the table shows of an answer.
const ANSWER_CHARS_MAX: usize = 64;

/// A row after it was driven.
struct Driven {
    class: &'static str,
    name: &'static str,
    expected: &'static str,
    bill: Bill,
    seen: Seen,
    wall: Duration,
    peak_kib: u64,
    /// The neighbour's slowest call meanwhile.
    next_door: Duration,
    fault: Option<String>,
}

/// Drives every row and prints the table; fails with all the rows that were not answered as they must be.
///
/// # Panics
///
/// If a row, the neighbour or the worker did not fare as it must.
#[track_caller]
pub fn run(mut rows: Vec<Row>) {
    if let Some(only) = std::env::var_os("CELL_HOSTILE") {
        let only = only.to_string_lossy().into_owned();
        rows.retain(|row| row.class == only || row.name.contains(&only));
    }
    let world = Arc::new(World::new());
    let neighbour = Neighbour::start(world.home());
    let started = Instant::now();
    let mut driven = Vec::new();
    for row in rows {
        let one = drive(&world, &neighbour, row);
        let hangs = one.fault.as_deref() == Some("hangs");
        driven.push(one);
        if hangs || !world.is_whole() {
            break;
        }
    }
    for one in &mut driven {
        if let Some(later) = one.seen.later.take() {
            let since = Instant::now();
            let seen = guarded(&world, later);
            one.wall += since.elapsed();
            one.take(seen);
        }
    }
    let took = started.elapsed();
    let calls = neighbour.end();
    let slowest = driven.iter().map(|one| one.next_door).max().unwrap_or_default();
    let mut faults: Vec<String> = driven.iter().filter_map(Driven::line_of_fault).collect();
    print(&driven);
    println!(
        "{} rows in {took:.1?}; the neighbour was served {calls} times, at worst in {slowest:.1?}",
        driven.len()
    );
    if world.is_whole() {
        match Arc::try_unwrap(world) {
            Ok(world) => world.down(),
            Err(_) => faults.push("a row still runs".into()),
        }
    } else {
        faults.push("the nucleus or its worker ended".into());
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn drive(world: &Arc<World>, neighbour: &Neighbour, row: Row) -> Driven {
    let Row { class, name, act, answer, bill, growth_mib_max } = row;
    neighbour.take_slowest();
    let before = world.worker().reset_peak();
    let since = Instant::now();
    let seen = guarded(world, move |world| act.run(world));
    let mut driven = Driven {
        class,
        name,
        expected: answer,
        bill,
        seen: Seen::default(),
        wall: since.elapsed(),
        peak_kib: world.worker().peak_kib(),
        next_door: neighbour.take_slowest(),
        fault: None,
    };
    driven.take(seen);
    let grown = driven.peak_kib.saturating_sub(before) >> 10;
    driven.peak_kib = driven.seen.peak_kib.unwrap_or(driven.peak_kib);
    driven.blame(grown > growth_mib_max, || {
        format!("the worker grew by {grown} MiB; at most {growth_mib_max} are its due")
    });
    driven.blame(!world.is_whole(), || "the worker or the nucleus ended".into());
    let noticed = neighbour.take_errors();
    driven.blame(!noticed.is_empty(), || format!("the neighbour noticed: {}", noticed.join("; ")));
    if world.is_whole() {
        let cleaned = guarded(world, |world| {
            world.clean();
            Seen::default()
        });
        driven.blame(cleaned.is_err(), || "its cells cannot be removed".into());
    }
    driven
}

/// Runs a row on a thread of its own; one that hangs is left behind.
fn guarded(
    world: &Arc<World>,
    act: impl FnOnce(&World) -> Seen + Send + 'static,
) -> Result<Seen, String> {
    let (sender, receiver) = mpsc::channel();
    let world = Arc::clone(world);
    let thread = thread::spawn(move || {
        let seen = catch_unwind(AssertUnwindSafe(|| act(&world)));
        drop(world);
        // Nobody takes what came too late.
        let _ = sender.send(seen);
    });
    match receiver.recv_timeout(GUARD * 2) {
        Ok(seen) => {
            let _ = thread.join();
            seen.map_err(|panic| match panic.downcast::<String>() {
                Ok(message) => *message,
                Err(panic) => {
                    panic.downcast_ref::<&str>().map_or_else(|| "panicked".into(), |m| (*m).into())
                }
            })
        }
        Err(_) => Err("hangs".into()),
    }
}

impl Act {
    fn run(self, world: &World) -> Seen {
        match self {
            Self::Call(call) => call.run(world),
            Self::Deploy(make) => {
                let wasm = make();
                match world.deploy(&world.name(), "", &wasm) {
                    Ok(()) => Seen::charged("live", 0),
                    Err(reason) => Seen::charged(format!("refused: {reason}"), 0),
                }
            }
            Self::Job(job) => job.run(world),
            Self::Other(act) => act(world),
        }
    }
}

impl Call {
    fn run(self, world: &World) -> Seen {
        let name = world.name();
        let wasm = wat::compile(&self.text.replace("SELF", &name));
        if let Err(reason) = world.deploy(&name, self.manifest, &wasm) {
            return Seen::charged(format!("refused: {reason}"), 0);
        }
        let mut all = Seen { limit: Some(self.fuel), fuel: Some(0), ..Seen::default() };
        for time in 0..self.times {
            let seen = world.call(&name, &self.request, self.fuel);
            let separator = if time == 0 { "" } else { " | " };
            all.answer = format!("{}{separator}{}", all.answer, seen.answer);
            all.fuel = all.fuel.max(seen.fuel);
        }
        all
    }
}

impl Driven {
    /// Compares what was seen with what must be.
    fn take(&mut self, seen: Result<Seen, String>) {
        let seen = match seen {
            Ok(seen) => seen,
            Err(fault) => return self.blame(true, || fault),
        };
        self.seen = seen;
        if self.seen.later.is_some() {
            return;
        }
        let answer = self.seen.answer.clone();
        self.blame(!fits(self.expected, &answer), || format!("answered {answer:?}"));
        let (fuel, limit) = (self.seen.fuel, self.seen.limit);
        let paid = match (self.bill, fuel) {
            (Bill::None, None) => true,
            (Bill::Nothing, Some(fuel)) => fuel == 0,
            (Bill::Limit, Some(fuel)) => Some(fuel) == limit,
            (Bill::Exactly(due), Some(fuel)) => fuel == due,
            (Bill::Within(least, most), Some(fuel)) => (least..=most).contains(&fuel),
            _ => false,
        };
        let bill = self.bill;
        self.blame(!paid, || format!("cost {fuel:?}, which is not {bill:?}"));
    }

    fn blame(&mut self, is_fault: bool, why: impl FnOnce() -> String) {
        if is_fault {
            let before = self.fault.take().map_or_else(String::new, |fault| fault + "; ");
            self.fault = Some(before + &why());
        }
    }

    fn line_of_fault(&self) -> Option<String> {
        let fault = self.fault.as_ref()?;
        Some(format!("  {} {}: expected {:?}: {fault}", self.class, self.name, self.expected))
    }
}

/// Whether a text fits one of the patterns, which ` or ` separates.
fn fits(patterns: &str, text: &str) -> bool {
    patterns.split(" or ").any(|pattern| fits_one(pattern, text))
}

/// Whether a text is made of these pieces, with anything in place of each `*`.
fn fits_one(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut whole = true;
    let mut last = "";
    for piece in pieces {
        whole = false;
        let Some(at) = rest.find(piece) else { return false };
        rest = rest.get(at + piece.len()..).unwrap_or_default();
        last = piece;
    }
    rest.is_empty() || (!whole && (last.is_empty() || text.ends_with(last)))
}

fn print(driven: &[Driven]) {
    let wide = driven.iter().map(|one| one.name.chars().count()).max().unwrap_or(0);
    println!(
        "{:<5} {:<wide$} {:<ANSWER_CHARS_MAX$} {:>15} {:>7} {:>8} {:>9}",
        "class", "what", "answer", "fuel", "wall ms", "peak MiB", "next door"
    );
    for one in driven {
        let answer = &one.seen.answer;
        let mut shown: String = answer.chars().take(ANSWER_CHARS_MAX).collect();
        if shown.len() < answer.len() {
            shown = answer.chars().take(ANSWER_CHARS_MAX - 1).chain(['…']).collect();
        }
        let fuel = one.seen.fuel.map_or_else(|| "-".into(), |fuel| fuel.to_string());
        println!(
            "{:<5} {:<wide$} {shown:<ANSWER_CHARS_MAX$} {fuel:>15} {:>7} {:>8} {:>6} ms",
            one.class,
            one.name,
            one.wall.as_millis(),
            one.peak_kib >> 10,
            one.next_door.as_millis(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns() {
        for (pattern, text, expect) in [
            ("Ok", "Ok", true),
            ("Ok", "Ok 1", false),
            ("Ok*", "Ok 1", true),
            ("*locals*", "refused: too many locals", true),
            ("a*b", "a-b-b", true),
            ("a*b", "a-b-c", false),
            ("a*c*b", "a-b", false),
            ("a or b*", "b-c", true),
            ("a or b", "c", false),
        ] {
            assert_eq!(fits(pattern, text), expect, "{pattern:?} {text:?}");
        }
    }
}
