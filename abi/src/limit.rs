//! What a limit is, and the macro that makes a constant and its row in the table of limits from
//! one text.
//!
//! The limits themselves live with what they limit.

use core::time::Duration;

/// One limit of the product: a row of the table that `cell inspect --limits` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Module that holds the constant, such as `cell_abi::limits`.
    pub module: &'static str,
    /// Name of the constant, such as `FRAME_PAYLOAD_BYTES_MAX`.
    pub name: &'static str,
    /// How much.
    pub amount: Amount,
    /// The constant's documentation: what is limited, an empty line, and what is seen when it is
    /// passed. A last paragraph that begins with `Changed` says where another value can be set.
    pub text: &'static str,
}

/// How much a limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many of what [`Limit::unit`] says.
    Count(u64),
    /// So long.
    Time(Duration),
}

impl Limit {
    /// What is limited.
    pub fn limits(&self) -> &'static str {
        self.paragraph(|_| true)
    }

    /// What a guest, caller or operator sees when the limit is passed.
    pub fn seen(&self) -> &'static str {
        let first = self.limits();
        self.paragraph(|paragraph| paragraph != first && !paragraph.starts_with("Changed"))
    }

    /// Where another value can be set; empty where it cannot.
    pub fn changed(&self) -> &'static str {
        self.paragraph(|paragraph| paragraph.starts_with("Changed"))
    }

    /// The unit of [`Amount::Count`], from the constant's name: the words before `MAX`.
    pub fn unit(&self) -> &'static str {
        const UNITS: [(&str, &str); 8] = [
            ("S_PER_MIB", "s per MiB"),
            ("BYTES_PER_S", "bytes per second"),
            ("BYTES", "bytes"),
            ("FUEL", "fuel"),
            ("KB_S", "KiB per second"),
            ("MB_MAX", "MiB"),
            ("MS_MAX", "ms"),
            ("S_MAX", "s"),
        ];
        if let Amount::Time(_) = self.amount {
            return "ms";
        }
        // `_S_MAX` is seconds, but `CALLS_MAX` counts calls.
        let is_unit = |word: &str| {
            let at = self.name.find(word).unwrap_or(usize::MAX);
            at == 0 || self.name.get(at.wrapping_sub(1)..at) == Some("_")
        };
        UNITS.iter().find(|(word, _)| is_unit(word)).map_or("", |(_, unit)| unit)
    }

    /// The amount in [`unit`](Self::unit)s.
    pub fn value(&self) -> u64 {
        match self.amount {
            Amount::Count(count) => count,
            Amount::Time(time) => u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn paragraph(&self, wanted: impl Fn(&str) -> bool) -> &'static str {
        self.text.split("\n\n").map(str::trim).find(|found| wanted(found)).unwrap_or_default()
    }
}

/// Defines `LIMITS`, rows of the table of limits, and for new constants the constants too.
///
/// The documentation of a constant is its row, so a limit is described once. Its first paragraph
/// says what is limited; the second says what is seen when it is passed; a last one that begins
/// with `Changed` says where another value can be set.
///
/// ```
/// cell_abi::limits! {
///     /// Longest name, in bytes.
///     ///
///     /// A longer one is refused.
///     pub const LETTERS_BYTES_MAX: usize = 64;
/// }
/// # fn main() {}
/// ```
///
/// Constants that stand elsewhere are named by their path: `crate::room { /// … NAME: usize; }`.
#[macro_export]
macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $vis:vis const $name:ident: $type:ident = $value:expr;)+) => {
        $($(#[doc = $doc])+ $vis const $name: $type = $value;)+
        $crate::limits! { @rows $([module_path!()] [$($doc)+] $name: $type = $name;)+ }
    };
    (crate $($rest:tt)+) => { $crate::limits! { @each [] crate $($rest)+ } };
    // One constant after the other is taken out of its room, and joins those that are done.
    (@each [$($done:tt)*] crate $(:: $segment:ident)+ {
        $(#[doc = $doc:literal])+ $name:ident: $type:ident; $($more:tt)*
    } $($rest:tt)*) => {
        $crate::limits! {
            @each [$($done)* {[$($segment)+] [$($doc)+] $name $type}]
            crate $(:: $segment)+ { $($more)* } $($rest)*
        }
    };
    (@each [$($done:tt)*] crate $(:: $segment:ident)+ {} $($rest:tt)*) => {
        $crate::limits! { @each [$($done)*] $($rest)* }
    };
    (@each [$({[$($segment:ident)+] [$($doc:literal)+] $name:ident $type:ident})+]) => {
        $crate::limits! { @rows $(
            [concat!(env!("CARGO_CRATE_NAME"), $("::", stringify!($segment)),+)]
            [$($doc)+] $name: $type = crate $(:: $segment)+ :: $name;
        )+ }
    };
    (@rows $([$module:expr] [$($doc:literal)+] $name:ident: $type:ident = $value:expr;)+) => {
        /// The rows of these limits in the table of limits.
        #[allow(
            trivial_numeric_casts,
            unreachable_pub,
            reason = "constants have different types, and their modules different readers"
        )]
        pub const LIMITS: &[$crate::limit::Limit] = &[$($crate::limit::Limit {
            module: $module,
            name: stringify!($name),
            amount: $crate::limits!(@amount $type $value),
            text: concat!($($doc, "\n"),+),
        }),+];
    };
    (@amount Duration $value:expr) => { $crate::limit::Amount::Time($value) };
    (@amount $type:ident $value:expr) => { $crate::limit::Amount::Count($value as u64) };
}

#[cfg(test)]
mod tests {
    mod some {
        use core::time::Duration;
        crate::limits! {
            /// Longest thing,
            /// in bytes.
            ///
            /// A longer one is refused.
            ///
            /// Changed in `Cell.toml`.
            pub(crate) const THING_BYTES_MAX: usize = 4096;
            /// Most things.
            ///
            /// One more is refused.
            pub(crate) const THINGS_MAX: u32 = 7;
            /// Longest wait.
            ///
            /// It ends.
            pub(crate) const WAIT_MAX: Duration = Duration::from_secs(2);
            /// Longest call, in ms.
            ///
            /// It ends.
            pub(crate) const CALL_MS_MAX: u64 = 9;
            /// Longest rest, in s.
            ///
            /// It ends.
            pub(crate) const IDLE_S_MAX: u64 = 9;
        }
    }

    #[test]
    fn a_documentation_is_a_row() {
        let rows = some::LIMITS;
        let [thing, things, wait, call, idle] = rows else { panic!("{rows:?}") };
        assert_eq!(thing.module, "cell_abi::limit::tests::some");
        assert_eq!((thing.name, thing.value(), thing.unit()), ("THING_BYTES_MAX", 4096, "bytes"));
        assert_eq!(thing.limits(), "Longest thing,\n in bytes.");
        assert_eq!(thing.seen(), "A longer one is refused.");
        assert_eq!(thing.changed(), "Changed in `Cell.toml`.");
        assert_eq!((things.value(), things.unit(), things.changed()), (7, "", ""));
        assert_eq!((wait.value(), wait.unit()), (2000, "ms"));
        assert_eq!((call.unit(), idle.unit()), ("ms", "s"));
        assert_eq!(some::THINGS_MAX, 7);
    }
}
