//! Signals, heard on a thread of their own instead of ending the process.

use std::io;

use tokio::runtime::{Builder, Runtime};
pub(crate) use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

/// Those by which people and systems end a program that has a terminal.
pub(crate) const ENDS: [SignalKind; 3] =
    [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];

/// For as long as this lives signals are heard; after that they do nothing.
#[derive(Debug)]
pub(crate) struct Hearing(#[expect(dead_code, reason = "its threads hear")] Runtime);

/// Calls this for each of these signals that comes.
pub(crate) fn hear(
    kinds: &[SignalKind],
    heard: impl Fn(SignalKind) + Clone + Send + 'static,
) -> io::Result<Hearing> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("signals")
        .enable_all()
        .build()?;
    for kind in kinds.iter().copied() {
        let mut signals = {
            let _entered = runtime.enter();
            signal(kind)?
        };
        let heard = heard.clone();
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                heard(kind);
            }
        });
    }
    Ok(Hearing(runtime))
}
