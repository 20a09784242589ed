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

/// HOST:PORT: a name, an IPv4 address, or an IPv6 address in brackets, and a port that is not zero. For a
/// machine that waits at another one, its relay, RELAYKEY@HOST:PORT: that one's key, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    text: String,
    relay: Option<AccountId>,
}

impl Address {
    /// The text, as `cell_peer::tunnel::dial` takes it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The machine through which the one that is meant is reached.
    pub const fn relay(&self) -> Option<AccountId> {
        self.relay
    }

    /// The HOST:PORT to connect to.
    pub fn host_and_port(&self) -> &str {
        self.text.split_once('@').map_or(self.as_str(), |(_, at)| at)
    }
}

impl FromStr for Address {
    type Err = DiscoveryError;

    fn from_str(text: &str) -> Result<Self, DiscoveryError> {
        let wrong = || {
            let text = printable(text);
            DiscoveryError::Record(format!("`{text}` is no HOST:PORT, and no RELAYKEY@HOST:PORT"))
        };
        let (relay, at) = match text.split_once('@') {
            Some((key, at)) => {
                // It has one writing.
                let relay = AccountId::parse(key).ok().filter(|relay| relay.to_string() == key);
                (Some(relay.ok_or_else(wrong)?), at)
            }
            None => (None, text),
        };
        let is_one = at.len() <= ADDRESS_BYTES_MAX
            && at.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port));
        is_one.then(|| Self { text: text.to_owned(), relay }).ok_or_else(wrong)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whose ledger it is, and where: KEY@HOST:PORT, or KEY@RELAYKEY@HOST:PORT.
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

    fn ledger_key() -> AccountId {
        AccountId::parse(&"ab".repeat(32)).unwrap()
    }

    #[test]
    fn relays() {
        let key = "ab".repeat(32);
        let text = format!("{key}@[::1]:7316");
        let address: Address = text.parse().unwrap();
        assert_eq!((address.to_string(), address.host_and_port()), (text, "[::1]:7316"));
        assert_eq!(address.relay(), Some(ledger_key()));
        let direct: Address = "h:1".parse().unwrap();
        assert_eq!((direct.relay(), direct.host_and_port()), (None, "h:1"));
        check(&format!("{key}@{}:80", "h".repeat(ADDRESS_BYTES_MAX - 3)), true);
        check(&format!("{key}@{}:80", "h".repeat(ADDRESS_BYTES_MAX - 2)), false);
        for wrong in ["@h:1", &key, "12@h:1"] {
            check(wrong, false);
        }
        for wrong in ["@h", "@", "@h:1@", "@@h:1", &format!("@{key}@h:1")] {
            check(&format!("{key}{wrong}"), false);
        }
        check(&format!("{}@h:1", "AB".repeat(32)), false);
        check(&format!(" {key}@h:1"), false);
    }

    #[test]
    fn ledgers() {
        let text = format!("{}@[::1]:7316", "ab".repeat(32));
        let ledger: LedgerAt = text.parse().unwrap();
        assert_eq!(ledger.to_string(), text);
        let through = format!("{}@{text}", "cd".repeat(32));
        let ledger: LedgerAt = through.parse().unwrap();
        assert_eq!((ledger.to_string(), ledger.address.relay()), (through, Some(ledger_key())));
        for wrong in ["", "@h:1", "12@h:1", "h:1", &format!("{}@h", "ab".repeat(32))] {
            assert!(wrong.parse::<LedgerAt>().is_err(), "{wrong:?}");
        }
    }
}
