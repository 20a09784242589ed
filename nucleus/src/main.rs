//! `cell`: the nucleus, its worker and its command line, in one binary. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cell_nucleus::main()
}
