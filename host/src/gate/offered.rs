//! What a module may import, by name and type.

use wasmparser::TypeRef;

use super::error::{GateError, shown};
use crate::{host_calls, wasi};

/// `i32` in a module's bytes.
pub(crate) const I32: u8 = 0x7f;
/// `i64` in a module's bytes.
pub(crate) const I64: u8 = 0x7e;

/// A function type as it stands in a module: one byte for each number, more for references.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Signature<'a> {
    pub(crate) params: &'a [u8],
    pub(crate) results: &'a [u8],
}

/// A function that the host offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered {
    pub(crate) name: &'static str,
    pub(crate) signature: Signature<'static>,
}

impl Offered {
    pub(crate) const fn new(
        name: &'static str,
        params: &'static [u8],
        results: &'static [u8],
    ) -> Self {
        Self { name, signature: Signature { params, results } }
    }
}

impl std::fmt::Display for Signature<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |types: &[u8]| {
            let name = |byte: &u8| match *byte {
                I32 => "i32",
                I64 => "i64",
                0x7d => "f32",
                0x7c => "f64",
                0x7b => "v128",
                _ => "reference",
            };
            types.iter().map(name).collect::<Vec<_>>().join(", ")
        };
        write!(f, "({}) -> ({})", names(self.params), names(self.results))
    }
}

/// Checks one import against what the host offers. `signature` finds a type of the module.
pub(crate) fn check<'a>(
    import: &wasmparser::Import<'_>,
    signature: impl Fn(u32) -> Option<Signature<'a>>,
) -> Result<(), GateError> {
    const NAME_CHARS: usize = 100;
    let offered = match import.module {
        wasi::MODULE => wasi::FUNCTIONS,
        host_calls::MODULE => host_calls::FUNCTIONS,
        _ => &[],
    };
    let (module, name) = (import.module, import.name);
    let index = match import.ty {
        TypeRef::Func(index) | TypeRef::FuncExact(index) => Some(index),
        _ => None,
    };
    let (Some(index), Some(offered)) = (index, offered.iter().find(|offered| offered.name == name))
    else {
        let (module, name) = (shown(module, NAME_CHARS), shown(name, NAME_CHARS));
        return Err(GateError::UnknownImport { module, name });
    };
    // A type that the module does not have is the compiler's to refuse.
    let found = signature(index).unwrap_or(offered.signature);
    if found == offered.signature {
        return Ok(());
    }
    Err(GateError::ImportType {
        module: module.to_owned(),
        name: name.to_owned(),
        found: found.to_string(),
        offered: offered.signature.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wasmtime::{Engine, Linker, Store, ValType};
    use wasmtime_wasi::WasiCtxBuilder;

    use super::*;
    use crate::engine::{Allocation, Sandbox};
    use crate::gate::ModuleKind;
    use crate::guest::Guest;
    use crate::limits::Limits;
    use crate::meter::Gauge;
    use crate::rates::Rates;

    #[track_caller]
    fn check_linker(engine: &Engine, linker: &Linker<Guest>, modules: &[(&str, &[Offered])]) {
        let byte = |ty: ValType| if matches!(ty, ValType::I32) { I32 } else { I64 };
        let mut linked: Vec<(String, String, Vec<u8>, Vec<u8>)> = Vec::new();
        let mut store = Store::new(
            engine,
            Guest::of_job(
                Limits::JOB,
                Arc::default(),
                Arc::new(Gauge::new(Rates::default())),
                WasiCtxBuilder::new().build_p1(),
            ),
        );
        for (module, name, item) in linker.iter(&mut store).collect::<Vec<_>>() {
            let ty = item.into_func().unwrap().ty(&store);
            let (params, results) = (ty.params().map(byte), ty.results().map(byte));
            linked.push((module.into(), name.into(), params.collect(), results.collect()));
        }
        let mut told = Vec::new();
        for (module, functions) in modules {
            for Offered { name, signature: Signature { params, results } } in *functions {
                told.push((
                    (*module).to_owned(),
                    (*name).to_owned(),
                    params.to_vec(),
                    results.to_vec(),
                ));
            }
        }
        linked.sort();
        told.sort();
        assert_eq!(linked, told);
    }

    /// The gate once let a module pass that imported a function by another type, and the linker
    /// refused it after it was compiled.
    #[test]
    fn the_gate_offers_what_the_linkers_have() {
        let sandbox = Sandbox::new(Allocation::OnDemand).unwrap();
        let wasi = (wasi::MODULE, wasi::FUNCTIONS);
        let calls = (host_calls::MODULE, host_calls::FUNCTIONS);
        check_linker(sandbox.engine(), sandbox.linker(ModuleKind::Command), &[wasi]);
        check_linker(sandbox.engine(), sandbox.linker(ModuleKind::Cell), &[wasi, calls]);
    }
}
