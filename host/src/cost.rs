//! The cost table: what each wasm operator burns.
//!
//! Plain integer work is 1, and what a processor takes longer for costs more, so that a fuel is
//! worth 0.013 to 0.13 ns of a core whatever a guest computes. The low end is a byte of
//! `memory.fill`, for which Wasmtime always takes 1; the weights are those that a chain of each
//! operator needs to stay below the high end, by `cargo xtask bench calibrate`. Weights cannot see
//! cache misses and page faults; pages are charged when memory grows, in [`price`](crate::price).

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
    2: Br TableGet TableSet;
    3: F32Eq F32Ne F32Lt F32Gt F32Le F32Ge F64Eq F64Ne F64Lt F64Gt F64Le F64Ge I32Store I64Store
        F32Store F64Store I32Store8 I32Store16 I64Store8 I64Store16 I64Store32 V128Store
        V128Store8Lane V128Store16Lane V128Store32Lane V128Store64Lane MemorySize;
    4: I32Eq I32Ne I32LtS I32LtU I32GtS I32GtU I32LeS I32LeU I32GeS I32GeU I32Eqz I64Eq I64Ne
        I64LtS I64LtU I64GtS I64GtU I64LeS I64LeU I64GeS I64GeU I64Eqz I8x16Abs I8x16Neg I8x16LtU
        I8x16GtU I8x16LeS I8x16LeU I8x16GeS I8x16GeU I16x8Abs I16x8Neg I16x8LtU I16x8GtU I16x8LeS
        I16x8LeU I16x8GeS I16x8GeU I16x8Shl I16x8ShrS I16x8ShrU I32x4Abs I32x4Neg I32x4LtU I32x4GtU
        I32x4LeS I32x4LeU I32x4GeS I32x4GeU I32x4Shl I32x4ShrS I32x4ShrU I64x2Abs I64x2Neg I64x2Eq
        I64x2Ne I64x2LtS I64x2GtS I64x2LeS I64x2GeS I64x2Shl I64x2ShrS I64x2ShrU I8x16Ne I16x8Ne
        I32x4Ne V128Not V128Bitselect I8x16Popcnt I8x16Swizzle I8x16AddSatS I8x16AddSatU
        I8x16SubSatS I8x16SubSatU I8x16AvgrU I16x8AddSatS I16x8AddSatU I16x8SubSatS I16x8SubSatU
        I16x8AvgrU I8x16NarrowI16x8S I8x16NarrowI16x8U I16x8NarrowI32x4S I16x8NarrowI32x4U
        I16x8ExtendLowI8x16S I16x8ExtendLowI8x16U I32x4ExtendLowI16x8S I32x4ExtendLowI16x8U
        I64x2ExtendLowI32x4S I64x2ExtendLowI32x4U F32x4Abs F32x4Neg F32x4Eq F32x4Ne F32x4Lt F32x4Gt
        F32x4Le F32x4Ge F32x4PMin F32x4PMax F32x4ExtractLane F32x4ReplaceLane F32x4Splat F64x2Abs
        F64x2Neg F64x2Eq F64x2Ne F64x2Lt F64x2Gt F64x2Le F64x2Ge F64x2PMin F64x2PMax
        F64x2ExtractLane F64x2ReplaceLane F64x2Splat;
    6: I32Mul I64Mul I16x8Mul I32x4Mul I64x2Mul I32x4DotI16x8S I8x16Shuffle;
    8: F32Abs F32Neg F32Copysign F64Abs F64Neg F64Copysign Call;
    9: I32Load I64Load F32Load F64Load I32Load8S I32Load8U I32Load16S I32Load16U I64Load8S
        I64Load8U I64Load16S I64Load16U I64Load32S I64Load32U V128Load V128Load8x8S V128Load8x8U
        V128Load16x4S V128Load16x4U V128Load32x2S V128Load32x2U V128Load8Splat V128Load16Splat
        V128Load32Splat V128Load64Splat V128Load32Zero V128Load64Zero V128Load8Lane V128Load16Lane
        V128Load32Lane V128Load64Lane;
    10: I8x16Shl I8x16ShrS I8x16ShrU I16x8ExtendHighI8x16S I16x8ExtendHighI8x16U
        I32x4ExtendHighI16x8S I32x4ExtendHighI16x8U I64x2ExtendHighI32x4S I64x2ExtendHighI32x4U;
    12: BrIf If I16x8ExtAddPairwiseI8x16S I16x8ExtAddPairwiseI8x16U I32x4ExtAddPairwiseI16x8S
        I32x4ExtAddPairwiseI16x8U I16x8Q15MulrSatS F32x4ConvertI32x4S F32x4ConvertI32x4U
        F64x2ConvertLowI32x4S F64x2ConvertLowI32x4U;
    16: F32Add F32Sub F32Mul F64Add F64Sub F64Mul F32ReinterpretI32 F64ReinterpretI64
        I32ReinterpretF32 I64ReinterpretF64 F64PromoteF32 I16x8ExtMulLowI8x16S
        I16x8ExtMulHighI8x16S I16x8ExtMulLowI8x16U I16x8ExtMulHighI8x16U I32x4ExtMulLowI16x8S
        I32x4ExtMulHighI16x8S I32x4ExtMulLowI16x8U I32x4ExtMulHighI16x8U I64x2ExtMulLowI32x4S
        I64x2ExtMulHighI32x4S I64x2ExtMulLowI32x4U I64x2ExtMulHighI32x4U F32x4Add F32x4Sub F32x4Mul
        F32x4Ceil F32x4Floor F32x4Trunc F32x4Nearest F64x2Add F64x2Sub F64x2Mul F64x2Ceil
        F64x2Floor F64x2Trunc F64x2Nearest F32x4DemoteF64x2Zero F64x2PromoteLowF32x4;
    20: TableSize TableCopy;
    24: F32Min F32Max F32Ceil F32Floor F32Trunc F32Nearest F32ConvertI32S F32ConvertI32U
        F32ConvertI64S F32ConvertI64U F64Min F64Max F64Ceil F64Floor F64Trunc F64Nearest
        F64ConvertI32S F64ConvertI32U F64ConvertI64S F64ConvertI64U I8x16AllTrue I8x16Bitmask
        I8x16Splat I8x16ReplaceLane I16x8AllTrue I16x8Bitmask I16x8Splat I16x8ReplaceLane
        I32x4AllTrue I32x4Bitmask I32x4Splat I32x4ExtractLane I32x4ReplaceLane I64x2AllTrue
        I64x2Bitmask I64x2Splat I64x2ExtractLane I64x2ReplaceLane V128AnyTrue I8x16ExtractLaneS
        I8x16ExtractLaneU I16x8ExtractLaneS I16x8ExtractLaneU;
    28: MemoryCopy MemoryFill I32DivS I32DivU I32RemS I32RemU I32TruncF32S I32TruncF32U I64TruncF32S I64TruncF32U
        I32TruncSatF32S I32TruncSatF32U I64TruncSatF32S I64TruncSatF32U I32TruncF64S I32TruncF64U
        I64TruncF64S I64TruncF64U I32TruncSatF64S I32TruncSatF64U I64TruncSatF64S I64TruncSatF64U;
    32: F32DemoteF64 F32Div;
    28: F32x4Min F32x4Max F64x2Min F64x2Max I32x4TruncSatF32x4S
        I32x4TruncSatF32x4U I32x4TruncSatF64x2SZero I32x4TruncSatF64x2UZero;
    45: BrTable;
    48: I64DivS I64DivU I64RemS I64RemU F64Div;
    56: F32Sqrt F32x4Div F32x4Sqrt F64x2Div F64x2Sqrt;
    64: F64Sqrt;
    70: CallIndirect;
    100: MemoryInit TableFill TableInit;
    255: RefFunc MemoryGrow TableGrow DataDrop ElemDrop;
}

/// The table as text, one operator a line: hashed into the engine's id.
pub(crate) fn canonical() -> String {
    WEIGHTS.iter().fold(String::from("default 1\n"), |mut text, (operator, weight)| {
        text.push_str(&format!("{operator} {weight}\n"));
        text
    })
}
