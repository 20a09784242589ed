//! The first ten minutes of an author: `cell new`, `cell dev`, an edit, another answer.

use std::fs;
use std::process::{Child, Stdio};

use cell_tests::process::{self, Process};
use cell_tests::{Home, eventually};

/// `cell dev` in a terminal nobody looks at, and the nucleus it brought up; ended when dropped.
struct Dev {
    home: Home,
    child: Child,
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.home.command(["down"]).output();
        process::naming(self.home.path()).into_iter().for_each(Process::kill);
    }
}

#[test]
fn new_then_dev_then_an_edit() {
    let home = Home::new();
    let project = home.path().join("x");
    let ran = home.cell(["new", project.to_str().unwrap()]);
    assert!(ran.expect(0).stdout.contains("cell dev"), "{ran:?}");
    // What is there is not touched.
    home.cell(["new", project.to_str().unwrap()]).expect(2);
    let mut command = home.command(["build", project.to_str().unwrap()]);
    let built = command.output().unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    if !built.status.success()
        && ["toolchain", "wasm32-wasip1", "rustup"]
            .iter()
            .any(|word| said.lines().any(|line| line.starts_with("error: ") && line.contains(word)))
    {
        println!("dev::new_then_dev_then_an_edit SKIPPED: {}", said.trim());
        return;
    }
    assert!(built.status.success(), "{said}");
    let log = fs::File::create(home.path().join("dev.log")).unwrap();
    let mut command = home.command(["dev"]);
    command
        .current_dir(&project)
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log));
    let dev = Dev { home: home.clone(), child: command.spawn().unwrap() };
    let call = || {
        let ran = home.cell(["call", "x.greet", "{\"name\":\"Ada\"}"]);
        (ran.code == Some(0)).then_some(ran.stdout)
    };
    let first = eventually("the first build is live", call);
    assert!(first.contains("Ada"), "{first}");
    eventually("it watches", || {
        fs::read_to_string(home.path().join("dev.log")).unwrap().contains("watching").then_some(())
    });
    let source = project.join("src/lib.rs");
    let text = fs::read_to_string(&source).unwrap();
    // A mistake is told, and the old code goes on answering.
    fs::write(&source, format!("{text}\nmistake")).unwrap();
    eventually("the mistake is told", || {
        fs::read_to_string(home.path().join("dev.log"))
            .unwrap()
            .matches("watching")
            .nth(1)
            .map(drop)
    });
    assert_eq!(call().as_ref(), Some(&first));
    let edited = text.replace("Hello", "Servus");
    assert_ne!(edited, text, "the template greets in other words:\n{text}");
    fs::write(&source, edited).unwrap();
    let second = eventually("the edit is live", || call().filter(|answer| *answer != first));
    assert_eq!(second, first.replace("Hello", "Servus"));
    drop(dev);
    assert_eq!(process::naming(home.path()), []);
}
