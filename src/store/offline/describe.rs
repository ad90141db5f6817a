//! A journal record in words, as JSON. What is personal (bodies, attributes, addresses, accounts, aliases, tags, phones) only if asked for.

use data_encoding::BASE64;
use serde_json::{Map, Value, json};

use crate::binding::Binding;
use crate::ids::{DeviceKey, Seq};
use crate::push::{Failure, Priority, Refusal};
use crate::store::codec::{Malformed, Take};
use crate::store::engine::apps;
use crate::store::record::device::{NEW, STATE_LOST, take_active};
use crate::store::record::{
    self, BatchRecord, BindingRecord, DeviceRecord, ForgottenRecord, MassRecord, RecallRecord, ReceiptRecord,
    take_cursor, take_epoch, take_lost, take_refused,
};
use crate::store::stream::gaps;
use crate::store::stream::saved::take_history;

/// The word for a kind of record; `None`: it is of no kind that this program knows.
pub(super) fn kind_name(kind: u8) -> Option<&'static str> {
    KINDS.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name)
}

/// All kinds with their words.
pub(super) const KINDS: [(u8, &str); 18] = [
    (record::BATCH, "batch"),
    (record::COPY, "copy"),
    (record::DEVICE, "device"),
    (record::RECEIPT, "receipt"),
    (record::MASS, "mass"),
    (record::CURSOR, "cursor"),
    (record::BINDING, "binding"),
    (record::FORGOTTEN, "forgotten"),
    (record::ACTIVE, "active"),
    (record::EPOCH, "epoch"),
    (record::STREAM, "stream"),
    (record::ROUTE, "route"),
    (record::GAP, "gap"),
    (record::RETIRED, "retired"),
    (record::RECALL, "recall"),
    (record::HISTORY, "history"),
    (record::APP, "app"),
    (record::LOST, "lost"),
];

/// What a record says.
pub(super) struct Described {
    /// Its fields, the app's among them as `app`.
    pub(super) fields: Map<String, Value>,
    /// Whom it is about, if it names devices.
    pub(super) devices: Vec<DeviceKey>,
}

/// Reads a record; `personal`: with what is personal.
pub(super) fn describe(kind: u8, payload: &[u8], personal: bool) -> Result<Described, Malformed> {
    let mut devices = Vec::new();
    let value = match kind {
        record::BATCH | record::COPY => batch(payload, personal, &mut devices)?,
        record::DEVICE => device(payload, personal, &mut devices)?,
        record::RECEIPT => receipt(payload, personal, &mut devices)?,
        record::MASS => mass(payload)?,
        record::BINDING => binding(payload, personal, &mut devices)?,
        record::FORGOTTEN => {
            let record = ForgottenRecord::decode(payload)?;
            devices.push(record.key);
            json!({ "app": record.app.as_str(), "device": &*record.device_id, "last_active": record.last_active })
        }
        record::ACTIVE => {
            devices = take_active(payload)?.into_iter().map(|(key, _)| key).collect();
            json!({ "devices": devices.len() })
        }
        record::EPOCH => {
            let (key, revoked) = whole(payload, take_epoch)?;
            devices.push(key);
            json!({ "min_epoch": revoked.min_epoch, "locked": revoked.locked })
        }
        record::RECALL => {
            let record = RecallRecord::decode(payload)?;
            json!({ "app": record.app, "message": record.message.to_string(), "at": record.at, "until": record.until })
        }
        record::APP => {
            let (app, control) = whole(payload, |take| {
                let mut controls = apps::Controls::new();
                apps::take_into(take, &mut controls)?;
                controls.into_iter().next().ok_or(Malformed)
            })?;
            json!({ "app": app.as_str(), "suspended": control.suspended, "rates": control.rates.all() })
        }
        _ => of_stream(kind, payload)?,
    };
    match value {
        Value::Object(fields) => Ok(Described { fields, devices }),
        _ => Err(Malformed),
    }
}

