//! The journal: one row for each applied command, chained by hashes; this module defines its bytes.
//!
//! It does no I/O, and refused commands and repeated ones never get here.
//!
//! # Hash
//!
//! `hash = digest("cell.ledger.entry.v1", seq, time_ms, kind, prev_hash, content)`, where `digest` is BLAKE3 over
//! the parts, the domain first, each with its length before it as 8 bytes, little-endian. `seq` and `time_ms` are
//! 8 bytes, little-endian; `kind` is one byte. The first entry is 1 and its `prev_hash` is
//! `digest("cell.ledger.issuer.v1", issuer)`, so the chain also fixes who the issuer is.
//!
//! # Content
//!
//! The command, then its outcome. An id is its 32 bytes; a number is 8 bytes, little-endian, amounts in nano-ATP
//! and times in milliseconds since 1970; a text is its length in bytes as a number, then UTF-8; a list is its
//! length as a number, then the items; an option is a list of at most one.
//!
//! | kind | command | outcome |
//! |---|---|---|
//! | 1 transfer | id, debit, credit, amount, memo text | |
//! | 2 hold | *hold* | granted |
//! | 3 settle | hold id, list of (id, credit, amount, memo text), option of *hold* | paid, released, next granted |
//! | 4 void | hold id | holds, released |
//! | 5 void session | session id | holds, released |
//! | 6 void expired | now | holds, released |
//!
//! *hold* is: id, account, amount, amount_min, session, expires. Nothing may follow, so a value has one encoding.

use cell_abi::{AccountId, NanoAtp};

use crate::id::digest;
use crate::{
    Command, EntryHash, Hold, HoldId, LedgerError, Outcome, Payment, SessionId, Settle, Transfer,
    TransferId,
};

/// One applied command, readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place, from 1, without gaps.
    pub seq: u64,
    /// When it was applied by the writer's clock, in milliseconds since 1970.
    pub time_ms: u64,
    /// What was asked.
    pub command: Command,
    /// What was answered.
    pub outcome: Outcome,
    /// The hash of the entry, which covers all entries before it.
    pub hash: EntryHash,
}

/// The end of the journal, to which the next entry chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last entry's place; zero for an empty journal.
    pub seq: u64,
    /// The last entry's hash; made from the issuer for an empty journal.
    pub hash: EntryHash,
}

impl Head {
    /// The head of the empty journal of this issuer.
    pub fn empty(issuer: AccountId) -> Self {
        Self { seq: 0, hash: EntryHash::derive("cell.ledger.issuer.v1", &[issuer.as_bytes()]) }
    }
}

/// One entry as a store keeps it. Its fields may be anything until they were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// See [`Entry::seq`].
    pub seq: u64,
    /// See [`Entry::time_ms`].
    pub time_ms: u64,
    /// Which command the content is.
    pub kind: u8,
    /// The command and its outcome.
    pub content: Vec<u8>,
    /// The hash of the entry before.
    pub prev_hash: EntryHash,
    /// The hash over all other fields.
    pub hash: EntryHash,
}

impl Row {
    /// The row that follows `head`.
    pub fn following(head: Head, time_ms: u64, command: &Command, outcome: &Outcome) -> Self {
        let mut content = Writer(Vec::new());
        let kind = content.command(command);
        content.outcome(outcome);
        let mut row = Self {
            seq: head.seq.saturating_add(1),
            time_ms,
            kind,
            content: content.0,
            prev_hash: head.hash,
            hash: head.hash,
        };
        row.hash = row.computed_hash();
        row
    }

    /// The hash that the other fields give.
    pub fn computed_hash(&self) -> EntryHash {
        EntryHash::from_bytes(digest(
            "cell.ledger.entry.v1",
            &[
                &self.seq.to_le_bytes(),
                &self.time_ms.to_le_bytes(),
                &[self.kind],
                self.prev_hash.as_bytes(),
                &self.content,
            ],
        ))
    }

    /// The readable entry. Its hash is not checked here.
    pub fn entry(&self) -> Result<Entry, LedgerError> {
        let (command, outcome) = self.decode().ok_or_else(|| LedgerError::Corrupt {
            reason: format!("journal entry {} cannot be decoded", self.seq),
        })?;
        Ok(Entry { seq: self.seq, time_ms: self.time_ms, command, outcome, hash: self.hash })
    }

