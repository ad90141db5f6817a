//! Admission: every check of a batch that needs no state of the store. Pure: the time and the rules are arguments.
//!
//! A batch that passes has fields within their limits, an app of this edge and of this router, and its body in the one encoding that all its devices
//! get. What needs the index (unknown devices, repeats, quotas, maxima) is the store's. **Expiry is the store's too, and whether a router's clock is
//! too far ahead**: a router repeats a batch whose answer it lost under the same id, perhaps after a crash, after the batch's expiry, or with another
//! configuration, and must get the first answer then; only who knows the batch ids can tell a repeat from a batch that comes too late or too early.
//! So no check here may depend on a setting, but for the apps: who has no right to one gets no answer about it. Memory, credit and rates, which the link
//! asks before the store, put a repeat off.
//!
//! A message has one priority and one collapse key, whatever the batch: they are in its encoding, so another one under the same message id is
//! another body.
//!
//! Both digests are BLAKE3 over length-prefixed fields in a fixed order, so that neither the order of fields on the wire nor unknown fields matter.
//! The targets go in as their device keys, which are keyed digests themselves: one third of the bytes, in one piece. So do their accounts.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;
use serde::de::IgnoredAny;

use super::rights::Rights;
use crate::binding::is_bindable;
use crate::ids::{AccountDigest, AppKey, BatchId, DeviceKey, DigestKey, MessageId};
use crate::limits;
use crate::push::{BatchPart, Millis, NewBatch, OfflinePolicy, Priority, Rejection};
use crate::wire::pb::{device, router as pb};
use crate::wire::router::{Deliver, Reject, Rejected};

/// Milliseconds after which a router may try again what found a queue or the credit full.
pub(super) const RETRY_SOON_MS: u32 = 200;
/// Milliseconds after which it may try again what found a maximum reached, the disk full, or the edge leaving.
pub(super) const RETRY_LATER_MS: u32 = 2_000;

/// What admission has to know.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The apps of this edge.
    pub apps: HashSet<AppKey>,
    /// Makes device keys.
    pub digest_key: DigestKey,
    /// How long a message of retention 0 may stay unacknowledged.
    pub online_window_ms: u64,
}

/// Checks a batch and makes it the domain's.
pub fn admit(now: Millis, batch: &Deliver<'_>, rights: &Rights, rules: &Rules) -> Result<NewBatch, Rejected> {
    let fields = &*batch.fields;
    let app = app(&fields.app_key, rights, rules)?;
    let id = BatchId::parse(&fields.batch_id)
        .ok_or_else(|| invalid("batch_id", "1 to 64 of letters, digits, '-', '_', '.', ':'"))?;
    if fields.message_id == 0 {
        return Err(invalid("message_id", "0 is no message id"));
    }
    let (priority, offline_policy) = policies(fields)?;
    match batch.target_count {
        0 => return Err(reject(Reject::NoTargets, "targets", "no targets")),
        count if count > limits::BATCH_TARGETS => {
            return Err(reject(Reject::TooManyTargets, "targets", &format!("{count} targets; split it")));
        }
        _ => {}
    }
    let times = times(now, fields, rules)?;
    let push = body(fields)?;
    let (targets, accounts) = targets(batch, &app, rules)?;
    let body_digest =
        digest("mooring push body 1", push.encoded_len(), |out| put_field(out, &push.encode_to_vec()));
    let digest = batch_digest(fields, &body_digest, times.retention_ms, &targets, &accounts);
    let body = device::Push { expires_milliseconds: times.expires_at, ..push }.encode_to_vec();
    Ok(NewBatch {
        id,
        app,
        message: MessageId(fields.message_id),
        body: body.into(),
        body_digest,
        digest,
        targets,
        part: BatchPart::default(),
        offline_policy,
        created_at: times.created_at,
        expires_at: times.expires_at,
        online_only: times.retention_ms == 0,
        job_key: Arc::from(fields.job_key.as_str()),
        priority,
        collapse_key: fields.collapse_key.as_str().into(),
        accounts,
    })
}

/// The same words for what the store refused.
pub(super) fn rejected(why: Rejection) -> Rejected {
    let (code, field, text, retry_after_ms) = match why {
        Rejection::BatchConflict => {
            (Reject::BatchConflict, "batch_id", "this batch id was used with other content", 0)
        }
        Rejection::MessageConflict => {
            (Reject::MessageConflict, "message_id", "this message id was used with another body", 0)
        }
        Rejection::TooOld => (Reject::TooOld, "created_at", "created before batch ids are remembered", 0),
        Rejection::Expired => (Reject::Expired, "retention_seconds", "created_at + retention has passed", 0),
        Rejection::Exhausted => {
            (Reject::ResourceExhausted, "", "a maximum of this edge is reached", RETRY_LATER_MS)
        }
        Rejection::Unavailable => {
            (Reject::Unavailable, "", "the edge takes no batches at present", RETRY_LATER_MS)
        }
        Rejection::Suspended => {
            (Reject::AppSuspended, "app_key", "this app takes no new pushes at present", 0)
        }
        Rejection::StreamFull => {
            (Reject::ResourceExhausted, "", "the stream of this app's receipts is not read", RETRY_LATER_MS)
        }
        Rejection::Ahead(ahead_ms) => {
            let ahead = ahead_ms / 1_000;
            let text = format!("{ahead} s ahead of this edge's clock: one of the two clocks is wrong");
            return invalid("created_at", &text);
        }
    };
    Rejected { retry_after_ms, ..reject(code, field, text) }
}

