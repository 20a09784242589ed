//! What users of the macros see: what compiles, and the errors of what does not.

/// The texts are those of one compiler; on another the comparison says nothing.
const RUSTC: &str = "1.95";

#[test]
fn ui() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    if runs_on(RUSTC) {
        cases.compile_fail("tests/ui/fail/*.rs");
    }
}

fn runs_on(version: &str) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = std::process::Command::new(rustc).arg("--version").output().expect("run rustc");
    let text = String::from_utf8(output.stdout).expect("read the version of rustc");
    text.split(' ').nth(1).is_some_and(|found| found.starts_with(version))
}
