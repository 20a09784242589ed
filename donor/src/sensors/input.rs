//! How long nobody has touched the machine. Devices of input cannot be read without rights, but their
//! interrupts are counted for everybody to see.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use super::files;

/// Kinds of devices: the numbers of their buses in `/proc/bus/input/devices`, and words in the names of the
/// interrupts that they come by. Other buses, such as that of a power button, tell of nobody.
const KINDS: [(&[&str], &[&str]); 3] = [
    (&["Bus=0011"], &["i8042"]),
    // Bluetooth comes by a stick or a chip on USB. A network or a disk on USB is taken for input where
    // there is any on USB: such a machine pauses too often, and never too seldom.
    (&["Bus=0003", "Bus=0005"], &["xhci", "ehci", "ohci", "uhci", "usb"]),
    (&["Bus=0018"], &["i2c", "AMDI0010"]),
];

/// What the next reading is compared with.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Interrupts, and when they last were different.
    last: Option<(u64, u64)>,
}

/// What interrupts say.
enum Interrupts {
    /// So many there were from devices of input.
    Count(u64),
    /// No device is plugged in that could make one.
    NoDevice,
    /// A device may be in use, and it would not show.
    Unseen,
}

impl Input {
    /// Seconds since the last input at a terminal or a device; `None` where that is not known.
    pub(super) fn read(&mut self, root: &Path, now_ms: u64) -> Option<u64> {
        let terminals = terminals_idle_s(&root.join("dev"));
        match interrupts(&root.join("proc")) {
            Interrupts::Count(count) => {
                let same = self.last.filter(|(before, _)| *before == count);
                let since_ms = same.map_or(now_ms, |(_, since_ms)| since_ms);
                self.last = Some((count, since_ms));
                let devices = now_ms.saturating_sub(since_ms) / 1000;
                Some(terminals.map_or(devices, |terminals| terminals.min(devices)))
            }
            Interrupts::NoDevice => terminals,
            Interrupts::Unseen => None,
        }
    }
}

fn interrupts(proc: &Path) -> Interrupts {
    let Some(lines) = files::text(&proc.join("interrupts")) else { return Interrupts::Unseen };
    let devices = files::text(&proc.join("bus/input/devices"));
    let (mut count, mut seen) = (0_u64, false);
    for (buses, words) in KINDS {
        if devices.as_ref().is_some_and(|devices| !is_plugged_in(devices, buses)) {
            continue;
        }
        let mut of_kind =
            lines.lines().filter(|line| words.iter().any(|word| line.contains(word))).peekable();
        if of_kind.peek().is_some() {
            seen = true;
        } else if devices.is_some() {
            return Interrupts::Unseen;
        }
        count = of_kind.map(sum).fold(count, u64::wrapping_add);
    }
    match (seen, devices) {
        (true, _) => Interrupts::Count(count),
        (false, Some(_)) => Interrupts::NoDevice,
        (false, None) => Interrupts::Unseen,
    }
}

/// Whether one of these buses has a keyboard or something that points.
fn is_plugged_in(devices: &str, buses: &[&str]) -> bool {
    devices.split("\n\n").any(|device| {
        let handlers = device.lines().find_map(|line| line.strip_prefix("H: Handlers="));
        let is_input = handlers.is_some_and(|handlers| {
            let mut handlers = handlers.split_whitespace();
            handlers.any(|name| name == "kbd" || name.starts_with("mouse"))
        });
        is_input && buses.iter().any(|bus| device.contains(bus))
    })
}

/// All processors' counts of a line such as `1: 10 0 IO-APIC 1-edge i8042`.
fn sum(line: &str) -> u64 {
    let counts = line.split_once(':').map_or("", |(_, counts)| counts);
    let counts = counts.split_whitespace().map_while(|word| word.parse::<u64>().ok());
    counts.fold(0, u64::wrapping_add)
}

/// Seconds since somebody typed in a terminal. Output does not count, or a log on a screen would be somebody.
fn terminals_idle_s(dev: &Path) -> Option<u64> {
    let remote = files::entries(&dev.join("pts")).filter(|(name, _)| files::is_number(name));
    let local = files::entries(dev)
        .filter(|(name, _)| name.strip_prefix("tty").is_some_and(files::is_number));
    let read = remote.chain(local).filter_map(|(_, path)| fs::metadata(path).ok()?.accessed().ok());
    let now = SystemTime::now();
    // A clock that was set back is no reason to believe that nobody is there.
    read.max().map(|read| now.duration_since(read).map_or(0, |idle| idle.as_secs()))
}
