//! How often an address may begin a handshake.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::limits::{ADDRESSES_MAX, HANDSHAKES_PER_S_MAX};

/// After so long without a handshake an address has its whole allowance again.
const FULL_AFTER: Duration = Duration::from_secs(2);

/// Who an address belongs to: it itself, or for IPv6 its network of 56 bits, which is one household.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source([u8; 16]);

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self((u128::from(v6) >> 72 << 72).to_be_bytes()),
        }
    }
}

/// Counts handshakes by address.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// What an address may still do, in nanoseconds of its allowance, and since when.
    left: HashMap<Source, (Duration, Instant)>,
}

impl Meter {
    /// Whether an address may begin one more.
    pub(super) fn admits(&mut self, source: Source, now: Instant) -> bool {
        if self.left.len() >= ADDRESSES_MAX && !self.left.contains_key(&source) {
            self.left.retain(|_, (_, at)| now.saturating_duration_since(*at) < FULL_AFTER);
            if self.left.len() >= ADDRESSES_MAX {
                // Who can use so many addresses must not keep everybody else out.
                return true;
            }
        }
        let (left, at) = self.left.entry(source).or_insert((FULL_AFTER, now));
        *left = (*left + now.saturating_duration_since(*at)).min(FULL_AFTER);
        *at = now;
        let price = Duration::from_secs(1) / HANDSHAKES_PER_S_MAX;
        let admitted = *left >= price;
        if admitted {
            *left -= price;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_fills_again() {
        let (mut meter, now) = (Meter::default(), Instant::now());
        let source = Source::of("10.0.0.1".parse().unwrap());
        let begun = |meter: &mut Meter, at| (0..1000).filter(|_| meter.admits(source, at)).count();
        let rate = HANDSHAKES_PER_S_MAX as usize;
        assert_eq!(begun(&mut meter, now), 2 * rate);
        assert_eq!(begun(&mut meter, now + Duration::from_secs(1)), rate);
        assert_eq!(begun(&mut meter, now + Duration::from_secs(100)), 2 * rate);
        assert!(meter.admits(Source::of("10.0.0.2".parse().unwrap()), now));
    }

    #[test]
    fn households() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:100::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn few_addresses_are_remembered() {
        let (mut meter, now) = (Meter::default(), Instant::now());
        let address = |n: u32| Source::of(IpAddr::from(n.to_be_bytes()));
        let all = u32::try_from(ADDRESSES_MAX).unwrap();
        assert!((0..all).all(|n| meter.admits(address(n), now)));
        assert!(meter.admits(address(all), now));
        assert_eq!(meter.left.len(), ADDRESSES_MAX);
        assert!(meter.admits(address(all), now + FULL_AFTER));
        assert_eq!(meter.left.len(), 1);
    }
}
