//! Questions, answered as of the group that they stand in.

use super::rows::device_with;
use super::tables::part_with;
use super::{Engine, StoreFailure};
use crate::ids::{AppKey, DeviceKey, MessageId};
use crate::limits;
use crate::push::{Counts, Millis};
use crate::store::disk::Disk;
use crate::store::push_record::MessageKey;
use crate::store::{DeviceState, MessageState, OnDevice, Query, QueryAnswer};

impl<D: Disk> Engine<D> {
    pub(super) fn answer(&mut self, now: Millis, query: &Query) -> Result<QueryAnswer, StoreFailure> {
        Ok(match query {
            Query::Message { app, message, device } => {
                QueryAnswer::Message(self.message(app, *message, device.as_ref())?.map(Box::new))
            }
            Query::Devices(keys) => {
                let whole = keys.len() <= limits::QUERY_ROWS;
                let devices = keys.iter().map(|key| self.device(key, whole));
                QueryAnswer::Devices(devices.collect::<Result<_, _>>()?)
            }
            Query::Totals => QueryAnswer::Totals(Box::new(self.totals())),
            Query::Stats { app, days } => QueryAnswer::Stats(self.ledger.days(app, *days, now)),
        })
    }

    fn message(
        &mut self,
        app: &AppKey,
        message: MessageId,
        device: Option<&DeviceKey>,
    ) -> Result<Option<MessageState>, StoreFailure> {
        let index = &self.shared.index;
        // One part is locked at a time: the device's first.
        let known = device.and_then(|key| {
            let part = index.of_device(key);
            let device = part.devices.get(key)?;
            let entry = device.entry(message).map(|entry| (entry.batch.accepted_at, entry.written_at()));
            Some((device.number, entry))
        });
        let key = MessageKey::of(app, message);
        let part = part_with(index, &*self.tables.tables, &mut self.ledger, key)?;
        let Some(record) = part.messages.get(&key) else { return Ok(None) };
        let on_device = device.map(|_| {
            known.map_or_else(OnDevice::default, |(number, pending)| record.on_device(number, pending))
        });
        Ok(Some(MessageState {
            counts: record.counts(),
            accepted_at: record.accepted_at,
            expires_at: record.expires_at,
            job_key: record.job_key.clone(),
            first: record.row,
            on_device,
        }))
    }

    /// With `whole` its cold row too, wherever that is.
    fn device(&mut self, key: &DeviceKey, whole: bool) -> Result<Option<DeviceState>, StoreFailure> {
        let index = &self.shared.index;
        let part = if whole {
            device_with(index, &*self.tables.tables, &mut self.ledger, key, true)?
        } else {
            index.of_device(key)
        };
        let Some(device) = part.devices.get(key) else { return Ok(None) };
        let about = device.about.as_ref().filter(|_| whole);
        Ok(Some(DeviceState {
            push_on: device.push_on,
            last_active: device.last_active(),
            pending: device.pending.len() as u32,
            oldest_pending_at: device.pending.iter().map(|entry| entry.batch.accepted_at).min(),
            number: device.number,
            attributes: about.map(|about| about.attributes.clone()),
            bindings: about.and_then(|about| about.bindings().cloned()),
        }))
    }

    /// Everything since the data directory was made.
    pub(in crate::store) fn totals(&self) -> Counts {
        self.ledger.totals.clone()
    }
}
