//! Claiming what other machines owe, for channels that no teller works with.

use cell_abi::NanoAtp;
use cell_channel::{Payee, Reason, Standing};
use cell_ledger::ContentHash;
use cell_peer::tunnel::now_s;

use super::books::{Books, within};
use super::store::{Kept, Side, Store};
use super::wire::ToEscrow;
use super::{escrow, hot_key};
use crate::bank::Bank;
use crate::home::Home;

/// Bills and claims what was done for every channel that nobody works with, if it was not paid yet.
pub(super) fn claim_all(
    home: &Home,
) -> anyhow::Result<Vec<(ContentHash, anyhow::Result<Standing>)>> {
    let (store, bank, mut told) = (Store::open(home)?, Bank::open(home)?, Vec::new());
    for kept in store.all()? {
        let channel = kept.open().channel();
        if kept.pays().is_none() {
            let Some(_lock) = store.lock(channel)? else { continue };
            // It may have been worked with until now.
            let Some(kept) = store.read(channel)? else { continue };
            if let Some(standing) = claim_one(home, &store, &bank, kept).transpose() {
                told.push((channel, standing));
            }
        }
    }
    Ok(told)
}

/// `None` if there is nothing to claim.
fn claim_one(
    home: &Home,
    store: &Store,
    bank: &Bank,
    kept: Kept,
) -> anyhow::Result<Option<Standing>> {
    let Kept { ledger, side: Side::IsPaid { record }, standing } = kept else { return Ok(None) };
    let is_over = standing.is_some_and(|standing| !standing.is_open);
    let open = record.open.clone();
    let mut payee = Payee::resume(record, hot_key(&home.key()?, None));
    let mut books = Books::open(bank, payee.channel())?;
    // What was lent and not given back, because this machine fell in between.
    books.give_back(bank)?;
    if is_over {
        return Ok(None);
    }
    let billed = payee.record().last.leaves();
    let new = books.leaves.get(usize::try_from(billed)?..).unwrap_or_default();
    let new = within(new, payee.ceiling().saturating_sub(payee.charge()));
    // What is under way is billed when it has ended.
    if !new.is_empty()
        && books.held(bank)? == NanoAtp::ZERO
        && let Err(error) = payee.bill(&new, Reason::Preempted)
    {
        // What was billed before is claimed all the same.
        tracing::error!(%error, "bill a channel's last work");
    }
    let keep = |standing| {
        let side = Side::IsPaid { record: payee.record().clone() };
        store.write(&Kept { ledger: ledger.clone(), side, standing })
    };
    keep(standing)?;
    let paid = standing.map_or(0, |standing| standing.paid_nano);
    let is_unpaid = payee.charge().0 > paid;
    let is_late = now_s() > open.body.expires_s.saturating_add(open.body.dispute_s);
    let asked = match payee.claim().filter(|_| is_unpaid && !is_late) {
        Some(claim) => ToEscrow::Claim(claim),
        None if is_late => ToEscrow::Standing(open.clone()),
        None => return Ok(None),
    };
    let standing = escrow::standing(home, &ledger, asked).or_else(|error| {
        // It may be closed, or its time over; then it is not asked again.
        let now = escrow::standing(home, &ledger, ToEscrow::Standing(open))?;
        if now.is_open { Err(error) } else { Ok(now) }
    })?;
    keep(Some(standing))?;
    Ok(Some(standing))
}
