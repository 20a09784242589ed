//! Names of cells and receptors, parsed once at the edge.

use alloc::string::{String, ToString};
use core::fmt;

use crate::limits::NAME_BYTES_MAX;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name has no characters.
    #[error("a name needs at least one character")]
    Empty,
    /// The name is longer than [`NAME_BYTES_MAX`].
    #[error("a name has at most {NAME_BYTES_MAX} bytes")]
    TooLong,
    /// The name does not start with a letter or holds another character than the allowed ones.
    #[error("a name starts with a letter a-z and goes on with a-z, 0-9, `_`{}", if *.dashes { " and `-`" } else { "" })]
    BadCharacter {
        /// Whether `-` would have been allowed.
        dashes: bool,
    },
}

fn check(name: &str, dashes: bool) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    let goes_on = name
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_') || (dashes && b == b'-'));
    if starts && goes_on { Ok(()) } else { Err(NameError::BadCharacter { dashes }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, dashes: $dashes:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Parses a name; see [`NameError`] for what is refused.
            pub fn parse(name: &str) -> Result<Self, NameError> {
                check(name, $dashes)?;
                Ok(Self(name.to_string()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl core::str::FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::parse(name)
            }
        }
    };
}

name! {
    /// Name of a cell: also the name of its directory, so it can hold no separator and no dot.
    CellName, dashes: true
}
name! {
    /// Name of a receptor: a Rust function name in lower case.
    ReceptorName, dashes: false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_cell(name: &str, expect: Result<(), NameError>) {
        assert_eq!(CellName::parse(name).map(|_| ()), expect, "{name:?}");
    }

    #[test]
    fn cell_names() {
        let bad = Err(NameError::BadCharacter { dashes: true });
        check_cell("hello", Ok(()));
        check_cell("a", Ok(()));
        check_cell("my-cell_2", Ok(()));
        check_cell(&"a".repeat(64), Ok(()));
        check_cell(&"a".repeat(65), Err(NameError::TooLong));
        check_cell("", Err(NameError::Empty));
        check_cell("..", bad.clone());
        check_cell("a/b", bad.clone());
        check_cell("2a", bad.clone());
        check_cell("Hello", bad.clone());
        check_cell("a\n", bad.clone());
        check_cell("é", bad);
    }

    #[test]
    fn receptor_names_have_no_dash() {
        assert!(ReceptorName::parse("greet_all").is_ok());
        assert_eq!(
            ReceptorName::parse("greet-all"),
            Err(NameError::BadCharacter { dashes: false })
        );
    }
}
