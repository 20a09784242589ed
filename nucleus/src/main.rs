//! `cell`: the nucleus, its worker and its command line, in one binary. All of it is in the library.

use std::process::ExitCode;

use cell_nucleus::allocations::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    cell_nucleus::main()
}
