//! Serves metrics: `GET /metrics` at a Unix socket, and at a port of this machine if one is named.
//!
//! It knows as much of HTTP as that takes: one request a connection, nothing kept, nothing read from
//! a body. What a client may take is bounded, and a client that is slow holds nobody up.

mod text;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::control::{Answer, Request};
use super::{Event, accept};

/// Longest head of a request, in bytes.
pub(super) const REQUEST_BYTES_MAX: usize = 4096;
/// Time in which a request must have come.
pub(super) const REQUEST_TIME_MAX: Duration = Duration::from_secs(2);
/// Time in which the answer must have been taken.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Connections at once, of each socket.
pub(super) const CONNECTIONS_MAX: usize = 8;

/// How long the nucleus may take to say how the cells fare.
pub(super) const ASK_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes after an answer that are read and thrown away, so that closing does not destroy the answer.
pub(super) const LEFTOVER_BYTES_MAX: usize = 64 << 10;

/// Serves the socket, and the port if there is one, on threads of their own.
pub(super) fn serve(
    socket: UnixListener,
    port: Option<NonZeroU16>,
    events: &Sender<Event>,
) -> anyhow::Result<()> {
    if let Some(port) = port {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.get())).with_context(|| {
            format!("listen at 127.0.0.1:{port}, which nucleus.toml asks for as metrics.port")
        })?;
        listen("metrics port", events, move || listener.accept().map(|(stream, _)| stream))?;
    }
    listen("metrics", events, move || socket.accept().map(|(stream, _)| stream))
}

fn listen<S: Stream>(
    name: &str,
    events: &Sender<Event>,
    next: impl Fn() -> io::Result<S> + Send + 'static,
) -> anyhow::Result<()> {
    let events = events.clone();
    let turn_away = |mut stream: S| {
        // A fresh connection takes this much at once; nobody waits for one that does not.
        let _ = stream.limit_writing(Duration::from_millis(1));
        let _ = stream.write(&Page::error(503, "too many connections").bytes(true));
    };
    // A client that sends garbage or hangs up ends only its own thread.
    let converse = move |mut stream: S| drop(converse(&mut stream, &events));
    accept::serve(name, CONNECTIONS_MAX, next, turn_away, converse)?;
    Ok(())
}

