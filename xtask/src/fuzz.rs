//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, guided by coverage, with the stable
//! compiler.
//!
//! The coverage counters are a pass of LLVM that rustc runs when it is asked to. This program asks:
//! cargo calls it in the compiler's place, and it adds the flags for the crates whose coverage is
//! of interest. Everything else, the engine above all, is built as it always is.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};

use crate::machine;
use crate::report::{quote, say, step};
use crate::workspace::Workspace;

/// Set while this program stands in for the compiler.
const WRAPS: &str = "CELL_XTASK_WRAPS_RUSTC";
/// Time for each target unless the user says otherwise.
const SECONDS: u64 = 60;
/// Longest input, in bytes; the same bound holds in the tests.
const INPUT_BYTES_MAX: u64 = 4096;
/// Longest run of one input, in seconds; a longer one is a finding.
const INPUT_S_MAX: u64 = 20;

/// Crates of others that parse strangers' bytes for us; all of `cell_*` is counted too.
const COUNTED: [&str; 4] = ["toml", "toml_parser", "wasmparser", "winnow"];

/// What libFuzzer wants the code to tell it; the names are those of LLVM.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// The arguments of `cargo xtask fuzz`.
#[derive(Debug)]
struct Options {
    seconds: u64,
    target: Option<String>,
    /// Runs this one input instead of looking for others.
    input: Option<PathBuf>,
}

/// How a target's run ended.
#[derive(Debug, Default)]
struct Summary {
    executions: u64,
    per_second: u64,
    /// Edges seen, and features, which also tell how often an edge was taken.
    edges: u64,
    features: u64,
    corpus: u64,
    findings: Vec<PathBuf>,
}

/// Compiles in rustc's place if cargo called this program for that.
pub(crate) fn compile() -> Option<ExitCode> {
    std::env::var_os(WRAPS)?;
    let mut arguments = std::env::args_os().skip(1);
    let mut rustc = Command::new(arguments.next()?);
    let arguments: Vec<_> = arguments.collect();
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    let after = |flag: &str| {
        words.iter().zip(words.iter().skip(1)).find(|(word, _)| *word == flag).map(|(_, next)| next)
    };
    let name = after("--crate-name").map_or("", |name| name);
    rustc.args(&arguments);
    // What runs while building has no target, and is not linked with the fuzzer.
    let counted = after("--target").is_some() && !name.starts_with("build_script");
    if counted && (name.starts_with("cell_") || COUNTED.contains(&name)) {
        rustc.args(COVERAGE).args(["-Cdebug-assertions=yes", "-Ccodegen-units=1"]);
    }
    let status = rustc.status().ok()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Some(ExitCode::from(code))
}

/// Builds the targets, runs them one after the other, and says what they found.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<()> {
    let options = parse(arguments)?;
    let mut targets = targets(workspace)?;
    if let Some(only) = &options.target {
        if !targets.contains(only) {
            bail!("there is no target `{only}`; there are: {}", targets.join(", "));
        }
        targets.retain(|target| target == only);
    }
    let program = build(workspace)?;
    if let Some(input) = &options.input {
        let target = options.target.as_deref().context("--input needs --target")?;
        return machine::run(fuzzer(workspace, &program, target).arg(input));
    }
    let mut rows = Vec::new();
    for target in &targets {
        let summary =
            step(&format!("fuzz {target}"), || fuzz(workspace, &program, target, options.seconds))?;
        rows.push((target, summary));
    }
    say("\ntarget         executions       /s    edges features   corpus findings");
    for (target, summary) in &rows {
        let Summary { executions, per_second, edges, features, corpus, findings } = summary;
        let findings = findings.len();
        say(&format!(
            "{target:<13} {executions:>11} {per_second:>8} {edges:>8} {features:>8} {corpus:>8} {findings:>8}"
        ));
    }
    let mut found = 0;
    for (target, summary) in &rows {
        for input in &summary.findings {
            found += 1;
            say(&format!("cargo xtask fuzz --target {target} --input {}", input.display()));
        }
    }
    if found > 0 {
        bail!("findings: {found}; the commands above show them again");
    }
    Ok(())
}

fn parse(arguments: &[String]) -> anyhow::Result<Options> {
    let mut options = Options { seconds: SECONDS, target: None, input: None };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seconds" => options.seconds = value()?.parse().context("read --seconds")?,
            "--target" => options.target = Some(value()?.clone()),
            "--input" => options.input = Some(std::path::absolute(value()?)?),
            _ => bail!(
                "`cargo xtask fuzz` takes --seconds N, --target NAME, --input FILE; not {word:?}"
            ),
        }
    }
    Ok(options)
}

