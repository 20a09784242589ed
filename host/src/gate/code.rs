//! The gate's walk through code: function bodies and constant expressions.
//!
//! It looks at each operator once and keeps one number for each open block.

use wasmparser::{BlockType, ConstExpr, FunctionBody, Operator, OperatorsReader};

use super::at_most;
use super::error::{GateError, malformed};
use super::features;
use super::limits::*;
use super::module::Types;

/// What all bodies have together.
#[derive(Debug, Default)]
pub(super) struct Sums {
    locals: u64,
    br_table_targets: u64,
}

/// Checks one function's body.
pub(super) fn check(
    body: &FunctionBody<'_>,
    results: u64,
    types: &Types<'_>,
    sums: &mut Sums,
) -> Result<(), GateError> {
    let start = body.range().start;
    at_most!(BODY_BYTES_MAX, "bytes in one function", body.range().len(), start);
    locals(body, sums)?;
    let mut reader = body.get_operators_reader().map_err(malformed)?;
    // The function itself is the outermost block.
    let mut walk = Walk { types, open: vec![results], blocks: 0, loops: 0, passed: 0 };
    while !reader.eof() {
        let offset = reader.original_position();
        let operator = reader.read().map_err(malformed)?;
        walk.step(&operator, offset, sums)?;
    }
    reader.finish().map_err(malformed)
}

/// Declared locals are counts and types: they are added up before anything makes room for them.
fn locals(body: &FunctionBody<'_>, sums: &mut Sums) -> Result<(), GateError> {
    let mut reader = body.get_locals_reader().map_err(malformed)?;
    let mut declared = 0_u64;
    for _ in 0..reader.get_count() {
        let offset = reader.original_position();
        let (count, ty) = reader.read().map_err(malformed)?;
        features::value(ty, offset)?;
        declared += u64::from(count);
        at_most!(LOCALS_MAX, "locals in one function", declared, offset);
    }
    sums.locals += declared;
    at_most!(LOCALS_SUM_MAX, "locals in all functions", sums.locals, body.range().start);
    Ok(())
}

struct Walk<'a> {
    types: &'a Types<'a>,
    /// For each open block, how many values a branch to it passes.
    open: Vec<u64>,
    blocks: u64,
    loops: u64,
    passed: u64,
}

impl Walk<'_> {
    fn step(
        &mut self,
        operator: &Operator<'_>,
        offset: usize,
        sums: &mut Sums,
    ) -> Result<(), GateError> {
        if let Some(feature) = features::of(operator) {
            return Err(features::off(feature, offset));
        }
        match operator {
            Operator::Block { blockty } | Operator::If { blockty } => {
                let (params, results) = self.arity(*blockty);
                self.enter(params, results, results, offset)?;
            }
            Operator::Loop { blockty } => {
                let (params, results) = self.arity(*blockty);
                self.loops += 1;
                at_most!(LOOPS_MAX, "loops in one function", self.loops, offset);
                self.enter(params, results, params, offset)?;
            }
            Operator::End => drop(self.open.pop()),
            Operator::Call { function_index } => {
                let (params, results) = self.types.of_function(*function_index);
                self.passed += params + results;
            }
            Operator::CallIndirect { type_index, .. } => {
                let (params, results) = self.types.arity(*type_index);
                self.passed += params + results;
            }
            Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => {
                self.passed += self.branch(*relative_depth);
            }
            Operator::BrTable { targets } => {
                let count = targets.len();
                at_most!(BR_TABLE_TARGETS_MAX, "targets in one br_table", count, offset);
                sums.br_table_targets += u64::from(count);
                let sum = sums.br_table_targets;
                at_most!(BR_TABLE_TARGETS_SUM_MAX, "targets in all br_tables", sum, offset);
                for target in targets.targets() {
                    self.passed += self.branch(target.map_err(malformed)?);
                }
            }
            Operator::TypedSelectMulti { tys } => {
                tys.iter().try_for_each(|ty| features::value(*ty, offset))?;
            }
            Operator::TypedSelect { ty } => features::value(*ty, offset)?,
            _ => {}
        }
        at_most!(VALUES_PASSED_MAX, "values passed in one function", self.passed, offset);
        Ok(())
    }

    fn enter(
        &mut self,
        params: u64,
        results: u64,
        branch: u64,
        offset: usize,
    ) -> Result<(), GateError> {
        self.open.push(branch);
        self.blocks += 1;
        self.passed += params + results;
        at_most!(BLOCKS_MAX, "blocks in one function", self.blocks, offset);
        // The function itself is not counted.
        let depth = (self.open.len() as u64).saturating_sub(1);
        at_most!(NESTING_MAX, "blocks inside one another", depth, offset);
        Ok(())
    }

    fn arity(&self, block: BlockType) -> (u64, u64) {
        match block {
            BlockType::Empty => (0, 0),
            BlockType::Type(_) => (0, 1),
            BlockType::FuncType(index) => self.types.arity(index),
        }
    }

    fn branch(&self, depth: u32) -> u64 {
        let from_end = usize::try_from(depth).unwrap_or(usize::MAX);
        self.open.iter().rev().nth(from_end).copied().unwrap_or(0)
    }
}

/// Checks what a global or an element starts as, or where a segment goes.
pub(super) fn constant(expression: &ConstExpr<'_>) -> Result<(), GateError> {
    let mut reader: OperatorsReader<'_> = expression.get_operators_reader();
    let mut count = 0_u64;
    while !reader.eof() {
        let offset = reader.original_position();
        let operator = reader.read().map_err(malformed)?;
        if let Some(feature) = features::of(&operator) {
            return Err(features::off(feature, offset));
        }
        count += 1;
        at_most!(CONSTANT_OPERATORS_MAX, "operators in one constant", count, offset);
    }
    Ok(())
}
