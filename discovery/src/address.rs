//! Where a machine or a ledger is, as text that is safe to show and to dial.
//!
//! Whether anybody is there is not known here.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use cell_abi::AccountId;

use crate::error::{DiscoveryError, printable};

/// Longest HOST:PORT, in bytes.
pub(crate) const ADDRESS_BYTES_MAX: usize = 255;

/// HOST:PORT: a name, an IPv4 address, or an IPv6 address in brackets, and a port that is not zero.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

impl Address {
    /// The text, as `TcpStream::connect` takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Address {
    type Err = DiscoveryError;

    fn from_str(text: &str) -> Result<Self, DiscoveryError> {
        let is_one = text.len() <= ADDRESS_BYTES_MAX
            && text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port));
        let wrong = || DiscoveryError::Record(format!("`{}` is no HOST:PORT", printable(text)));
        is_one.then(|| Self(text.to_owned())).ok_or_else(wrong)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose ledger it is, and where: KEY@HOST:PORT.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LedgerAt {
    /// The key that whoever answers must prove.
    pub key: AccountId,
    /// Where it answers.
    pub address: Address,
}

impl FromStr for LedgerAt {
    type Err = DiscoveryError;

    fn from_str(text: &str) -> Result<Self, DiscoveryError> {
        let parts = text.split_once('@');
        let key = parts.and_then(|(key, _)| AccountId::parse(key).ok());
        let (Some(key), Some((_, address))) = (key, parts) else {
            let text = printable(text);
            return Err(DiscoveryError::Record(format!("`{text}` is no KEY@HOST:PORT")));
        };
        Ok(Self { key, address: address.parse()? })
    }
}

impl fmt::Display for LedgerAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.key, self.address)
    }
}

/// Few characters: none that could be mistaken for others, or for the end of a line or an option.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()),
        None => {
            let allowed =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            !host.is_empty() && !host.starts_with('-') && host.bytes().all(allowed)
        }
    }
}

/// Written the one way that a number has.
fn is_port(port: &str) -> bool {
    port.parse::<u16>().is_ok_and(|number| number != 0 && number.to_string() == port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: bool) {
        let found = text.parse::<Address>();
        assert_eq!(found.is_ok(), expect, "{text:?}: {found:?}");
    }

    #[test]
    fn addresses() {
        for right in ["h:1", "127.0.0.1:7316", "[::1]:65535", "a-b.c_d.example:80"] {
            check(right, true);
        }
        for wrong in ["", "h", ":1", "h:", "h:0", "h:65536", "h:+1", "h:01", "h: 1", "::1:80"] {
            check(wrong, false);
        }
        for wrong in ["[::1:80", "[fe80::1%eth0]:80", "-h:1", "h h:1", "h\n:1", "é:1", "a@h:1"] {
            check(wrong, false);
        }
        check(&format!("{}:80", "h".repeat(ADDRESS_BYTES_MAX - 3)), true);
        check(&format!("{}:80", "h".repeat(ADDRESS_BYTES_MAX - 2)), false);
    }

    #[test]
    fn ledgers() {
        let text = format!("{}@[::1]:7316", "ab".repeat(32));
        let ledger: LedgerAt = text.parse().unwrap();
        assert_eq!(ledger.to_string(), text);
        for wrong in ["", "@h:1", "12@h:1", "h:1", &format!("{}@h", "ab".repeat(32))] {
            assert!(wrong.parse::<LedgerAt>().is_err(), "{wrong:?}");
        }
    }
}
