//! The cell `{{name}}`.
//!
//! `cell dev` builds and runs it; `cell call {{name}}.greet '{"name":"Ada"}'` calls it.

use cell_guest::{Context, Reject, receptor, signal_receptor};

signal_receptor! {
    name: greet,
    input: Greet { name: String },
    output: Greeting { text: String },
}

#[receptor]
fn greet(input: &ArchivedGreet, cx: &mut Context) -> Result<Greeting, Reject> {
    if input.name.is_empty() {
        return Err(Reject::new(1, "a greeting needs a name"));
    }
    cell_guest::info!("{} greets {}", cx.caller().short(), input.name);
    Ok(Greeting { text: format!("Hello, {}!", input.name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cell_guest::testing::Archive;

    #[test]
    fn greets() {
        let mut cx = Context::for_test();
        let ada = Archive::of(&Greet { name: "Ada".into() });
        assert_eq!(greet(&ada, &mut cx), Ok(Greeting { text: "Hello, Ada!".into() }));
    }
}
