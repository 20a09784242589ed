//! `cargo xtask demo`: what Cell does, in numbered steps against a real nucleus.
//!
//! A step whose result is not the expected one ends it with an error: the demo is also a test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};

use crate::machine;
use crate::report::{quote, say, skip};
use crate::workspace::{Workspace, copy_folder};

/// Longest wait for a cell to go live after its directory appeared; the first time it is compiled.
const LIVE_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest wait for a call to be counted and booked; a tenth of a second is usual.
const BOOKED_TIME_MAX: Duration = Duration::from_secs(5);
const OUT_OF_ATP: i32 = 122;
const CELLS: [&str; 4] = ["hello", "worker", "frontend", "runaway"];
const WIDTH: usize = 320;
const HEIGHT: usize = 240;

/// Builds all that is needed, and shows it.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    workspace.build()?;
    let c = workspace.build_samples()?;
    let started = Instant::now();
    let demo = Demo::start(workspace)?;
    demo.deploy()?;
    demo.call()?;
    demo.run_programs(c)?;
    demo.run_away()?;
    demo.account()?;
    let kept = demo.picture.clone();
    demo.stop()?;
    say(&format!(
        "\nAll of it as expected, in {:.1} s. The picture is {}.",
        started.elapsed().as_secs_f64(),
        kept.display()
    ));
    let cell = workspace.binary("cell");
    say("\nTry next:");
    say(&format!("    {0} new hello && cd hello && {0} dev", cell.display()));
    say(&format!(
        "    {} run {} -- 800 600 > picture.ppm",
        cell.display(),
        workspace.samples().join("mandelbrot.wasm").display()
    ));
    say("    cargo xtask bench --quick");
    Ok(())
}

/// A nucleus in a temporary home; it goes down with this value.
struct Demo<'a> {
    workspace: &'a Workspace,
    home: PathBuf,
    picture: PathBuf,
}

impl<'a> Demo<'a> {
    fn start(workspace: &'a Workspace) -> anyhow::Result<Self> {
        section(1, "A nucleus, in a home of its own");
        // Short: the path of a Unix socket has at most 107 bytes.
        let home = std::env::temp_dir().join(format!("cell-demo-{}", std::process::id()));
        let picture = workspace.target.join("demo").join("mandelbrot.ppm");
        let demo = Self { workspace, home, picture };
        demo.expect(&["up"], 0)?;
        Ok(demo)
    }

