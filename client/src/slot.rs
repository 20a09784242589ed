//! Receptors that were opened on a connection, and the frames that open and call them.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cell_abi::limits::FRAME_PAYLOAD_BYTES_MAX;
use cell_abi::{
    CellName, Fingerprint, Flags, Fuel, Header, Kind, NameError, Open, Receptor, ReceptorName,
    Status,
};
use rkyv::util::AlignedVec;

use crate::error::{self, Error};

/// Tells connections of this process apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionId(u64);

impl ConnectionId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A receptor opened without a type, to be called with bytes or JSON.
#[derive(Debug, Clone)]
pub struct RawSlot {
    connection: ConnectionId,
    slot: u32,
    receptor: u16,
    schema: Arc<str>,
}

impl RawSlot {
    /// The receptor's schema as the cell tells it, made safe to print.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The header of a call with a payload of this length.
    pub(crate) fn call(
        &self,
        connection: ConnectionId,
        payload: &[u8],
        flags: Flags,
        fuel: Fuel,
    ) -> Result<Header, Error> {
        if connection != self.connection {
            return Err(Error::ForeignSlot);
        }
        let bytes = payload.len();
        let payload_bytes = u32::try_from(bytes)
            .ok()
            .filter(|bytes| *bytes <= FRAME_PAYLOAD_BYTES_MAX)
            .ok_or(Error::RequestTooLarge { bytes })?;
        Ok(Header {
            payload_bytes,
            flags,
            receptor: self.receptor,
            slot: self.slot,
            fuel,
            ..Header::new(Kind::Call)
        })
    }
}

/// A receptor whose types were found to be those of `R`.
pub struct Slot<R> {
    raw: RawSlot,
    receptor: PhantomData<fn() -> R>,
}

impl<R> Slot<R> {
    /// Only for a slot that was opened with the fingerprint of `R`.
    pub(crate) const fn new(raw: RawSlot) -> Self {
        Self { raw, receptor: PhantomData }
    }

    /// The receptor without its types.
    pub const fn raw(&self) -> &RawSlot {
        &self.raw
    }
}

impl<R> Clone for Slot<R> {
    fn clone(&self) -> Self {
        Self { raw: self.raw.clone(), receptor: PhantomData }
    }
}

impl<R> fmt::Debug for Slot<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.raw).finish()
    }
}

/// An open that was asked for.
#[derive(Debug)]
pub(crate) struct Opening {
    open: Open,
    /// What the caller was built against; empty if it knows no types.
    schema: String,
}

impl Opening {
    pub(crate) fn typed<R: Receptor>(cell: &CellName) -> Result<Self, Error> {
        Self::of_schema(cell, R::NAME, R::SCHEMA)
    }

    pub(crate) fn of_schema(cell: &CellName, receptor: &str, schema: &str) -> Result<Self, Error> {
        Self::new(cell, receptor, Fingerprint::of_schema(schema), schema)
    }

    pub(crate) fn untyped(cell: &CellName, receptor: &str) -> Result<Self, Error> {
        Self::new(cell, receptor, Fingerprint::UNTYPED, "")
    }

    fn new(
        cell: &CellName,
        receptor: &str,
        fingerprint: Fingerprint,
        schema: &str,
    ) -> Result<Self, Error> {
        let receptor = parse_name(receptor, ReceptorName::parse)?;
        Ok(Self {
            open: Open { fingerprint, cell: cell.clone(), receptor },
            schema: schema.to_owned(),
        })
    }

    pub(crate) fn frame(&self) -> (Header, Vec<u8>) {
        let payload = self.open.encode();
        // A fingerprint and two names: at most OPEN_PAYLOAD_BYTES_MAX = 256 bytes.
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        (Header { payload_bytes, ..Header::new(Kind::Open) }, payload)
    }

    /// Reads the answer.
    pub(crate) fn opened(
        self,
        connection: ConnectionId,
        header: &Header,
        payload: &AlignedVec,
    ) -> Result<RawSlot, Error> {
        match Status::from_code(header.status) {
            Some(Status::Ok) => Ok(RawSlot {
                connection,
                slot: header.slot,
                receptor: header.receptor,
                schema: error::schema(payload).into(),
            }),
            Some(Status::SchemaMismatch) => Err(Error::SchemaMismatch {
                cell: self.open.cell.to_string(),
                receptor: self.open.receptor.to_string(),
                ours: self.schema,
                theirs: error::schema(payload),
            }),
            Some(status) => {
                Err(Error::Failed { status, message: error::message(payload), fuel: header.fuel })
            }
            // The session lets no such frame through.
            None => Err(Error::Protocol(error::ProtocolError::UnknownStatus(header.status))),
        }
    }
}

pub(crate) fn parse_name<N>(
    name: &str,
    parse: impl FnOnce(&str) -> Result<N, NameError>,
) -> Result<N, Error> {
    parse(name).map_err(|source| Error::InvalidName { name: name.to_owned(), source })
}
