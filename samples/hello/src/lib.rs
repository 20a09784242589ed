//! A first cell with two receptors.
//!
//! `cell call hello.greet '{"name":"Ada"}'` answers `{"text":"Hello, Ada!"}`.

use cell_guest::{Context, Reject, receptor, signal_receptor};

/// The code of the reject for an empty name.
pub const EMPTY_NAME: u32 = 1;

signal_receptor! {
    name: greet,
    /// Who is to be greeted.
    input: Greet { name: String },
    /// The greeting.
    output: Greeting { text: String },
}

#[receptor]
fn greet(input: &ArchivedGreet, cx: &mut Context) -> Result<Greeting, Reject> {
    if input.name.is_empty() {
        return Err(Reject::new(EMPTY_NAME, "a greeting needs a name"));
    }
    cell_guest::debug!("{} greets {}", cx.caller().short(), input.name);
    Ok(Greeting { text: format!("Hello, {}!", input.name) })
}

signal_receptor! {
    name: shout,
    input: Shout { text: String, marks: u8 },
    output: String,
}

#[receptor]
fn shout(input: &ArchivedShout) -> Result<String, Reject> {
    let mut text = input.text.to_uppercase();
    text.extend((0..input.marks).map(|_| '!'));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cell_guest::testing::Archive;

    #[test]
    fn greets_and_refuses_nobody() {
        let mut cx = Context::for_test();
        let ada = Archive::of(&Greet { name: "Ada".into() });
        assert_eq!(greet(&ada, &mut cx), Ok(Greeting { text: "Hello, Ada!".into() }));
        let nobody = Archive::of(&Greet { name: String::new() });
        assert_eq!(greet(&nobody, &mut cx).map_err(|reject| reject.code), Err(EMPTY_NAME));
    }

    #[test]
    fn shouts() {
        let quiet = Archive::of(&Shout { text: "help".into(), marks: 3 });
        assert_eq!(shout(&quiet), Ok("HELP!!!".into()));
    }
}
