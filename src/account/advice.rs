//! What to do next about every word that says why.

/// Of what was acknowledged after its end.
pub(super) const LATE: &str = "nothing: the device has it after all, but its outcome was final; allow a longer retention if this is frequent";

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
    ("forgotten", "drop this device from your lists: it was unseen for longer than store.forget_after_s"),
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
    use crate::account::Waiting;
    use crate::push::{Failure, Refusal};
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
}
