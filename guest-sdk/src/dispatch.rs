//! From the bytes of a request to a handler and back, and the table that finds the handler.
//!
//! Nothing here knows how bytes come into the module.
#![cfg_attr(
    not(any(target_arch = "wasm32", test)),
    allow(dead_code, reason = "natively handlers are checked, and run by tests only")
)]

use cell_abi::limits::RECEPTORS_MAX;
use cell_abi::{Message, Receptor, Reject};
use rkyv::Archived;
use rkyv::rancor::Error;
use rkyv::ser::allocator::Arena;
use rkyv::util::AlignedVec;

use crate::context::Context;
use crate::error::reject_code;

/// What a handler's types must do to travel: as archives, and with the feature `json` as JSON.
#[cfg(feature = "json")]
pub trait Payload: Message + serde::Serialize + serde::de::DeserializeOwned {}
#[cfg(feature = "json")]
impl<T: Message + serde::Serialize + serde::de::DeserializeOwned> Payload for T {}

/// What a handler's types must do to travel: as archives, and with the feature `json` as JSON.
#[cfg(not(feature = "json"))]
pub trait Payload: Message {}
#[cfg(not(feature = "json"))]
impl<T: Message> Payload for T {}

/// A handler as a type, written by `#[receptor]`.
pub trait Handle {
    /// What it handles.
    type Receptor: Receptor<Input: Payload, Output: Payload>;

    /// Runs the user's function.
    fn handle(
        input: &Archived<<Self::Receptor as Receptor>::Input>,
        cx: &mut Context,
    ) -> Result<<Self::Receptor as Receptor>::Output, Reject>;
}

/// How a handler's call ended.
#[derive(Debug)]
pub enum Answer {
    /// The output as an archive.
    Archive(AlignedVec),
    /// The output as JSON text.
    #[cfg(feature = "json")]
    Json(Vec<u8>),
    /// The handler, or the SDK for it, said no.
    Reject(Reject),
    /// The request is not a valid value of the input type; what is wrong with it, if that is known.
    BadRequest(Option<String>),
}

/// A line of the table of receptors.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    name: &'static str,
    /// `module_path!()` of the handler: its first part is the crate.
    module: &'static str,
    receive: fn(&[u8]) -> Answer,
    #[cfg(feature = "json")]
    receive_json: fn(&[u8]) -> Answer,
}

impl Entry {
    /// The entry of a handler.
    pub const fn of<H: Handle>(module: &'static str) -> Self {
        Self {
            name: H::Receptor::NAME,
            module,
            receive: receive::<H>,
            #[cfg(feature = "json")]
            receive_json: receive_json::<H>,
        }
    }

    /// Handles an archive, which must be 16-aligned.
    pub(crate) fn receive(&self, request: &[u8]) -> Answer {
        (self.receive)(request)
    }

    /// Handles JSON text.
    #[cfg(feature = "json")]
    pub(crate) fn receive_json(&self, request: &[u8]) -> Answer {
        (self.receive_json)(request)
    }

    fn crate_name(&self) -> &'static str {
        self.module.split_once("::").map_or(self.module, |(name, _)| name)
    }
}

/// The receptors of a module; a receptor's number is its position in the byte order of the names.
///
/// Entries come in any order, in `_initialize`, so that finding one costs the same in every call.
#[derive(Debug)]
pub(crate) struct Table {
    entries: [Option<&'static Entry>; RECEPTORS_MAX],
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self { entries: [None; RECEPTORS_MAX] }
    }

    /// Adds an entry at its place; the error is a sentence for the cell's author.
    pub(crate) fn insert(&mut self, entry: &'static Entry) -> Result<(), String> {
        let mut moving = entry;
        for slot in &mut self.entries {
            let Some(present) = *slot else {
                *slot = Some(moving);
                return Ok(());
            };
            if present.crate_name() != entry.crate_name() {
                return Err(format!(
                    "this module holds receptors of two crates, `{}` and `{}`: \
                     depend on the other cell's interface crate, not on the cell",
                    present.crate_name(),
                    entry.crate_name(),
                ));
            }
            if present.name == entry.name && present.module != moving.module {
                return Err(format!(
                    "the receptor `{}` has two handlers, in `{}` and in `{}`",
                    entry.name, present.module, entry.module,
                ));
            }
            if moving.name < present.name {
                *slot = Some(moving);
                moving = present;
            }
        }
        Err(format!("a cell has at most {RECEPTORS_MAX} receptors"))
    }

    pub(crate) fn find(&self, number: usize) -> Option<&'static Entry> {
        self.entries.get(number).copied().flatten()
    }
}

/// The bytes of a message, 16-aligned.
///
/// Not `cell_abi::schema::encode`: that keeps its scratch memory for the next value, so that the
/// first call of an instance would cost more than those after it.
pub(crate) fn encode<T: Message>(message: &T) -> Result<AlignedVec, Error> {
    let mut arena = Arena::new();
    rkyv::api::high::to_bytes_with_alloc(message, arena.acquire())
}

fn receive<H: Handle>(request: &[u8]) -> Answer {
    let Ok(input) = cell_abi::schema::access::<<H::Receptor as Receptor>::Input>(request) else {
        return Answer::BadRequest(None);
    };
    match H::handle(input, &mut Context::new()) {
        Ok(output) => encode(&output).map_or_else(|error| bad_answer(&error), Answer::Archive),
        Err(reject) => Answer::Reject(reject),
    }
}

/// The handler reads archives only, so JSON is read into a value and archived first.
#[cfg(feature = "json")]
fn receive_json<H: Handle>(request: &[u8]) -> Answer {
    let input: <H::Receptor as Receptor>::Input = match serde_json::from_slice(request) {
        Ok(input) => input,
        Err(error) => return Answer::BadRequest(Some(error.to_string())),
    };
    let Ok(archive) = encode(&input) else { return Answer::BadRequest(None) };
    drop(input);
    let Ok(input) = cell_abi::schema::access::<<H::Receptor as Receptor>::Input>(&archive) else {
        return Answer::BadRequest(None);
    };
    match H::handle(input, &mut Context::new()) {
        Ok(output) => {
            serde_json::to_vec(&output).map_or_else(|error| bad_answer(&error), Answer::Json)
        }
        Err(reject) => Answer::Reject(reject),
    }
}

fn bad_answer(error: &dyn core::fmt::Display) -> Answer {
    Answer::Reject(Reject::new(reject_code::BAD_ANSWER, error.to_string()))
}

#[cfg(test)]
mod tests;
