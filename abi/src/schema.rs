//! Types that travel between cells, and their description as text built at compile time.
//!
//! The text is the canonical form: its BLAKE3 hash is the fingerprint, it stands in the module's
//! `cell:interface` section, and people see it when two sides disagree. Nothing parses it but
//! [`Interface`](crate::Interface), and that only as far as the receptors' names.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

pub use crate::limits::SCHEMA_BYTES_MAX;

/// Text that can be put together in a constant.
#[derive(Clone, Copy)]
pub struct Text {
    bytes: [u8; SCHEMA_BYTES_MAX],
    len: usize,
}

impl Text {
    /// A text with this content.
    pub const fn new(text: &str) -> Self {
        Self { bytes: [0; SCHEMA_BYTES_MAX], len: 0 }.push(text)
    }

    /// The text with more at its end.
    #[must_use]
    pub const fn push(self, text: &str) -> Self {
        self.push_range(text.as_bytes(), 0, text.len())
    }

    /// The text with another text at its end.
    #[must_use]
    pub const fn push_text(self, text: &Self) -> Self {
        self.push_range(&text.bytes, 0, text.len)
    }

    /// The text with a decimal number at its end.
    #[must_use]
    pub const fn push_number(mut self, number: usize) -> Self {
        if number >= 10 {
            self = self.push_number(number / 10);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a digit fits a byte")]
        let digit = b'0' + (number % 10) as u8;
        self.push_range(&[digit], 0, 1)
    }

    /// The text with those lines of `definitions` that it does not hold yet.
    #[must_use]
    pub const fn push_definitions(mut self, definitions: &Self) -> Self {
        let mut start = 0;
        while start < definitions.len {
            let end = line_end(&definitions.bytes, definitions.len, start);
            if !self.holds_line(&definitions.bytes, start, end) {
                self = self.push_range(&definitions.bytes, start, end);
            }
            start = end;
        }
        self
    }

    /// The text's length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the text has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The text.
    pub const fn as_str(&self) -> &str {
        let (text, _) = self.bytes.split_at(self.len);
        match core::str::from_utf8(text) {
            Ok(text) => text,
            Err(_) => "",
        }
    }

    /// The text's bytes as an array of exactly its length, for a static in a custom section.
    #[expect(
        clippy::indexing_slicing,
        reason = "evaluated by the compiler, which reports a bad index"
    )]
    pub const fn to_array<const N: usize>(&self) -> [u8; N] {
        let mut array = [0; N];
        let mut at = 0;
        while at < N {
            array[at] = self.bytes[at];
            at += 1;
        }
        array
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "evaluated by the compiler, which reports a bad index"
    )]
    const fn push_range(mut self, bytes: &[u8], start: usize, end: usize) -> Self {
        assert!(
            self.len + (end - start) <= SCHEMA_BYTES_MAX,
            "the schema of a receptor is longer than 4096 bytes: use fewer or shorter types"
        );
        let mut at = start;
        while at < end {
            self.bytes[self.len] = bytes[at];
            self.len += 1;
            at += 1;
        }
        self
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "evaluated by the compiler, which reports a bad index"
    )]
    const fn holds_line(&self, bytes: &[u8], start: usize, end: usize) -> bool {
        let mut line = 0;
        while line < self.len {
            let next = line_end(&self.bytes, self.len, line);
            if next - line == end - start {
                let mut at = 0;
                while at < end - start && self.bytes[line + at] == bytes[start + at] {
                    at += 1;
                }
                if at == end - start {
                    return true;
                }
            }
            line = next;
        }
        false
    }
}

impl core::fmt::Debug for Text {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Text").field(&self.as_str()).finish()
    }
}

/// One past the newline that ends the line at `start`.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which reports a bad index")]
const fn line_end(bytes: &[u8], len: usize, start: usize) -> usize {
    let mut at = start;
    while at < len {
        at += 1;
        if bytes[at - 1] == b'\n' {
            break;
        }
    }
    at
}

/// A type that has a schema. User types get it from `#[cell_guest::signal]`.
pub trait Signal {
    /// How the type is written inside another one, such as `Vec<u8>` or `WorkLoad`.
    const NAME: Text;
    /// Definitions of this type and of every type it holds, one per line.
    const DEFINITIONS: Text = Text::new("");
}

/// A [`Signal`] that can be sent: archived, validated in place, and taken apart again.
///
/// Implemented for every type that `#[cell_guest::signal]` accepts; there is nothing to write.
pub trait Message:
    Signal
    + Sized
    + Archive<
        Archived: for<'a> CheckBytes<HighValidator<'a, Error>>
                      + Deserialize<Self, HighDeserializer<Error>>,
    > + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>
{
}

