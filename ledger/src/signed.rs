//! Values that somebody signed: what the signature is over, and how bytes and ids are written in them.
//!
//! A signature is Ed25519 over a domain, which ends with a zero byte, and the value's JSON without spaces
//! and with its signature left out or empty. The domain keeps one kind of object from passing for another.

use cell_abi::AccountId;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::Serialize;

/// Signs a value; the signature is 128 hexadecimal digits.
pub fn sign(domain: &str, unsigned: &impl Serialize, key: &SigningKey) -> String {
    hex(&key.sign(&message(domain, unsigned)).to_bytes())
}

/// Whether this signature of a value is the node's.
pub fn is_signed(
    domain: &str,
    unsigned: &impl Serialize,
    node: AccountId,
    signature: &str,
) -> bool {
    let check = || {
        let key = VerifyingKey::from_bytes(node.as_bytes()).ok()?;
        let signature: [u8; 64] = from_hex(signature)?.try_into().ok()?;
        key.verify_strict(&message(domain, unsigned), &Signature::from_bytes(&signature)).ok()
    };
    check().is_some()
}

/// The account of who signs with this key.
pub fn node(key: &SigningKey) -> AccountId {
    AccountId::from_bytes(key.verifying_key().to_bytes())
}

fn message(domain: &str, unsigned: &impl Serialize) -> Vec<u8> {
    [domain.as_bytes(), &[0], &json(unsigned)].concat()
}

/// The JSON that stands for a value: without spaces, fields as declared.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Numbers, texts and maps with text keys can always be written.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that these hexadecimal digits stand for. Letters are small: bytes have one text.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).filter(|_| !digit.is_ascii_uppercase());
    let pair = |pair: &[u8]| match *pair {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

/// Values that are one text, in JSON.
pub mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    /// Writes the value as its text.
    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    /// Reads the value from its text.
    pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_have_one_writing() {
        let bytes = [0, 0x7f, 0xab, 0xff];
        assert_eq!(hex(&bytes), "007fabff");
        assert_eq!(from_hex("007fabff").as_deref(), Some(&bytes[..]));
        for wrong in ["007FABFF", "007fabf", "007fabfg", "é"] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_signature_is_of_one_domain_value_and_key() {
        let (key, other) = (SigningKey::from_bytes(&[7; 32]), SigningKey::from_bytes(&[8; 32]));
        let signature = sign("test/v1", &1, &key);
        assert!(is_signed("test/v1", &1, node(&key), &signature));
        assert!(!is_signed("test/v2", &1, node(&key), &signature));
        assert!(!is_signed("test/v1", &2, node(&key), &signature));
        assert!(!is_signed("test/v1", &1, node(&other), &signature));
        assert!(!is_signed("test/v1", &1, node(&key), &signature.to_uppercase()));
        assert!(!is_signed("test/v1", &1, node(&key), ""));
    }
}
