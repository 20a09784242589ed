//! A number kept in the cell's state: it outlives the instance, and a reject undoes it.

use cell_guest::{Context, Reject, receptor, signal_receptor};

/// The code of the reject for a sum that passes 64 bits.
pub const OVERFLOW: u32 = 1;

const KEY: &[u8] = b"value";

signal_receptor! {
    name: add,
    input: Add { by: i64 },
    /// The value after the addition.
    output: Count { value: i64 },
}

#[receptor]
fn add(input: &ArchivedAdd, cx: &mut Context) -> Result<Count, Reject> {
    let mut state = cx.state();
    let before = state.get_as::<i64>(KEY)?.unwrap_or(0);
    let value = before
        .checked_add(input.by.to_native())
        .ok_or_else(|| Reject::new(OVERFLOW, format!("{before} and {} pass 64 bits", input.by)))?;
    state.set_as(KEY, &value)?;
    Ok(Count { value })
}

signal_receptor! {
    name: get,
    input: (),
    output: Count,
}

#[receptor]
fn get(_: &(), cx: &mut Context) -> Result<Count, Reject> {
    Ok(Count { value: cx.state().get_as(KEY)?.unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cell_guest::testing::Archive;

    #[test]
    fn counts() {
        let mut cx = Context::for_test();
        assert_eq!(get(&(), &mut cx), Ok(Count { value: 0 }));
        assert_eq!(add(&Archive::of(&Add { by: 5 }), &mut cx), Ok(Count { value: 5 }));
        assert_eq!(add(&Archive::of(&Add { by: -7 }), &mut cx), Ok(Count { value: -2 }));
        assert_eq!(get(&(), &mut cx), Ok(Count { value: -2 }));
        let far = add(&Archive::of(&Add { by: i64::MIN }), &mut cx);
        assert_eq!(far.map_err(|reject| reject.code), Err(OVERFLOW));
        assert_eq!(get(&(), &mut cx), Ok(Count { value: -2 }));
    }
}
