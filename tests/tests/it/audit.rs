//! Backups that restore, journals that cannot be rewritten, and bundles whose every bit is signed for.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use cell_tests::{Home, Nucleus, Random, eventually, sample};
use serde_json::Value;
use tempfile::TempDir;

fn place() -> TempDir {
    tempfile::Builder::new().prefix("ct-a-").tempdir_in("/tmp").unwrap()
}

fn nucleus() -> Nucleus {
    let nucleus = Nucleus::new();
    let (wasm, manifest) = sample("counter");
    let receipts = format!("{manifest}\nisolation = \"call\"\nreceipts = true\n");
    nucleus.put("counter", &receipts, &wasm);
    nucleus.wait_for("counter", "live");
    nucleus
}

fn count(home: &Home) {
    home.cell(["call", "counter.add", r#"{"by":1}"#]).expect(0);
}

fn paid(home: &Home) -> i64 {
    eventually("calls are paid", || Some(home.balance("cell:counter")).filter(|paid| *paid > 0))
}

fn check(file: &Path) -> (i32, Value) {
    // A home that is not there, and is not made.
    let ran = Home::new().cell(["audit", "check", file.to_str().unwrap(), "--json"]);
    (ran.code.unwrap(), ran.json())
}

fn export(home: &Home, place: &TempDir) -> PathBuf {
    let path = place.path().join("bundle.tar");
    home.cell(["audit", "export", path.to_str().unwrap()]).expect(0);
    path
}

/// The bundle checks where nothing but the file is; any bit that flips is named.
#[test]
fn a_bundle_is_signed_to_the_last_bit() {
    let nucleus = nucleus();
    (0..3).for_each(|_| count(&nucleus));
    eventually("three calls have receipts", || {
        let listed = nucleus.cell(["ledger", "receipts", "--json"]).json();
        (listed.as_array()?.last()?["last_call"].as_u64()? >= 3).then_some(())
    });
    let settings = "[receipts]\nkept_mb_max = 10\n# ledger = \"postgres://u:secret@h/d\"\n";
    fs::write(nucleus.path().join("nucleus.toml"), settings).unwrap();
    let place = place();
    let path = export(&nucleus, &place);
    let (code, found) = check(&path);
    assert_eq!(code, 0, "{found}");
    assert_eq!(found["problems"], serde_json::json!([]));
    assert!(
        found["entries"].as_u64().unwrap() > 3 && found["calls"].as_u64().unwrap() >= 3,
        "{found}"
    );
    assert!(found["checkpoints"].as_u64().unwrap() >= 1, "{found}");
    // Any tool can look into it.
    let listed = std::process::Command::new("tar").arg("tf").arg(&path).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for name in ["README.txt", "about.json", "journal.jsonl", "receipts.jsonl", "manifest.json"] {
        assert!(listed.lines().any(|line| line == name), "{name}: {listed}");
    }
    let whole = fs::read(&path).unwrap();
    assert!(!String::from_utf8_lossy(&whole).contains("secret"), "an address with a password");
    let (flipped, mut random) = (place.path().join("flipped.tar"), Random::new(5));
    let flips = 1000;
    thread::scope(|scope| {
        let parts: Vec<_> = (0..2)
            .map(|part| {
                let places: Vec<_> = (0..flips / 2)
                    .map(|_| {
                        (
                            usize::try_from(random.below(whole.len() as u64)).unwrap(),
                            random.below(8),
                        )
                    })
                    .collect();
                let (whole, path) = (whole.clone(), flipped.with_extension(part.to_string()));
                scope.spawn(move || {
                    for (at, bit) in places {
                        let mut bytes = whole.clone();
                        bytes[at] ^= 1 << bit;
                        fs::write(&path, bytes).unwrap();
                        let (code, found) = check(&path);
                        let named = found["problems"].as_array().is_some_and(|all| !all.is_empty());
                        assert!(code == 1 && named, "byte {at}, bit {bit}: {found}");
                    }
                })
            })
            .collect();
        parts.into_iter().for_each(|part| part.join().unwrap());
    });
    println!("{flips} flipped bits of a bundle of {} bytes: all named", whole.len());
    for cut in [0, 1, 511, 512, whole.len() / 2, whole.len() - 1] {
        fs::write(&flipped, &whole[..cut]).unwrap();
        assert_eq!(check(&flipped).0, 1, "cut to {cut}");
    }
    fs::write(&flipped, [&whole[..], &[0]].concat()).unwrap();
    assert_eq!(check(&flipped).0, 1, "one more byte");
    // A bundle is not written over anything.
    nucleus.cell(["audit", "export", path.to_str().unwrap()]).expect(1);
}

/// A copy that was made under load is a ledger of its own: it verifies, and holds that were open in it go
/// back to their accounts.
#[test]
fn a_backup_restores() {
    let nucleus = nucleus();
    let place = place();
    let copy = place.path().join("copy.db");
    thread::scope(|scope| {
        let calling = scope.spawn(|| (0..30).for_each(|_| count(&nucleus)));
        paid(&nucleus);
        nucleus.cell(["ledger", "backup", copy.to_str().unwrap()]).expect(0);
        calling.join().unwrap();
    });
    nucleus.cell(["ledger", "backup", copy.to_str().unwrap()]).expect(1);
    let restored = Home::new();
    fs::copy(&copy, restored.path().join("ledger.db")).unwrap();
    fs::copy(nucleus.path().join("identity"), restored.path().join("identity")).unwrap();
    let verified = restored.cell(["ledger", "verify", "--json"]).expect(0).json();
    let balances = restored.balances();
    let (then, now) = (balances["owner"], nucleus.balance("owner"));
    assert!(then >= now && verified["sum_nano_atp"] == 0, "{then} {now}");
    // The session that had holds is not there: nothing is held for long.
    let second = Nucleus::up(&restored);
    let (wasm, manifest) = sample("counter");
    second.put("counter", &manifest, &wasm);
    second.wait_for("counter", "live");
    count(&second);
    second.cell(["ledger", "verify"]).expect(0);
}

/// A nucleus that goes down leaves a signed statement of where its journal was.
#[test]
fn going_down_leaves_a_checkpoint() {
    let nucleus = nucleus();
    count(&nucleus);
    paid(&nucleus);
    let before = nucleus.cell(["ledger", "verify", "--json"]).expect(0).json();
    assert_eq!(before["checkpoints"], 0);
    nucleus.cell(["down"]).expect(0);
    let after = nucleus.cell(["ledger", "verify", "--json"]).expect(0).json();
    assert_eq!(after["checkpoints"], 1);
}

/// An older copy of the books, put back in place of newer ones, is a journal that somebody signed more of.
#[test]
fn a_ledger_that_was_set_back_is_told_by_a_checkpoint() {
    let home = Home::new();
    home.cell(["ledger", "grant", "1"]).expect(0);
    let (place, older) = (place(), home.path().join("older.db"));
    home.cell(["ledger", "backup", older.to_str().unwrap()]).expect(0);
    home.cell(["ledger", "grant", "2"]).expect(0);
    export(&home, &place);
    let newer = home.cell(["ledger", "verify", "--json"]).expect(0).json();
    assert!(newer["checkpoints"].as_u64().unwrap() >= 1, "{newer}");
    // The checkpoints were kept elsewhere and come back; the books do not.
    let script = "import sqlite3,sys
new,old=sqlite3.connect(sys.argv[1]),sqlite3.connect(sys.argv[2])
rows=new.execute('SELECT * FROM checkpoints').fetchall()
new.close()
old.executemany('INSERT INTO checkpoints VALUES (?,?,?)',rows)
old.commit()";
    let ledger = home.path().join("ledger.db");
    let ran =
        std::process::Command::new("python3").args(["-c", script]).args([&ledger, &older]).output();
    if !ran.as_ref().is_ok_and(|ran| ran.status.success()) {
        println!(
            "audit::a_ledger_that_was_set_back_is_told_by_a_checkpoint SKIPPED: python3 with sqlite3: {ran:?}"
        );
        return;
    }
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(home.path().join(format!("ledger.db{suffix}")));
    }
    fs::rename(&older, &ledger).unwrap();
    let told = home.cell(["ledger", "verify"]);
    assert!(told.expect(125).stderr.contains("signed for"), "{}", told.stderr);
}
