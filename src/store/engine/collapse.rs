//! What a new batch takes the place of: older messages with its collapse key end as `replaced`, and the oldest of a device that has
//! too many end as `over_quota`, where the app drops those.
//!
//! All of it is known, and fits into the journal, before anything changes; the ends stand in the same commit group as the batch, behind
//! it. So a crash in the middle of the group can leave both pending, and never neither.
//!
//! A target that ends at once (retention 0 and not connected, or revoked before) takes nobody's place.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::apply::Together;
use super::ends::Cost;
use super::expiry::Live;
use super::quota::{Newcomer, make_way};
use super::{Engine, StoreFailure};
use crate::ids::{DeviceKey, Seq};
use crate::push::{Failure, Millis, NewBatch, Rejection};
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::part::Spread;
use crate::store::push_record::MessageKey;

/// One entry that goes.
struct Older {
    batch: Arc<Batch>,
    live: Live,
    reason: Failure,
}

/// What goes, by device, if the device gets the new message.
#[derive(Default)]
pub(super) struct Displaced(HashMap<DeviceKey, Vec<Older>, Spread>);

impl Displaced {
    /// What it takes if all of it goes: receipts of those that were written, and a record a batch and reason.
    fn cost(&self) -> Cost {
        let mut cost = Cost::default();
        let mut together: HashMap<(Seq, Failure), Together> = HashMap::new();
        for older in self.0.values().flatten() {
            if older.live.receipt_bytes > 0 {
                cost.add(older.live.receipt_bytes);
                continue;
            }
            together.entry((older.batch.seq, older.reason)).or_default().add(older.live.target.ordinal);
        }
        for together in together.into_values() {
            cost.add(together.mass_bytes());
        }
        cost
    }
}

impl<D: Disk> Engine<D> {
    pub(super) fn newcomer<'a>(&self, new: &'a NewBatch) -> Newcomer<'a> {
        Newcomer {
            message: new.message,
            collapse_key: &new.collapse_key,
            bytes: new.body.len() as u64,
            quota: self.options.quota_of(&new.app),
        }
    }

    /// What would go for a batch of which so many bytes are staged. Refused: there is no room for those ends.
    pub(super) fn displace(&self, new: &NewBatch, batch_bytes: usize) -> Result<Displaced, Rejection> {
        let newcomer = self.newcomer(new);
        let mut displaced = Displaced::default();
        if newcomer.collapse_key.is_empty() && !newcomer.quota.drop_oldest {
            return Ok(displaced);
        }
        let first = self.first_of(MessageKey::of(&new.app, new.message));
        for key in &new.targets {
            let part = self.shared.index.of_device(key);
            let Some(device) = part.devices.get(key) else { continue };
            if !device.push_on || device.has_since(new.message, new.priority, first) {
                continue;
            }
            let Ok(going) = make_way(device, &newcomer) else { continue };
            if going.is_empty() {
                continue;
            }
            let older = |(at, reason): (usize, Failure)| {
                let entry = &device.pending[at];
                Older { batch: entry.batch.clone(), live: Live::of(*key, device, entry), reason }
            };
            displaced.0.insert(*key, going.into_iter().map(older).collect());
        }
        let mut cost = displaced.cost();
        cost.add(batch_bytes);
        if displaced.0.is_empty() || self.has_room_for_beside_ends(cost) {
            Ok(displaced)
        } else {
            Err(Rejection::Unavailable)
        }
    }

    /// Ends what goes for those who got the new message.
    pub(super) fn end_displaced(
        &mut self,
        now: Millis,
        mut displaced: Displaced,
        got: &[DeviceKey],
    ) -> Result<(), StoreFailure> {
        if displaced.0.is_empty() {
            return Ok(());
        }
        let mut ends: BTreeMap<(Seq, Failure), (Arc<Batch>, Vec<Live>)> = BTreeMap::new();
        for older in got.iter().filter_map(|key| displaced.0.remove(key)).flatten() {
            let (_, ended) = ends
                .entry((older.batch.seq, older.reason))
                .or_insert_with(|| (older.batch.clone(), Vec::new()));
            ended.push(older.live);
        }
        for ((_, reason), (batch, mut ended)) in ends {
            ended.sort_unstable_by_key(|live| live.target.ordinal);
            self.end_entries(now, &batch, reason, &ended, true)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MessageId;
    use crate::store::record::Target;

    fn older(batch: &Arc<Batch>, ordinal: u32, receipt_bytes: usize, reason: Failure) -> Older {
        let key = DeviceKey([ordinal as u8; 16]);
        let target = Target { ordinal, key, number: ordinal };
        let live = Live { target, written: receipt_bytes > 0, receipt_bytes };
        Older { batch: batch.clone(), live, reason }
    }

    #[test]
    fn what_goes_costs_a_receipt_where_it_was_written_and_else_one_record_a_batch_and_reason() {
        let batch = |seq| Arc::new(Batch::of_test(Seq(seq), MessageId(seq), 1));
        let (first, second) = (batch(1), batch(2));
        let (replaced, over_quota) = (Failure::Replaced, Failure::OverQuota);
        let all = [
            vec![older(&first, 3, 0, replaced), older(&second, 900, 0, replaced)],
            vec![older(&first, 8, 0, replaced), older(&second, 2, 400, replaced)],
            vec![older(&first, 5, 0, over_quota)],
        ];
        let by_device = (0..).map(|n| DeviceKey([n; 16])).zip(all);
        let cost = Displaced(by_device.collect()).cost();
        let mass_bytes = |ordinals: &[u32]| ordinals.iter().copied().collect::<Together>().mass_bytes();
        let masses = [mass_bytes(&[3, 8]), mass_bytes(&[900]), mass_bytes(&[5])];
        assert_eq!((cost.records, cost.bytes), (4, 400 + masses.iter().sum::<usize>()));
        assert_eq!(
            (cost.largest, masses[1]),
            (400, masses[2]),
            "what is before the first ordinal takes no room"
        );
        assert_eq!(Displaced::default().cost().records, 0);
    }
}
