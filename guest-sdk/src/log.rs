//! Records for the cell's log.

use core::fmt::Arguments;

use crate::host;

/// How much a log record matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something is wrong, but the call goes on.
    Warn = 2,
    /// What the operator wants to see.
    Info = 3,
    /// What the author wants to see.
    Debug = 4,
}

/// Writes one record; what the macros call.
#[doc(hidden)]
pub fn write(level: Level, text: Arguments<'_>) {
    match text.as_str() {
        Some(text) => host::log(level as u32, text),
        None => host::log(level as u32, &text.to_string()),
    }
}

/// Writes a record of level [`Level::Error`] to the cell's log; the arguments are those of `format!`.
#[macro_export]
macro_rules! error {
    ($($argument:tt)+) => {
        $crate::__private::write($crate::Level::Error, ::core::format_args!($($argument)+))
    };
}

/// Writes a record of level [`Level::Warn`] to the cell's log; the arguments are those of `format!`.
#[macro_export]
macro_rules! warn {
    ($($argument:tt)+) => {
        $crate::__private::write($crate::Level::Warn, ::core::format_args!($($argument)+))
    };
}

/// Writes a record of level [`Level::Info`] to the cell's log; the arguments are those of `format!`.
#[macro_export]
macro_rules! info {
    ($($argument:tt)+) => {
        $crate::__private::write($crate::Level::Info, ::core::format_args!($($argument)+))
    };
}

/// Writes a record of level [`Level::Debug`] to the cell's log; the arguments are those of `format!`.
#[macro_export]
macro_rules! debug {
    ($($argument:tt)+) => {
        $crate::__private::write($crate::Level::Debug, ::core::format_args!($($argument)+))
    };
}
