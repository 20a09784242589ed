//! Thirty-two-byte ids, each of its own type.

use alloc::string::String;
use core::fmt;
use core::fmt::Write as _;

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 64 hexadecimal digits")]
pub struct IdError;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Parses 64 hexadecimal digits.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                parse_hex(text).map(Self)
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first eight hexadecimal digits, enough to tell ids apart on a screen.
            pub fn short(&self) -> String {
                let mut text = String::with_capacity(8);
                for byte in self.0.iter().take(4) {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{byte:02x}");
                }
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl core::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }
    };
}

id! {
    /// An account of the ledger: an Ed25519 public key, or a hash derived from one.
    AccountId
}
id! {
    /// BLAKE3 of a cell's wasm bytes.
    CellHash
}
id! {
    /// What a fuel count depends on: engine version, configuration, cost table and host-call prices.
    EngineId
}
id! {
    /// BLAKE3 of a receptor's full interface text; see [`ReceptorInterface`](crate::ReceptorInterface).
    Fingerprint
}

impl CellHash {
    /// The hash of a module's bytes.
    pub fn of(wasm: &[u8]) -> Self {
        Self(*blake3::hash(wasm).as_bytes())
    }
}

impl Fingerprint {
    /// Stands for "no type known": raw and JSON callers send it, and it matches every receptor.
    pub const UNTYPED: Self = Self([0; 32]);
}

fn parse_hex(text: &str) -> Result<[u8; 32], IdError> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err(IdError);
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            let digit = char::from(*digit).to_digit(16).ok_or(IdError)?;
            value = value << 4 | digit;
        }
        *byte = u8::try_from(value).map_err(|_| IdError)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn text_round_trip() {
        let id = CellHash::of(b"module");
        assert_eq!(CellHash::parse(&id.to_string()), Ok(id));
        assert_eq!(id.short(), id.to_string()[..8]);
        assert_eq!(CellHash::parse("12"), Err(IdError));
        assert_eq!(CellHash::parse(&"g".repeat(64)), Err(IdError));
    }
}
