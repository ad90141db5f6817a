//! What the admin port answers, as JSON. `mooring inspect` reads it; so names here are an interface.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::Connection;
use crate::account::{Account, When, what_to_do};
use crate::binding::Bindings;
use crate::budget::{Budget, Part, State};
use crate::credential::Revocation;
use crate::ids::{AppKey, MessageId};
use crate::push::{Counts, Failure, Refusal, TargetState};
use crate::store::{DayStats, DeviceState, Happened, History, MessageState};
use crate::wire::attributes;

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Problem {
    NoSuchPath,
    NoSuchMethod,
    NoAppKey,
    NoMessageId,
    NoDeviceId,
    NoDays,
    NoSequence,
    NoWait,
    /// As many as may wait for the journal to go on.
    ManyWait,
    UnknownMessage,
    NotOpen,
    Busy,
    Unanswered,
    /// A write without the token.
    NoToken,
    /// A write with another one.
    WrongToken,
    /// Not an app of this edge.
    ForeignApp,
    /// As many devices as may be are revoked one by one.
    TooManyRevoked,
    /// The disk is full.
    NoRoom,
    /// The body isn't what it should be: why.
    Body(String),
    /// It can't be done: the status, why, and what to do.
    Refused(StatusCode, String, &'static str),
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, error, what_to_do) = match self {
            Self::NoSuchPath => (
                StatusCode::NOT_FOUND,
                "no such path",
                "use /metrics, /healthz, /readyz, /v1/totals, /v1/message/{app}/{id}, /v1/device/{app}/{device_id}, /v1/stats/{app}, /v1/shards, /v1/memory, /v1/streams or /v1/apps; changes are POST to /v1/apps/{app}/suspend, …/resume or …/rates, /v1/streams/{name}/retire and /v1/device/{app}/{device_id}/revoke",
            ),
            Self::NoSuchMethod => (
                StatusCode::METHOD_NOT_ALLOWED,
                "no such method",
                "use GET to read, POST to change something",
            ),
            Self::NoAppKey => {
                (StatusCode::BAD_REQUEST, "not an app key", "use 1 to 32 letters, digits, - _ . :")
            }
            Self::NoMessageId => (StatusCode::BAD_REQUEST, "not a message id", "use a decimal number from 1"),
            Self::NoDays => (StatusCode::BAD_REQUEST, "not a number of days", "use 1 to 30"),
            Self::NoSequence => {
                (StatusCode::BAD_REQUEST, "not a sequence", "use the `sequence` of an answer, or 0")
            }
            Self::NoWait => (StatusCode::BAD_REQUEST, "not a time to wait", "use 1 to 5 seconds"),
            Self::ManyWait => (
                StatusCode::SERVICE_UNAVAILABLE,
                "as many requests wait for the journal as may",
                "ask without `after`, or try again in a second",
            ),
            Self::NoDeviceId => (StatusCode::BAD_REQUEST, "not a device id", "use 1 to 64 bytes"),
            Self::UnknownMessage => (
                StatusCode::NOT_FOUND,
                "no push record of this message",
                "check app key and message id; records are kept for a time, and none is made for a refused batch",
            ),
            Self::NotOpen => {
                (StatusCode::SERVICE_UNAVAILABLE, "the store isn't open", "wait until /readyz answers 200")
            }
            Self::Busy => {
                (StatusCode::SERVICE_UNAVAILABLE, "the queue to the store is full", "try again in a second")
            }
            Self::Unanswered => (
                StatusCode::GATEWAY_TIMEOUT,
                "the store didn't answer in time",
                "try again; if it stays so, look at mooring_commit_seconds and the log",
            ),
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "changes need the admin token",
                "send `Authorization: Bearer TOKEN`; it is in the file admin.token of the edge's data directory",
            ),
            Self::WrongToken => (
                StatusCode::UNAUTHORIZED,
                "this token isn't the edge's",
                "the right one is in the file admin.token of the edge's data directory",
            ),
            Self::Refused(status, error, what_to_do) => return said(status, &error, what_to_do),
            Self::ForeignApp => (
                StatusCode::NOT_FOUND,
                "not an app of this edge",
                "look at [[apps]] in its configuration, or ask another edge",
            ),
            Self::TooManyRevoked => (
                StatusCode::INSUFFICIENT_STORAGE,
                "too many devices are revoked one by one",
                "raise the app's epoch twice in the configuration: that revokes all that don't renew in between",
            ),
            Self::NoRoom => (
                StatusCode::INSUFFICIENT_STORAGE,
                "the disk is full: nothing was revoked",
                "free space, or raise store.max_bytes; then try again",
            ),
            Self::Body(error) => return said(StatusCode::BAD_REQUEST, &error, "send a small JSON object"),
        };
        said(status, error, what_to_do)
    }
}

