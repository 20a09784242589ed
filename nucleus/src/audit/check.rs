//! Checks a bundle, with nothing but the file: every byte is signed for, and the books add up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::Context as _;
use cell_abi::AccountId;
use cell_ledger::receipts::Receipt;
use cell_ledger::signed;
use cell_ledger::verify::Fold;
use cell_ledger::{Checkpoint, EntryHash, Verified};
use serde::de::DeserializeOwned;

use super::archive::{Listed, Reader};
use super::{About, AccountLine, FORMAT, JournalLine, Manifest, ReceiptLine, row_of};

/// Longest line of a file in a bundle, in bytes: a receipt with as many calls as one may have.
pub(crate) const LINE_BYTES_MAX: usize = 96 << 20;
/// Problems that are told; one flipped bit may break everything after it.
pub(crate) const PROBLEMS_TOLD_MAX: usize = 20;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// What is wrong, and where.
    pub(crate) problems: Vec<String>,
    pub(crate) verified: Option<Verified>,
    pub(crate) checkpoints: u64,
    pub(crate) receipts: u64,
    pub(crate) calls: u64,
    /// Who signed it.
    pub(crate) node: Option<String>,
}

impl Findings {
    fn wrong(&mut self, what: impl Into<String>) {
        if self.problems.len() < PROBLEMS_TOLD_MAX {
            self.problems.push(what.into());
        }
    }
}

/// Checks a bundle. An error says that the file cannot be read at all.
pub(crate) fn check(path: &Path) -> anyhow::Result<Findings> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut checker = Checker::default();
    let mut archive = Reader::new(BufReader::new(file));
    let ended = loop {
        match archive.next() {
            Ok(Some((name, len))) => {
                let mut lines = Lines::default();
                let content =
                    archive.content(len, |part| lines.take(part, |line| checker.line(&name, line)));
                match content {
                    Ok(blake3) => checker.file(Listed { name, bytes: len, blake3 }, lines),
                    Err(error) => break Err(error),
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = ended {
        checker.findings.wrong(error.to_string());
    }
    Ok(checker.finish())
}

/// Cuts a file into lines.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    is_too_long: bool,
}

impl Lines {
    fn take(&mut self, part: &[u8], mut each: impl FnMut(&[u8])) {
        for piece in part.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > LINE_BYTES_MAX {
                self.is_too_long = true;
                self.line.clear();
            }
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") {
                each(&self.line);
                self.line.clear();
            }
        }
    }
}

#[derive(Default)]
struct Checker {
    findings: Findings,
    files: Vec<Listed>,
    /// Files that are one value, whole.
    whole: BTreeMap<&'static str, Vec<u8>>,
    numbers: BTreeMap<String, u64>,
    fold: Option<Fold>,
    /// The journal's hashes at the places that checkpoints name.
    wanted: BTreeSet<u64>,
    seen: BTreeMap<u64, EntryHash>,
    checkpoints: Vec<Checkpoint>,
    accounts: Vec<AccountLine>,
    /// The last receipt of each chain.
    chains: BTreeMap<[u8; 32], Receipt>,
    is_broken: bool,
}

impl Checker {
    fn line(&mut self, file: &str, line: &[u8]) {
        let number = self.numbers.entry(file.to_owned()).or_default();
        *number += 1;
        let number = *number;
        match file {
            "about.json" => self.whole.entry("about.json").or_default().extend_from_slice(line),
            "manifest.json" => {
                self.whole.entry("manifest.json").or_default().extend_from_slice(line)
            }
            "journal.jsonl" => self.journal(number, line),
            "checkpoints.jsonl" => {
                if let Some(checkpoint) = self.parse::<Checkpoint>(file, number, line) {
                    if !checkpoint.is_signed() {
                        self.findings
                            .wrong(format!("{file}, line {number}: the signature does not hold"));
                    }
                    self.wanted.insert(checkpoint.entries);
                    self.checkpoints.push(checkpoint);
                }
            }
            "accounts.jsonl" => {
                let account = self.parse(file, number, line);
                self.accounts.extend(account);
            }
            "receipts.jsonl" => {
                if let Some(line) = self.parse::<ReceiptLine>(file, number, line) {
                    self.receipt(number, line);
                }
            }
            _ => {}
        }
    }

    fn parse<T: DeserializeOwned>(&mut self, file: &str, number: u64, line: &[u8]) -> Option<T> {
        let parsed = serde_json::from_slice(line);
        parsed.map_err(|error| self.findings.wrong(format!("{file}, line {number}: {error}"))).ok()
    }

    fn journal(&mut self, number: u64, line: &[u8]) {
        if self.is_broken {
            return;
        }
        let row = self.parse::<JournalLine>("journal.jsonl", number, line).and_then(row_of);
        let about = self.about();
        let issuer = about.and_then(|about| AccountId::parse(&about.issuer).ok());
        let fold = match (&mut self.fold, issuer) {
            (Some(fold), _) => fold,
            (none, Some(issuer)) => none.insert(Fold::new(issuer)),
            (None, None) => {
                self.is_broken = true;
                return self.findings.wrong("about.json: it does not name the issuer");
            }
        };
        let Some(row) = row else {
            self.is_broken = true;
            return self.findings.wrong(format!("journal.jsonl, line {number}: it is no entry"));
        };
        if self.wanted.contains(&row.seq) {
            self.seen.insert(row.seq, row.hash);
        }
        if let Err(error) = fold.push(&row) {
            self.is_broken = true;
            self.findings.wrong(error.to_string());
        }
    }