/// A body of [`admit`] with another expiry.
pub(super) fn expiring_at(body: &Arc<[u8]>, expires_at: Millis) -> Arc<[u8]> {
    // It was encoded here.
    device::Push::decode(&**body).map_or_else(
        |_| body.clone(),
        |push| device::Push { expires_milliseconds: expires_at, ..push }.encode_to_vec().into(),
    )
}

/// The store takes no more at this moment.
pub(super) fn queue_full() -> Rejected {
    try_again(Reject::ResourceExhausted, "the queue to the journal is full", RETRY_SOON_MS)
}

/// A rejection with a delay.
pub(super) fn try_again(code: Reject, text: &str, retry_after_ms: u32) -> Rejected {
    Rejected { retry_after_ms, ..reject(code, "", text) }
}

fn reject(code: Reject, field: &str, text: &str) -> Rejected {
    Rejected { code, field: field.to_owned(), text: text.to_owned(), retry_after_ms: 0 }
}

fn invalid(field: &str, text: &str) -> Rejected {
    reject(Reject::Invalid, field, text)
}

/// A number that a newer protocol may have a meaning for.
fn unimplemented(field: &str, text: &str) -> Rejected {
    reject(Reject::Unimplemented, field, text)
}

/// Checks what a router wants taken back.
pub(super) fn revocable(
    app_key: &str,
    message: MessageId,
    rights: &Rights,
    rules: &Rules,
) -> Result<AppKey, Rejected> {
    let app = app(app_key, rights, rules)?;
    if message.0 == 0 { Err(invalid("message_id", "message_id: 0 is no message id")) } else { Ok(app) }
}

/// An app that this edge doesn't have and one that isn't the router's get the same answer.
fn app(app_key: &str, rights: &Rights, rules: &Rules) -> Result<AppKey, Rejected> {
    AppKey::parse(app_key).filter(|app| rules.apps.contains(app) && rights.apps.allows(app)).ok_or_else(
        || reject(Reject::UnknownApp, "app_key", "not an app of this edge, or not of this router"),
    )
}

fn policies(fields: &pb::DeliverBatch) -> Result<(Priority, OfflinePolicy), Rejected> {
    let priority = match device::Priority::try_from(fields.priority) {
        Ok(device::Priority::Normal) => Priority::Normal,
        Ok(device::Priority::High) => Priority::High,
        Err(_) => return Err(unimplemented("priority", "no priority that this edge knows")),
    };
    for (field, label) in [
        ("collapse_key", &fields.collapse_key),
        ("job_key", &fields.job_key),
        ("target_type", &fields.target_type),
    ] {
        if label.len() > limits::LABEL_BYTES {
            return Err(invalid(field, "over 64 bytes"));
        }
    }
    match pb::OfflinePolicy::try_from(fields.offline_policy) {
        Ok(pb::OfflinePolicy::Store) => Ok((priority, OfflinePolicy::Store)),
        Ok(pb::OfflinePolicy::Return) => Ok((priority, OfflinePolicy::Return)),
        Err(_) => Err(unimplemented("offline_policy", "no policy that this edge knows")),
    }
}

struct Times {
    retention_ms: u64,
    created_at: Millis,
    expires_at: Millis,
}

/// A router's clock may be a little ahead of the edge's: retention never counts from later than now.
fn times(now: Millis, fields: &pb::DeliverBatch, rules: &Rules) -> Result<Times, Rejected> {
    if fields.created_at == 0 {
        return Err(invalid("created_at", "when the router made this batch: milliseconds since 1970"));
    }
    let retention_ms = fields.retention_seconds.map_or(limits::RETENTION_MS, |s| u64::from(s) * 1_000);
    if retention_ms > limits::RETENTION_MS {
        return Err(invalid("retention_seconds", "over 72 hours"));
    }
    let created_at = fields.created_at;
    let expires_at = match retention_ms {
        0 => now + rules.online_window_ms,
        kept => created_at.min(now) + kept,
    };
    Ok(Times { retention_ms, created_at, expires_at })
}

