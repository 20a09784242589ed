//! From an input's bytes to a program for the interpreter.
//!
//! Arguments are chosen by a first byte, so that addresses inside the memory, at its end and past
//! it all come up without luck.

use super::imports::IMPORTS;
use super::interpreter::{MAILBOX, MEMORY_BYTES, NAMES, OPERATIONS};
use crate::bytes::Bytes;

/// Reads a program of this many operations, followed by some bytes as they are.
pub(super) fn read(bytes: &mut Bytes<'_>, operations: usize) -> Vec<u8> {
    let mut program = Vec::new();
    for _ in 0..operations {
        if bytes.is_empty() {
            break;
        }
        let number = bytes.u8() % u8::try_from(OPERATIONS.len() + IMPORTS.len()).unwrap_or(u8::MAX);
        program.push(number);
        let at = usize::from(number);
        let parameters = match OPERATIONS.get(at) {
            Some((_, parameters, _)) => parameters,
            None => IMPORTS.get(at - OPERATIONS.len()).map_or("", |import| import.parameters),
        };
        for parameter in parameters.chars() {
            let low = argument(bytes);
            program.extend_from_slice(&low.to_le_bytes());
            if parameter == 'l' {
                // Mostly what a small number or -1 looks like; now and then another half.
                let high = if bytes.u8() < 128 { low >> 31 } else { argument(bytes) };
                program.extend_from_slice(&high.to_le_bytes());
            }
        }
    }
    let blob = usize::from(bytes.u8() & 63);
    if blob > 0 {
        // Behind a return, for whoever points at it.
        program.push(2);
        program.extend_from_slice(&[0; 8]);
        program.extend_from_slice(bytes.take(blob));
    }
    program
}

/// An address, a length, or any other number.
pub(super) fn argument(bytes: &mut Bytes<'_>) -> u32 {
    let chosen = bytes.u8();
    match chosen & 7 {
        0 => u32::from(bytes.u8()),
        1 => u32::MAX - u32::from(bytes.u8()),
        2 => MEMORY_BYTES.wrapping_add(u32::from(bytes.u8())).wrapping_sub(128),
        3 => bytes.u32(),
        4 => NAMES.get(usize::from(chosen >> 3) % 4).map_or(0, |(address, _)| *address),
        5 => NAMES.get(usize::from(chosen >> 3) % 4).map_or(0, |(_, length)| *length),
        6 => MAILBOX + u32::from(chosen >> 3) + u32::from(bytes.u8()),
        _ => 1_u32.wrapping_shl(u32::from(chosen >> 3)).wrapping_sub(u32::from(bytes.u8() & 1)),
    }
}
