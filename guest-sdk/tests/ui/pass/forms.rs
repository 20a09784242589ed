//! Every form that the macros take, under the lints of a careful user.
#![deny(missing_docs, missing_debug_implementations, unsafe_code, unused, unreachable_pub)]
#![deny(elided_lifetimes_in_paths, unused_qualifications, unnameable_types)]

use cell_guest::{Archived, Context, Reject, receptor, signal, signal_receptor};

/// Documented by its author, as any type is.
#[signal]
#[derive(Debug, Copy, Clone, Eq, PartialEq)]
pub struct Unit;

/// A tuple struct with a keyword among its field types' names.
#[signal]
pub struct Pair(u8, Option<Box<Unit>>);

/// Enums with named fields need the allowance that the documentation of `signal` speaks of.
pub mod shapes {
    #![allow(missing_docs)]

    use cell_guest::signal;

    use crate::Pair;

    /// An enum with every kind of variant.
    #[signal]
    pub enum Shape {
        /// Nothing.
        Dot,
        /// Named.
        Circle {
            /// Radius.
            r#type: f32,
        },
        /// Unnamed.
        Poly(Vec<Pair>, [u8; 4]),
    }
}

pub use shapes::{ArchivedShape, Shape};

signal_receptor! {
    name: full,
    /// Documented here.
    input: Full {
        /// Documented field.
        pub shape: Shape,
        #[allow(clippy::struct_field_names)]
        r#type: (u8, char),
    },
    output: Empty {}
}

/// A handler may be public, and its arguments patterns.
#[receptor]
pub fn full(Archived::<Full> { shape: _, r#type }: &ArchivedFull, _: &mut Context) -> Result<Empty, Reject> {
    let _ = r#type.0;
    Ok(Empty {})
}

signal_receptor! { output: Vec<u8>, input: String, name: existing }

#[receptor]
fn existing(text: &Archived<String>) -> Result<Vec<u8>, OwnError> {
    if text.is_empty() { Err(OwnError) } else { Ok(text.as_bytes().to_vec()) }
}

struct OwnError;

impl From<OwnError> for Reject {
    fn from(_: OwnError) -> Self {
        Self::new(1, "no")
    }
}

/// In a module of its own.
pub mod inner {
    use cell_guest::{Reject, receptor, signal_receptor};

    signal_receptor! { name: nested, input: super::Shape, output: () }

    #[receptor]
    fn nested(_shape: &super::ArchivedShape) -> Result<(), Reject> {
        Ok(())
    }
}

fn main() {
    let _: fn() -> Result<Empty, cell_guest::CallError> = || {
        cell_guest::call_as!(full, Full { shape: Shape::Dot, r#type: (1, 'x') })
    };
    let _ = inner::nested::Remote::new("cell").call(&Shape::Dot);
    let _: Option<full::Client> = None;
}
