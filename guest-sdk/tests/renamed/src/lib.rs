//! Every macro, through a facade with another name.
#![deny(missing_docs, unsafe_code, warnings)]

use cg::{Context, Reject, receptor, signal, signal_receptor};

/// A point.
#[signal]
pub struct Point {
    x: f32,
    y: f32,
}

signal_receptor! {
    name: norm,
    input: Norm { of: Point },
    output: Length { length: f32 },
}

#[receptor]
fn norm(input: &ArchivedNorm, cx: &mut Context) -> Result<Length, Reject> {
    cg::info!("depth {}", cx.depth());
    let (x, y) = (input.of.x.to_native(), input.of.y.to_native());
    Ok(Length { length: x.hypot(y) })
}

/// Asks another cell.
pub fn ask(x: f32, y: f32) -> Result<f32, cg::CallError> {
    cg::call_as!("geometry", norm, Norm { of: Point { x, y } }).map(|length| length.length)
}

#[test]
fn works() {
    let _cx = Context::for_test()
        .with_cell::<norm::Receptor>("geometry", |input| norm(input, &mut Context::for_test()));
    assert_eq!(ask(3.0, 4.0), Ok(5.0));
}
