//! The journal's records, one by one.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::AtRest;
use super::describe::{describe, kind_name};
use crate::ids::{AppKey, DeviceKey, Seq};
use crate::store::journal::{JournalError, Record};

/// Which records.
#[derive(Clone, Debug)]
pub struct Filter {
    /// From this sequence on.
    pub from: Seq,
    /// Up to this one.
    pub to: Seq,
    /// Of these kinds; empty: all.
    pub kinds: BTreeSet<String>,
    /// Of this app; those that belong to no app are left out.
    pub app: Option<AppKey>,
    /// About this device of the app. A mass end doesn't name devices: it is left out.
    pub device: Option<String>,
    /// With bodies, attributes, addresses and bindings.
    pub personal: bool,
}

/// Why the journal can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It can't be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A device without its app.
    #[error("a device id means something in its app only: name the app too")]
    NoApp,
}

impl AtRest {
    /// Shows the records, the oldest first. Damaged ones are left out: [`AtRest::check`] names them.
    pub fn dump(&self, filter: &Filter, show: &mut dyn FnMut(&Value)) -> Result<(), DumpError> {
        let device = match (&filter.app, &filter.device) {
            (Some(app), Some(device)) => Some(DeviceKey::of(&self.format.digest_key, app, device)),
            (None, Some(_)) => return Err(DumpError::NoApp),
            (_, None) => None,
        };
        self.records(&mut |record| {
            if let Some(line) = line(&record, filter, device) {
                show(&line);
            }
        })?;
        Ok(())
    }
}

/// The record as one object; `None`: it isn't asked for.
fn line(record: &Record<'_>, filter: &Filter, device: Option<DeviceKey>) -> Option<Value> {
    let name = kind_name(record.kind).unwrap_or("unknown");
    let is_asked_for = (filter.from..=filter.to).contains(&record.seq)
        && (filter.kinds.is_empty() || filter.kinds.contains(name));
    if !is_asked_for {
        return None;
    }
    let mut value = json!({
        "sequence": record.seq.0, "kind": name, "time": record.group_time,
        "segment": record.place.segment, "offset": record.place.offset, "bytes": record.payload.len(),
    });
    let Ok(described) = describe(record.kind, record.payload, filter.personal) else {
        value["malformed"] = true.into();
        return (filter.app.is_none()).then_some(value);
    };
    let of_app = |app: &AppKey| described.fields.get("app").and_then(Value::as_str) == Some(app.as_str());
    if device.is_some_and(|device| !described.devices.contains(&device))
        || device.is_none() && filter.app.as_ref().is_some_and(|app| !of_app(app))
    {
        return None;
    }
    if let Value::Object(fields) = &mut value {
        fields.extend(described.fields);
    }
    Some(value)
}
