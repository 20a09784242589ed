//! Parts of WebAssembly that the engine has off: the gate says so before a compiler does.
//!
//! It names what is cheaply seen. Whatever slips through is refused by the compiler.

use wasmparser::{MemoryType, Operator, TableType, ValType};

use super::error::{GateError, Place};

pub(crate) const GC: &str = "garbage-collected types";
pub(crate) const REFERENCES: &str = "references to anything but functions";
pub(crate) const EXCEPTIONS: &str = "exceptions";
pub(crate) const FUNCTION_REFERENCES: &str = "typed function references";
pub(crate) const COMPACT_IMPORTS: &str = "compact imports";
pub(crate) const THREADS: &str = "threads (shared memory, atomics)";
const MEMORY64: &str = "64-bit memories or tables";
const PAGE_SIZES: &str = "custom page sizes";

/// The refusal of a feature.
pub(crate) const fn off(feature: &'static str, offset: usize) -> GateError {
    GateError::Feature { feature, place: Place::at(offset) }
}

/// Refuses values that a module without garbage collection cannot have.
pub(crate) fn value(ty: ValType, offset: usize) -> Result<(), GateError> {
    match ty {
        ValType::Ref(_) if ty != ValType::FUNCREF => Err(off(REFERENCES, offset)),
        _ => Ok(()),
    }
}

/// Refuses memories other than plain ones.
pub(crate) const fn memory(ty: &MemoryType, offset: usize) -> Result<(), GateError> {
    if ty.shared {
        Err(off(THREADS, offset))
    } else if ty.memory64 {
        Err(off(MEMORY64, offset))
    } else if ty.page_size_log2.is_some() {
        Err(off(PAGE_SIZES, offset))
    } else {
        Ok(())
    }
}

/// Refuses tables other than plain ones of functions.
pub(crate) fn table(ty: &TableType, offset: usize) -> Result<(), GateError> {
    if ty.shared {
        Err(off(THREADS, offset))
    } else if ty.table64 {
        Err(off(MEMORY64, offset))
    } else {
        value(ValType::Ref(ty.element_type), offset)
    }
}

/// Which feature an operator belongs to, by the proposal that brought it; `None` for those that
/// are on.
macro_rules! feature {
    (exceptions) => {
        Some(EXCEPTIONS)
    };
    (legacy_exceptions) => {
        Some(EXCEPTIONS)
    };
    (tail_call) => {
        Some("tail calls")
    };
    (threads) => {
        Some(THREADS)
    };
    (shared_everything_threads) => {
        Some(THREADS)
    };
    (gc) => {
        Some(GC)
    };
    (custom_descriptors) => {
        Some(GC)
    };
    (function_references) => {
        Some(FUNCTION_REFERENCES)
    };
    (relaxed_simd) => {
        Some("relaxed SIMD")
    };
    (stack_switching) => {
        Some("stack switching")
    };
    (wide_arithmetic) => {
        Some("wide arithmetic")
    };
    (memory_control) => {
        Some("memory control")
    };
    ($on:ident) => {
        None
    };
}

macro_rules! operators {
    ($(@$proposal:ident $operator:ident $({ $($argument:ident: $type:ty),* })? => $visit:ident ($($about:tt)*))*) => {
        /// The feature that an operator needs, if that is off.
        pub(crate) const fn of(operator: &Operator<'_>) -> Option<&'static str> {
            match operator {
                $(Operator::$operator { .. } => feature!($proposal),)*
                // One that this build does not know the compiler does not know either.
                _ => None,
            }
        }
    };
}

wasmparser::for_each_operator!(operators);
