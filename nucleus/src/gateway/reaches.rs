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
use cell_peer::{Credentials, PeerError, Records, Request, Session, tunnel};

use super::hall::NO_ROOM;
use crate::counted::Counted;
use crate::link::Link;
use crate::link::gateway::{FromGateway, REACH_TIME_MAX, Reach};

/// Sessions with cells on other machines, those that begin among them.
pub(super) const REACHES_MAX: usize = 256;

/// Those that there are.
#[derive(Debug, Default)]
pub(super) struct Reaches(Arc<AtomicUsize>);

impl Reaches {
    /// Begins a session on a thread of its own, which the nucleus hears of either way. The outer error is the
    /// nucleus' end.
    pub(super) fn begin(
        &self,
        reach: Reach,
        stream: Option<TcpStream>,
        credentials: &Credentials,
        link: &Link,
    ) -> anyhow::Result<()> {
        let id = reach.id;
        let before = self.0.load(Relaxed);
        let counted = Counted::new(&self.0, 1);
        let refused = match (stream, Request::decode(&reach.request), link.try_clone()) {
            _ if before >= REACHES_MAX => "there are too many sessions with cells elsewhere".into(),
            (None, ..) => "the connection is lost".into(),
            (_, Err(error), _) => error.to_string(),
            // No descriptor is left: what is there goes on.
            (.., Err(_)) => NO_ROOM.into(),
            (Some(stream), Ok(request), Ok(link)) => {
                let own = credentials.clone();
                let run = move || {
                    let _counted = counted;
                    // A nucleus that is gone takes this process with it.
                    let _ = run((&reach, &request), stream, &own, &link);
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
    link: &Link,
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
            let _ = tunnel::run(&stream, session, records, &ours);
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

#[cfg(test)]
mod tests {
    use super::super::testing::credentials;
    use super::*;

    #[test]
    fn so_many_sessions_and_no_more() {
        let (ours, theirs) = Link::pair().unwrap();
        let (reaches, (key, credentials)) = (Reaches::default(), credentials(1));
        let mut buffer = Vec::new();
        let mut why = |request: Vec<u8>, stream: Option<TcpStream>| {
            let reach = Reach { id: 5, peer: *key.as_bytes(), relay: None, request };
            reaches.begin(reach, stream, &credentials, &ours).unwrap();
            match theirs.receive(&mut buffer).unwrap().unwrap().0 {
                FromGateway::NotReached { id: 5, why } => why,
                other => panic!("{other:?}"),
            }
        };
        // A machine that hangs up at once.
        let hangs_up = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap()
        };
        let request = Request::Job.encode();
        assert!(!why(request.clone(), Some(hangs_up())).contains("too many"));
        assert!(why(request.clone(), None).contains("connection is lost"));
        assert!(why(b"\xff".to_vec(), Some(hangs_up())).contains("unknown kind"));
        let all = Counted::new(&reaches.0, REACHES_MAX);
        assert!(why(request.clone(), Some(hangs_up())).contains("too many"));
        drop(all);
        assert!(!why(request, Some(hangs_up())).contains("too many"));
    }
}