/// A connection of either kind.
trait Stream: Read + Write + Send + 'static {
    fn limit_reading(&self, time: Duration) -> io::Result<()>;
    fn limit_writing(&self, time: Duration) -> io::Result<()>;
    fn end_writing(&self) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn limit_reading(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))
    }

    fn limit_writing(&self, time: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(time))
    }

    fn end_writing(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for TcpStream {
    fn limit_reading(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))
    }

    fn limit_writing(&self, time: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(time))
    }

    fn end_writing(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

fn converse(stream: &mut impl Stream, events: &Sender<Event>) -> io::Result<()> {
    let (page, with_body) = match read_head(stream)? {
        Head::Whole(head) => answer(&head, events),
        Head::TooLong => (Page::error(431, "the request is too long"), true),
        Head::TooSlow => (Page::error(408, "the request did not come in time"), true),
    };
    let bytes = page.bytes(with_body);
    let mut rest = bytes.as_slice();
    let until = Instant::now() + ANSWER_TIME_MAX;
    while !rest.is_empty() {
        stream.limit_writing(left(until)?)?;
        match stream.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.end_writing()?;
    let until = Instant::now() + REQUEST_TIME_MAX;
    let (mut buffer, mut leftover) = ([0; 4096], 0);
    while leftover < LEFTOVER_BYTES_MAX {
        stream.limit_reading(left(until)?)?;
        match stream.read(&mut buffer)? {
            0 => break,
            read => leftover += read,
        }
    }
    Ok(())
}

/// How long there is until then; an error when there is no time left.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// What a client sent up to the empty line.
enum Head {
    Whole(Vec<u8>),
    TooLong,
    TooSlow,
}

fn read_head(stream: &mut impl Stream) -> io::Result<Head> {
    let until = Instant::now() + REQUEST_TIME_MAX;
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let Ok(time) = left(until) else { return Ok(Head::TooSlow) };
        stream.limit_reading(time)?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => head.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(Head::TooSlow);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        let end = head.windows(4).position(|four| four == b"\r\n\r\n");
        if end.unwrap_or(head.len()) > REQUEST_BYTES_MAX {
            return Ok(Head::TooLong);
        }
        if end.is_some() {
            return Ok(Head::Whole(head));
        }
    }
}

/// The answer to a request, and whether its body is wanted.
fn answer(head: &[u8], events: &Sender<Event>) -> (Page, bool) {
    let head = String::from_utf8_lossy(head);
    let line: Vec<&str> = head.lines().next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = line[..] else {
        return (Page::error(400, "this is no request"), true);
    };
    if !version.starts_with("HTTP/1.") {
        return (Page::error(505, "only HTTP/1.1 is spoken here"), true);
    }
    if !matches!(method, "GET" | "HEAD") {
        return (Page::error(405, "only GET is answered"), true);
    }
    let page = match target.split('?').next() {
        Some("/metrics") => metrics(events),
        _ => Page::error(404, "there is only /metrics"),
    };
    (page, method == "GET")
}

fn metrics(events: &Sender<Event>) -> Page {
    let (sender, receiver) = mpsc::channel();
    let asked = events.send(Event::Control(Request::Status, sender));
    match asked.map(|()| receiver.recv_timeout(ASK_TIME_MAX)) {
        Ok(Ok(Answer::Status(snapshot))) => Page { code: 200, body: text::exposition(&snapshot) },
        _ => Page::error(503, "the nucleus did not answer in time"),
    }
}

struct Page {
    code: u16,
    body: String,
}

impl Page {
    fn error(code: u16, why: &str) -> Self {
        Self { code, body: format!("{why}\n") }
    }

    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let reason = match self.code {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            505 => "HTTP Version Not Supported",
            _ => "Service Unavailable",
        };
        let kind = if self.code == 200 { text::CONTENT_TYPE } else { "text/plain; charset=utf-8" };
        let allow = if self.code == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        let mut page = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
            self.code,
            self.body.len()
        );
        if with_body {
            page.push_str(&self.body);
        }
        page.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(request: &str, code: u16) {
        // Nobody decides behind this channel, so what reaches it is answered with 503.
        let (events, inbox) = mpsc::channel();
        drop(inbox);
        let (page, _) = answer(request.as_bytes(), &events);
        assert_eq!(page.code, code, "{request:?}: {}", page.body);
    }

    #[test]
    fn requests() {
        check("GET /metrics HTTP/1.1\r\n\r\n", 503);
        check("GET /metrics?a=b HTTP/1.0\r\nHost: x\r\n\r\n", 503);
        check("HEAD /metrics HTTP/1.1\r\n\r\n", 503);
        check("GET / HTTP/1.1\r\n\r\n", 404);
        check("GET /metrics/ HTTP/1.1\r\n\r\n", 404);
        check("POST /metrics HTTP/1.1\r\n\r\n", 405);
        check("GET /metrics HTTP/2\r\n\r\n", 505);
        check("GET  /metrics HTTP/1.1\r\n\r\n", 400);
        check("\r\n\r\n", 400);
        check("\0\u{fffd} garbage\r\n\r\n", 400);
    }

    #[test]
    fn pages_say_their_length() {
        let page = Page { code: 200, body: "a 1\n".into() };
        let text = String::from_utf8(page.bytes(true)).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\na 1\n"),
            "{text}"
        );
        assert!(text.contains("Content-Length: 4\r\n"), "{text}");
        assert!(String::from_utf8(page.bytes(false)).unwrap().ends_with("\r\n\r\n"));
    }
}
