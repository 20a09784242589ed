//! Golden expansions: what the compiler sees, as it is read by people.
//!
//! After a change: `INSTA_UPDATE=always cargo test -p cell-guest-macros`, and read the diff.

use proc_macro2::TokenStream;
use quote::quote;
use syn::parse_quote;

use crate::{receptor, signal, signal_receptor};

#[track_caller]
fn check(name: &str, expansion: TokenStream) {
    let file = syn::parse2(expansion).expect("the expansion parses as items");
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    // The features of one build must not change the goldens of another.
    let json = if cfg!(feature = "json") { "" } else { "_without_json" };
    settings
        .bind(|| insta::assert_snapshot!(format!("{name}{json}"), prettyplease::unparse(&file)));
}

#[test]
fn signal_struct_and_enum() {
    let item = quote! {
        /// A point.
        #[derive(Debug, Copy)]
        pub struct Point { x: f32, r#type: Option<u8> }
    };
    check("signal_struct", signal::expand(quote!(), item, &parse_quote!(::cell_guest)));
    let item = quote! {
        enum Shape { Dot, Circle { r: f32 }, Poly(Vec<Point>, u8), Empty {} }
    };
    check("signal_enum", signal::expand(quote!(), item, &parse_quote!(::cell_guest)));
}

#[test]
fn receptor_with_and_without_context() {
    let item = quote! {
        fn worker(job: &ArchivedWork, cx: &mut Context) -> Result<Done, Reject> { todo(job, cx) }
    };
    check("receptor", receptor::expand(quote!(), item, &parse_quote!(::cell_guest)));
    let item = quote! {
        pub fn worker(_: &ArchivedWork) -> Result<Done, MyError> { Ok(Done {}) }
    };
    check(
        "receptor_without_context",
        receptor::expand(quote!(), item, &parse_quote!(::cell_guest)),
    );
}

#[test]
fn definition() {
    let input = quote! {
        name: worker,
        /// Work.
        input: Work { id: u32 },
        output: Vec<u8>
    };
    check("definition", signal_receptor::expand(input, &parse_quote!(::renamed)));
}

/// No path but the facade's and the language's own: a user needs no other dependency.
#[test]
fn expansions_name_the_facade_only() {
    let facade = parse_quote!(::renamed);
    let item = quote!(
        fn worker(job: &ArchivedWork) -> Result<Done, Reject> {
            Ok(Done {})
        }
    );
    let definition = quote!(name: worker, input: Work { id: u32 }, output: Done {});
    for expansion in
        [receptor::expand(quote!(), item, &facade), signal_receptor::expand(definition, &facade)]
    {
        let text = expansion.to_string().replace(' ', "");
        for (at, _) in text.match_indices("::") {
            let before = text[..at].chars().next_back();
            let absolute = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '>');
            let rest = &text[at + 2..];
            let known = ["renamed", "core"].iter().any(|name| rest.starts_with(name));
            assert!(!absolute || known, "{}", &rest[..rest.len().min(40)]);
        }
    }
}

#[test]
fn errors_keep_the_item() {
    let item = quote!(
        async fn worker(job: &ArchivedWork) -> Result<Done, Reject> {
            Ok(Done {})
        }
    );
    let expansion = receptor::expand(quote!(), item, &parse_quote!(::cell_guest)).to_string();
    assert!(expansion.contains("async fn worker"), "{expansion}");
    assert_eq!(expansion.matches("compile_error").count(), 1, "{expansion}");
}
