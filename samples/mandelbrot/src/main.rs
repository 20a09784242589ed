//! Draws the Mandelbrot set as a picture in the PPM format (P6).
//!
//! `mandelbrot [WIDTH HEIGHT [PATH]]`, to standard output without a path.
//! An ordinary WASI program: `cell run mandelbrot.wasm -- 800 600 > picture.ppm`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

const USAGE: &str = "usage: mandelbrot [WIDTH HEIGHT [PATH]]";
const SIDE_MAX: u32 = 16_384;
const TURNS_MAX: u32 = 1000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Not `eprintln!`, which panics when nobody listens.
            let _ = writeln!(io::stderr(), "{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (width, height, path) = match arguments.as_slice() {
        [] => (320, 240, None),
        [width, height] => (side(width)?, side(height)?, None),
        [width, height, path] => (side(width)?, side(height)?, Some(path)),
        _ => return Err(USAGE.into()),
    };
    match path {
        None => draw(width, height, io::stdout().lock())
            .map_err(|error| format!("write the picture: {error}")),
        Some(path) => File::create(path)
            .and_then(|file| draw(width, height, file))
            .map_err(|error| format!("write {path}: {error}")),
    }
}

fn side(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(side @ 1..=SIDE_MAX) => Ok(side),
        _ => Err(format!("`{text}` is not a number from 1 to {SIDE_MAX}\n{USAGE}")),
    }
}

fn draw(width: u32, height: u32, to: impl Write) -> io::Result<()> {
    let mut to = BufWriter::new(to);
    write!(to, "P6\n{width} {height}\n255\n")?;
    for y in 0..height {
        for x in 0..width {
            // The picture spans 3 units in width, around the middle of the set.
            let re = (f64::from(x) + 0.5) / f64::from(width) * 3.0 - 2.25;
            let im = (f64::from(y) + 0.5 - f64::from(height) / 2.0) / f64::from(width) * 3.0;
            to.write_all(&colour(turns(re, im)))?;
        }
    }
    to.flush()
}

/// Turns until the point escapes, or `TURNS_MAX`.
fn turns(re: f64, im: f64) -> u32 {
    let (mut x, mut y) = (0.0, 0.0);
    for turn in 0..TURNS_MAX {
        let (xx, yy) = (x * x, y * y);
        if xx + yy > 4.0 {
            return turn;
        }
        (x, y) = (xx - yy + re, 2.0 * x * y + im);
    }
    TURNS_MAX
}

/// Black inside the set; outside three waves of different length.
fn colour(turns: u32) -> [u8; 3] {
    if turns == TURNS_MAX {
        return [0; 3];
    }
    [7, 11, 17].map(|step| {
        let wave = turns * step % 512;
        u8::try_from(wave.min(511 - wave)).unwrap_or(u8::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_its_header_and_its_pixels() {
        let mut picture = Vec::new();
        draw(4, 3, &mut picture).unwrap();
        assert_eq!(picture.len(), "P6\n4 3\n255\n".len() + 4 * 3 * 3);
        assert!(picture.starts_with(b"P6\n4 3\n255\n"));
    }

    #[test]
    fn the_middle_is_inside_and_the_corner_is_not() {
        assert_eq!(turns(0.0, 0.0), TURNS_MAX);
        assert_eq!(turns(-2.0, 2.0), 1);
    }
}
