//! The path under which the user's package knows `cell-guest`.

use proc_macro_crate::FoundCrate;
use proc_macro2::Span;
use syn::{Ident, Path, parse_quote};

/// `::cell_guest`, or the name the user's `Cargo.toml` gives it.
///
/// The facade names itself `cell_guest` too, so that its own tests can use the macros.
pub(crate) fn path() -> Path {
    match proc_macro_crate::crate_name("cell-guest") {
        Ok(FoundCrate::Name(name)) => {
            let name = Ident::new(&name, Span::call_site());
            parse_quote!(::#name)
        }
        // Without the dependency the compiler says best what is missing.
        Ok(FoundCrate::Itself) | Err(_) => parse_quote!(::cell_guest),
    }
}
