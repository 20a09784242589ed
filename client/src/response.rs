//! What a call answered, and what it burned.
//!
//! A response owns its bytes, which lie as they came from the socket; nothing is taken apart
//! before someone asks for it.

use std::fmt;
use std::marker::PhantomData;

use cell_abi::{Fuel, Header, Message, Reject, Status, schema};
use rkyv::util::AlignedVec;

use crate::error::{self, Error};

/// A reply's bytes, 16-aligned.
#[derive(Debug, Clone)]
pub struct RawResponse {
    bytes: AlignedVec,
    fuel: Fuel,
}

impl RawResponse {
    /// Reads the answer to a call; `max` is the limit that its payload was held to.
    pub(crate) fn from_reply(
        header: &Header,
        payload: AlignedVec,
        max: u32,
    ) -> Result<Self, Error> {
        let fuel = header.fuel;
        match Status::from_code(header.status) {
            Some(Status::Ok) if header.payload_bytes > max => {
                Err(Error::ReplyTooLarge { bytes: header.payload_bytes, max, fuel })
            }
            Some(Status::Ok) => Ok(Self { bytes: payload, fuel }),
            Some(Status::Rejected) => match payload.split_first_chunk::<4>() {
                Some((code, text)) => {
                    let reject = Reject::new(u32::from_le_bytes(*code), error::message(text));
                    Err(Error::Rejected { reject, fuel })
                }
                None => Err(Error::InvalidReply { fuel }),
            },
            Some(status) => Err(Error::Failed { status, message: error::message(&payload), fuel }),
            // The session lets no such frame through.
            None => Err(Error::Protocol(error::ProtocolError::UnknownStatus(header.status))),
        }
    }

    /// The reply's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the call burned.
    pub const fn fuel(&self) -> Fuel {
        self.fuel
    }

    /// The reply's bytes, without a copy.
    pub fn into_bytes(self) -> AlignedVec {
        self.bytes
    }

    /// Checks that the bytes are a value of this type.
    pub fn into_typed<T: Message>(self) -> Result<Response<T>, Error> {
        match schema::access::<T>(&self.bytes) {
            Ok(_) => Ok(Response { raw: self, value: PhantomData }),
            Err(_) => Err(Error::InvalidReply { fuel: self.fuel }),
        }
    }

    /// Checks that the bytes are text.
    pub(crate) fn into_json(self) -> Result<JsonResponse, Error> {
        match String::from_utf8(self.bytes.into_vec()) {
            Ok(text) => Ok(JsonResponse { text, fuel: self.fuel }),
            Err(_) => Err(Error::InvalidReply { fuel: self.fuel }),
        }
    }
}

impl From<RawResponse> for AlignedVec {
    fn from(response: RawResponse) -> Self {
        response.bytes
    }
}

/// A reply that was checked to be a value of `T` when it came in.
pub struct Response<T> {
    raw: RawResponse,
    value: PhantomData<fn() -> T>,
}

impl<T: Message> Response<T> {
    /// The value, in place.
    ///
    /// Safe Rust cannot hold on to the outcome of a check next to the bytes that were checked, so
    /// this checks again, in time that grows with the value's structure (not with the length of a
    /// `String` or `Vec<u8>` in it). Keep the reference instead of asking in a loop.
    #[expect(
        clippy::expect_used,
        reason = "the same bytes at the same address passed the same check"
    )]
    pub fn archived(&self) -> &T::Archived {
        schema::access::<T>(&self.raw.bytes).expect("the reply was checked when it came in")
    }

    /// The value, taken out of the reply.
    pub fn to_owned(&self) -> Result<T, Error> {
        schema::decode::<T>(self.archived()).map_err(|_| Error::InvalidReply { fuel: self.fuel() })
    }

    /// The value, taken out of the reply, which is dropped.
    pub fn into_owned(self) -> Result<T, Error> {
        self.to_owned()
    }
}

impl<T> Response<T> {
    /// What the call burned.
    pub const fn fuel(&self) -> Fuel {
        self.raw.fuel()
    }

    /// The reply's bytes, without a copy.
    pub fn into_raw(self) -> RawResponse {
        self.raw
    }
}

impl<T> fmt::Debug for Response<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("raw", &self.raw).finish()
    }
}

impl<T> From<Response<T>> for AlignedVec {
    fn from(response: Response<T>) -> Self {
        response.raw.bytes
    }
}

/// A reply as JSON text, converted inside the sandbox.
///
/// The text is the cell's: escape it before it goes to a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonResponse {
    text: String,
    fuel: Fuel,
}

impl JsonResponse {
    /// The JSON text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the call burned.
    pub const fn fuel(&self) -> Fuel {
        self.fuel
    }

    /// The JSON text, without a copy.
    pub fn into_text(self) -> String {
        self.text
    }
}
