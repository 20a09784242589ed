//! `#[receptor]`: checks a handler's signature and registers it with its cell.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{FnArg, ItemFn, Path, ReturnType, Safety, Signature, Type};

use crate::errors::{Errors, first_tokens};

/// Expands `#[receptor]` on a handler.
pub(crate) fn expand(arguments: TokenStream, item: TokenStream, facade: &Path) -> TokenStream {
    let mut errors = Errors::default();
    if !arguments.is_empty() {
        errors.at(
            &arguments,
            "`#[receptor]` takes no arguments: the function's name is the receptor's name",
        );
    }
    let Ok(function) = syn::parse2::<ItemFn>(item.clone()) else {
        errors.at(first_tokens(&item), "`#[receptor]` goes on a function");
        let errors = errors.into_tokens();
        return quote!(#item #errors);
    };
    let handler = check(&function.sig, &mut errors);
    let registration = match handler {
        Some(handler) if errors.is_empty() => register(&function.sig, &handler, facade),
        _ => errors.into_tokens(),
    };
    quote! {
        #[allow(
            clippy::needless_pass_by_ref_mut,
            clippy::unnecessary_wraps,
            reason = "a handler's form is given"
        )]
        #item
        #registration
    }
}

/// The parts of a handler's signature that its registration repeats.
struct Handler<'a> {
    input: &'a Type,
    context: Option<&'a Type>,
    output: &'a Type,
}

/// Checks every part of the signature on its own; `None` if one that is needed is not there.
fn check<'a>(signature: &'a Signature, errors: &mut Errors) -> Option<Handler<'a>> {
    let form = form(signature);
    let mut refuse = |tokens: &dyn ToTokens, what: &str| {
        errors.at(tokens.to_token_stream(), format!("{what}; the form is\n{form}"));
    };
    if let Some(token) = &signature.asyncness {
        refuse(token, "a handler is not `async`: calls to other cells block");
    }
    if let Some(token) = &signature.constness {
        refuse(token, "a handler is not `const`");
    }
    if let Safety::Unsafe(token) = &signature.safety {
        refuse(token, "a handler is not `unsafe`");
    }
    if let Some(abi) = &signature.abi {
        refuse(abi, "a handler is a plain Rust function");
    }
    if !signature.generics.params.is_empty() {
        refuse(&signature.generics, "a handler has no generic parameters");
    }
    if let Some(clause) = &signature.generics.where_clause {
        refuse(clause, "a handler has no `where` clause");
    }
    let output = match &signature.output {
        ReturnType::Type(_, ty) if is_result(ty) => Some(&**ty),
        ReturnType::Type(_, ty) => {
            refuse(ty, "a handler returns a `Result`");
            None
        }
        ReturnType::Default => {
            refuse(&signature.ident, "a handler returns a `Result`");
            None
        }
    };
    let mut arguments = signature.inputs.iter().peekable();
    let receiver = arguments.next_if(|argument| matches!(argument, FnArg::Receiver(_)));
    if let Some(receiver) = receiver {
        refuse(receiver, "a handler is a free function and has no `self`");
    }
    let input = match arguments.next() {
        Some(argument) => reference(argument, false).or_else(|| {
            refuse(argument, "the first argument is `&` to the archived input");
            None
        }),
        None => {
            refuse(&signature.ident, "a handler takes its input");
            None
        }
    };
    let context = arguments.next().map(|argument| {
        let context = reference(argument, true);
        if context.is_none() {
            refuse(argument, "the second argument is `&mut Context`");
        }
        context
    });
    for argument in arguments {
        refuse(argument, "a handler has at most two arguments");
    }
    Some(Handler { input: input?, context: context.flatten(), output: output? })
}

/// The type of an argument if it is a shared, or a mutable, reference.
fn reference(argument: &FnArg, mutable: bool) -> Option<&Type> {
    let FnArg::Typed(typed) = argument else { return None };
    match &*typed.ty {
        Type::Reference(reference) if reference.mutability.is_some() == mutable => Some(&typed.ty),
        _ => None,
    }
}

fn is_result(ty: &Type) -> bool {
    let Type::Path(path) = ty else { return false };
    path.path.segments.last().is_some_and(|last| last.ident == "Result")
}

fn form(signature: &Signature) -> String {
    let name = &signature.ident;
    format!(
        "fn {name}(input: &ArchivedInput, cx: &mut Context) -> Result<Output, Reject>\nwhere `cx` may be left out"
    )
}

fn register(signature: &Signature, handler: &Handler<'_>, facade: &Path) -> TokenStream {
    let name = &signature.ident;
    let Handler { input, context, output } = handler;
    let private = quote!(#facade::__private);
    // A type error then stands at the user's own type.
    let bind_input = quote_spanned!(input.span()=> let input: #input = input;);
    let bind_context = context.map(|ty| quote_spanned!(ty.span()=> let cx: #ty = cx;));
    let context = context.map(|_| quote!(, cx));
    let answer = quote_spanned! {output.span()=>
        let answer: #private::Answer<__Receptor, _> = answer;
        #private::or_reject(answer)
    };
    quote! {
        const _: () = {
            type __Receptor = #name::Receptor;

            struct __Handler;

            impl #private::Handle for __Handler {
                type Receptor = __Receptor;

                fn handle(
                    input: &#private::Input<__Receptor>,
                    cx: &mut #facade::Context,
                ) -> #private::Answer<__Receptor, #facade::Reject> {
                    let _ = &cx;
                    #bind_input
                    #bind_context
                    let answer = #name(input #context);
                    #answer
                }
            }

            #private::enter!(__Receptor, #private::Entry::of::<__Handler>(::core::module_path!()));
        };
    }
}
