//! Fuel, the measure of work, and nano-ATP, the unit of money.

use alloc::string::String;
use core::fmt;

/// Nano-ATP in one ATP.
pub const NANO_PER_ATP: u64 = 1_000_000_000;

/// Work done by a guest: Wasmtime fuel under Cell's cost table.
///
/// At the base price one fuel costs one nano-ATP, so 10⁹ fuel cost 1 ATP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fuel(pub u64);

impl Fuel {
    /// No work at all.
    pub const ZERO: Self = Self(0);

    /// What this much fuel costs at the base price of one nano-ATP each.
    pub const fn at_base_price(self) -> NanoAtp {
        NanoAtp(self.0)
    }

    /// The sum, or the largest value if it would not fit.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Fuel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&grouped(self.0))
    }
}

/// An amount of money, in billionths of an ATP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanoAtp(pub u64);

impl NanoAtp {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Whole ATP; `None` if the amount passes 64 bits.
    pub const fn from_atp(atp: u64) -> Option<Self> {
        match atp.checked_mul(NANO_PER_ATP) {
            Some(nano) => Some(Self(nano)),
            None => None,
        }
    }

    /// The fuel this amount buys at the base price.
    pub const fn fuel_at_base_price(self) -> Fuel {
        Fuel(self.0)
    }

    /// The sum; `None` if it passes 64 bits.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference; `None` if it would be negative.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// The difference, or zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Parses an amount written in ATP, such as `5`, `0.25` or `1_000`; at most nine decimals.
    pub fn parse_atp(text: &str) -> Result<Self, AmountError> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        if decimals.len() > 9 {
            return Err(AmountError::TooFine);
        }
        let whole = digits(whole)?;
        let mut nano =
            if decimals.is_empty() && !text.ends_with('.') { 0 } else { digits(decimals)? };
        for _ in decimals.len()..9 {
            nano *= 10;
        }
        whole
            .checked_mul(NANO_PER_ATP)
            .and_then(|amount| amount.checked_add(nano))
            .map(Self)
            .ok_or(AmountError::TooLarge)
    }
}

/// Shown in ATP with as many decimals as needed, such as `0.25`.
impl fmt::Display for NanoAtp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&grouped(self.0 / NANO_PER_ATP))?;
        let mut rest = self.0 % NANO_PER_ATP;
        if rest == 0 {
            return Ok(());
        }
        let mut width = 9;
        while rest.is_multiple_of(10) {
            rest /= 10;
            width -= 1;
        }
        write!(f, ".{rest:0width$}")
    }
}

/// Why a text is not an amount of ATP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AmountError {
    /// Something else than digits and one point.
    #[error("an amount is written in ATP as digits with an optional point, such as 5 or 0.25")]
    NotANumber,
    /// More than nine decimals.
    #[error("an amount has at most nine decimals: one nano-ATP is the smallest")]
    TooFine,
    /// Past 64 bits of nano-ATP.
    #[error("an amount is at most 18,446,744,073 ATP")]
    TooLarge,
}

fn digits(text: &str) -> Result<u64, AmountError> {
    let mut value: u64 = 0;
    let mut any = false;
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' => {
                any = true;
                value = value
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                    .ok_or(AmountError::TooLarge)?;
            }
            b'_' if any => {}
            _ => return Err(AmountError::NotANumber),
        }
    }
    if any { Ok(value) } else { Err(AmountError::NotANumber) }
}

fn grouped(value: u64) -> String {
    let plain = alloc::format!("{value}");
    let mut text = String::with_capacity(plain.len() + plain.len() / 3);
    for (position, digit) in plain.chars().enumerate() {
        if position > 0 && (plain.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Result<u64, AmountError>) {
        assert_eq!(NanoAtp::parse_atp(text).map(|amount| amount.0), expect, "{text:?}");
    }

    #[test]
    fn amounts() {
        check("5", Ok(5_000_000_000));
        check("0.25", Ok(250_000_000));
        check("0.000000001", Ok(1));
        check("1_000", Ok(1_000_000_000_000));
        check("18446744073.709551615", Ok(u64::MAX));
        check("18446744073.709551616", Err(AmountError::TooLarge));
        check("0.0000000001", Err(AmountError::TooFine));
        check("", Err(AmountError::NotANumber));
        check(".5", Err(AmountError::NotANumber));
        check("5.", Err(AmountError::NotANumber));
        check("-1", Err(AmountError::NotANumber));
        check("1e9", Err(AmountError::NotANumber));
    }

    #[test]
    fn shown_in_atp() {
        assert_eq!(NanoAtp(250_000_000).to_string(), "0.25");
        assert_eq!(NanoAtp(1).to_string(), "0.000000001");
        assert_eq!(NanoAtp(1_234_000_000_000).to_string(), "1,234");
        assert_eq!(Fuel(1_234_567).to_string(), "1,234,567");
    }
}
