//! The cost table: what each wasm operator burns.
//!
//! The weights follow the ratios that the Internet Computer measured for its own table
//! (`rs/embedders` of the dfinity/ic repository): plain integer work is 1, and what a processor
//! takes longer for costs more. Weights cannot see cache misses and page faults; pages are
//! charged when memory grows, in [`price`](crate::price).

use wasmtime::OperatorCost;

macro_rules! table {
    ($($weight:literal: $($operator:ident)*;)*) => {
        /// Operators whose weight is not Wasmtime's default of 1 (0 for what makes no code).
        const WEIGHTS: &[(&str, u8)] = &[$($((stringify!($operator), $weight),)*)*];

        /// The table the engine is configured with.
        pub(crate) fn operator_cost() -> OperatorCost {
            let mut cost = OperatorCost::new();
            $($(cost.$operator = $weight;)*)*
            cost
        }
    };
}

table! {
    2: Br BrIf BrTable If GlobalGet GlobalSet
       F32Add F32Sub F32Mul F64Add F64Sub F64Mul;
    3: F32Div F32Eq F32Ne F32Lt F32Gt F32Le F32Ge F64Eq F64Ne F64Lt F64Gt F64Le F64Ge
       F32ConvertI32S F32ConvertI64S F64ConvertI32S F64ConvertI64S;
    4: I64x2Mul;
    5: Call F64Div F32Sqrt TableGet TableSet;
    8: F64Sqrt;
    10: CallIndirect I32DivS I32DivU I32RemS I32RemU I64DivS I64DivU I64RemS I64RemU F32x4Div;
    12: F64x2Div;
    14: F32x4Sqrt F64x2Sqrt;
    16: F32ConvertI32U F32ConvertI64U F64ConvertI32U F64ConvertI64U;
    18: F32Min F32Max F64Min F64Max;
    20: F32Ceil F32Floor F32Trunc F32Nearest F64Ceil F64Floor F64Trunc F64Nearest
        I32TruncF32S I32TruncF32U I32TruncF64S I32TruncF64U I64TruncF32S I64TruncF32U I64TruncF64S I64TruncF64U
        I32TruncSatF32S I32TruncSatF32U I32TruncSatF64S I32TruncSatF64U
        I64TruncSatF32S I64TruncSatF32U I64TruncSatF64S I64TruncSatF64U
        MemorySize;
    100: MemoryCopy MemoryFill MemoryInit TableCopy TableFill TableInit TableSize;
    130: RefFunc;
    255: MemoryGrow TableGrow DataDrop ElemDrop;
}

/// The table as text, one operator a line: hashed into the engine's id.
pub(crate) fn canonical() -> String {
    WEIGHTS.iter().fold(String::from("default 1\n"), |mut text, (operator, weight)| {
        text.push_str(&format!("{operator} {weight}\n"));
        text
    })
}
