//! `#[signal]`: the derives of a user type and its line in the schema.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt as _;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Data, DeriveInput, Field, Fields, Ident, Path, Type, TypeArray, TypePath,
    TypeReference, parse_quote,
};

use crate::errors::{Errors, first_tokens};

/// Derives that the macro adds itself, so a user's own are taken out.
const DERIVED: [&str; 3] = ["Debug", "Clone", "PartialEq"];

const MAPS_AND_SETS: [&str; 4] = ["HashMap", "HashSet", "BTreeMap", "BTreeSet"];

/// Expands `#[signal]` on a struct or an enum.
pub(crate) fn expand(arguments: TokenStream, item: TokenStream, facade: &Path) -> TokenStream {
    let mut errors = Errors::default();
    if !arguments.is_empty() {
        errors.at(&arguments, "`#[signal]` takes no arguments");
    }
    let Ok(definition) = syn::parse2::<DeriveInput>(item.clone()) else {
        errors.at(first_tokens(&item), "`#[signal]` goes on a struct or an enum");
        let errors = errors.into_tokens();
        return quote!(#item #errors);
    };
    check(&definition, &mut errors);
    if errors.is_empty() {
        define(definition, facade)
    } else {
        let errors = errors.into_tokens();
        quote!(#item #errors)
    }
}

/// Reports all that keeps a definition from being a message.
fn check(definition: &DeriveInput, errors: &mut Errors) {
    if !definition.generics.params.is_empty() {
        errors.at(
            &definition.generics,
            "a signal has no generic parameters: its schema must be one fixed text",
        );
    }
    if let Some(clause) = &definition.generics.where_clause {
        errors.at(clause, "a signal has no `where` clause: its schema must be one fixed text");
    }
    check_attributes(&definition.attrs, errors);
    match &definition.data {
        Data::Struct(data) => check_fields(&data.fields, &definition.ident, errors),
        Data::Enum(data) => {
            if data.variants.is_empty() {
                errors.at(&definition.ident, "an enum without variants has no values to send");
            }
            for variant in &data.variants {
                check_attributes(&variant.attrs, errors);
                if let Some((_, value)) = &variant.discriminant {
                    errors.at(
                        value,
                        "a signal's variants are numbered by their order: leave the value out",
                    );
                }
                check_fields(&variant.fields, &definition.ident, errors);
            }
        }
        Data::Union(data) => errors
            .at(data.union_token, "a union cannot be validated, so it cannot be sent: use an enum"),
    }
}

/// The checked definition with its derives, and its [`Signal`] implementation.
pub(crate) fn define(mut definition: DeriveInput, facade: &Path) -> TokenStream {
    strip_own_derives(&mut definition.attrs);
    let private = quote!(#facade::__private);
    let json = cfg!(feature = "json").then(|| {
        let serde = quote!(#private::serde).to_string().replace(' ', "");
        quote! {
            #[derive(#private::serde::Serialize, #private::serde::Deserialize)]
            #[serde(crate = #serde, deny_unknown_fields)]
        }
    });
    let ident = &definition.ident;
    let name = ident.unraw().to_string();
    let definitions = definitions(&definition, facade);
    quote! {
        #[derive(
            ::core::fmt::Debug,
            ::core::clone::Clone,
            ::core::cmp::PartialEq,
            #private::rkyv::Archive,
            #private::rkyv::Serialize,
            #private::rkyv::Deserialize,
        )]
        #[rkyv(
            crate = #private::rkyv,
            derive(Debug),
            attr(allow(missing_docs, reason = "documented where the signal is")),
        )]
        #json
        #definition

        #[automatically_derived]
        impl #facade::Signal for #ident {
            const NAME: #facade::Text = #facade::Text::new(#name);
            const DEFINITIONS: #facade::Text = #definitions;
        }
    }
}

/// Reports attributes that would change what the schema says.
pub(crate) fn check_attributes(attributes: &[Attribute], errors: &mut Errors) {
    for attribute in attributes {
        let path = attribute.path();
        if path.is_ident("rkyv") || path.is_ident("repr") {
            errors.at(path, "a signal's layout follows from its schema alone: leave this out");
        } else if path.is_ident("cfg") || path.is_ident("cfg_attr") {
            errors
                .at(path, "a signal is the same in every build: put the `cfg` on two whole types");
        }
    }
}

fn check_fields(fields: &Fields, owner: &Ident, errors: &mut Errors) {
    for field in fields {
        check_field(field, owner, errors);
    }
}

/// Reports all that keeps a field from being part of a message.
pub(crate) fn check_field(field: &Field, owner: &Ident, errors: &mut Errors) {
    check_attributes(&field.attrs, errors);
    if let Some((_, value)) = &field.default {
        errors.at(value, "a signal's fields have no default values");
    }
    FieldCheck { owner, errors }.visit_type(&field.ty);
}

/// Finds the parts of a field's type that no message can hold.
struct FieldCheck<'a> {
    owner: &'a Ident,
    errors: &'a mut Errors,
}