/// Takes all of a payload, and nothing less.
fn whole<T>(
    payload: &[u8],
    take_it: impl FnOnce(&mut Take<'_>) -> Result<T, Malformed>,
) -> Result<T, Malformed> {
    let mut take = Take(payload);
    let taken = take_it(&mut take)?;
    take.0.is_empty().then_some(taken).ok_or(Malformed)
}

fn of_stream(kind: u8, payload: &[u8]) -> Result<Value, Malformed> {
    Ok(match kind {
        record::CURSOR => {
            let (stream, Seq(cursor)) = take_cursor(payload)?;
            json!({ "stream": stream, "cursor": cursor })
        }
        record::STREAM => {
            whole(payload, |take| Ok(json!({ "number": take.u32()?, "stream": take.text()? })))?
        }
        record::ROUTE => whole(payload, |take| Ok(json!({ "number": take.u32()?, "app": take.text()? })))?,
        record::GAP => whole(payload, |take| {
            let (number, gap) = (take.u32()?, gaps::take(take)?);
            Ok(json!({ "number": number, "first": gap.first.0, "last": gap.last.0, "events": gap.events }))
        })?,
        record::HISTORY => whole(payload, |take| Ok(json!({ "history": take_history(take)?.to_string() })))?,
        record::LOST => {
            let ranges = take_lost(payload)?.into_iter().map(|(first, last)| [first.0, last.0]);
            json!({ "ranges": ranges.collect::<Vec<_>>() })
        }
        record::RETIRED => whole(payload, |take| Ok(json!({ "number": take.u32()? })))?,
        _ => return Err(Malformed),
    })
}

fn batch(payload: &[u8], personal: bool, devices: &mut Vec<DeviceKey>) -> Result<Value, Malformed> {
    let record = BatchRecord::decode(payload)?;
    let targets = record.targets()?;
    devices.extend(targets.iter().map(|target| target.key));
    let mut refused = Map::new();
    for (_, reason) in take_refused(record.refused)? {
        let count = refused.get(Refusal::label(reason)).and_then(Value::as_u64).unwrap_or(0);
        refused.insert(Refusal::label(reason).into(), (count + 1).into());
    }
    let mut value = json!({
        "app": record.app, "message": record.message.to_string(), "batch": record.id, "batch_sequence": record.seq.0,
        "targets": record.named, "accepted": targets.len(), "refused": refused,
        "accepted_at": record.accepted_at, "expires_at": record.expires_at,
        "priority": match record.priority { Priority::High => "high", Priority::Normal => "normal" },
        "online_only": record.online_only, "body_bytes": record.body.len(),
        "unbound": record.mass()?.map_or(0, |mass| mass.count),
    });
    for (name, text) in [("job_key", record.job_key), ("collapse_key", record.collapse_key)] {
        if !text.is_empty() {
            value[name] = text.into();
        }
    }
    if personal {
        value["body"] = BASE64.encode(record.body).into();
    }
    Ok(value)
}

fn device(payload: &[u8], personal: bool, devices: &mut Vec<DeviceKey>) -> Result<Value, Malformed> {
    let record = DeviceRecord::decode(payload)?;
    devices.push(record.key);
    let mut value = json!({
        "app": record.app, "device": record.device_id, "number": record.number, "push_on": record.push_on,
        "new": record.changed & NEW != 0, "state_lost": record.changed & STATE_LOST != 0,
        "attribute_bytes": record.attributes.len(), "at": record.last_active,
    });
    if personal {
        value["attributes"] = BASE64.encode(record.attributes).into();
        value["client_ip"] = record.client_ip.map(|ip| ip.to_string()).into();
    }
    Ok(value)
}

fn receipt(payload: &[u8], personal: bool, devices: &mut Vec<DeviceKey>) -> Result<Value, Malformed> {
    let ReceiptRecord { receipt, key, batch, .. } = ReceiptRecord::decode(payload)?;
    devices.push(key);
    let outcome = receipt.outcome.map(|outcome| outcome.map_or_else(Failure::label, |()| "arrived"));
    let mut value = json!({
        "app": receipt.app.as_str(), "message": receipt.message.to_string(), "device": &*receipt.device_id,
        "event": receipt.kind.label(), "outcome": outcome, "batch_sequence": batch.0, "event_time": receipt.event_time,
        "sent_at": receipt.sent_at, "late": receipt.late, "unmatched": receipt.unmatched, "implied": receipt.implied,
    });
    if let Some((id, ordinal)) = &receipt.target {
        value["batch"] = id.as_str().into();
        value["ordinal"] = (*ordinal).into();
    }
    if personal {
        value["attributes"] = BASE64.encode(&receipt.attributes.bytes()).into();
        value["client_ip"] = receipt.client_ip.map(|ip| ip.to_string()).into();
    }
    Ok(value)
}

fn mass(payload: &[u8]) -> Result<Value, Malformed> {
    let MassRecord { mass, batch, .. } = MassRecord::decode(payload)?;
    Ok(json!({
        "app": mass.app.as_str(), "message": mass.message.to_string(), "batch": mass.batch.as_str(), "batch_sequence": batch.0,
        "outcome": mass.reason.label(), "devices": mass.count, "event_time": mass.event_time,
    }))
}

fn binding(payload: &[u8], personal: bool, devices: &mut Vec<DeviceKey>) -> Result<Value, Malformed> {
    let record = BindingRecord::decode(payload)?;
    devices.push(record.key);
    let kind = match &record.step.binding {
        Binding::Account(_) => "account",
        Binding::Alias(_) => "alias",
        Binding::Tag(_) => "tag",
        Binding::Phone(_) => "phone",
    };
    let mut value = json!({
        "app": record.app.as_str(), "device": &*record.device_id, "bound": record.step.bound, "to": kind, "at": record.time,
    });
    if personal {
        value["text"] = record.step.binding.text().as_ref().into();
    }
    Ok(value)
}
