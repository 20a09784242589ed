//! What a connection has opened: receptors of its cell, each with the way its calls go.

use std::sync::Arc;

use cell_abi::{AccountId, Fingerprint, Header, Open, Status};

use super::call::{Ended, Route, refusal};
use super::cells::{Cells, Entry};
use super::purse::Purse;

/// Receptors one connection may have open.
pub(super) const SLOTS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) receptor: u16,
    pub(super) fingerprint: Fingerprint,
    pub(super) route: Arc<Route>,
}

/// Who is connected to which cell, and who pays.
#[derive(Debug)]
pub(super) struct Party {
    pub(super) cells: Arc<Cells>,
    pub(super) entry: Arc<Entry>,
    pub(super) purse: Arc<Purse>,
    pub(super) payer: AccountId,
    /// Tells this connection from the worker's others.
    pub(super) caller: u64,
}

impl Party {
    /// Opens a receptor as one more slot; the answer says which, or why not.
    pub(super) fn open(&self, asked: &Header, open: &Open, slots: &mut Vec<Slot>) -> Ended {
        self.try_open(asked, open, slots)
            .unwrap_or_else(|(status, message)| refusal(asked, status, message))
    }

    fn try_open(
        &self,
        asked: &Header,
        open: &Open,
        slots: &mut Vec<Slot>,
    ) -> Result<Ended, (Status, Vec<u8>)> {
        let refuse = |status: Status| (status, Vec::new());
        if open.cell != self.entry.name {
            return Err(refuse(Status::UnknownCell));
        }
        let serving = self.entry.serving().ok_or_else(|| refuse(Status::Gone))?;
        let interface = &serving.interface;
        let Some((number, receptor)) = interface.find(open.receptor.as_str()) else {
            let known: Vec<_> = interface.receptors().iter().map(|r| r.name.as_str()).collect();
            return Err((
                Status::UnknownReceptor,
                format!("the cell has: {}", known.join(", ")).into_bytes(),
            ));
        };
        if open.fingerprint != Fingerprint::UNTYPED && open.fingerprint != receptor.fingerprint {
            return Err((Status::SchemaMismatch, receptor.schema.clone().into_bytes()));
        }
        if slots.len() >= SLOTS_MAX {
            return Err((
                Status::Busy,
                format!("a connection may open {SLOTS_MAX} receptors").into_bytes(),
            ));
        }
        let mut opened = refusal(asked, Status::Ok, receptor.schema.clone().into_bytes());
        opened.header.slot = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        opened.header.receptor = number;
        let route = Arc::new(Route {
            cells: Arc::clone(&self.cells),
            entry: Arc::clone(&self.entry),
            meter: self.purse.meter(&self.entry.name),
            payer: self.payer,
            caller: self.caller,
        });
        slots.push(Slot { receptor: number, fingerprint: receptor.fingerprint, route });
        Ok(opened)
    }
}
