//! Values that are texts in JSON, one by one or many.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use cell_ledger::signed::text;

#[derive(Serialize, Deserialize)]
#[serde(transparent, bound(serialize = "T: Display", deserialize = "T: FromStr<Err: Display>"))]
struct Text<T>(#[serde(with = "text")] T);

/// Any number of values.
pub(crate) mod many {
    use super::*;

    pub(crate) fn serialize<T, C, S>(values: &C, to: S) -> Result<S::Ok, S::Error>
    where
        T: Display,
        for<'a> &'a C: IntoIterator<Item = &'a T>,
        S: Serializer,
    {
        to.collect_seq(values.into_iter().map(Text))
    }

    pub(crate) fn deserialize<'de, T, C, D>(from: D) -> Result<C, D::Error>
    where
        T: FromStr<Err: Display>,
        C: FromIterator<T>,
        D: Deserializer<'de>,
    {
        let values = Vec::<Text<T>>::deserialize(from)?;
        Ok(values.into_iter().map(|Text(value)| value).collect())
    }
}

/// A value that may be missing.
pub(crate) mod optional {
    use super::*;

    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(Text).serialize(to)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        Ok(Option::<Text<T>>::deserialize(from)?.map(|Text(value)| value))
    }
}
