//! The rate card: what this node charges besides fuel, whose price is what an ATP is.

use std::fmt::Write as _;

use anyhow::Context as _;
use cell_abi::NanoAtp;
use cell_host::Rates;
use cell_host::rates::Dimension;
use cell_ledger::receipts::{FUEL, Rate};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::config::Config;
use crate::home::Home;

/// Highest price of a unit, in ATP: with it, sums of any bill fit.
pub(crate) const PRICE_ATP_MAX: u64 = 1_000_000;

/// The dimension that nobody's call takes: state that a cell keeps.
pub(crate) const STORAGE: &str = "storage";
/// What the price of storage is for: a GiB for an hour, counted in bytes times seconds.
pub(crate) const STORAGE_PER: u64 = (1 << 30) * 3600;

/// Prices in ATP, such as `0.25` or `"0.000000001"`; all of them are 0 by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Prices {
    /// For a job's start, and for each call of a cell with `isolation = "call"`.
    #[serde(deserialize_with = "amount")]
    pub(crate) start: NanoAtp,
    /// For a GiB of replies, or of a job's standard output and error.
    #[serde(deserialize_with = "amount")]
    pub(crate) egress_gib: NanoAtp,
    /// For a GiB of linear memory, held by a call or a job for a second.
    #[serde(deserialize_with = "amount")]
    pub(crate) memory_gib_s: NanoAtp,
    /// For a GiB of cells' state, kept for an hour; the owner pays.
    #[serde(deserialize_with = "amount")]
    pub(crate) storage_gib_h: NanoAtp,
}

impl Prices {
    /// Those of a home.
    pub(crate) fn of(home: &Home) -> anyhow::Result<Self> {
        Ok(Config::read(home)?.prices)
    }

    /// What calls and jobs pay.
    pub(crate) const fn rates(&self) -> Rates {
        Rates([self.start.0, self.egress_gib.0, self.memory_gib_s.0])
    }

    /// The rate card for machines: for each dimension, so many nano-ATP for so many.
    pub(crate) fn json(&self) -> Value {
        let mut card = card(self.rates());
        card.insert(STORAGE.into(), Rate { nano_atp: self.storage_gib_h.0, per: STORAGE_PER });
        json!(card)
    }

    /// The rate card for people, a line for each dimension.
    pub(crate) fn text(&self) -> String {
        let rows = [
            ("fuel", NanoAtp(1), "each"),
            ("start", self.start, "each, of a job or a fresh instance"),
            ("egress", self.egress_gib, "a GiB of replies or output"),
            ("memory", self.memory_gib_s, "a GiB held for a second"),
            ("storage", self.storage_gib_h, "a GiB of state for an hour"),
        ];
        let mut text = String::new();
        for (name, price, what) in rows {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n  {name:8} {price} ATP {what}");
        }
        text
    }
}

/// Fuel, and what else has a price.
pub(crate) fn rates_of(rates: Rates) -> std::collections::BTreeMap<String, Rate> {
    let mut card = card(rates);
    card.retain(|_, rate| rate.nano_atp > 0);
    card
}

fn card(rates: Rates) -> std::collections::BTreeMap<String, Rate> {
    let rate = |dimension: Dimension| {
        let rate = Rate { nano_atp: rates.of(dimension), per: dimension.per() };
        (dimension.name().to_owned(), rate)
    };
    let fuel = (FUEL.to_owned(), Rate { nano_atp: 1, per: 1 });
    Dimension::ALL.into_iter().map(rate).chain([fuel]).collect()
}

/// A number that TOML knows as it is written, or a text.
fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NanoAtp, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Whole(u64),
        Decimal(f64),
        Text(String),
    }
    let text = match Written::deserialize(deserializer)? {
        Written::Whole(number) => number.to_string(),
        Written::Decimal(number) => number.to_string(),
        Written::Text(text) => text,
    };
    parse(&text).map_err(|error| D::Error::custom(format!("{error:#}")))
}

fn parse(text: &str) -> anyhow::Result<NanoAtp> {
    let price = NanoAtp::parse_atp(text).with_context(|| format!("the price {text:?}"))?;
    let most = NanoAtp::from_atp(PRICE_ATP_MAX).unwrap_or(NanoAtp::ZERO);
    anyhow::ensure!(price <= most, "the price {text:?} is above {PRICE_ATP_MAX} ATP");
    Ok(price)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_to_the_unit() {
        let text = "[prices]\nstart = 0.1\negress_gib = 3\nmemory_gib_s = \"0.000000001\"";
        let prices = Config::parse(text).unwrap().prices;
        assert_eq!(prices.rates(), Rates([100_000_000, 3_000_000_000, 1]));
        assert_eq!(prices.storage_gib_h, NanoAtp::ZERO);
        for (wrong, expect) in [
            ("start = -1", "price"),
            ("start = \"0.0000000001\"", "decimals"),
            ("start = 1000001", "above 1000000"),
            ("fuel = 2", "unknown field"),
            ("start = \"dear\"", "digits"),
        ] {
            let error = format!("{:#}", Config::parse(&format!("[prices]\n{wrong}")).unwrap_err());
            assert!(error.contains(expect), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_is_free_is_not_on_a_receipt() {
        let names = |rates| rates_of(rates).into_keys().collect::<Vec<_>>();
        assert_eq!(names(Rates::default()), ["fuel"]);
        assert_eq!(names(Rates([0, 1, 1])), ["egress", "fuel", "memory"]);
    }
}