impl<T> Message for T where
    T: Signal
        + Archive<
            Archived: for<'a> CheckBytes<HighValidator<'a, Error>>
                          + Deserialize<T, HighDeserializer<Error>>,
        > + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>
{
}

/// One typed entry point of a cell: what both its handler and its clients are built from.
pub trait Receptor: 'static {
    /// The receptor's name.
    const NAME: &'static str;
    /// The canonical text of its interface.
    const SCHEMA: &'static str;
    /// What it takes.
    type Input: Message;
    /// What it answers with.
    type Output: Message;
}

/// The schema text of a receptor.
pub const fn receptor_text<I: Signal, O: Signal>(name: &str) -> Text {
    Text::new("receptor ")
        .push(name)
        .push("(")
        .push_text(&I::NAME)
        .push(") -> ")
        .push_text(&O::NAME)
        .push("\n")
        .push_definitions(&I::DEFINITIONS)
        .push_definitions(&O::DEFINITIONS)
}

macro_rules! primitives {
    ($($type:ty = $name:literal),* $(,)?) => {
        $(impl Signal for $type {
            const NAME: Text = Text::new($name);
        })*
    };
}

primitives! {
    u8 = "u8", u16 = "u16", u32 = "u32", u64 = "u64", u128 = "u128",
    i8 = "i8", i16 = "i16", i32 = "i32", i64 = "i64", i128 = "i128",
    f32 = "f32", f64 = "f64", bool = "bool", char = "char", String = "String", () = "()",
}

impl<T: Signal> Signal for Vec<T> {
    const NAME: Text = Text::new("Vec<").push_text(&T::NAME).push(">");
    const DEFINITIONS: Text = T::DEFINITIONS;
}

impl<T: Signal> Signal for Option<T> {
    const NAME: Text = Text::new("Option<").push_text(&T::NAME).push(">");
    const DEFINITIONS: Text = T::DEFINITIONS;
}

impl<T: Signal> Signal for Box<T> {
    const NAME: Text = Text::new("Box<").push_text(&T::NAME).push(">");
    const DEFINITIONS: Text = T::DEFINITIONS;
}

impl<T: Signal, const N: usize> Signal for [T; N] {
    const NAME: Text = Text::new("[").push_text(&T::NAME).push("; ").push_number(N).push("]");
    const DEFINITIONS: Text = T::DEFINITIONS;
}

impl<A: Signal, B: Signal> Signal for (A, B) {
    const NAME: Text = Text::new("(").push_text(&A::NAME).push(", ").push_text(&B::NAME).push(")");
    const DEFINITIONS: Text = A::DEFINITIONS.push_definitions(&B::DEFINITIONS);
}

impl<A: Signal, B: Signal, C: Signal> Signal for (A, B, C) {
    const NAME: Text = Text::new("(")
        .push_text(&A::NAME)
        .push(", ")
        .push_text(&B::NAME)
        .push(", ")
        .push_text(&C::NAME)
        .push(")");
    const DEFINITIONS: Text =
        A::DEFINITIONS.push_definitions(&B::DEFINITIONS).push_definitions(&C::DEFINITIONS);
}

/// The bytes of a message, 16-aligned.
pub fn encode<T: Message>(message: &T) -> Result<AlignedVec, Error> {
    rkyv::to_bytes(message)
}

/// Validates a message's bytes, which must be 16-aligned, and gives the value in place.
pub fn access<T: Message>(bytes: &[u8]) -> Result<&T::Archived, Error> {
    rkyv::access::<T::Archived, Error>(bytes)
}

/// Takes an archived message apart into an owned value.
pub fn decode<T: Message>(archived: &T::Archived) -> Result<T, Error> {
    rkyv::deserialize::<T, Error>(archived)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Point;
    impl Signal for Point {
        const NAME: Text = Text::new("Point");
        const DEFINITIONS: Text = Text::new("struct Point { x: f32, y: f32 }\n");
    }

    #[test]
    fn names_nest_and_definitions_come_once() {
        type Input = (Vec<Option<Point>>, [Point; 12]);
        const TEXT: Text = receptor_text::<Input, Point>("draw");
        assert_eq!(
            TEXT.as_str(),
            "receptor draw((Vec<Option<Point>>, [Point; 12])) -> Point\n\
             struct Point { x: f32, y: f32 }\n"
        );
        assert_eq!(TEXT.to_array::<{ TEXT.len() }>(), TEXT.as_str().as_bytes());
    }
}