    fn deploy(&self) -> anyhow::Result<()> {
        section(2, "A cell is a directory: copied into cells/, it is live");
        let cells = self.home.join("cells");
        for name in CELLS {
            say(&format!("  $ cp -r {name} {}", cells.display()));
            copy_folder(&self.workspace.samples().join(name), &cells.join(name))?;
        }
        let deadline = Instant::now() + LIVE_TIME_MAX;
        while let Some(name) = CELLS.iter().find(|name| !self.socket(name).exists()) {
            if Instant::now() >= deadline {
                self.expect(&["ps"], 0)?;
                bail!("`{name}` is not live {} s after it was copied", LIVE_TIME_MAX.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.expect(&["ps"], 0)?;
        Ok(())
    }

    fn call(&self) -> anyhow::Result<()> {
        section(3, "Calls by JSON; the bill comes with the answer");
        let answer = self.expect(&["call", "hello.greet", r#"{"name":"Ada"}"#], 0)?;
        says(&answer.stdout, "Hello, Ada!")?;
        says(&answer.stderr, "ATP")?;
        let batch = r#"{"payloads":[[1,2,3],[4,5]]}"#;
        let answer = self.expect(&["call", "frontend.sum_up", batch], 0)?;
        says(&answer.stdout, "checksum")?;
        say("  (frontend called worker twice, and its caller paid for both)");

        section(4, "The same receptor from a Rust program: typed, and read in place");
        let mut typed = Command::new(self.workspace.example("typed"));
        typed.arg(self.socket("hello")).arg("Grace");
        let answer = show(typed.stdin(Stdio::null()), 0)?;
        says(&answer.stdout, "Hello, Grace!")
    }

    fn run_programs(&self, c: bool) -> anyhow::Result<()> {
        section(5, "Programs that know nothing of Cell, within a budget");
        fs::create_dir_all(self.picture.parent().context("find a place for the picture")?)?;
        let module = self.workspace.samples().join("mandelbrot.wasm");
        let mut run = self.cell(&["run", "--budget", "100"]);
        run.arg(&module).args(["--", &WIDTH.to_string(), &HEIGHT.to_string()]);
        run.stdin(Stdio::null()).stdout(File::create(&self.picture).context("create the picture")?);
        says(&show(&mut run, 0)?.stderr, "ATP")?;
        let picture = fs::read(&self.picture).context("read the picture")?;
        let header = format!("P6\n{WIDTH} {HEIGHT}\n255\n");
        let whole = picture.starts_with(header.as_bytes())
            && picture.len() == header.len() + WIDTH * HEIGHT * 3;
        ensure!(
            whole,
            "{} is no picture of {WIDTH} by {HEIGHT}: {} bytes",
            self.picture.display(),
            picture.len()
        );
        say(&format!("  ({} bytes of picture)", picture.len()));
        let module =
            if c { self.compile_c() } else { Err(anyhow!("clang and wasm-ld are not installed")) };
        module.map_or_else(
            |why| {
                skip("C program", &format!("{why:#}"));
                Ok(())
            },
            |module| self.count_words(&module),
        )
    }

    /// Compiles the C program for WASI; a machine without the C library skips it.
    fn compile_c(&self) -> anyhow::Result<PathBuf> {
        let module = self.home.join("wc.wasm");
        let mut clang = Command::new("clang");
        clang
            .args(["--target=wasm32-wasi", "-O2", "-o"])
            .arg(&module)
            .arg(self.workspace.root.join("xtask/wc.c"));
        let output = clang.output().context("run clang")?;
        ensure!(
            output.status.success(),
            "clang does not build for WASI here; on Debian: apt-get install wasi-libc"
        );
        Ok(module)
    }

    fn count_words(&self, module: &Path) -> anyhow::Result<()> {
        let text = self.home.join("text");
        fs::write(&text, "to be\nor not to be\n").context("write the text to count")?;
        let mut run = self.cell(&["run", "--budget", "1"]);
        run.arg(module).stdin(File::open(&text).context("open the text to count")?);
        let answer = show(&mut run, 0)?;
        ensure!(
            answer.stdout == b"2 6 19\n",
            "the C program counted wrongly: {}",
            String::from_utf8_lossy(&answer.stdout)
        );
        Ok(())
    }

    fn run_away(&self) -> anyhow::Result<()> {
        section(
            6,
            "A cell that never answers burns its budget, and no more; its neighbour feels nothing",
        );
        let answer =
            self.expect(&["call", "runaway.spin", "null", "--budget", "0.5"], OUT_OF_ATP)?;
        says(&answer.stderr, "bill")?;
        let answer = self.expect(&["call", "hello.greet", r#"{"name":"neighbour"}"#], 0)?;
        says(&answer.stdout, "Hello, neighbour!")
    }

    fn account(&self) -> anyhow::Result<()> {
        section(7, "Who did what, who has what, and the proof");
        self.expect_soon(&["ps"], "500,000,000")?;
        self.expect_soon(&["ledger", "balance"], "cell:runaway")?;
        says(&self.expect(&["ledger", "verify"], 0)?.stdout, "sum zero")
    }

    /// Shows what `cell` prints once it says what is expected: what was burned is counted and
    /// booked in groups, a moment after the call.
    fn expect_soon(&self, arguments: &[&str], expect: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + BOOKED_TIME_MAX;
        while Instant::now() < deadline {
            let mut cell = self.cell(arguments);
            let output = cell.stdin(Stdio::null()).output().context("run cell")?;
            if says(&output.stdout, expect).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        says(&self.expect(arguments, 0)?.stdout, expect)
    }

    fn stop(self) -> anyhow::Result<()> {
        section(8, "Down, and nothing is left");
        self.expect(&["down"], 0)?;
        fs::remove_dir_all(&self.home).with_context(|| format!("remove {}", self.home.display()))
    }

    fn socket(&self, cell: &str) -> PathBuf {
        self.home.join("cells").join(cell).join("cell.sock")
    }

    fn cell(&self, arguments: &[&str]) -> Command {
        let mut cell = Command::new(self.workspace.binary("cell"));
        // The home is an option of every command; as a variable it does not clutter what is shown.
        cell.args(arguments).env("CELL_HOME", &self.home);
        cell
    }

    /// Runs `cell`, shows what it printed, and insists on how it ended.
    fn expect(&self, arguments: &[&str], code: i32) -> anyhow::Result<Output> {
        show(self.cell(arguments).stdin(Stdio::null()), code)
    }
}

impl Drop for Demo<'_> {
    fn drop(&mut self) {
        if self.home.exists() {
            // A step went wrong, and its error is on its way to the user.
            let _ = self.cell(&["down"]).stdin(Stdio::null()).output();
            let _ = fs::remove_dir_all(&self.home);
        }
    }
}

fn section(number: u32, title: &str) {
    say(&format!("\n{number}. {title}"));
}

/// Shows a command and what it printed, and insists on its exit code.
fn show(command: &mut Command, code: i32) -> anyhow::Result<Output> {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let words = command.get_args().map(|word| word.to_string_lossy());
    let words: Vec<_> = words
        .map(|word| if word.contains(['"', ' ']) { format!("'{word}'") } else { word.into_owned() })
        .collect();
    say(&format!("  $ {program} {}", words.join(" ")));
    let started = Instant::now();
    // What a caller redirected stays redirected; the rest is captured.
    let output = command.output().with_context(|| format!("run {}", machine::shown(command)))?;
    quote(&String::from_utf8_lossy(&output.stdout));
    quote(&String::from_utf8_lossy(&output.stderr));
    let found = output.status.code();
    let shown = machine::shown(command);
    ensure!(found == Some(code), "{shown} ended with {}, and {code} was expected", output.status);
    if started.elapsed() > Duration::from_secs(1) {
        say(&format!("    ({:.1} s)", started.elapsed().as_secs_f64()));
    }
    Ok(output)
}

fn says(output: &[u8], expect: &str) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(output);
    ensure!(text.contains(expect), "`{expect}` was expected in:\n{text}");
    Ok(())
}