    /// The command and the outcome; `None` if the content is not their one encoding.
    pub(crate) fn decode(&self) -> Option<(Command, Outcome)> {
        let mut reader = Reader(&self.content);
        let command = reader.command(self.kind)?;
        let outcome = reader.outcome(self.kind, self.seq)?;
        reader.0.is_empty().then_some((command, outcome))
    }

    /// The head of a journal that ends with this row.
    pub fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn command(&mut self, command: &Command) -> u8 {
        match command {
            Command::Transfer(transfer) => {
                self.id(transfer.id.as_bytes());
                self.id(transfer.debit.as_bytes());
                self.id(transfer.credit.as_bytes());
                self.number(transfer.amount.0);
                self.text(&transfer.memo);
                1
            }
            Command::Hold(hold) => {
                self.hold(hold);
                2
            }
            Command::Settle(settle) => {
                self.id(settle.hold.as_bytes());
                self.number(settle.payments.len() as u64);
                for payment in &settle.payments {
                    self.id(payment.id.as_bytes());
                    self.id(payment.credit.as_bytes());
                    self.number(payment.amount.0);
                    self.text(&payment.memo);
                }
                self.number(u64::from(settle.next.is_some()));
                if let Some(next) = &settle.next {
                    self.hold(next);
                }
                3
            }
            Command::Void { hold } => {
                self.id(hold.as_bytes());
                4
            }
            Command::VoidSession { session } => {
                self.id(session.as_bytes());
                5
            }
            Command::VoidExpired { now_ms } => {
                self.number(*now_ms);
                6
            }
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Posted { .. } | Outcome::NothingToVoid => {}
            Outcome::Held { granted, .. } => self.number(granted.0),
            Outcome::Settled { paid, released, next_granted, .. } => {
                self.number(paid.0);
                self.number(released.0);
                self.number(next_granted.0);
            }
            Outcome::Voided { holds, released, .. } => {
                self.number(*holds);
                self.number(released.0);
            }
        }
    }

    fn hold(&mut self, hold: &Hold) {
        self.id(hold.id.as_bytes());
        self.id(hold.account.as_bytes());
        self.number(hold.amount.0);
        self.number(hold.amount_min.0);
        self.id(hold.session.as_bytes());
        self.number(hold.expires_ms);
    }

