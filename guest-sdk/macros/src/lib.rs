//! The procedural macros of `cell-guest`: parsing, checking and expansion.
//!
//! Use and documentation are at the facade's re-exports. The three entry points below do no work;
//! each hands over to a function on `proc_macro2` tokens that runs without a compiler.

use proc_macro::TokenStream;

mod errors;
mod facade;
mod receptor;
mod signal;
mod signal_receptor;
#[cfg(test)]
mod tests;

/// Makes a struct or an enum a type that can travel between cells.
#[proc_macro_attribute]
pub fn signal(arguments: TokenStream, item: TokenStream) -> TokenStream {
    signal::expand(arguments.into(), item.into(), &facade::path()).into()
}

/// Makes a function the handler of the receptor with its name.
#[proc_macro_attribute]
pub fn receptor(arguments: TokenStream, item: TokenStream) -> TokenStream {
    receptor::expand(arguments.into(), item.into(), &facade::path()).into()
}

/// Defines a receptor: its name, its types and its clients.
#[proc_macro]
pub fn signal_receptor(definition: TokenStream) -> TokenStream {
    signal_receptor::expand(definition.into(), &facade::path()).into()
}
