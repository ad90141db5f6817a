//! Revocation of one device's credentials: a record of its own, and no more of it in memory than one entry for each such device.

use tokio::sync::oneshot;

use super::{Effect, Engine, StoreFailure};
use crate::credential::Revocation;
use crate::ids::DeviceKey;
use crate::limits;
use crate::push::Rejection;
use crate::store::disk::Disk;
use crate::store::record;

/// Bytes of the record.
const RECORD_BYTES: usize = 16 + 4 + 1;

impl<D: Disk> Engine<D> {
    /// Revokes what the device has, where `epoch` is its app's. Answered, and its session ended, when that is durable.
    pub(super) fn revoke(
        &mut self,
        device: &DeviceKey,
        epoch: u32,
        allow_registration: bool,
        reply: oneshot::Sender<Result<Revocation, Rejection>>,
    ) -> Result<(), StoreFailure> {
        let before = self.shared.index.of_device(device).revocations.get(device).copied();
        let refusal = if before.is_none() && self.revoked >= limits::REVOKED_DEVICES {
            Some(Rejection::Exhausted)
        } else if !self.has_room_beside_ends(1, RECORD_BYTES) {
            Some(Rejection::Unavailable)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.effects.push(Effect::Revoked(None, reply, Err(refusal)));
            return Ok(());
        }
        let revocation = before.unwrap_or_default().next(epoch, allow_registration);
        self.scratch.clear();
        record::put_epoch(&mut self.scratch, device, revocation);
        self.stage(record::EPOCH)?;
        self.shared.index.of_device(device).revocations.insert(*device, revocation);
        self.revoked += u64::from(before.is_none());
        self.effects.push(Effect::Revoked(Some(*device), reply, Ok(revocation)));
        Ok(())
    }
}
