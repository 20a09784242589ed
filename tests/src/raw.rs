//! A connection without a client in between: bytes as `docs/PROTOCOL.md` has them.

use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cell_abi::frame::{FEATURE_SHARED_MEMORY, HEADER_BYTES, HELLO_BYTES, Hello, padding};
use cell_abi::{CellName, Fingerprint, Fuel, Header, Kind, Open, ReceptorName, Status};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::GUARD;

/// One connection to a cell's socket.
#[derive(Debug)]
pub struct Raw {
    /// The socket; reads fail after [`GUARD`].
    pub stream: UnixStream,
}

impl Raw {
    /// Connects and says nothing.
    #[track_caller]
    pub fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket)
            .unwrap_or_else(|e| panic!("connect to {}: {e}", socket.display()));
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream.set_write_timeout(Some(GUARD)).unwrap();
        Self { stream }
    }

    /// Connects and exchanges hellos.
    #[track_caller]
    pub fn greeted(socket: &Path) -> Self {
        let mut raw = Self::silent(socket);
        raw.write(&Hello::CURRENT.encode());
        let mut hello = [0; HELLO_BYTES];
        raw.stream.read_exact(&mut hello).expect("the server says hello");
        assert_eq!(Hello::decode(&hello), Ok(Hello::CURRENT));
        raw
    }

    /// Connects and asks for memory to share; `None` if there is none.
    #[track_caller]
    pub fn sharing(socket: &Path) -> (Self, Option<OwnedFd>) {
        let mut raw = Self::silent(socket);
        let asked = Hello { features: FEATURE_SHARED_MEMORY, ..Hello::CURRENT };
        raw.write(&asked.encode());
        let mut hello = [0; HELLO_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut hello)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(&raw.stream, &mut parts, &mut control, flags).expect("the server says hello");
        let memory = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let theirs = Hello::decode(&hello).expect("a hello");
        assert_eq!(theirs.features & FEATURE_SHARED_MEMORY != 0, memory.is_some());
        (raw, memory)
    }

    /// Connects, and opens a receptor without a type as slot 0.
    #[track_caller]
    pub fn opened(socket: &Path, cell: &str, receptor: &str) -> (Self, u16) {
        let mut raw = Self::greeted(socket);
        let (header, _) = raw.open(cell, receptor, 1);
        assert_eq!(status(&header), Status::Ok);
        (raw, header.receptor)
    }

    /// Opens a receptor without a type and takes the answer.
    #[track_caller]
    pub fn open(&mut self, cell: &str, receptor: &str, id: u64) -> (Header, Vec<u8>) {
        let open = Open {
            fingerprint: Fingerprint::UNTYPED,
            cell: CellName::parse(cell).unwrap(),
            receptor: ReceptorName::parse(receptor).unwrap(),
        };
        self.send(Header { request_id: id, ..Header::new(Kind::Open) }, &open.encode());
        let (header, payload) = self.receive();
        assert_eq!((header.kind, header.request_id), (Kind::Opened, id));
        (header, payload)
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("write to the socket");
    }

    /// Sends a frame; the header's length is set to the payload's.
    #[track_caller]
    pub fn send(&mut self, header: Header, payload: &[u8]) {
        self.write(&frame(header, payload));
    }

    /// Sends a call of slot 0.
    #[track_caller]
    pub fn call(&mut self, receptor: u16, id: u64, fuel: u64, payload: &[u8]) {
        self.send(
            Header { receptor, request_id: id, fuel: Fuel(fuel), ..Header::new(Kind::Call) },
            payload,
        );
    }

    /// Takes the next frame.
    #[track_caller]
    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        self.try_receive().expect("a frame comes")
    }

    /// Takes the next frame, or learns that the connection is over.
    pub fn try_receive(&mut self) -> io::Result<(Header, Vec<u8>)> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header)?;
        let header = Header::decode(&header).map_err(io::Error::other)?;
        let length = usize::try_from(header.payload_bytes).unwrap();
        let mut payload = vec![0; length + padding(length)];
        self.stream.read_exact(&mut payload)?;
        payload.truncate(length);
        Ok((header, payload))
    }

    /// Takes at most 100 bytes; 0 when the connection is over.
    pub fn receive_some(&mut self) -> usize {
        self.stream.read(&mut [0; 100]).unwrap_or(0)
    }

    /// Fails the test unless the server closes, with nothing more to say.
    #[track_caller]
    pub fn expect_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {
                assert!(rest.is_empty(), "before it closed the server sent {} bytes", rest.len())
            }
            Err(error) => assert_eq!(
                error.kind(),
                io::ErrorKind::ConnectionReset,
                "the server does not close"
            ),
        }
    }

    /// Fails the test unless the server closes, whatever it still has to say.
    #[track_caller]
    pub fn expect_gone(&mut self, why: &str) {
        match self.stream.read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{why}"),
        }
    }

    /// Fails the test unless the server says why it closes, and closes.
    #[track_caller]
    pub fn expect_goaway(&mut self, expected: Status) {
        let (header, payload) = self.receive();
        assert_eq!(
            (header.kind, status(&header)),
            (Kind::Goaway, expected),
            "{}",
            String::from_utf8_lossy(&payload)
        );
        assert!(!payload.is_empty(), "a goaway says why");
        self.expect_closed();
    }

    /// Fails the test unless the server still answers on this connection.
    #[track_caller]
    pub fn expect_alive(&mut self) {
        self.send(Header { request_id: 4711, ..Header::new(Kind::Ping) }, &[]);
        let (header, _) = self.receive();
        assert_eq!((header.kind, header.request_id), (Kind::Pong, 4711));
    }
}

/// A header's status; an unknown one fails the test.
#[track_caller]
pub fn status(header: &Header) -> Status {
    Status::from_code(header.status).unwrap_or_else(|| panic!("unknown status in {header:?}"))
}

/// A frame's bytes.
pub fn frame(header: Header, payload: &[u8]) -> Vec<u8> {
    let header = Header { payload_bytes: u32::try_from(payload.len()).unwrap(), ..header };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len() + padding(payload.len()), 0);
    bytes
}
