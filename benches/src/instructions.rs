//! Instructions of the path of a call, counted by valgrind: what time cannot guard, because it is
//! never the same, these can.
//!
//! A work is run a small and a large number of times, each in a process of its own; the difference
//! is what one of it takes, without what starting takes.

use std::process::Command;

use anyhow::{Context as _, anyhow, bail};
use cell_client::ring::Ring;

use crate::bare;

/// Runs whose difference counts.
const FEW: u32 = 1_000;
const MANY: u32 = 11_000;

/// Something that is done for every call (through the host library, from taking an instance to giving
/// it back; a frame through shared memory and back), and the most instructions that one may take: a tenth more
/// than were counted when the number was written down.
#[derive(Debug)]
struct Work {
    name: &'static str,
    instructions_max: u64,
    repeat: fn(u32) -> anyhow::Result<()>,
}

const WORKS: [Work; 2] = [
    Work { name: "call", instructions_max: 5050, repeat: bare::repeat_calls },
    Work { name: "ring", instructions_max: 1200, repeat: repeat_frames },
];

/// Counts every work, prints what it found, and says whether all are within their bounds.
pub(crate) fn measure(print: impl Fn(&str)) -> anyhow::Result<bool> {
    let mut all = true;
    for work in WORKS {
        let more = count(work.name, MANY)?.saturating_sub(count(work.name, FEW)?);
        let each = more / u64::from(MANY - FEW);
        let within = each <= work.instructions_max && each > 0;
        let verdict = if within { "" } else { "   TOO MANY" };
        print(&format!(
            "{:24} {each:>8} instructions, at most {}{verdict}",
            work.name, work.instructions_max
        ));
        all &= within;
    }
    Ok(all)
}

/// Repeats a work in this process.
pub(crate) fn repeat(name: &str, times: u32) -> anyhow::Result<()> {
    let work = WORKS.iter().find(|work| work.name == name);
    (work.with_context(|| format!("there is no work `{name}`"))?.repeat)(times)
}

fn count(work: &str, times: u32) -> anyhow::Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(std::env::current_exe()?).args(["repeat", work, &times.to_string()]);
    let ran = valgrind.output().context("run valgrind; install it, or leave this out")?;
    let said = String::from_utf8_lossy(&ran.stderr);
    if !ran.status.success() {
        bail!("valgrind ended with {}: {said}", ran.status);
    }
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let (_, number) = collected.ok_or_else(|| anyhow!("valgrind counted nothing: {said}"))?;
    number.trim().parse().with_context(|| format!("read `{number}` as a number"))
}

/// A frame of 96 bytes through shared memory, and one back.
fn repeat_frames(times: u32) -> anyhow::Result<()> {
    let (file, mut server) = Ring::create()?;
    let mut client = Ring::attach(&file)?;
    let (frame, mut got) = ([7; 96], [0; 4096]);
    for _ in 0..times {
        pass(&mut client, &mut server, &frame, &mut got)?;
        pass(&mut server, &mut client, &frame, &mut got)?;
    }
    Ok(())
}

fn pass(from: &mut Ring, to: &mut Ring, frame: &[u8], got: &mut [u8]) -> anyhow::Result<()> {
    from.write(frame)?;
    if from.tell() {
        bail!("nobody waits here");
    }
    if to.read(got)? != frame.len() {
        bail!("a frame came in pieces");
    }
    Ok(())
}
