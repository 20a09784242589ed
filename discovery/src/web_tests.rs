use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use super::*;
use crate::rendezvous::Rendezvous;
use crate::testing::{NOW_S, record};

/// More than any answer here takes, and less than anybody waits for a test.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

/// Answers every connection this way, as long as the tests run.
fn serve(answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/nodes", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            // The other end closes in the middle, which is what is tested.
            let _ = answer(&mut stream);
        }
    });
    url
}

fn text(text: impl Into<String>) -> String {
    let text = text.into();
    serve(move |stream| stream.write_all(text.as_bytes()))
}

fn body(body: &str) -> String {
    text(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

/// Until the other end closes.
fn wait(stream: &mut TcpStream) -> std::io::Result<()> {
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(ErrorKind::InvalidData.into()),
        Err(error) => Err(error),
    }
}

#[test]
fn a_list_on_the_web() {
    let (first, last) = (record(1, 1, 60), record(2, 1, 60));
    let list = format!("{}\nnonsense\n{}\n", first.to_json(), last.to_json());
    let place: Rendezvous = body(&list).parse().unwrap();
    let reading = place.read(NOW_S).unwrap();
    assert_eq!((&reading.records[..], reading.wrong), (&[first, last][..], 1));
    // A page that is something else altogether.
    let place: Rendezvous = body("<html>\n<p>Welcome\n").parse().unwrap();
    let reading = place.read(NOW_S).unwrap();
    assert_eq!((reading.records.len(), reading.wrong), (0, 2));
}

#[track_caller]
fn check(url: &str, expect: fn(&DiscoveryError) -> bool) {
    let error = fetch(url, PATIENCE).unwrap_err();
    assert!(expect(&error), "{url}: {error:?}");
}

#[test]
fn a_body_is_not_too_long() {
    let right = "x".repeat(FILE_BYTES_MAX.try_into().unwrap());
    assert_eq!(fetch(&body(&right), PATIENCE).unwrap(), right.as_bytes());
    check(&body(&format!("{right}x")), |error| *error == DiscoveryError::ListTooLong);
    let endless = serve(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        loop {
            stream.write_all(&[b'x'; 65536])?;
        }
    });
    check(&endless, |error| *error == DiscoveryError::ListTooLong);
    let chunks = serve(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            stream.write_all(b"10\r\n0123456789abcdef\r\n")?;
        }
    });
    check(&chunks, |error| *error == DiscoveryError::ListTooLong);
}

#[test]
fn answers_that_are_none() {
    let is_http = |error: &DiscoveryError| matches!(error, DiscoveryError::Http(_));
    for wrong in [
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 \x1b[2J\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        check(&text(wrong), is_http);
    }
    // Nobody listens at a port that was just given back.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    check(&format!("http://{port}/nodes"), is_http);
    check("http://", is_http);
}

#[test]
fn a_header_is_not_too_long() {
    let endless = serve(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX: ")?;
        loop {
            stream.write_all(&[b'x'; 1024])?;
        }
    });
    check(&endless, |error| matches!(error, DiscoveryError::Http(_)));
    let padded = |bytes: usize| {
        let header = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ";
        text(format!("{header}{}\r\n\r\n", "x".repeat(bytes - header.len() - 4)))
    };
    assert_eq!(fetch(&padded(HEADER_BYTES_MAX), PATIENCE), Ok(Vec::new()));
    check(&padded(HEADER_BYTES_MAX + 1), |error| matches!(error, DiscoveryError::Http(_)));
}

#[test]
fn a_server_that_is_slow_is_left() {
    let header = |stream: &mut TcpStream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le")?;
        wait(stream)
    };
    let body = |stream: &mut TcpStream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")?;
        wait(stream)
    };
    for url in [serve(header), serve(body), serve(wait)] {
        assert_eq!(fetch(&url, SHORT), Err(DiscoveryError::TimedOut));
    }
    let start = Instant::now();
    let place: Rendezvous = serve(wait).parse().unwrap();
    assert_eq!(place.read(NOW_S), Err(DiscoveryError::TimedOut));
    assert!(start.elapsed() >= FETCH_TIME_MAX);
}

#[test]
fn a_server_may_send_elsewhere_a_few_times() {
    let to = |url: &str| {
        text(format!("HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n"))
    };
    let mut url = body("here");
    for _ in 0..REDIRECTS_MAX {
        url = to(&url);
    }
    assert_eq!(fetch(&url, PATIENCE).unwrap(), b"here");
    check(&to(&url), |error| matches!(error, DiscoveryError::Http(_)));
    check(&to("file:///etc/hostname"), |error| matches!(error, DiscoveryError::Http(_)));
}
