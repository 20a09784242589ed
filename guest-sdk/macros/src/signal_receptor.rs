//! `signal_receptor!`: a receptor's name, its two types and its clients.

use proc_macro2::{TokenStream, TokenTree};
use quote::quote;
use syn::ext::IdentExt as _;
use syn::parse::{ParseStream, Parser as _};
use syn::punctuated::Punctuated;
use syn::{Attribute, Field, Ident, Path, Token, Type, braced, parse_quote, token};

use crate::errors::Errors;
use crate::signal;

const FORM: &str = "\
    signal_receptor! {\n    \
        name: worker,\n    \
        input: WorkLoad { id: u32, payload: Vec<u8> },\n    \
        output: WorkResult { id: u32, checksum: u64 },\n\
    }";

const NAME_BYTES_MAX: usize = 64;

/// Expands `signal_receptor! { name: .., input: .., output: .. }`.
pub(crate) fn expand(definition: TokenStream, facade: &Path) -> TokenStream {
    let mut errors = Errors::default();
    let entries = match (|input: ParseStream<'_>| Ok(Entries::parse(input, &mut errors)))
        .parse2(definition)
    {
        Ok(entries) => entries,
        Err(error) => {
            errors.push(error);
            Entries::default()
        }
    };
    let missing = entries.missing();
    if !missing.is_empty() && errors.is_empty() {
        let missing = missing.join("`, `");
        errors.push(syn::Error::new(
            proc_macro2::Span::call_site(),
            format!("`{missing}` is missing; the form is\n{FORM}"),
        ));
    }
    let Entries { name, input, output } = entries;
    let mut items = TokenStream::new();
    let input = input
        .map(|payload| payload.define("Input", name.as_ref(), facade, &mut items, &mut errors));
    let output = output
        .map(|payload| payload.define("Output", name.as_ref(), facade, &mut items, &mut errors));
    if let Some(name) = name {
        check_name(&name, &mut errors);
        // Also next to errors: what uses the module then gets no errors of its own.
        let unit: Type = parse_quote!(());
        let (input, output) = (input.unwrap_or_else(|| unit.clone()), output.unwrap_or(unit));
        items.extend(module(&name, facade));
        items.extend(implementation(&name, &input, &output, facade));
    }
    let errors = errors.into_tokens();
    quote!(#items #errors)
}

/// What stood behind each key.
#[derive(Default)]
struct Entries {
    name: Option<Ident>,
    input: Option<Payload>,
    output: Option<Payload>,
}

impl Entries {
    /// Reads all entries; one that cannot be read is reported and skipped.
    fn parse(input: ParseStream<'_>, errors: &mut Errors) -> Self {
        let mut entries = Self::default();
        while !input.is_empty() {
            if let Err(error) = entries.parse_one(input, errors) {
                errors.push(error);
                skip_entry(input);
            }
        }
        entries
    }

    fn parse_one(&mut self, input: ParseStream<'_>, errors: &mut Errors) -> syn::Result<()> {
        let attributes = Attribute::parse_outer(input)?;
        let key = Ident::parse_any(input)?;
        input.parse::<Token![:]>()?;
        let mut twice = || errors.at(&key, format!("`{key}` is given twice"));
        match key.to_string().as_str() {
            "name" => {
                let name = input.parse::<Ident>().map_err(|error| {
                    syn::Error::new(
                        error.span(),
                        "a receptor's name is an identifier, such as `worker`",
                    )
                })?;
                if self.name.replace(name).is_some() {
                    twice();
                }
            }
            "input" => {
                if self.input.replace(Payload::parse(attributes, input)?).is_some() {
                    twice();
                }
            }
            "output" => {
                if self.output.replace(Payload::parse(attributes, input)?).is_some() {
                    twice();
                }
            }
            _ => {
                let message = format!("`{key}` is not a key of a receptor; the form is\n{FORM}");
                return Err(syn::Error::new(key.span(), message));
            }
        }
        if !input.is_empty() {
            input.parse::<Token![,]>()?;
        }
        Ok(())
    }

    fn missing(&self) -> Vec<&'static str> {
        let given = [
            ("name", self.name.is_some()),
            ("input", self.input.is_some()),
            ("output", self.output.is_some()),
        ];
        given.into_iter().filter(|(_, given)| !given).map(|(key, _)| key).collect()
    }
}

/// A type that is defined here, or one that exists.
enum Payload {
    Defined { attributes: Vec<Attribute>, ident: Ident, fields: Punctuated<Field, Token![,]> },
    Existing(Type),
}

impl Payload {
    fn parse(mut attributes: Vec<Attribute>, input: ParseStream<'_>) -> syn::Result<Self> {
        attributes.extend(Attribute::parse_outer(input)?);
        if !(input.peek(Ident)
            && (input.peek2(token::Brace) || input.peek2(Token![<]) && generic_block(input)))
        {
            let ty = input.parse::<Type>()?;
            if input.peek(token::Paren) {
                return Err(input.error("name the fields: `Name { field: Type }`"));
            }
            if let Some(attribute) = attributes.first() {
                let message = "attributes belong to the type's own definition";
                return Err(syn::Error::new_spanned(attribute, message));
            }
            return Ok(Self::Existing(ty));
        }
        let ident = input.parse()?;
        if input.peek(Token![<]) {
            let message = "a signal has no generic parameters: its schema must be one fixed text";
            return Err(input.error(message));
        }
        let content;
        braced!(content in input);
        let fields = content.parse_terminated(Field::parse_named, Token![,])?;
        Ok(Self::Defined { attributes, ident, fields })
    }

    /// Adds the definition, if it stands here, to `items`; gives the type.
    fn define(
        self,
        role: &str,
        receptor: Option<&Ident>,
        facade: &Path,
        items: &mut TokenStream,
        errors: &mut Errors,
    ) -> Type {
        let (mut attributes, ident, fields) = match self {
            Self::Existing(ty) => return ty,
            Self::Defined { attributes, ident, fields } => (attributes, ident, fields),
        };
        signal::check_attributes(&attributes, errors);
        if !attributes.iter().any(|attribute| attribute.path().is_ident("doc")) {
            let receptor = receptor.map(|name| format!(" `{name}`")).unwrap_or_default();
            let text = format!("{role} of the receptor{receptor}.");
            attributes.push(parse_quote!(#[doc = #text]));
        }
        // A faulty field is left out, so that the rest gets no errors of its own.
        let fields: Vec<Field> = fields
            .into_iter()
            .filter_map(|field| {
                let mut found = Errors::default();
                signal::check_field(&field, &ident, &mut found);
                let sound = found.is_empty();
                errors.append(found);
                sound.then(|| documented(field))
            })
            .collect();
        let definition = parse_quote! {
            #(#attributes)*
            pub struct #ident { #(#fields),* }
        };
        items.extend(signal::define(definition, facade));
        parse_quote!(#ident)
    }
}

/// The field, public and with a sentence if its author wrote none.
fn documented(mut field: Field) -> Field {
    field.vis = parse_quote!(pub);
    let has_text = field.attrs.iter().any(|attribute| attribute.path().is_ident("doc"));
    if let Some(name) = field.ident.as_ref().filter(|_| !has_text) {
        let text = format!("The field `{}`.", name.unraw());
        field.attrs.push(parse_quote!(#[doc = #text]));
    }
    field
}

/// Whether `Name<..>` is followed by a block, so that the generics are a mistake.
fn generic_block(input: ParseStream<'_>) -> bool {
    let ahead = input.fork();
    ahead.parse::<Path>().is_ok() && ahead.peek(token::Brace)
}

/// Goes on behind the next comma.
fn skip_entry(input: ParseStream<'_>) {
    while let Ok(token) = input.parse::<TokenTree>() {
        if matches!(&token, TokenTree::Punct(punct) if punct.as_char() == ',') {
            return;
        }
    }
}

fn check_name(name: &Ident, errors: &mut Errors) {
    let text = name.unraw().to_string();
    let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
    let goes_on = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !(starts && goes_on && text.len() <= NAME_BYTES_MAX) {
        errors.at(
            name,
            "a receptor's name starts with a letter a-z, goes on with a-z, 0-9 and `_`, \
             and has at most 64 characters",
        );
    }
}

fn module(name: &Ident, facade: &Path) -> TokenStream {
    let about = format!(
        "The receptor `{name}`: what its handler, its callers and its clients are built from."
    );
    let receptor = format!("The receptor `{name}` as a type.");
    let remote = format!("Calls the receptor `{name}` of another cell.");
    let client = format!("Calls the receptor `{name}` from a native program.");
    quote! {
        #[doc = #about]
        #[allow(dead_code, unreachable_pub, reason = "a crate uses the parts it needs")]
        pub mod #name {
            #[doc = #receptor]
            #[derive(Debug, Clone, Copy)]
            pub struct Receptor;

            #[doc = #remote]
            pub type Remote<'a> = #facade::Remote<'a, Receptor>;

            #[doc = #client]
            #[cfg(not(target_arch = "wasm32"))]
            pub type Client = #facade::client::TypedClient<Receptor>;
        }
    }
}

fn implementation(name: &Ident, input: &Type, output: &Type, facade: &Path) -> TokenStream {
    let text = name.unraw().to_string();
    quote! {
        impl #facade::Receptor for #name::Receptor {
            const NAME: &'static str = #text;
            const SCHEMA: &'static str = {
                const TEXT: #facade::Text =
                    #facade::__private::receptor_text::<#input, #output>(#text);
                const BYTES: [u8; TEXT.len()] = TEXT.to_array();
                #facade::__private::utf8(&BYTES)
            };
            type Input = #input;
            type Output = #output;
        }
    }
}
