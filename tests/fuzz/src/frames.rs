//! The fixed parts of the protocol: the hello, headers with their padding, and small payloads.

use cell_abi::frame::{FRAME_ALIGN, HEADER_BYTES, HELLO_BYTES, padding};
use cell_abi::limits::MESSAGE_BYTES_MAX;
use cell_abi::{Header, Hello, Kind, Open, Reject, Status};

use crate::bytes::Bytes;

/// Reads the bytes as a hello and as a stream of frames; whatever is taken must be written back as
/// it was read.
pub fn frames(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    hello(&bytes.array());
    while !bytes.is_empty() {
        let raw: [u8; HEADER_BYTES] = bytes.array();
        // A refused header ends a connection; here the stream goes on, so that all of it is read.
        let Ok(header) = Header::decode(&raw) else { continue };
        assert_eq!(header.encode(), raw, "{header:?} is not what was read");
        assert!(header.payload_bytes <= header.kind.payload_bytes_max());
        let length = usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
        assert!(header.padding() < FRAME_ALIGN && padding(length) == header.padding());
        assert_eq!((length + header.padding()) % FRAME_ALIGN, 0, "the next header is aligned");
        payload(&header, bytes.take(length));
        bytes.take(header.padding());
    }
}

fn hello(raw: &[u8; HELLO_BYTES]) {
    if let Ok(hello) = Hello::decode(raw) {
        let again = hello.encode();
        assert_eq!(Hello::decode(&again), Ok(hello));
        // The reserved bytes are ignored, and nothing else is.
        let known = |bytes: &[u8; HELLO_BYTES]| (bytes[..6].to_vec(), bytes[8..12].to_vec());
        assert_eq!(known(&again), known(raw));
    }
}

fn payload(header: &Header, payload: &[u8]) {
    if header.kind == Kind::Open
        && let Ok(open) = Open::decode(payload)
    {
        assert_eq!(open.encode(), payload, "{open:?} is not what was read");
    }
    if let Some(status) = Status::from_code(header.status) {
        assert_eq!(status.code(), header.status);
    }
    if let Some(reject) = Reject::decode(payload) {
        assert!(reject.message.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(Reject::decode(&reject.encode()), Some(reject));
    }
}
