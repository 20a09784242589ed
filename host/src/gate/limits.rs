//! What a module may be at most: the gate's limits.
//!
//! They stop what would cost far more than it weighs, and leave room for real programs: a
//! CPython-sized module has about 30,000 functions, Go nests a block for every place where a
//! function may be resumed, and a debug build is mostly custom sections. The largest program that
//! was measured is a Rust compiler backend for four machines, 13 MB: 15,629 functions, one of 322
//! KB, with 6,009 blocks, 693 loops, a nesting of 1,774, a `br_table` of 1,073 targets and 17,614
//! values passed. What is merely slow to compile is left to the compiler's own limits on time and
//! memory.

use crate::limits::CELL_MEMORY_BYTES_MAX;

cell_abi::limits! {
    /// Largest module, in bytes; its data and custom sections are bounded by that too.
    ///
    /// The gate refuses the module.
    pub const MODULE_BYTES_MAX: usize = 32 << 20;

    /// Most types a module may define.
    ///
    /// The gate refuses the module.
    pub const TYPES_MAX: u32 = 10_000;

    /// Most parameters of one function type.
    ///
    /// The gate refuses the module.
    pub const PARAMS_MAX: u32 = 128;

    /// Most results of one function type.
    ///
    /// The gate refuses the module.
    pub const RESULTS_MAX: u32 = 64;

    /// Most parameters of all functions together: each function's entry code handles its own, so
    /// 39 KB of functions with 60 parameters once became 3 MB of native code.
    ///
    /// The gate refuses the module.
    pub const PARAMS_SUM_MAX: u64 = 300_000;

    /// Most imports.
    ///
    /// The gate refuses the module.
    pub const IMPORTS_MAX: u32 = 200;

    /// Most functions a module may define.
    ///
    /// The gate refuses the module.
    pub const FUNCTIONS_MAX: u32 = 50_000;

    /// Most tables.
    ///
    /// The gate refuses the module.
    pub const TABLES_MAX: u32 = 1;

    /// Most memories.
    ///
    /// The gate refuses the module.
    pub const MEMORIES_MAX: u32 = 1;

    /// Pages of 64 KiB a cell's memory may start with. A declared maximum is not limited: growth
    /// is, while the guest runs.
    ///
    /// The gate refuses the module.
    pub const CELL_MEMORY_PAGES_MAX: usize = CELL_MEMORY_BYTES_MAX >> 16;

    /// Pages of 64 KiB a job's memory may start with: all that 32 bits can address.
    ///
    /// The gate refuses the module.
    pub const JOB_MEMORY_PAGES_MAX: u64 = 65_536;

    /// Most globals a module may define.
    ///
    /// The gate refuses the module.
    pub const GLOBALS_MAX: u32 = 1_000;

    /// Most exports.
    ///
    /// The gate refuses the module.
    pub const EXPORTS_MAX: u32 = 10_000;

    /// Bytes of all export names together; each is kept in the artefact.
    ///
    /// The gate refuses the module.
    pub const EXPORT_NAMES_BYTES_MAX: u64 = 1 << 20;

    /// Most element segments.
    ///
    /// The gate refuses the module.
    pub const ELEMENT_SEGMENTS_MAX: u32 = 10_000;

    /// Most elements of all element segments together.
    ///
    /// The gate refuses the module.
    pub const ELEMENTS_MAX: u64 = 200_000;

    /// Most data segments; optimisers split data around zeros into as many as browsers take.
    ///
    /// The gate refuses the module.
    pub const DATA_SEGMENTS_MAX: u32 = 100_000;

    /// Most operators of one constant expression: what a global or an element starts as, or where
    /// a segment goes.
    ///
    /// The gate refuses the module.
    pub const CONSTANT_OPERATORS_MAX: u64 = 100;

    /// Largest body of one function, in bytes. A compiler's time grows faster than a function does.
    ///
    /// The gate refuses the module.
    pub const BODY_BYTES_MAX: usize = 1 << 20;

    /// Most locals of one function, its parameters not counted. Seven bytes can declare 4 billion.
    ///
    /// The gate refuses the module.
    pub const LOCALS_MAX: u64 = 50_000;

    /// Most locals of all functions together.
    ///
    /// The gate refuses the module.
    pub const LOCALS_SUM_MAX: u64 = 2_000_000;

    /// Most blocks, loops and ifs of one function.
    ///
    /// The gate refuses the module.
    pub const BLOCKS_MAX: u64 = 50_000;

    /// Most loops of one function. What a compiler spends on them grows with their square: 58 KB of
    /// empty loops took it 6 s, 15 KB half a second; blocks without loops take a hundredth of that.
    ///
    /// The gate refuses the module.
    pub const LOOPS_MAX: u64 = 5_000;

    /// Deepest nesting of blocks in one function. Go nests one for each place where a function may
    /// be resumed, and C one for each case of a switch.
    ///
    /// The gate refuses the module.
    pub const NESTING_MAX: u64 = 10_000;

    /// Most targets of one `br_table`, its default not counted.
    ///
    /// The gate refuses the module.
    pub const BR_TABLE_TARGETS_MAX: u32 = 8_192;

    /// Most targets of all `br_table`s together.
    ///
    /// The gate refuses the module.
    pub const BR_TABLE_TARGETS_SUM_MAX: u64 = 1_000_000;

    /// Most values that the calls, blocks and branches of one function take and give: two bytes
    /// can call a function that takes a hundred, and a compiler needs 9 µs for each.
    ///
    /// The gate refuses the module.
    pub const VALUES_PASSED_MAX: u64 = 250_000;

    /// Most custom sections.
    ///
    /// The gate refuses the module.
    pub const CUSTOM_SECTIONS_MAX: u32 = 1_000;

    /// Longest name of a custom section, in bytes.
    ///
    /// The gate refuses the module.
    pub const CUSTOM_NAME_BYTES_MAX: usize = 1_024;

    /// Largest `name` section, in bytes; it is kept in the artefact, for what a trap says.
    ///
    /// The gate refuses the module.
    pub const NAME_SECTION_BYTES_MAX: usize = 8 << 20;
}