    fn receipt(&mut self, number: u64, line: ReceiptLine) {
        let ReceiptLine { receipt, leaves } = line;
        let chain = *receipt.terms().chain().as_bytes();
        let before = self.chains.get(&chain);
        let checked = receipt.check().and_then(|()| receipt.check_follows(before)).and_then(|()| {
            leaves.iter().try_for_each(|leaves| receipt.check_leaves(before, leaves))
        });
        if let Err(error) = checked {
            self.findings.wrong(format!("receipts.jsonl, line {number}: {error}"));
        }
        self.findings.receipts += 1;
        self.findings.calls += leaves.map_or(0, |leaves| leaves.len() as u64);
        self.chains.insert(chain, receipt);
    }

    fn file(&mut self, file: Listed, lines: Lines) {
        if lines.is_too_long {
            self.findings
                .wrong(format!("{}: a line of more than {LINE_BYTES_MAX} bytes", file.name));
        }
        if !lines.line.is_empty() {
            self.findings.wrong(format!("{}: its last line has no end", file.name));
        }
        self.files.push(file);
    }

    fn about(&self) -> Option<About> {
        serde_json::from_slice(self.whole.get("about.json")?).ok()
    }

    fn finish(mut self) -> Findings {
        let about = self.about();
        let manifest = self.whole.get("manifest.json");
        let manifest = manifest.and_then(|text| serde_json::from_slice::<Manifest>(text).ok());
        match (&about, manifest) {
            (Some(about), Some(manifest)) => self.signature(about, &manifest),
            (None, _) => self.findings.wrong("about.json: it is missing, or cannot be read"),
            (_, None) => self.findings.wrong("manifest.json: it is missing, or cannot be read"),
        }
        if let Some(about) = about {
            self.books(&about);
        }
        self.findings
    }

    /// Every file is in the manifest, as it is, and the manifest is signed.
    fn signature(&mut self, about: &About, manifest: &Manifest) {
        let node = AccountId::parse(&manifest.node);
        let is_signed = node.is_ok_and(|node| {
            signed::is_signed(FORMAT, &manifest.unsigned(), node, &manifest.signature)
        });
        if !is_signed || manifest.format != FORMAT || manifest.node != about.node {
            self.findings.wrong("manifest.json: it is not what the node in about.json signed");
        }
        // Its own text has spaces and an order that no signature is over.
        let as_written = super::pretty(manifest).ok();
        if self.whole.get("manifest.json") != as_written.as_ref() {
            self.findings.wrong("manifest.json: it is not written as a program writes it");
        }
        let mut found: BTreeMap<_, _> =
            self.files.iter().map(|file| (file.name.as_str(), file)).collect();
        let mut wrong = Vec::new();
        for listed in &manifest.files {
            match found.remove(listed.name.as_str()) {
                Some(file) if file == listed => {}
                Some(_) => wrong.push(format!("{}: it is not what was signed", listed.name)),
                None => wrong.push(format!("{}: it is missing", listed.name)),
            }
        }
        found.remove("manifest.json");
        wrong.extend(found.keys().map(|name| format!("{name}: nobody signed it")));
        if self.files.len() != manifest.files.len() + 1 {
            wrong.push("a file is in the archive twice".into());
        }
        wrong.into_iter().for_each(|what| self.findings.wrong(what));
        self.findings.node = Some(manifest.node.clone());
    }

    /// Journal, accounts, checkpoints and what is said about them agree.
    fn books(&mut self, about: &About) {
        let issuer = AccountId::parse(&about.issuer).ok();
        let fold = match (self.fold.take(), issuer) {
            (Some(fold), _) => fold,
            (None, Some(issuer)) => Fold::new(issuer),
            (None, None) => return self.findings.wrong("about.json: it does not name the issuer"),
        };
        if self.is_broken {
            return;
        }
        let (verified, balances) = match fold.conclude() {
            Ok(concluded) => concluded,
            Err(error) => return self.findings.wrong(error.to_string()),
        };
        let told = (about.entries, about.head_hash.clone(), about.accounts, about.issued_nano_atp);
        let is = (
            verified.entries,
            verified.head_hash.to_string(),
            verified.accounts,
            verified.issued.0,
        );
        if told != is {
            self.findings.wrong(format!("about.json: it tells {told:?}, the journal makes {is:?}"));
        }
        let line = |(account, balance): (AccountId, cell_ledger::Balance)| AccountLine {
            account: account.to_string(),
            posted_nano_atp: balance.posted_nano,
            held_nano_atp: balance.held.0,
        };
        let expected: Vec<_> = balances.into_iter().map(line).collect();
        if self.accounts != expected {
            let differs = self.accounts.iter().zip(&expected).position(|(a, b)| a != b);
            let at = differs.unwrap_or_else(|| self.accounts.len().min(expected.len())) + 1;
            self.findings
                .wrong(format!("accounts.jsonl, line {at}: the journal makes something else"));
        }
        for checkpoint in &self.checkpoints {
            let holds = self.seen.get(&checkpoint.entries) == Some(&checkpoint.head_hash)
                || checkpoint.entries == 0;
            if !holds || Some(checkpoint.issuer) != issuer {
                self.findings.problems.push(format!(
                    "the journal is not the one whose first {} entries {} signed for",
                    checkpoint.entries,
                    checkpoint.node.short()
                ));
            }
        }
        self.findings.checkpoints = self.checkpoints.len() as u64;
        self.findings.verified = Some(verified);
    }
}
