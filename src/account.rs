//! What became of a message on a device: exactly one state, with its reason, its time, and what to do next. Made once, here, from what the store
//! knows; the admin port, a router link and `inspect` only show it.
//!
//! The push record says which state; when that was stands in the journal, which is read for it within bounds. Of a device that isn't known (any
//! more) the journal alone knows, for as long as it is kept.

mod advice;

pub use advice::{WHAT_TO_DO, what_to_do, what_to_do_about_batch};

use self::advice::LATE;
use crate::push::{Failure, Millis, Refusal, TargetState};
use crate::store::{Happened, History, OnDevice, What};

/// What a pending message waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// The device isn't connected.
    Connection,
    /// It was written, and isn't acknowledged yet.
    InFlight,
    /// Messages before it aren't acknowledged yet.
    Window,
}

impl Waiting {
    /// Of a pending message.
    pub fn of(connected: bool, written: bool) -> Self {
        match (connected, written) {
            (false, _) => Self::Connection,
            (true, true) => Self::InFlight,
            (true, false) => Self::Window,
        }
    }

    /// The word for it in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connection => "waiting_for_connection",
            Self::InFlight => "in_flight",
            Self::Window => "waiting_for_window",
        }
    }
}

/// When it was, as exactly as is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// Then.
    At(Millis),
    /// Its record is gone, or lies beyond what is read for one question.
    Between(Millis, Millis),
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// The one state.
    pub state: TargetState,
    /// When that began. `None`: it never was a target.
    pub when: Option<When>,
    /// When it was first written to a connection, if that is known.
    pub sent_at: Option<Millis>,
    /// It was acknowledged after it had ended, which changed nothing.
    pub late: bool,
    /// It was refused too, for these reasons.
    pub refused: Vec<Refusal>,
    /// What the store knows.
    pub on: OnDevice,
}

impl Account {
    /// `lived`: from the acceptance of the message to its expiry, or to now.
    pub fn new(on: OnDevice, history: &History, lived: (Millis, Millis)) -> Self {
        let mut refused: Vec<Refusal> =
            Refusal::ALL.into_iter().filter(|why| on.refused[*why as usize - 1]).collect();
        for why in history.events.iter().filter_map(|event| event.what.refusal()) {
            if !refused.contains(&why) {
                refused.push(why);
            }
        }
        let state = match on.state {
            TargetState::NotATarget => told(&history.events, &refused),
            known => known,
        };
        let last = |right: &dyn Fn(&What) -> bool| {
            history.events.iter().rev().find(|event| right(&event.what)).map(|event| event.at)
        };
        let at = match state {
            TargetState::NotATarget => None,
            TargetState::Pending => on.accepted_at.or_else(|| last(&|what| *what == What::Accepted)),
            TargetState::Refused(why) => last(&|what| what.refusal() == Some(why)),
            TargetState::Arrived => last(&|what| *what == What::Arrived),
            TargetState::Failed(why) => last(&|what| *what == What::Failed(why)),
        };
        let between = || {
            let (from, to) = lived;
            // What was looked at has it not: it lies before that, or behind.
            let to = if history.is_cut { to.max(history.to) } else { history.from.clamp(from, to.max(from)) };
            When::Between(from, to)
        };
        let when = (state != TargetState::NotATarget).then(|| at.map_or_else(between, When::At));
        let sent = history.events.iter().find_map(|event| event.sent_at);
        let late = on.late || history.events.iter().any(|event| event.what == What::Late);
        Self { state, when, sent_at: on.sent_at.or(sent), late, refused, on }
    }

    /// The word for why, if the state has one.
    pub fn reason(&self, connected: bool) -> Option<&'static str> {
        match self.state {
            TargetState::NotATarget | TargetState::Arrived => None,
            TargetState::Refused(why) => Some(why.label()),
            TargetState::Pending => Some(Waiting::of(connected, self.sent_at.is_some()).label()),
            TargetState::Failed(why) => Some(why.label()),
        }
    }

    /// What it had ended with before it was acknowledged.
    pub fn after(&self) -> Option<Failure> {
        match self.state {
            TargetState::Failed(why) if self.late => Some(why),
            _ => None,
        }
    }

    /// What to do next.
    pub fn what_to_do(&self, connected: bool) -> &'static str {
        if self.after().is_some() {
            return LATE;
        }
        what_to_do(self.reason(connected).unwrap_or(self.state.label()))
    }
}

/// The state of who has left no trace in the push record, from what the journal tells.
fn told(events: &[Happened], refused: &[Refusal]) -> TargetState {
    let end = events.iter().rev().find_map(|event| match event.what {
        What::Arrived => Some(TargetState::Arrived),
        What::Failed(why) => Some(TargetState::Failed(why)),
        _ => None,
    });
    end.or_else(|| refused.first().map(|why| TargetState::Refused(*why))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MessageId;

    fn happened(at: Millis, what: What) -> Happened {
        Happened { at, what, message: MessageId(1), sent_at: None }
    }

    #[test]
    fn the_push_record_says_what_and_the_journal_when() {
        let on = OnDevice { state: TargetState::Failed(Failure::Expired), ..OnDevice::default() };
        let events = vec![happened(5, What::Accepted), happened(9, What::Failed(Failure::Expired))];
        let history = History { events, from: 1, to: 20, is_cut: false };
        let account = Account::new(on, &history, (5, 9));
        assert_eq!((account.when, account.reason(true)), (Some(When::At(9)), Some("expired")));
        let trimmed = History { events: Vec::new(), from: 8, to: 20, is_cut: false };
        assert_eq!(Account::new(on, &trimmed, (5, 9)).when, Some(When::Between(5, 8)));
    }

    #[test]
    fn of_a_device_that_is_not_known_the_journal_tells() {
        let unknown = OnDevice::default();
        let history = |what| History { events: vec![happened(7, what)], from: 1, to: 9, is_cut: false };
        let refused = Account::new(unknown, &history(What::Refused(Refusal::DeviceUnknown)), (1, 9));
        assert_eq!(refused.state, TargetState::Refused(Refusal::DeviceUnknown));
        assert_eq!(refused.when, Some(When::At(7)));
        let forgotten = Account::new(unknown, &history(What::Failed(Failure::Forgotten)), (1, 9));
        assert_eq!(forgotten.state, TargetState::Failed(Failure::Forgotten));
        let none = Account::new(unknown, &History::default(), (1, 9));
        assert_eq!((none.state, none.when), (TargetState::NotATarget, None));
    }

    #[test]
    fn an_acknowledgement_behind_the_end_is_late() {
        let on = OnDevice { state: TargetState::Failed(Failure::Revoked), late: true, ..OnDevice::default() };
        let account = Account::new(on, &History::default(), (1, 9));
        assert_eq!((account.after(), account.what_to_do(true)), (Some(Failure::Revoked), LATE));
    }
}