/// Each target has a folder of seeds.
fn targets(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(workspace.root.join("tests/fuzz/seeds"))
        .and_then(|folders| {
            folders.map(|folder| Ok(folder?.file_name().to_string_lossy().into_owned())).collect()
        })
        .context("list the targets")?;
    names.sort();
    Ok(names)
}

/// In a folder of its own, because other flags are other objects; and for a target by its name, so
/// that macros and build scripts share no object with what is counted.
fn build(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let target = workspace.target.join("fuzz");
    let triple = machine::triple()?;
    let wrapper = std::env::current_exe().context("find this program")?;
    let arguments = ["build", "--release", "--package", "cell-fuzz", "--features", "libfuzzer"];
    step("build the fuzz targets; the first time it takes some minutes", || {
        let mut cargo = workspace.cargo(&arguments);
        cargo
            .args(["--bin", "cell-fuzz", "--target", &triple])
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_INCREMENTAL", "0")
            .env("RUSTC_WRAPPER", wrapper)
            .env(WRAPS, "1");
        machine::run(&mut cargo)
    })?;
    Ok(target.join(triple).join("release/cell-fuzz"))
}

fn fuzzer(workspace: &Workspace, program: &Path, target: &str) -> Command {
    let mut fuzzer = workspace.command(program);
    fuzzer.env("CELL_FUZZ_TARGET", target).arg(format!("-timeout={INPUT_S_MAX}"));
    fuzzer
}

fn fuzz(
    workspace: &Workspace,
    program: &Path,
    target: &str,
    seconds: u64,
) -> anyhow::Result<Summary> {
    let corpus = workspace.target.join("fuzz/corpus").join(target);
    let artifacts = workspace.root.join("tests/fuzz/artifacts").join(target);
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let mut child = fuzzer(workspace, program, target)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .args([&corpus, &workspace.root.join("tests/fuzz/seeds").join(target)])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", program.display()))?;
    let mut summary = Summary::default();
    let mut last_words = Vec::new();
    let stderr = child.stderr.take().context("the fuzzer's output")?;
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("read the fuzzer's output")?).into_owned();
        summary.read(&line);
        last_words.push(line);
        if last_words.len() > 40 {
            last_words.remove(0);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        quote(&last_words.join("\n"));
        if summary.findings.is_empty() {
            bail!("the fuzzer ended with {status} and left no input");
        }
    }
    Ok(summary)
}

impl Summary {
    /// Takes what a line says: `#4096 pulse  cov: 310 ft: 712 corp: 81/4096b ...`, or at the end
    /// `stat::number_of_executed_units: 4096`; and where a finding is.
    fn read(&mut self, line: &str) {
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.findings.push(PathBuf::from(path.trim()));
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        for (name, value) in words.iter().zip(words.iter().skip(1)) {
            let value = value.split('/').next().unwrap_or_default();
            let Ok(value) = value.parse::<u64>() else { continue };
            match *name {
                "cov:" => self.edges = value,
                "ft:" => self.features = value,
                "corp:" => self.corpus = value,
                "stat::number_of_executed_units:" => self.executions = value,
                "stat::average_exec_per_sec:" => self.per_second = value,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_fuzzer() {
        let mut summary = Summary::default();
        summary
            .read("#4096\tpulse  cov: 310 ft: 712 corp: 81/4096b lim: 43 exec/s: 2048 rss: 40Mb");
        assert_eq!((summary.edges, summary.features, summary.corpus), (310, 712, 81));
        summary.read("stat::number_of_executed_units: 9000");
        summary.read("stat::average_exec_per_sec:     450");
        assert_eq!((summary.executions, summary.per_second), (9000, 450));
        summary.read("artifact_prefix='/a/b/'; Test unit written to /a/b/crash-1");
        assert_eq!((summary.edges, summary.findings), (310, vec![PathBuf::from("/a/b/crash-1")]));
    }

    #[test]
    fn arguments() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let options = parse(&words("--target gate --seconds 5")).unwrap();
        assert_eq!((options.target.as_deref(), options.seconds), (Some("gate"), 5));
        for wrong in ["--seconds", "--seconds x", "--fast 1"] {
            assert!(parse(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
