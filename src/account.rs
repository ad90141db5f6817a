//! What became of a message on a device: exactly one state, with its reason, its time, and what to do next. Made once, here, from what the store
//! knows; the admin port, a router link and `inspect` only show it.
//!
//! The push record says which state; when that was stands in the journal, which is read for it within bounds. Of a device that isn't known (any
//! more) the journal alone knows, for as long as it is kept.

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

const LATE: &str = "nothing: the device has it after all, but its outcome was final; allow a longer retention if this is frequent";

/// One plain sentence for every word that says why, over all closed lists: what to do next.
pub const WHAT_TO_DO: [(&str, &str); 37] = [
    (
        "not_a_target",
        "check the app key, the message id and the device id: no batch of this message that is on record named this device",
    ),
    // Pending.
    (
        "waiting_for_connection",
        "nothing: it goes out when the device connects; look at the device's last_active if that takes long",
    ),
    (
        "in_flight",
        "nothing: it was written and is sent again if no acknowledgement comes; see whether the app acknowledges",
    ),
    (
        "waiting_for_window",
        "nothing: it follows when the device has acknowledged the messages before it; see whether the app acknowledges",
    ),
    ("arrived", "nothing: the device has stored it"),
    // Refused.
    ("device_unknown", "have the device connect once to this edge, or send to the edge that it belongs to"),
    ("push_disabled", "respect it: the user has switched push off; ask them in the app to switch it on"),
    (
        "duplicate",
        "nothing: the same message to the same device was taken or answered before; name each device once",
    ),
    // Refused or failed.
    ("offline", "use another channel for it, or send it with a retention and the offline policy `store`"),
    (
        "over_quota",
        "send less to this device, or raise the app's max_pending_per_device or max_pending_bytes_per_device",
    ),
    // Failed.
    (
        "expired",
        "send a new message if it still matters, with a longer retention; see when the device was last active",
    ),
    (
        "unacknowledged",
        "send it with a retention if it has to arrive: the device was connected and did not answer in the online window",
    ),
    ("revoked", "nothing: the message was taken back with Revoke"),
    ("replaced", "nothing: a newer message with its collapse key took its place; look at that one"),
    ("forgotten", "drop this device from your lists: it was unseen for longer than store.forget_after"),
    ("unbound", "resolve the account again: this device is bound to it no more"),
    ("reinstalled", "send again what a fresh installation should have: the app was installed anew"),
    ("storage", "send it again, and look at the log and the disk: its record was damaged"),
    ("late", LATE),
    // Batches.
    ("invalid", "correct the field that the answer names; don't repeat it as it is"),
    ("unknown_app", "add the app to [[apps]] and to this router's rights, or send to another edge"),
    (
        "batch_expired",
        "make a new batch: created_at + retention has passed; see whether the router is late or its clock wrong",
    ),
    ("payload_too_large", "shorten title, body and extras to 4,000 bytes"),
    ("no_targets", "name at least one device"),
    ("too_many_targets", "split it into batches of at most Opened.max_targets"),
    ("batch_conflict", "use a new batch id: this one was used with other content"),
    (
        "message_conflict",
        "use a new message id: this one was used with another body, priority or collapse key",
    ),
    (
        "too_old",
        "ask with Query what became of the message before making a new batch: this one may have been taken",
    ),
    (
        "resource_exhausted",
        "repeat it unchanged after the delay; if that goes on, read the stream, or raise what the text names",
    ),
    (
        "unavailable",
        "repeat it unchanged after the delay; if that goes on, see whether the edge's disk is full",
    ),
    ("app_suspended", "wait until the app is resumed, or resume it"),
    ("unimplemented", "leave the field out, or use an edge that does what it asks for"),
    // Sessions.
    (
        "unmatched",
        "nothing, if it is rare: the push record is gone, or this edge never sent that message to this device",
    ),
    // Receipts.
    ("accepted", "nothing: it is kept until it arrives or its end is reported"),
    ("sent", "nothing: it was written to the device's connection"),
    ("click", "nothing: the user has opened it"),
    ("clean", "nothing: the user has dismissed it"),
];

/// What to do about this word; `expired` of a batch is `batch_expired`.
pub fn what_to_do(word: &str) -> &'static str {
    // A test goes through all closed lists.
    WHAT_TO_DO
        .iter()
        .find(|(known, _)| *known == word)
        .map_or("look at the log of the edge", |(_, todo)| todo)
}

/// What to do about a rejected batch, by the code's word.
pub fn what_to_do_about_batch(code: &str) -> &'static str {
    what_to_do(if code == "expired" { "batch_expired" } else { code })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::ids::MessageId;
    use crate::wire::pb::router::RejectCode;

    fn has_advice(word: &str) -> bool {
        WHAT_TO_DO.iter().any(|(known, todo)| *known == word && !todo.is_empty())
    }

    #[test]
    fn every_word_of_the_closed_lists_has_one_sentence() {
        let words: HashSet<&str> = WHAT_TO_DO.iter().map(|(word, _)| *word).collect();
        assert_eq!(words.len(), WHAT_TO_DO.len(), "each once");
        assert!(Refusal::ALL.into_iter().all(|why| has_advice(why.label())));
        assert!(Failure::ALL.into_iter().all(|why| has_advice(why.label())));
        let codes = (1..=13).map(|code| RejectCode::try_from(code).expect("a code"));
        for code in codes {
            let word = code.as_str_name().trim_start_matches("REJECT_CODE_").to_lowercase();
            assert!(has_advice(if word == "expired" { "batch_expired" } else { &word }), "{word}");
            assert_ne!(what_to_do_about_batch(&word), what_to_do("no such word"), "{word}");
        }
        assert!(RejectCode::try_from(14).is_err(), "a new code needs a sentence");
        for waiting in [Waiting::Connection, Waiting::InFlight, Waiting::Window] {
            assert!(has_advice(waiting.label()));
        }
    }

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
