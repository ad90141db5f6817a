//! Which targets of a batch are accepted.
//!
//! A device that stands twice in a batch gets it once: the first target counts, and the others are `duplicate`. But a target of an account
//! that isn't bound there counts only if none of them is better: whatever order a router's list has, a stale account in it never takes the
//! message from who is there. Rejected: ending the stale one as `unbound` beside the right one, as then one device would have two ends of one
//! batch, and sets of device numbers can't tell them apart.
//!
//! Whether a message is pending on a device is seen from the end of its list: no entry is older than the message's first batch, and lists are ordered
//! by batch. A batch of 100,000 targets (`cargo bench --bench accept -- "long lists"`, two cores): 12 ms where lists are empty, 22 ms where each has
//! 100 entries, and 2.1 ms for 10,000 targets where each has 1,000. There a walk through the lists took 26.5 ms (on a busy machine), a binary search
//! for where to begin 23.6 ms: cache misses, it seems.

use std::collections::HashMap;
use std::sync::Arc;

use super::Engine;
use super::quota::{Newcomer, make_way};
use crate::ids::{AccountDigest, DeviceKey, Seq};
use crate::push::{NewBatch, OfflinePolicy, Ordinals, Refusal};
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::index::TOUCHED;
use crate::store::part::{Entry, OF_ACCOUNT, Spread};
use crate::store::push_record::MessageKey;
use crate::store::record::{Target, Who};

/// What admission decided about the targets. The accepted ones are in their devices' lists.
pub(super) struct Decided {
    pub(super) accepted: Vec<Target>,
    pub(super) refused: Vec<(u32, Refusal)>,
    /// In the same order.
    pub(super) refused_who: Vec<Who>,
    /// Of a batch of retention 0: accepted, but not connected.
    pub(super) offline: Vec<Target>,
    /// Accepted, and to be told.
    pub(super) told: Vec<DeviceKey>,
    /// Accepted, but resolved from an account that isn't bound there: in no list.
    pub(super) unbound: Vec<Target>,
    /// Resolved from an account that is bound there.
    pub(super) of_account: Ordinals,
}

impl Decided {
    /// These were accepted, and are duplicates after all.
    fn withdraw(&mut self, ordinals: &[u32]) {
        if ordinals.is_empty() {
            return;
        }
        let withdrawn: Ordinals = ordinals.iter().copied().collect();
        let (gone, left): (Vec<Target>, Vec<Target>) =
            self.accepted.drain(..).partition(|target| withdrawn.contains(target.ordinal));
        self.accepted = left;
        let mut refused: Vec<_> = self.refused.drain(..).zip(self.refused_who.drain(..)).collect();
        refused.extend(
            gone.iter().map(|target| {
                ((target.ordinal, Refusal::Duplicate), Who::of(&target.key, Some(target.number)))
            }),
        );
        // In the record they stand ascending.
        refused.sort_unstable_by_key(|((ordinal, _), _)| *ordinal);
        (self.refused, self.refused_who) = refused.into_iter().unzip();
    }
}

/// An accepted target.
struct Admitted {
    /// The device's dense number.
    number: u32,
    /// It isn't bound to the account that it was resolved from, and nothing was put into its list.
    unbound: bool,
}

impl<D: Disk> Engine<D> {
    /// The sequence of the message's first batch, beyond all if it has none. Its push record is in memory.
    pub(super) fn first_of(&self, home: MessageKey) -> Seq {
        self.shared.index.of_message(home).messages.get(&home).map_or(Seq(u64::MAX), |record| record.row)
    }

    /// Each target by itself. The accepted ones go into their lists at once: so a target that stands twice meets itself.
    pub(super) fn decide(&self, new: &NewBatch, batch: &Arc<Batch>) -> Decided {
        let asks = new.online_only || new.offline_policy == OfflinePolicy::Return;
        let mut decided = Decided {
            accepted: Vec::with_capacity(new.targets.len()),
            refused: Vec::new(),
            refused_who: Vec::new(),
            offline: Vec::new(),
            told: Vec::with_capacity(new.targets.len()),
            unbound: Vec::new(),
            of_account: Ordinals::default(),
        };
        let newcomer = self.newcomer(new);
        let first = self.first_of(batch.home).min(batch.seq);
        // Of targets that are in no list: who stands twice meets itself here. With the accepted target, if it is of an account that isn't bound.
        let mut settled: HashMap<DeviceKey, Option<Target>, Spread> = HashMap::default();
        // Ordinals of those that a better one came after.
        let mut withdrawn: Vec<u32> = Vec::new();
        for (position, key) in new.targets.iter().enumerate() {
            if position % TOUCHED == 0 {
                self.shared.index.touch(new.targets[position..].iter().take(TOUCHED), false);
            }
            let ordinal = new.part.ordinal(position);
            // Asked before the part is locked: the directory has locks of its own.
            let connected = !asks || (self.is_connected)(key);
            let account = new.accounts.get(position).copied().flatten();
            let before = if settled.is_empty() { None } else { settled.get(key).copied() };
            let mut verdict = if before == Some(None) {
                Err(Refusal::Duplicate)
            } else {
                self.admit_target(
                    key,
                    ordinal,
                    account,
                    connected || new.online_only,
                    (batch, first),
                    &newcomer,
                )
            };
            if let Some(Some(stale)) = before {
                if matches!(verdict, Ok(Admitted { unbound: true, .. })) {
                    verdict = Err(Refusal::Duplicate);
                } else {
                    withdrawn.push(stale.ordinal);
                    settled.remove(key);
                }
            }
            match verdict {
                Ok(Admitted { number, unbound }) => {
                    let target = Target { ordinal, key: *key, number };
                    decided.accepted.push(target);
                    if unbound {
                        settled.insert(*key, Some(target));
                        continue;
                    }
                    if account.is_some() {
                        decided.of_account.insert(ordinal);
                    }
                    if connected || !new.online_only {
                        decided.told.push(*key);
                    } else {
                        decided.offline.push(target);
                    }
                }
                Err(reason) => {
                    decided.refused.push((ordinal, reason));
                    let number =
                        self.shared.index.of_device(key).devices.get(key).map(|device| device.number);
                    decided.refused_who.push(Who::of(key, number));
                    settled.entry(*key).or_insert(None);
                }
            }
        }
        decided.unbound = settled.into_values().flatten().collect();
        decided.unbound.sort_unstable_by_key(|target| target.ordinal);
        decided.withdraw(&withdrawn);
        decided
    }

    fn admit_target(
        &self,
        key: &DeviceKey,
        ordinal: u32,
        account: Option<AccountDigest>,
        reachable: bool,
        (batch, first): (&Arc<Batch>, Seq),
        newcomer: &Newcomer<'_>,
    ) -> Result<Admitted, Refusal> {
        let mut part = self.shared.index.of_device(key);
        let device = part.devices.get_mut(key).ok_or(Refusal::DeviceUnknown)?;
        if device.has_since(batch.message, batch.priority, first) {
            return Err(Refusal::Duplicate);
        }
        if !device.push_on {
            return Err(Refusal::PushDisabled);
        }
        // Before anything that would have the router try another channel: whoever has the phone now is somebody else.
        if account.is_some() && account != device.account {
            return Ok(Admitted { number: device.number, unbound: true });
        }
        // What goes for it was found before, and goes once it is staged.
        make_way(device, newcomer)?;
        if !reachable {
            return Err(Refusal::Offline);
        }
        let flags = if account.is_some() { OF_ACCOUNT } else { 0 };
        device.push(Entry::new(batch.clone(), ordinal, flags));
        Ok(Admitted { number: device.number, unbound: false })
    }
}
