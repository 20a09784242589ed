//! A server for one connection, run by a script on a thread of its own.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use cell_abi::frame::padding;
use cell_abi::{Fuel, Header, Hello, Kind, Open, Status};
use cell_client::{CallOptions, Config, Receptor};
use tempfile::TempDir;

pub(crate) struct Echo;

impl Receptor for Echo {
    const NAME: &'static str = "echo";
    const SCHEMA: &'static str = "receptor echo(Vec<u8>) -> Vec<u8>\n";
    type Input = Vec<u8>;
    type Output = Vec<u8>;
}

/// Short enough to wait for, and never a bound that a slow machine could miss.
pub(crate) const SOON: Duration = Duration::from_millis(50);

pub(crate) fn soon() -> CallOptions {
    CallOptions { timeout: SOON, ..CallOptions::default() }
}

pub(crate) fn soon_config() -> Config {
    Config { timeout: SOON, ..Config::default() }
}

pub(crate) struct Server {
    dir: TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the first connection with this script; its panics become the test's.
    pub(crate) fn start(script: impl FnOnce(Peer) + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("cell.sock")).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            script(Peer { stream });
        });
        Self { dir, thread: Some(thread) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("cell.sock")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// The server's end of the connection.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
}

impl Peer {
    pub(crate) fn hello(&mut self) {
        let mut hello = [0; 16];
        self.stream.read_exact(&mut hello).unwrap();
        assert_eq!(Hello::decode(&hello), Ok(Hello::CURRENT));
        self.write(&Hello::CURRENT.encode());
    }

    /// Greets and opens one receptor as slot 5, receptor 3.
    pub(crate) fn open(&mut self) -> Open {
        self.hello();
        let (header, payload) = self.expect(Kind::Open);
        let opened = Header { slot: 5, receptor: 3, ..answer(&header, Kind::Opened) };
        self.send(opened, Echo::SCHEMA.as_bytes());
        Open::decode(&payload).unwrap()
    }

    pub(crate) fn expect(&mut self, kind: Kind) -> (Header, Vec<u8>) {
        let (header, payload) = self.next().expect("a frame");
        assert_eq!(header.kind, kind);
        (header, payload)
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut header = [0; 32];
        self.stream.read_exact(&mut header).ok()?;
        let header = Header::decode(&header).unwrap();
        let mut payload = vec![0; header.payload_bytes as usize];
        self.stream.read_exact(&mut payload).ok()?;
        let mut zeros = vec![0xff; header.padding()];
        self.stream.read_exact(&mut zeros).ok()?;
        assert!(zeros.iter().all(|byte| *byte == 0));
        Some((header, payload))
    }

    pub(crate) fn send(&mut self, header: Header, payload: &[u8]) {
        self.write(&frame(header, payload));
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        // The client may have given up already, which is its good right.
        let _ = self.stream.write_all(bytes);
    }

    /// Answers every call with its own payload, each for `payload length` fuel.
    pub(crate) fn echo(&mut self) {
        while let Some((header, payload)) = self.next() {
            let kind = if header.kind == Kind::Ping { Kind::Pong } else { Kind::Reply };
            if header.kind != Kind::Cancel {
                let fuel = Fuel(payload.len() as u64);
                self.send(Header { fuel, flags: header.flags, ..answer(&header, kind) }, &payload);
            }
        }
    }
}

pub(crate) fn answer(request: &Header, kind: Kind) -> Header {
    Header { request_id: request.request_id, ..Header::new(kind) }
}

pub(crate) fn failed(request: &Header, status: Status, fuel: u64) -> Header {
    Header { status: status.code(), fuel: Fuel(fuel), ..answer(request, Kind::Reply) }
}

pub(crate) fn frame(header: Header, payload: &[u8]) -> Vec<u8> {
    let payload_bytes = u32::try_from(payload.len()).unwrap();
    let mut bytes = Header { payload_bytes, ..header }.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len() + padding(payload.len()), 0);
    bytes
}
