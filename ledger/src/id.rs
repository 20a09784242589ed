//! The ledger's own thirty-two-byte ids; accounts are [`AccountId`], from the ABI.
//!
//! It makes ids only from what they stand for: there are no random ids here, because a retry could not repeat them.

use std::{fmt, iter, str};

use cell_abi::AccountId;
use cell_abi::id::IdError;

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

            /// The id of what `parts` say: BLAKE3 of the domain and of each part, with every length before it.
            ///
            /// The domain names the meaning of the parts, such as `cell.grant.v1`.
            pub fn derive(domain: &str, parts: &[&[u8]]) -> Self {
                Self(digest(domain, parts))
            }

            /// Parses 64 hexadecimal digits.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                AccountId::parse(text).map(|id| Self(*id.as_bytes()))
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first eight hexadecimal digits, enough to tell ids apart on a screen.
            pub fn short(&self) -> String {
                AccountId::from_bytes(self.0).short()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&AccountId::from_bytes(self.0), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }
    };
}

id! {
    /// A transfer, or a payment of a settled hold: both move money once.
    TransferId
}
id! {
    /// A hold: money reserved, to be paid out or released once.
    HoldId
}
id! {
    /// Who keeps a hold open, such as one run of a worker; when it dies, its holds are voided together.
    SessionId
}
id! {
    /// The hash of a journal entry, which covers all entries before it.
    EntryHash
}

id! {
    /// A receipt, and all receipts before it in its chain.
    ReceiptHash
}
id! {
    /// BLAKE3 of bytes, or the root of a tree of such hashes.
    ContentHash
}

/// BLAKE3 over parts with each one's length before it, so that no two lists of parts read alike.
pub(crate) fn digest(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in iter::once(domain.as_bytes()).chain(parts.iter().copied()) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let id = TransferId::derive("test", &[b"1"]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), id.to_string()[..8]);
        assert_eq!(HoldId::parse("12"), Err(IdError));
    }

    /// Ids are kept for ever, so how they are made cannot change.
    #[test]
    fn golden() {
        let id = TransferId::derive("cell.test.v1", &[b"one", b"", b"three"]);
        assert_eq!(
            id.to_string(),
            "a1364ca337620728b5fabd8d393ae4ba5c9cb7bca93accd62dd5d81abc7d4abf"
        );
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let ids = [
            TransferId::derive("a", &[b"bc"]),
            TransferId::derive("ab", &[b"c"]),
            TransferId::derive("a", &[b"b", b"c"]),
            TransferId::derive("a", &[b"bc", b""]),
        ];
        for (position, id) in ids.iter().enumerate() {
            assert!(!ids[..position].contains(id), "{position}");
        }
    }
}
