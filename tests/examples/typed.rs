//! Calls `hello.greet` with typed, zero-copy values: `typed SOCKET NAME`.
//!
//! The types and the client come from the cell's own crate, so both sides share one definition.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it does")]

use std::process::ExitCode;

use hello::{Greet, greet};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, name] = arguments.as_slice() else {
        eprintln!("usage: typed SOCKET NAME, such as typed ~/.cell/cells/hello/cell.sock Ada");
        return ExitCode::from(2);
    };
    let greeted = greet::Client::connect(socket, "hello").and_then(|mut client| {
        let reply = client.call(&Greet { name: name.clone() })?;
        // The reply is read in place: nothing was deserialised.
        println!("{} ({} fuel)", reply.archived().text, reply.fuel());
        Ok(())
    });
    match greeted {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