impl<'ast> Visit<'ast> for FieldCheck<'_> {
    fn visit_type(&mut self, node: &'ast Type) {
        let refusal = match node {
            Type::Slice(_) => Some("a slice has no owner: use `Vec<T>` or `[T; N]`"),
            Type::Ptr(_) | Type::FnPtr(_) => Some("an address means nothing in another cell"),
            Type::TraitObject(_) | Type::ImplTrait(_) => {
                Some("a field has one known type: use an enum for a choice")
            }
            Type::Infer(_) | Type::Never(_) | Type::Macro(_) => {
                Some("write the field's type in full")
            }
            _ => None,
        };
        match refusal {
            Some(message) => self.errors.at(node, message),
            None => visit::visit_type(self, node),
        }
    }

    // The length is an expression; only the element is part of the message.
    fn visit_type_array(&mut self, node: &'ast TypeArray) {
        self.visit_type(&node.elem);
    }

    fn visit_type_reference(&mut self, node: &'ast TypeReference) {
        self.errors.at(
            node,
            "a field cannot borrow: use an owned type such as `String` or `Vec<u8>`; \
             the receiver still reads it in place",
        );
    }

    fn visit_type_path(&mut self, node: &'ast TypePath) {
        if let Some(ident) = node.path.get_ident() {
            if ident == "usize" || ident == "isize" {
                self.errors.at(
                    ident,
                    format!("`{ident}` differs between machines: use `u32`, `u64`, `i32` or `i64`"),
                );
            } else if ident == self.owner {
                self.errors.at(
                    ident,
                    "a signal cannot hold itself: use a `Vec` of nodes that refer to each other \
                     by position",
                );
            }
        }
        if let Some(last) = node.path.segments.last()
            && MAPS_AND_SETS.iter().any(|name| last.ident == name)
        {
            self.errors.at(&last.ident, "a signal holds no maps and no sets: use a `Vec` of pairs");
        }
        visit::visit_type_path(self, node);
    }
}

fn strip_own_derives(attributes: &mut [Attribute]) {
    for attribute in attributes.iter_mut().filter(|attribute| attribute.path().is_ident("derive")) {
        let mut kept: Vec<Path> = Vec::new();
        let parsed = attribute.parse_nested_meta(|meta| {
            let own = meta
                .path
                .segments
                .last()
                .is_some_and(|last| DERIVED.iter().any(|name| last.ident == name));
            if !own {
                kept.push(meta.path);
            }
            Ok(())
        });
        if parsed.is_ok() {
            *attribute = parse_quote!(#[derive(#(#kept),*)]);
        }
    }
}

/// The text of the type's own line, then the lines of every type it holds.
fn definitions(definition: &DeriveInput, facade: &Path) -> TokenStream {
    let mut line =
        Line { facade, literal: String::new(), pushes: TokenStream::new(), types: Vec::new() };
    let name = definition.ident.unraw();
    match &definition.data {
        Data::Struct(data) => {
            line.text(&format!("struct {name}"));
            line.fields(&data.fields);
        }
        Data::Enum(data) => {
            line.text(&format!("enum {name} {{"));
            for (position, variant) in data.variants.iter().enumerate() {
                line.text(if position == 0 { " " } else { ", " });
                line.text(&variant.ident.unraw().to_string());
                line.fields(&variant.fields);
            }
            line.text(" }");
        }
        Data::Union(_) => {}
    }
    line.text("\n");
    line.finish()
}

/// A schema line under construction: literal text, and types whose names come in between.
struct Line<'a> {
    facade: &'a Path,
    literal: String,
    pushes: TokenStream,
    types: Vec<Type>,
}

impl Line<'_> {
    fn text(&mut self, text: &str) {
        self.literal.push_str(text);
    }

    fn fields(&mut self, fields: &Fields) {
        match fields {
            Fields::Unit => {}
            Fields::Named(fields) if fields.named.is_empty() => self.text(" {}"),
            Fields::Named(fields) => {
                self.text(" { ");
                self.list(fields.named.iter());
                self.text(" }");
            }
            Fields::Unnamed(fields) => {
                self.text("(");
                self.list(fields.unnamed.iter());
                self.text(")");
            }
        }
    }

    fn list<'f>(&mut self, fields: impl Iterator<Item = &'f Field>) {
        for (position, field) in fields.enumerate() {
            if position > 0 {
                self.text(", ");
            }
            if let Some(ident) = &field.ident {
                self.text(&format!("{}: ", ident.unraw()));
            }
            self.flush();
            let (facade, ty) = (self.facade, &field.ty);
            self.pushes.extend(quote!(.push_text(&<#ty as #facade::Signal>::NAME)));
            self.types.push(ty.clone());
        }
    }

    fn flush(&mut self) {
        let literal = std::mem::take(&mut self.literal);
        if !literal.is_empty() {
            self.pushes.extend(quote!(.push(#literal)));
        }
    }

    fn finish(mut self) -> TokenStream {
        self.flush();
        let Self { facade, pushes, types, .. } = self;
        quote! {
            #facade::Text::new("") #pushes
            #(.push_definitions(&<#types as #facade::Signal>::DEFINITIONS))*
        }
    }
}
