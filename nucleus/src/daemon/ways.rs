//! The relays at which this machine waits: the nucleus opens the connections to them, and knows how they fare.
//!
//! Not a byte is read from them here; that is the gateway's.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Instant;

use cell_discovery::Address;
use cell_peer::tunnel;
use serde::{Deserialize, Serialize};

use super::Event;
use crate::counted::Counted;
use crate::link::gateway::DIAL_TIME_MAX;

/// Connections to relays that are being opened.
pub(super) const DIALS_MAX: usize = 64;
/// Of what a relay said why this machine does not wait there, so many bytes are kept.
pub(super) const WHY_BYTES_MAX: usize = 512;

/// All relays.
pub(super) struct Ways {
    all: Vec<WayRow>,
    dialling: Arc<AtomicUsize>,
}

/// One relay, as `cell peer list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WayRow {
    /// RELAYKEY@HOST:PORT, which is where others reach this machine.
    pub(crate) address: String,
    /// Whether this machine waits there, so that others reach it.
    pub(crate) waits: bool,
    /// Why not.
    pub(crate) why_not: Option<String>,
}

impl Ways {
    pub(super) fn new(relays: &[Address]) -> Self {
        let row = |relay: &Address| WayRow {
            address: relay.to_string(),
            waits: false,
            why_not: Some("it is being tried".into()),
        };
        Self { all: relays.iter().map(row).collect(), dialling: Arc::default() }
    }

    pub(super) fn rows(&self) -> &[WayRow] {
        &self.all
    }

    /// Nobody waits at any of them: the gateway that did so is gone.
    pub(super) fn begin_anew(&mut self) {
        for row in &mut self.all {
            (row.waits, row.why_not) = (false, Some("the gateway starts anew".into()));
        }
    }

    /// Takes the gateway's word on how one fares.
    pub(super) fn says(&mut self, way: u32, why_not: Option<String>) {
        let Some(row) = usize::try_from(way).ok().and_then(|way| self.all.get_mut(way)) else {
            return;
        };
        let why_not = why_not.map(|mut why| {
            why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
            why
        });
        // What was told before is not told again each minute.
        if row.why_not == why_not && row.waits == why_not.is_none() {
            return;
        }
        (row.waits, row.why_not) = (why_not.is_none(), why_not);
        let relay = &row.address;
        match &row.why_not {
            None => tracing::info!(relay, "others reach this machine through a relay"),
            Some(why) => {
                tracing::warn!(
                    relay,
                    why,
                    "this machine does not wait at a relay; it is tried again"
                );
            }
        }
    }

    /// Connects to one for the gateway with this number, and says so by an event.
    pub(super) fn dial(&self, number: u64, (id, way): (u64, u32), events: &Sender<Event>) {
        let dialled = move |stream: Result<TcpStream, String>| Event::Dialled(number, id, stream);
        let row = usize::try_from(way).ok().and_then(|way| self.all.get(way));
        let address = row.and_then(|row| row.address.parse::<Address>().ok());
        let counted = Counted::new(&self.dialling, 1);
        let why = match address {
            Some(address) if self.dialling.load(Relaxed) <= DIALS_MAX => {
                let events = events.clone();
                let spawned = thread::Builder::new().name("dial".into()).spawn(move || {
                    let _counted = counted;
                    let until = Instant::now() + DIAL_TIME_MAX;
                    let stream = tunnel::connect(address.host_and_port(), until);
                    // The nucleus may have ended first.
                    let _ = events.send(dialled(stream.map_err(|error| error.to_string())));
                });
                match spawned {
                    Ok(_) => return,
                    Err(error) => error.to_string(),
                }
            }
            Some(_) => "too many connections are being opened".into(),
            None => "there is no such relay".into(),
        };
        let _ = events.send(dialled(Err(why)));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn few_connections_are_opened_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("{}@{}", "ab".repeat(32), listener.local_addr().unwrap());
        let ways = Ways::new(&[address.parse().unwrap()]);
        let (events, inbox) = mpsc::channel();
        let dialled = |id, way| {
            ways.dial(3, (id, way), &events);
            match inbox.recv().unwrap() {
                Event::Dialled(3, found, stream) if found == id => stream.map(drop),
                _ => panic!("another event"),
            }
        };
        assert_eq!(dialled(1, 0), Ok(()));
        assert!(dialled(2, 1).unwrap_err().contains("no such relay"));
        let under_way: Vec<_> = (0..DIALS_MAX).map(|_| Counted::new(&ways.dialling, 1)).collect();
        assert!(dialled(3, 0).unwrap_err().contains("too many"));
        drop(under_way);
        assert_eq!(dialled(4, 0), Ok(()));
    }

    /// A relay that does not even refuse is given up.
    #[test]
    fn a_relay_that_does_not_answer_is_given_up() {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let silent = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&silent, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&silent, 0).unwrap();
        let at = SocketAddr::try_from(getsockname(&silent).unwrap()).unwrap();
        // Once its queue is full the kernel lets whoever knocks wait.
        let (mut kept, short) = (Vec::new(), Duration::from_millis(200));
        while let Ok(stream) = TcpStream::connect_timeout(&at, short) {
            kept.push(stream);
        }
        let ways = Ways::new(&[format!("{}@{at}", "ab".repeat(32)).parse().unwrap()]);
        let (events, inbox) = mpsc::channel();
        ways.dial(1, (2, 0), &events);
        match inbox.recv_timeout(DIAL_TIME_MAX * 4).unwrap() {
            Event::Dialled(1, 2, Err(why)) => assert!(why.contains("timed out"), "{why}"),
            _ => panic!("it is connected"),
        }
    }

    #[test]
    fn what_a_relay_says_is_cut() {
        let mut ways = Ways::new(&[format!("{}@h:1", "ab".repeat(32)).parse().unwrap()]);
        ways.says(0, Some("\u{e9}".repeat(WHY_BYTES_MAX)));
        let why = ways.rows()[0].why_not.as_ref().unwrap();
        assert_eq!((why.len(), ways.rows()[0].waits), (WHY_BYTES_MAX, false));
        ways.says(0, None);
        assert_eq!((ways.rows()[0].waits, &ways.rows()[0].why_not), (true, &None));
        ways.says(7, None);
    }
}
