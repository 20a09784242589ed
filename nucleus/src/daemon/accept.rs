//! Accepts connections on a thread of its own and serves each on another, only so many at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

/// How long nothing is accepted when the system has no descriptor or thread for it.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves what `next` accepts with `converse`; what comes when there are as many as may be goes to
/// `turn_away`.
pub(super) fn serve<S: Send + 'static>(
    name: &str,
    connections_max: usize,
    next: impl Fn() -> io::Result<S> + Send + 'static,
    turn_away: impl Fn(S) + Send + 'static,
    converse: impl Fn(S) + Send + Sync + 'static,
) -> io::Result<()> {
    let (open, converse) = (Arc::new(AtomicUsize::new(0)), Arc::new(converse));
    thread::Builder::new().name(name.into()).spawn(move || {
        loop {
            let Ok(stream) = next() else {
                thread::sleep(PAUSE);
                continue;
            };
            let counted = Open(Arc::clone(&open));
            if open.fetch_add(1, Relaxed) >= connections_max {
                turn_away(stream);
                continue;
            }
            let converse = Arc::clone(&converse);
            let spawned = thread::Builder::new().name("asker".into()).spawn(move || {
                let _counted = counted;
                converse(stream);
            });
            if spawned.is_err() {
                thread::sleep(PAUSE);
            }
        }
    })?;
    Ok(())
}

/// Counts a connection for as long as it is served.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
