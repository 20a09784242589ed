//! Looks at the machine again and again while it is lent, on a thread of its own: a disk that hangs must not
//! hang what is decided.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::thread::{self, Thread};
use std::time::Duration;

use cell_donor::{Decision, Memory, Moment, Sensors, Settings, decide};

use crate::daemon::Event;
use crate::processes::Process;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(250);

/// What was seen and decided.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Of the lending that it was seen for.
    pub(super) since_ms: u64,
    pub(super) decision: Decision,
    /// Memory or disk is short: what is frozen would be in the way.
    pub(super) is_short: bool,
}

/// The thread that looks; it ends with this value.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Default)]
struct Shared {
    owner_paused: AtomicBool,
    ended: AtomicBool,
}

impl Watch {
    /// Looks at this machine, for a nucleus that keeps its work at `home` and has been lent by the process
    /// `by` since then.
    pub(super) fn start(
        settings: Settings,
        home: &Path,
        (by, since_ms): (u32, u64),
        events: Sender<Event>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (seen, mut sensors) = (Arc::clone(&shared), Sensors::new(Path::new("/"), home));
        let look = move || {
            let mut memory = Memory::default();
            while !seen.ended.load(Relaxed) {
                let (now, mut own) = (Moment::now(), own_processes());
                own.insert(by);
                let mut signals = sensors.read(&settings, &own, now);
                signals.owner_paused = seen.owner_paused.load(Relaxed);
                let (decision, next) = decide(&settings, &signals, &memory, now);
                memory = next;
                let event = Event::Donor(Seen { since_ms, decision, is_short: memory.is_short() });
                if events.send(event).is_err() {
                    return;
                }
                thread::park_timeout(EVERY);
            }
        };
        let thread = thread::Builder::new().name("donor".into()).spawn(look)?.thread().clone();
        Ok(Self { shared, thread })
    }

    /// Takes the owner's word, and looks at once.
    pub(super) fn pause(&self, is_paused: bool) {
        self.shared.owner_paused.store(is_paused, Relaxed);
        self.thread.unpark();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
        self.thread.unpark();
    }
}

/// The nucleus and all below it: their processor time is not that of other programs.
fn own_processes() -> std::collections::BTreeSet<u32> {
    Process::of(std::process::id()).map(Process::tree).unwrap_or_default()
}
