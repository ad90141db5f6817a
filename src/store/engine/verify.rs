//! Do the lists, the push records and the rows agree? Everything is read, so this is for a data directory at rest.

use std::collections::HashMap;

use super::tables::part_with;
use super::{Engine, StoreFailure};
use crate::ids::{MessageId, Seq};
use crate::store::device_row::Row;
use crate::store::disk::Disk;
#[cfg(test)]
use crate::store::journal::SegmentState;
use crate::store::part::Spread;
use crate::store::push_record::MessageKey;
use crate::store::tables::{Table, row_content};

#[cfg(test)]
type Live = std::collections::BTreeMap<u32, (u64, u64)>;

/// Messages named one by one, of those whose counts and lists disagree.
const NAMED: usize = 1_000;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Entries in all lists.
    pub pending: u64,
    /// Devices with something pending.
    pub waiting_devices: u64,
    /// Live batches.
    pub batches: u64,
    /// Pending entries by app.
    pub pending_of: Vec<(String, u64)>,
    /// Rows of devices in the tables.
    pub device_rows: u64,
    /// Rows that can't be understood.
    pub malformed_rows: u64,
    /// Push records that don't add up.
    pub wrong_records: u64,
    /// App, message, entries pending by its push record, entries in lists; the first thousand of those that differ.
    pub unequal: Vec<(String, MessageId, u64, u64)>,
}

impl<D: Disk> Engine<D> {
    /// Reads every list and every row.
    pub fn verify(&mut self) -> Result<Verified, StoreFailure> {
        let mut verified = Verified::default();
        let listed = self.count_lists(&mut verified);
        let shared = self.shared.clone();
        for number in 0..shared.index.len() {
            let keys: Vec<MessageKey> = shared.index.lock(number).message_order.iter().copied().collect();
            for key in keys {
                let part = part_with(&shared.index, &*self.tables.tables, &mut self.ledger, key)?;
                let Some(record) = part.messages.get(&key) else {
                    verified.malformed_rows += 1;
                    continue;
                };
                verified.wrong_records += u64::from(!record.counts().identity_holds());
                let there = listed.get(&key).copied().unwrap_or(0);
                if record.pending != there && verified.unequal.len() < NAMED {
                    let (app, message) = (record.app.as_str().to_owned(), record.message);
                    verified.unequal.push((app, message, record.pending, there));
                }
                drop(part);
                // As many records as there are may be more than fit; no transaction will say that there is more to choose from.
                self.tables.looks = self.ledger.hot.len();
                self.make_room();
            }
        }
        self.tables.tables.scan(Table::Devices, &mut |key, row| {
            verified.device_rows += 1;
            let content = row_content(Table::Devices, key, row).unwrap_or(&[]);
            verified.malformed_rows += u64::from(Row::decode(content).is_err());
        })?;
        Ok(verified)
    }

    /// A message in memory whose counts don't add up, or disagree with the lists. Reads and changes nothing.
    #[cfg(feature = "sim")]
    pub fn unequal(&self) -> Option<String> {
        let listed = self.count_lists(&mut Verified::default());
        (0..self.shared.index.len()).find_map(|number| {
            let part = self.shared.index.lock(number);
            part.messages.iter().find_map(|(key, record)| {
                let there = listed.get(key).copied().unwrap_or(0);
                let counts = record.counts();
                let is_equal = counts.identity_holds() && counts.pending == there;
                (!is_equal).then(|| format!("message {}: {there} in lists, {counts:?}", record.message))
            })
        })
    }

    /// Entries in lists by message.
    fn count_lists(&self, verified: &mut Verified) -> HashMap<MessageKey, u64, Spread> {
        let mut listed = HashMap::<MessageKey, u64, Spread>::default();
        let mut of_apps = std::collections::BTreeMap::<String, u64>::new();
        for number in 0..self.shared.index.len() {
            let part = self.shared.index.lock(number);
            verified.batches += part.batches.len() as u64;
            for device in part.devices.values().filter(|device| !device.pending.is_empty()) {
                verified.waiting_devices += 1;
                verified.pending += device.pending.len() as u64;
                let app = self.apps.key(device.app).as_str();
                match of_apps.get_mut(app) {
                    Some(count) => *count += device.pending.len() as u64,
                    None => drop(of_apps.insert(app.to_owned(), device.pending.len() as u64)),
                }
                for entry in &device.pending {
                    *listed.entry(entry.batch.home).or_default() += 1;
                }
            }
        }
        verified.pending_of = of_apps.into_iter().collect();
        listed
    }

    /// The segments in use, oldest first.
    #[cfg(test)]
    pub(in crate::store) fn segments(&self) -> Vec<SegmentState> {
        self.journal.segments()
    }

    /// Batches with something pending and their bytes, by segment: as counted, and as the batches tell.
    #[cfg(test)]
    pub(in crate::store) fn live_by_segment(&self) -> (Live, Live) {
        let mut live = Live::new();
        for part in 0..self.shared.index.len() {
            for batch in self.shared.index.lock(part).batches.values() {
                let (batches, bytes) = live.entry(batch.place().segment).or_default();
                *batches += 1;
                *bytes += u64::from(batch.bytes.load(std::sync::atomic::Ordering::Relaxed));
            }
        }
        (self.live_in.clone(), live)
    }

    /// See [`Engine::dead_segments`].
    #[cfg(test)]
    pub(in crate::store) fn dead(&self) -> usize {
        self.dead_segments()
    }

    /// Bytes that can still be staged.
    #[cfg(test)]
    pub(in crate::store) fn room(&self) -> u64 {
        self.journal.room().total
    }

    /// Devices of which credentials are revoked.
    pub fn revoked(&self) -> u64 {
        self.revoked
    }

    /// Push records.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes of the journal records that live entries need.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// The newest durable sequence.
    pub fn head(&self) -> Seq {
        self.journal.head()
    }

    /// The streams and how far their readers are.
    pub fn stream_cursors(&self) -> Vec<(String, Seq)> {
        let streams = &self.shared.streams;
        (0..streams.len()).map(|at| (streams.name(at).to_string(), streams.cursor(at))).collect()
    }
}
