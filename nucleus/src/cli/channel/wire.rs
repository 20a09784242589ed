//! What is said about channels: one JSON object a line, over a session's socket.

use std::io::{BufRead, ErrorKind, Read as _, Write};

use anyhow::{Context as _, bail};
use cell_channel::{
    Accept, Claim, Close, CloseRequest, Closed, Funded, Leaf, Open, Quote, Receipt, Resync, Signed,
    Standing, Voucher,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest line, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 256 << 10;
/// Leaves in one message.
pub(super) const LEAVES_MAX: usize = 256;

/// To the machine that is paid.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum ToPayee {
    /// What does it cost?
    Quote,
    /// By that quote, and with this money set aside.
    Open(Box<Opening>),
    /// Which channels of mine are there?
    Channels,
    /// Go on with a channel, of which the payer knows so many leaves.
    Resume { channel: String, leaves: u64 },
    /// Work on, up to here.
    Voucher(Signed<Voucher>),
    /// Sign a last bill when nothing is under way any more.
    Bill,
    /// Pay that, and give the rest back.
    Close(Signed<Close>),
}

/// To the machine that pays.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum ToPayer {
    Quote(Signed<Quote>),
    Accepted(Signed<Accept>),
    /// Work goes on up to here.
    Credited {
        ceiling_nano: u64,
    },
    /// Leaves of the next bill that comes, or of what is shown next.
    Leaves(Vec<Leaf>),
    /// The bill; the last one, if that was asked for.
    Bill {
        receipt: Signed<Receipt>,
        is_last: bool,
    },
    /// Those that are not over.
    Channels(Vec<String>),
    /// There is nothing to bill.
    NothingToBill,
    /// All that the payee has of the channel.
    Shown(Box<Shown>),
    /// It is closed, and stands so at its ledger.
    Closed(Standing),
    /// That is not done.
    Refused(String),
}

/// With what a channel is opened.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Opening {
    pub(super) quote: Signed<Quote>,
    pub(super) open: Signed<Open>,
    pub(super) funded: Signed<Funded>,
}

/// What the payee has of a channel.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shown {
    pub(super) quote: Signed<Quote>,
    pub(super) open: Signed<Open>,
    pub(super) last: Resync,
}

/// To a ledger's machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum ToEscrow {
    Fund(Signed<Open>),
    Claim(Claim),
    Close { open: Signed<Open>, closed: Closed },
    RequestClose { open: Signed<Open>, request: Signed<CloseRequest> },
    Standing(Signed<Open>),
}

/// From a ledger's machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum FromEscrow {
    Funded(Signed<Funded>),
    Standing(Standing),
    Refused(String),
    /// Nobody knows whether that is done; ask again.
    Unavailable,
}

/// Writes one message.
pub(super) fn write(to: &mut impl Write, message: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line).context("speak with the other machine")
}

/// Reads one message; `None` where the connection ends.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl BufRead) -> anyhow::Result<Option<T>> {
    let mut line = Vec::new();
    loop {
        match from.take(LINE_BYTES_MAX as u64 + 1 - line.len() as u64).read_until(b'\n', &mut line)
        {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("hear from the other machine"),
        }
    }
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        bail!("the other machine's message is cut, or longer than {LINE_BYTES_MAX} bytes");
    }
    serde_json::from_slice(&line).map(Some).context("the other machine's message is none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut bytes = Vec::new();
        write(&mut bytes, &ToPayee::Bill).unwrap();
        write(&mut bytes, &ToPayee::Resume { channel: "ab".into(), leaves: 7 }).unwrap();
        let mut from = bytes.as_slice();
        assert!(matches!(read(&mut from).unwrap(), Some(ToPayee::Bill)));
        assert!(matches!(read(&mut from).unwrap(), Some(ToPayee::Resume { leaves: 7, .. })));
        assert!(read::<ToPayee>(&mut from).unwrap().is_none());
        let long = [vec![b' '; LINE_BYTES_MAX], b"\"bill\"\n".to_vec()].concat();
        for wrong in [&b"\"bill\""[..], b"\n", b"{}\n", b"\xff\n", b"{\"bill\":1}\n", &long] {
            assert!(read::<ToPayee>(&mut &*wrong).is_err(), "{:?}", wrong.get(..10));
        }
    }
}
