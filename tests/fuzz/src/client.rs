//! A client that speaks to a server which says anything at all.
//!
//! The server's bytes are all there before the client starts, so nothing waits: the client sees
//! answers to requests that it has yet to make, and then the end of the stream.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cell_abi::{Header, Hello, Kind, Status};
use cell_client::{CALLS_IN_FLIGHT_MAX, CallOptions, Client, Config, Error, RawSlot};

use crate::bytes::Bytes;

/// Longest stream, in bytes: it must fit into a socket that nobody reads yet.
const STREAM_BYTES_MAX: usize = 64 << 10;
/// No healthy run takes this long; the end of the stream comes first.
const GUARD: Duration = Duration::from_secs(60);
/// Largest reply that is kept, small enough that larger ones come up.
const REPLY_BYTES_MAX: u32 = 1024;

/// Lets a server send these bytes to a client that opens, calls, pings and cancels.
///
/// An even first byte: the rest is what the server sends. An odd one: the rest describes frames.
pub fn client(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let stream = if bytes.u8() & 1 == 0 { bytes.rest().to_vec() } else { written(bytes) };
    let (ours, mut theirs) = UnixStream::pair().expect("two sockets");
    theirs.write_all(stream.get(..STREAM_BYTES_MAX).unwrap_or(&stream)).expect("it fits");
    theirs.shutdown(Shutdown::Write).expect("the end of the stream");
    let config = Config { timeout: GUARD, reply_bytes_max: REPLY_BYTES_MAX, ..Config::default() };
    let mut client = Client::from_stream(ours, "hello", config).expect("a client");
    let Err(end) = converse(&mut client) else { return };
    let receivable = matches!(end, Error::NothingInFlight);
    let _ = checked(Err(end));
    // Why the connection ended is said for as long as anyone asks.
    if !receivable && client.ping().is_err() {
        let again = client.ping().expect_err("a connection that is gone stays so").to_string();
        assert_eq!(client.flush().expect_err("flush").to_string(), again);
    }
}

/// Frames as a server would send them, with what the input says wrong about them.
fn written(mut bytes: Bytes<'_>) -> Vec<u8> {
    const KINDS: [Kind; 6] =
        [Kind::Reply, Kind::Opened, Kind::Pong, Kind::Goaway, Kind::Call, Kind::Receipt];
    let mut stream = Hello::CURRENT.encode().to_vec();
    while !bytes.is_empty() && stream.len() < STREAM_BYTES_MAX {
        let kind = KINDS.get(usize::from(bytes.u8()) % KINDS.len()).copied().unwrap_or(Kind::Reply);
        let length = usize::from(bytes.u16() & 0xfff);
        let mut header = Header::new(kind);
        header.request_id = bytes.u8().into();
        header.status = bytes.u8().into();
        header.slot = bytes.u8().into();
        let payload = bytes.take(length);
        header.payload_bytes = u32::try_from(payload.len()).unwrap_or(0);
        stream.extend_from_slice(&header.encode());
        stream.extend_from_slice(payload);
        stream.resize(stream.len() + header.padding(), 0);
    }
    stream
}

/// Every kind of request there is; the first error that ends the connection ends it.
fn converse(client: &mut Client) -> Result<(), Error> {
    let options = CallOptions { timeout: GUARD, ..CallOptions::default() };
    let slot = client.open_raw("greet")?;
    for round in 0..4 {
        checked(client.call_raw(&slot, b"sixteen bytes in", options).map(|reply| {
            assert!(reply.bytes().len() <= REPLY_BYTES_MAX as usize);
        }))?;
        checked(client.call_json(&slot, "{}", options).map(drop))?;
        pipelined(client, &slot, options, round)?;
        checked(client.ping())?;
    }
    Ok(())
}

fn pipelined(
    client: &mut Client,
    slot: &RawSlot,
    options: CallOptions,
    round: usize,
) -> Result<(), Error> {
    let calls: Vec<_> =
        (0..3).map(|_| client.send_raw(slot, b"another one", options)).collect::<Result<_, _>>()?;
    if round == 1 {
        client.cancel(calls.last().copied().expect("three calls"))?;
    }
    for left in (0..calls.len()).rev() {
        assert!(left < CALLS_IN_FLIGHT_MAX);
        let (id, reply) = client.receive()?;
        assert!(calls.contains(&id), "an answer to a call that was not made");
        checked(reply.map(drop))?;
    }
    Ok(())
}

/// An error that is one call's own leaves the connection as it is.
fn checked(result: Result<(), Error>) -> Result<(), Error> {
    let Err(error) = result else { return Ok(()) };
    // A terminal shows it, and the peer chose some of its words.
    let text = error.to_string();
    assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert_ne!(error.status(), Some(Status::Ok), "an error is no success");
    match error {
        Error::Failed { .. }
        | Error::Rejected { .. }
        | Error::ReplyTooLarge { .. }
        | Error::InvalidReply { .. } => Ok(()),
        Error::TimedOut => panic!("it waited for what cannot come"),
        error => Err(error),
    }
}