    fn id(&mut self, id: &[u8; 32]) {
        self.0.extend_from_slice(id);
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn command(&mut self, kind: u8) -> Option<Command> {
        Some(match kind {
            1 => Command::Transfer(Transfer {
                id: TransferId::from_bytes(self.array()?),
                debit: AccountId::from_bytes(self.array()?),
                credit: AccountId::from_bytes(self.array()?),
                amount: NanoAtp(self.number()?),
                memo: self.text()?,
            }),
            2 => Command::Hold(self.hold()?),
            3 => Command::Settle(self.settle()?),
            4 => Command::Void { hold: HoldId::from_bytes(self.array()?) },
            5 => Command::VoidSession { session: SessionId::from_bytes(self.array()?) },
            6 => Command::VoidExpired { now_ms: self.number()? },
            _ => return None,
        })
    }

    fn outcome(&mut self, kind: u8, seq: u64) -> Option<Outcome> {
        Some(match kind {
            1 => Outcome::Posted { seq },
            2 => Outcome::Held { seq, granted: NanoAtp(self.number()?) },
            3 => Outcome::Settled {
                seq,
                paid: NanoAtp(self.number()?),
                released: NanoAtp(self.number()?),
                next_granted: NanoAtp(self.number()?),
            },
            _ => Outcome::Voided { seq, holds: self.number()?, released: NanoAtp(self.number()?) },
        })
    }

    fn settle(&mut self) -> Option<Settle> {
        let hold = HoldId::from_bytes(self.array()?);
        let mut payments = Vec::new();
        // The list grows only as fast as its bytes are there, whatever length it claims.
        for _ in 0..self.number()? {
            payments.push(Payment {
                id: TransferId::from_bytes(self.array()?),
                credit: AccountId::from_bytes(self.array()?),
                amount: NanoAtp(self.number()?),
                memo: self.text()?,
            });
        }
        let next = match self.number()? {
            0 => None,
            1 => Some(self.hold()?),
            _ => return None,
        };
        Some(Settle { hold, payments, next })
    }

    fn hold(&mut self) -> Option<Hold> {
        Some(Hold {
            id: HoldId::from_bytes(self.array()?),
            account: AccountId::from_bytes(self.array()?),
            amount: NanoAtp(self.number()?),
            amount_min: NanoAtp(self.number()?),
            session: SessionId::from_bytes(self.array()?),
            expires_ms: self.number()?,
        })
    }

    fn text(&mut self) -> Option<String> {
        let bytes = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold() -> Hold {
        Hold {
            id: HoldId::from_bytes([7; 32]),
            account: AccountId::from_bytes([2; 32]),
            amount: NanoAtp(50),
            amount_min: NanoAtp(1),
            session: SessionId::from_bytes([9; 32]),
            expires_ms: 77,
        }
    }

    fn every_kind() -> Vec<(Command, Outcome)> {
        let account = |byte| AccountId::from_bytes([byte; 32]);
        let transfer = Transfer {
            id: TransferId::from_bytes([4; 32]),
            debit: account(1),
            credit: account(2),
            amount: NanoAtp(100),
            memo: "größer".into(),
        };
        let payment = Payment {
            id: TransferId::from_bytes([5; 32]),
            credit: account(3),
            amount: NanoAtp(8),
            memo: String::new(),
        };
        let settle = Settle { hold: hold().id, payments: vec![payment], next: Some(hold()) };
        let voided = |seq| Outcome::Voided { seq, holds: 1, released: NanoAtp(50) };
        vec![
            (Command::Transfer(transfer), Outcome::Posted { seq: 1 }),
            (Command::Hold(hold()), Outcome::Held { seq: 2, granted: NanoAtp(50) }),
            (
                Command::Settle(settle),
                Outcome::Settled {
                    seq: 3,
                    paid: NanoAtp(8),
                    released: NanoAtp(42),
                    next_granted: NanoAtp(50),
                },
            ),
            (Command::Void { hold: hold().id }, voided(4)),
            (Command::VoidSession { session: hold().session }, voided(5)),
            (Command::VoidExpired { now_ms: 78 }, voided(6)),
        ]
    }

    fn chained() -> Vec<Row> {
        let mut head = Head::empty(AccountId::from_bytes([1; 32]));
        let mut rows = Vec::new();
        for (command, outcome) in every_kind() {
            let row = Row::following(head, 1_000 + head.seq, &command, &outcome);
            head = row.head();
            rows.push(row);
        }
        rows
    }

    /// Journals outlive the program: whoever makes this fail must raise the schema version.
    #[test]
    fn golden_chain() {
        let hashes: Vec<_> = chained().iter().map(|row| row.hash.to_string()).collect();
        assert_eq!(hashes, GOLDEN);
    }

    const GOLDEN: [&str; 6] = [
        "eb616ce99d95cf1184a0eb1fb24a4de216fc8b312609c22799f28f21f302bbe9",
        "fd84f9471a2ac6691ae6d56682ce10efca437e28b8851de6ebb840b3feb56d24",
        "2fff5e4727a04f72d99b55ffec8c7a081df3332ffb6609fb6b05a7c29ea7966c",
        "84cfb0f18361ea1b1dd84afb43054e670454a0b6ec0587756b43c2a46bbb2540",
        "f10101fce166ffa387f2901dfe723f28e3448b2ebb747f16714619f91862c48c",
        "2b7e617a0ef40b6eb759b987e86eeea6901c7c536ecf23aee6b5c44ae15791bd",
    ];

    #[test]
    fn round_trip_and_no_other_encoding() {
        for (row, expect) in chained().iter().zip(every_kind()) {
            assert_eq!(row.decode(), Some(expect));
            for cut in 0..row.content.len() {
                let short = Row { content: row.content[..cut].to_vec(), ..row.clone() };
                assert_eq!(short.decode(), None, "kind {} cut to {cut}", row.kind);
            }
            let mut long = row.clone();
            long.content.push(0);
            assert_eq!(long.decode(), None, "kind {}", row.kind);
        }
    }

    #[test]
    fn hash_covers_every_field() {
        for row in chained() {
            let check =
                |altered: Row| assert_ne!(altered.computed_hash(), row.hash, "kind {}", row.kind);
            check(Row { seq: row.seq + 1, ..row.clone() });
            check(Row { time_ms: row.time_ms + 1, ..row.clone() });
            check(Row { kind: row.kind + 1, ..row.clone() });
            check(Row { prev_hash: row.hash, ..row.clone() });
            for position in 0..row.content.len() {
                let mut altered = row.clone();
                altered.content[position] ^= 1;
                check(altered);
            }
        }
    }
}