/// The push as devices get it, still without its expiry: what the edge sets is set, whatever the router put there.
fn body(fields: &pb::DeliverBatch) -> Result<device::Push, Rejected> {
    let Some(said) = &fields.body else { return Err(invalid("body", "missing")) };
    match device::Kind::try_from(said.kind) {
        Ok(device::Kind::Notification | device::Kind::Message) => {}
        Ok(device::Kind::Unspecified) => {
            return Err(invalid("body.kind", "neither notification nor message"));
        }
        Err(_) => return Err(unimplemented("body.kind", "no kind that this edge knows")),
    }
    let long_text = match said.style.as_ref().and_then(|style| style.style.as_ref()) {
        Some(device::style::Style::LongText(long)) => long.text.len(),
        _ => 0,
    };
    let text = said.title.len() + said.body.len() + said.extras.len() + long_text;
    if text > limits::PUSH_TEXT_BYTES {
        let text = format!("{text} bytes of title, body, extras and long text; 4,000 are allowed");
        return Err(reject(Reject::PayloadTooLarge, "body", &text));
    }
    // Any JSON text that begins with a brace is an object; its content is the app's business.
    let is_object = |json: &str| {
        json.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{')
            && serde_json::from_str::<IgnoredAny>(json).is_ok()
    };
    if !said.extras.is_empty() && !is_object(&said.extras) {
        return Err(invalid("body.extras", "not a JSON object"));
    }
    let push = device::Push {
        message_id: fields.message_id,
        priority: fields.priority,
        collapse_key: fields.collapse_key.clone(),
        expires_milliseconds: 0,
        redelivered: false,
        ..said.clone()
    };
    // The expiry is still to come: a varint of at most ten bytes and its key.
    if push.encoded_len() + 11 > limits::PUSH_ENCODED_BYTES {
        return Err(reject(
            Reject::PayloadTooLarge,
            "body",
            "over 8,192 bytes with all that stands around the text",
        ));
    }
    Ok(push)
}

/// By ordinal: the account that a target was resolved from; empty, if none has one.
type Accounts = Vec<Option<AccountDigest>>;

fn targets(batch: &Deliver<'_>, app: &AppKey, rules: &Rules) -> Result<(Vec<DeviceKey>, Accounts), Rejected> {
    let mut keys = Vec::with_capacity(batch.target_count);
    let mut accounts = Accounts::new();
    for (ordinal, target) in batch.targets().enumerate() {
        let target =
            target.map_err(|_| invalid(&format!("targets[{ordinal}]"), "no Target, or not UTF-8"))?;
        let id = target.device_id;
        if !(1..=limits::DEVICE_ID_BYTES).contains(&id.len()) || id.chars().any(char::is_control) {
            let field = format!("targets[{ordinal}].device_id");
            return Err(invalid(&field, "1 to 64 bytes without control characters"));
        }
        if !target.account.is_empty() {
            if !is_bindable(target.account) {
                let field = format!("targets[{ordinal}].account");
                return Err(invalid(&field, "1 to 128 bytes without control characters"));
            }
            accounts.resize(batch.target_count, None);
            accounts[ordinal] = Some(AccountDigest::of(&rules.digest_key, app, target.account));
        }
        keys.push(DeviceKey::of(&rules.digest_key, app, id));
    }
    Ok((keys, accounts))
}

/// Everything the router said that has a meaning, so that a repeat with other content is noticed.
fn batch_digest(
    fields: &pb::DeliverBatch,
    body: &[u8; 16],
    retention_ms: u64,
    targets: &[DeviceKey],
    accounts: &[Option<AccountDigest>],
) -> [u8; 16] {
    let many = targets.len() * 16 + accounts.len() * 8;
    digest("mooring batch 1", many, |out| {
        put_field(out, fields.batch_id.as_bytes());
        put_field(out, fields.app_key.as_bytes());
        put_field(out, &fields.message_id.to_le_bytes());
        put_field(out, body);
        put_field(out, &fields.offline_policy.to_le_bytes());
        put_field(out, &fields.created_at.to_le_bytes());
        put_field(out, &retention_ms.to_le_bytes());
        put_field(out, &fields.priority.to_le_bytes());
        put_field(out, fields.collapse_key.as_bytes());
        put_field(out, fields.job_key.as_bytes());
        put_field(out, &fields.source.to_le_bytes());
        put_field(out, fields.target_type.as_bytes());
        // Keys are 16 bytes each: unambiguous without lengths. So are accounts with 8, of which 0 is none.
        put_length(out, targets.len() * 16);
        out.extend(targets.iter().flat_map(|key| key.0));
        put_length(out, accounts.len() * 8);
        let number = |account: &Option<AccountDigest>| account.map_or(0, AccountDigest::number).to_le_bytes();
        out.extend(accounts.iter().flat_map(number));
    })
}

fn put_length(out: &mut Vec<u8>, bytes: usize) {
    out.extend_from_slice(&(bytes as u64).to_le_bytes());
}

fn put_field(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Of fields that stand in one piece, `many` bytes beside small ones: for a single message a hasher's state is five times what goes in.
fn digest(context: &str, many: usize, fill: impl FnOnce(&mut Vec<u8>)) -> [u8; 16] {
    const SMALL_FIELDS_BYTES: usize = 640;
    let mut fields = Vec::with_capacity(many + SMALL_FIELDS_BYTES);
    fill(&mut fields);
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::derive_key(context, &fields)[..16]);
    short
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
