//! Machines that wait here, and peers that want to be connected to them.
//!
//! A peer that asks for a machine gets a token, which that machine is told, and comes with. From then on a thread
//! carries their bytes, which are a session of theirs and nobody else's. Who may wait or ask is the nucleus'
//! to say.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use cell_abi::AccountId;
use cell_peer::{Answer, Pace, Records, Session, TOKEN_BYTES, Token, splice};

use super::limits::{
    MACHINES_WAITING_MAX, MEETING_TIME_MAX, MEETINGS_MAX, MEETINGS_PER_MACHINE_MAX,
    MEETINGS_PER_PAIR_MAX, RELAYED, RELAYED_TO, STRANGER_MEETINGS_PER_MACHINE_MAX,
};
use super::sessions::{Counted, Sessions};

/// What is passed on, and for whom.
pub(super) struct Relay {
    machines: BTreeMap<AccountId, Party>,
    meetings: HashMap<Token, Meeting>,
    /// Connections by who asked for them, and by whom they are to.
    askers: Sessions,
    asked: Sessions,
    /// How fast those are, together with sessions.
    pace: Arc<Pace>,
}

/// A peer that has shaken hands with this machine, and what it says.
pub(super) struct Party {
    pub(super) stream: TcpStream,
    pub(super) session: Session,
    /// What came and is not of the session, if that is over.
    pub(super) records: Records,
}

/// A peer that waits until a machine comes.
struct Meeting {
    asker: Party,
    is_known: bool,
    machine: AccountId,
    since: Instant,
    counted: [Counted; 2],
}

impl Relay {
    pub(super) fn new(pace: Arc<Pace>) -> Self {
        Self {
            machines: BTreeMap::new(),
            meetings: HashMap::new(),
            askers: Sessions::new(RELAYED),
            asked: Sessions::new(RELAYED_TO),
            pace,
        }
    }

    /// The connections of the machines that wait.
    pub(super) fn streams(&self) -> impl Iterator<Item = (AccountId, &TcpStream)> {
        self.machines.iter().map(|(key, machine)| (*key, &machine.stream))
    }

    /// Lets a machine wait; one that did so before does it over this connection from now on.
    pub(super) fn wait(&mut self, mut machine: Party) {
        let key = machine.session.peer();
        if self.machines.len() >= MACHINES_WAITING_MAX && !self.machines.contains_key(&key) {
            return machine.refuse("too many machines wait at this one; try again later");
        }
        // It has nothing more to say.
        if machine.records.is_empty() && machine.answer(&Answer::Yes) {
            self.machines.insert(key, machine);
        }
    }

    /// A machine that waits says something, or is gone: either way it waits no more.
    pub(super) fn gone(&mut self, machine: AccountId) {
        self.machines.remove(&machine);
    }

    /// Tells a machine that this peer wants it; or tells the peer why not.
    pub(super) fn through(&mut self, machine: AccountId, mut asker: Party, is_known: bool) {
        let peer = asker.session.peer();
        let counted = match self.enter(machine, peer, is_known) {
            Ok(counted) => counted,
            Err(why) => return asker.refuse(&why),
        };
        let mut token = [0; TOKEN_BYTES];
        if getrandom::fill(&mut token).is_err() {
            return asker.refuse("this machine has no random numbers");
        }
        let told = self.machines.get_mut(&machine).is_some_and(|machine| machine.say(&token));
        if !told {
            // It does not take what it waits for.
            self.machines.remove(&machine);
            return asker.refuse(&is_not_here(machine));
        }
        let since = Instant::now();
        self.meetings.insert(token, Meeting { asker, is_known, machine, since, counted });
    }

    /// Counts one more for a machine, if it waits and nobody has too many.
    fn enter(
        &self,
        machine: AccountId,
        peer: AccountId,
        is_known: bool,
    ) -> Result<[Counted; 2], String> {
        if !self.machines.contains_key(&machine) {
            return Err(is_not_here(machine));
        }
        let of_machine = || self.meetings.values().filter(|meeting| meeting.machine == machine);
        let of_pair = of_machine().filter(|meeting| meeting.asker.session.peer() == peer).count();
        let of_strangers = of_machine().filter(|meeting| !meeting.is_known).count();
        let fits = of_pair < MEETINGS_PER_PAIR_MAX
            && (is_known || of_strangers < STRANGER_MEETINGS_PER_MACHINE_MAX)
            && of_machine().count() < MEETINGS_PER_MACHINE_MAX
            && self.meetings.len() < MEETINGS_MAX;
        if !fits {
            return Err("too many wait for that machine here; try again later".into());
        }
        let counted = self.askers.enter(peer, is_known).zip(self.asked.enter(machine, true));
        let (asker, asked) =
            counted.ok_or("too many connections are passed on here; try again later")?;
        Ok([asker, asked])
    }

    /// A machine comes for whom this token stands for: the two are one connection from here on.
    pub(super) fn meet(&mut self, token: &Token, mut machine: Party) {
        let is_its = |meeting: &Meeting| meeting.machine == machine.session.peer();
        if !self.meetings.get(token).is_some_and(is_its) {
            return machine.refuse("nobody waits for you with this token");
        }
        let Some(Meeting { mut asker, counted, .. }) = self.meetings.remove(token) else { return };
        if !machine.answer(&Answer::Yes) || !asker.answer(&Answer::Yes) {
            return;
        }
        let pace = Arc::clone(&self.pace);
        // Without a thread both connections are closed, and their ends see that.
        let _ =
            thread::Builder::new().name("splice".into()).stack_size(256 << 10).spawn(move || {
                let _counted = counted;
                let asker = (&asker.stream, asker.records.into_rest());
                let machine = (&machine.stream, machine.records.into_rest());
                let _ = splice::run(asker, machine, &pace);
            });
    }

    /// Tells those for whom nobody came.
    pub(super) fn tick(&mut self, now: Instant) {
        let late = |meeting: &Meeting| now.duration_since(meeting.since) >= MEETING_TIME_MAX;
        for (_, mut meeting) in self.meetings.extract_if(|_, meeting| late(meeting)) {
            let machine = meeting.machine;
            meeting.asker.refuse(&format!("{machine} waits here, and did not come; try again"));
        }
    }
}

fn is_not_here(machine: AccountId) -> String {
    format!(
        "{machine} does not wait here now; on that machine, `cell peer list` says whether it does, and why not"
    )
}

impl Party {
    /// Sends content; `false` if it is not taken at once. A few hundred bytes fit the buffer of a connection
    /// whose end takes what it is sent.
    fn say(&mut self, content: &[u8]) -> bool {
        let mut bytes = Vec::new();
        self.session.seal(content, &mut bytes).is_ok() && self.stream.write_all(&bytes).is_ok()
    }

    pub(super) fn answer(&mut self, answer: &Answer) -> bool {
        self.say(&answer.encode())
    }

    /// Tells a peer why not; one that does not take it sees that the connection ends.
    pub(super) fn refuse(&mut self, why: &str) {
        let _ = self.answer(&Answer::No(why.to_owned()));
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