fn said(status: StatusCode, error: &str, what_to_do: &str) -> Response {
    (status, axum::Json(json!({ "error": error, "what_to_do": what_to_do }))).into_response()
}

/// Counts by name; `identity` is whether they add up, targets as well as ends.
fn counts(counts: &Counts) -> Map<String, Value> {
    let by_reason = |names: &mut dyn Iterator<Item = &'static str>, numbers: &[u64]| -> Value {
        names
            .zip(numbers)
            .map(|(name, number)| (name.to_owned(), json!(number)))
            .collect::<Map<_, _>>()
            .into()
    };
    let refused = by_reason(&mut Refusal::ALL.into_iter().map(Refusal::label), &counts.refused);
    let failed = by_reason(&mut Failure::ALL.into_iter().map(Failure::label), &counts.failed);
    [
        ("identity", json!(counts.identity_holds())),
        ("batches", json!(counts.batches)),
        ("targets", json!(counts.targets)),
        ("refused", refused),
        ("accepted", json!(counts.accepted)),
        ("arrived", json!(counts.arrived)),
        ("failed", failed),
        ("pending", json!(counts.pending)),
        ("sent", json!(counts.sent)),
        ("clicked", json!(counts.clicked)),
        ("cleaned", json!(counts.cleaned)),
        ("late", json!(counts.late)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// The budget of memory; what isn't bounded has no marks.
pub(super) fn memory(budget: &Budget) -> Value {
    let parts = Part::ALL.iter().map(|part| (part.label().to_owned(), json!(budget.part(*part))));
    json!({
        "budget_bytes": budget.bytes(),
        "used_bytes": budget.used(),
        "state": budget.look().label(),
        "caches_give_way_at_bytes": budget.mark(State::Tight),
        "batches_refused_at_bytes": budget.mark(State::Full),
        "sessions_refused_at_bytes": budget.mark(State::Over),
        "parts": parts.collect::<Map<_, _>>(),
    })
}

pub(super) fn totals(sequence: u64, all: &Counts) -> Value {
    let mut answer = counts(all);
    answer.insert("sequence".into(), json!(sequence));
    answer.into()
}

/// Today first. A day's counts don't add up by themselves: what is accepted on one day may arrive on the next.
pub(super) fn stats(sequence: u64, app: &AppKey, days: &[DayStats]) -> Value {
    let day = |day: &DayStats| {
        let mut answer = counts(&day.counts);
        for name in ["identity", "pending"] {
            answer.remove(name);
        }
        answer.insert("day".into(), json!(date(day.day)));
        answer.insert("registered".into(), json!(day.registered));
        answer.insert("active".into(), json!(day.active));
        Value::from(answer)
    };
    let days: Vec<Value> = days.iter().map(day).collect();
    json!({ "sequence": sequence, "app_key": app.as_str(), "days": days })
}

/// The date of a day since 1970-01-01, by the proleptic Gregorian calendar: Howard Hinnant's `civil_from_days`.
pub(crate) fn date(day: u32) -> String {
    let shifted = u64::from(day) + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{of_month:02}")
}

/// Ids are text, as JSON readers round large numbers.
pub(super) fn message(sequence: u64, app: &AppKey, id: MessageId, state: &MessageState) -> Value {
    let mut answer = counts(&state.counts);
    answer.insert("sequence".into(), json!(sequence));
    answer.insert("app_key".into(), json!(app.as_str()));
    answer.insert("message_id".into(), json!(id.to_string()));
    answer.insert("accepted_at".into(), json!(state.accepted_at));
    answer.insert("expires_at".into(), json!(state.expires_at));
    answer.insert("job_key".into(), json!(&*state.job_key));
    answer.into()
}

/// What became of a message on the device that was asked for.
pub(super) fn add_on_device(answer: &mut Value, device_id: &str, connected: bool, account: &Account) {
    let refused = account
        .refused
        .iter()
        .map(|why| json!({ "reason": why.label(), "what_to_do": what_to_do(why.label()) }));
    let mut on = json!({
        "device_id": device_id,
        "connected": connected,
        "state": account.state.label(),
        "reason": account.reason(connected),
        "what_to_do": account.what_to_do(connected),
        "target": account.state.is_accepted(),
        "pending": account.state == TargetState::Pending,
        "arrived": account.state == TargetState::Arrived,
        "failed": matches!(account.state, TargetState::Failed(_)),
        "sent_time": account.sent_at,
        "late": account.late,
        "after": account.after().map(Failure::label),
        "clicked": account.on.clicked,
        "cleaned": account.on.cleaned,
        "refusals": refused.collect::<Vec<_>>(),
    });
    match account.when {
        None => {}
        Some(When::At(at)) => on["time"] = json!(at),
        Some(When::Between(from, to)) => {
            on["time_between"] = json!([from, to]);
            on["time_note"] =
                "its record is trimmed, or beyond what is read for one question: only the span is known"
                    .into();
        }
    }
    answer["on_device"] = on;
}

/// What is bound, by its kind; nothing for what is not.
fn bound(bindings: &Bindings) -> Value {
    let many = |texts: &[Arc<str>]| texts.iter().map(|text| json!(&**text)).collect::<Vec<Value>>();
    let mut all = Map::new();
    for (kind, one) in [("account", &bindings.account), ("phone", &bindings.phone)] {
        if let Some(text) = one {
            all.insert(kind.into(), json!(&**text));
        }
    }
    for (kind, several) in [("aliases", &bindings.aliases), ("tags", &bindings.tags)] {
        if !several.is_empty() {
            all.insert(kind.into(), many(several).into());
        }
    }
    all.into()
}

/// Known, push on and connected are three answers, never one "available".
pub(super) fn device(
    sequence: u64,
    app: &AppKey,
    device_id: &str,
    state: Option<&DeviceState>,
    connection: Option<Connection>,
) -> Value {
    let mut answer = json!({
        "sequence": sequence,
        "app_key": app.as_str(),
        "device_id": device_id,
        "known": state.is_some(),
        "connected": connection.is_some(),
    });
    if let Some(Connection { shard, way }) = connection {
        answer["connection"] =
            json!({ "since": way.since, "shard": shard, "transport": way.transport.label() });
    }
    if let (Some(state), Some(fields)) = (state, answer.as_object_mut()) {
        fields.insert("push_on".into(), json!(state.push_on));
        fields.insert("last_active".into(), json!(state.last_active));
        fields.insert("pending".into(), json!(state.pending));
        fields.insert("oldest_pending_at".into(), json!(state.oldest_pending_at));
        if let Some(known) = &state.attributes {
            let named =
                attributes::named(known).into_iter().map(|(name, value)| (name.to_owned(), json!(value)));
            fields.insert("attributes".into(), named.collect());
        }
        if let Some(bindings) = &state.bindings {
            fields.insert("bindings".into(), bound(bindings));
        }
    }
    answer
}

/// Events of a device's past that are shown.
const LAST_EVENTS: usize = 8;

/// What happened last on a device, the newest first, of what was looked at.
pub(super) fn add_events(answer: &mut Value, past: &History) {
    let event = |event: &Happened| {
        json!({
            "time": event.at,
            "what": event.what.label(),
            "message_id": event.message.to_string(),
            "reason": event.what.reason(),
        })
    };
    let events: Vec<Value> = past.events.iter().rev().take(LAST_EVENTS).map(event).collect();
    answer["last_events"] = events.into();
    // The journal's first records may have no time.
    answer["last_events_since"] = json!((past.from > 0).then_some(past.from));
}

/// What is revoked of a device, if anything.
pub(super) fn add_revocation(answer: &mut Value, revocation: Revocation) {
    if let Some(fields) = answer.as_object_mut()
        && revocation != Revocation::default()
    {
        let registration = if revocation.locked { "locked" } else { "allowed" };
        let revoked =
            json!({ "credentials_before_epoch": revocation.min_epoch, "registration": registration });
        fields.insert("revoked".into(), revoked);
    }
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn days_are_dates() {
        let dates =
            [(0, "1970-01-01"), (11_016, "2000-02-29"), (19_782, "2024-02-29"), (20_454, "2026-01-01")];
        for (day, text) in dates {
            assert_eq!(date(day), text);
        }
    }
}
