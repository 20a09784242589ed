//! The `cell:interface` section of a module: the receptors a cell offers.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::id::Fingerprint;
use crate::limits::{INTERFACE_BYTES_MAX, RECEPTORS_MAX};
use crate::name::ReceptorName;

/// Name of the custom section that holds a cell's interface.
pub const INTERFACE_SECTION: &str = "cell:interface";

const FINGERPRINT_DOMAIN: &str = "cell/interface/v1\n";

/// Why an interface section was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InterfaceError {
    /// The section is longer than [`INTERFACE_BYTES_MAX`].
    #[error(
        "the cell:interface section has {found} bytes; at most {INTERFACE_BYTES_MAX} are allowed"
    )]
    TooLong {
        /// Bytes of the section.
        found: usize,
    },
    /// The section is not UTF-8, or holds a control character other than a newline.
    #[error("the cell:interface section is not plain text")]
    NotText,
    /// A block does not start with `receptor name(`.
    #[error("block {block} of the cell:interface section does not start with `receptor name(`")]
    BadBlock {
        /// Which block, from 1.
        block: usize,
    },
    /// Two blocks have the same name.
    #[error("receptor `{0}` is defined twice")]
    Duplicate(ReceptorName),
    /// More receptors than [`RECEPTORS_MAX`].
    #[error("the cell has {found} receptors; at most {RECEPTORS_MAX} are allowed")]
    TooMany {
        /// How many there are.
        found: usize,
    },
}

/// One receptor, as its cell describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceptorInterface {
    /// The receptor's name.
    pub name: ReceptorName,
    /// The canonical text: a `receptor` line and one line per type.
    pub schema: String,
    /// Hash of the text.
    pub fingerprint: Fingerprint,
}

/// All receptors of a cell; a receptor's number is its position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    receptors: Vec<ReceptorInterface>,
}

impl Interface {
    /// Reads a section: blocks of text, each ended by an empty line.
    ///
    /// Receptors are numbered by the byte order of their names, from 0, whatever their order here.
    pub fn parse(section: &[u8]) -> Result<Self, InterfaceError> {
        if section.len() > INTERFACE_BYTES_MAX {
            return Err(InterfaceError::TooLong { found: section.len() });
        }
        let text = core::str::from_utf8(section).map_err(|_| InterfaceError::NotText)?;
        if text.chars().any(|c| c.is_control() && c != '\n') {
            return Err(InterfaceError::NotText);
        }
        let mut receptors = Vec::new();
        let blocks = text.split("\n\n").map(|block| block.trim_matches('\n'));
        for (at, block) in blocks.filter(|block| !block.is_empty()).enumerate() {
            let name = receptor_name(block).ok_or(InterfaceError::BadBlock { block: at + 1 })?;
            let mut schema = block.to_string();
            schema.push('\n');
            let fingerprint = Fingerprint::of_schema(&schema);
            receptors.push(ReceptorInterface { name, schema, fingerprint });
        }
        if receptors.len() > RECEPTORS_MAX {
            return Err(InterfaceError::TooMany { found: receptors.len() });
        }
        receptors.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in receptors.windows(2) {
            if let [a, b] = pair
                && a.name == b.name
            {
                return Err(InterfaceError::Duplicate(a.name.clone()));
            }
        }
        Ok(Self { receptors })
    }

    /// The receptors in the order of their numbers.
    pub fn receptors(&self) -> &[ReceptorInterface] {
        &self.receptors
    }

    /// The number and the interface of the receptor with this name.
    pub fn find(&self, name: &str) -> Option<(u16, &ReceptorInterface)> {
        let at =
            self.receptors.binary_search_by(|receptor| receptor.name.as_str().cmp(name)).ok()?;
        // At most RECEPTORS_MAX = 256 receptors.
        Some((u16::try_from(at).ok()?, self.receptors.get(at)?))
    }
}

impl Fingerprint {
    /// The fingerprint of a receptor's schema text.
    pub fn of_schema(schema: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(FINGERPRINT_DOMAIN.as_bytes());
        hasher.update(schema.as_bytes());
        Self::from_bytes(*hasher.finalize().as_bytes())
    }
}

fn receptor_name(block: &str) -> Option<ReceptorName> {
    let rest = block.strip_prefix("receptor ")?;
    let (name, _) = rest.split_once('(')?;
    ReceptorName::parse(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(section: &[u8], expect: Result<&[&str], InterfaceError>) {
        let found = Interface::parse(section);
        let names = found
            .as_ref()
            .map(|i| i.receptors().iter().map(|r| r.name.as_str()).collect::<Vec<_>>());
        assert_eq!(names.map_err(Clone::clone), expect.map(<[_]>::to_vec));
    }

    #[test]
    fn sections() {
        check(b"", Ok(&[]));
        check(
            b"receptor b(u8) -> u8\n\nreceptor a(A) -> A\nstruct A { x: u8 }\n\n",
            Ok(&["a", "b"]),
        );
        check(b"receptor a(u8) -> u8", Ok(&["a"]));
        check(b"struct A {}\n\n", Err(InterfaceError::BadBlock { block: 1 }));
        check(b"receptor A(u8)\n\n", Err(InterfaceError::BadBlock { block: 1 }));
        check(b"receptor a(u8)\x1b[2J\n\n", Err(InterfaceError::NotText));
        check(b"\xff", Err(InterfaceError::NotText));
        check(
            b"receptor a(u8) -> u8\n\nreceptor a(u8) -> u16\n\n",
            Err(InterfaceError::Duplicate(ReceptorName::parse("a").unwrap())),
        );
        let long = alloc::vec![b'a'; INTERFACE_BYTES_MAX + 1];
        check(&long, Err(InterfaceError::TooLong { found: long.len() }));
        let many: String =
            (0..=RECEPTORS_MAX).map(|n| alloc::format!("receptor r{n}(u8) -> u8\n\n")).collect();
        check(many.as_bytes(), Err(InterfaceError::TooMany { found: RECEPTORS_MAX + 1 }));
    }

    /// A renamed field must change the fingerprint: the ancestor compared type names only.
    #[test]
    fn fingerprint_covers_fields() {
        let of = |field: &str| {
            Fingerprint::of_schema(&alloc::format!(
                "receptor a(A) -> u8\nstruct A {{ {field}: u8 }}\n"
            ))
        };
        assert_ne!(of("x"), of("y"));
        let section = b"receptor a(A) -> u8\nstruct A { x: u8 }\n\n";
        let interface = Interface::parse(section).unwrap();
        assert_eq!(interface.find("a").unwrap().1.fingerprint, of("x"));
    }
}
