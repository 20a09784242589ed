//! Cells on other machines that cells here call: sessions that this machine begins, over connections that the
//! nucleus has opened.

use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use cell_abi::AccountId;
use cell_peer::{Credentials, Pace, PeerError, Records, Request, Session, tunnel};

use crate::link::Link;
use crate::link::gateway::{FromGateway, REACH_TIME_MAX, Reach};

/// Sessions with cells on other machines, those that begin among them.
pub(super) const REACHES_MAX: usize = 256;

/// Those that there are.
#[derive(Debug, Default)]
pub(super) struct Reaches(Arc<AtomicUsize>);

/// One of them, for as long as this lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Reaches {
    /// Begins a session on a thread of its own, which the nucleus hears of either way. The outer error is the
    /// nucleus' end.
    pub(super) fn begin(
        &self,
        reach: Reach,
        stream: Option<TcpStream>,
        credentials: &Credentials,
        (link, pace): (&Link, &Arc<Pace>),
    ) -> anyhow::Result<()> {
        let (id, link) = (reach.id, link.try_clone()?);
        let before = self.0.fetch_add(1, Relaxed);
        let counted = Counted(Arc::clone(&self.0));
        let refused = match (stream, Request::decode(&reach.request)) {
            _ if before >= REACHES_MAX => "there are too many sessions with cells elsewhere".into(),
            (None, _) => "the connection is lost".into(),
            (_, Err(error)) => error.to_string(),
            (Some(stream), Ok(request)) => {
                let (own, pace) = (credentials.clone(), Arc::clone(pace));
                let link = link.try_clone()?;
                let run = move || {
                    let _counted = counted;
                    // A nucleus that is gone takes this process with it.
                    let _ = run((&reach, &request), stream, &own, (&link, &pace));
                };
                let thread = thread::Builder::new().name("reach".into()).stack_size(256 << 10);
                match thread.spawn(run) {
                    Ok(_) => return Ok(()),
                    Err(error) => error.to_string(),
                }
            }
        };
        Ok(link.send(&FromGateway::NotReached { id, why: refused }, &[])?)
    }
}

fn run(
    (reach, request): (&Reach, &Request),
    stream: TcpStream,
    credentials: &Credentials,
    (link, pace): (&Link, &Pace),
) -> std::io::Result<()> {
    let id = reach.id;
    let begun = begin(reach, stream, credentials, request)
        .and_then(|begun| Ok((begun, UnixStream::pair()?)));
    match begun {
        Err(error) => link.send(&FromGateway::NotReached { id, why: error.to_string() }, &[]),
        Ok(((stream, session, records), (ours, theirs))) => {
            link.send(&FromGateway::Reached { id }, &[theirs.as_fd()])?;
            drop(theirs);
            // Both ends see that it ended; why is nobody's to hear any more.
            let _ = tunnel::run_at((&stream, session, records), &ours, pace);
            Ok(())
        }
    }
}

fn begin(
    reach: &Reach,
    stream: TcpStream,
    credentials: &Credentials,
    request: &Request,
) -> Result<(TcpStream, Session, Records), PeerError> {
    let who = (reach.relay.map(AccountId::from_bytes), AccountId::from_bytes(reach.peer));
    tunnel::ask_over(stream, who, credentials, request, Instant::now() + REACH_TIME_MAX)
}
