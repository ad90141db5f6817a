//! Bind and Unbind: what a device is bound to, and what ends when its account goes.
//!
//! Invariants: a pending entry that was resolved from an account is of the account that its device is bound to now, since one of another account
//! ends when it is accepted, and those of a former one ended with that binding. So an entry needs one bit, not the account.
//! Its end is staged before the binding's: see [`super::devices`].

use super::acks::receipt_bytes;
use super::rows::Who;
use super::{Engine, StoreFailure};
use crate::binding::{Binding, ChangeError, Step, Unbind};
use crate::fault::{self, Fault};
use crate::push::{Failure, Millis};
use crate::store::device_row::{About, Bound};
use crate::store::disk::Disk;
use crate::store::part::Entry;
use crate::store::record::{self, BindingRecord};

impl<D: Disk> Engine<D> {
    /// Where only one may be, the former goes in the same group.
    pub(super) fn bind(
        &mut self,
        now: Millis,
        who: &Who,
        binding: &Binding,
    ) -> Result<Result<(), ChangeError>, StoreFailure> {
        match self.bindings_of(&who.key)?.unwrap_or_default().bind(binding) {
            Ok(steps) => self.take_steps(now, who, steps),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Nothing, if it isn't bound.
    pub(super) fn unbind(
        &mut self,
        now: Millis,
        who: &Who,
        what: &Unbind,
    ) -> Result<Result<(), ChangeError>, StoreFailure> {
        let step = self.bindings_of(&who.key)?.and_then(|bindings| bindings.unbind(what));
        self.take_steps(now, who, Vec::from_iter(step))
    }

    fn take_steps(
        &mut self,
        now: Millis,
        who: &Who,
        steps: Vec<Step>,
    ) -> Result<Result<(), ChangeError>, StoreFailure> {
        let ended = if fault::is(Fault::KeepUnbound) {
            Vec::new()
        } else if steps.iter().any(|step| step.binding.is_account()) {
            // One that comes where none goes ends nothing, unless the device's row was lost, and with it which one that was.
            self.pending_of(&who.key, Entry::is_of_account)
        } else {
            Vec::new()
        };
        let bytes = receipt_bytes(who.attributes.len()).max(BindingRecord::BYTES);
        let fits = !self.is_behind() && self.has_room_beside_ends(steps.len() + ended.len(), bytes);
        if !steps.is_empty() && !fits {
            return Ok(Err(ChangeError::Exhausted));
        }
        for pointed in &ended {
            self.fail_one(now, who, pointed, Failure::Unbound)?;
        }
        for step in steps {
            self.take_step(now, who, step)?;
        }
        Ok(Ok(()))
    }

    /// Stages one step and takes it. What the device is bound to is in memory.
    pub(super) fn take_step(&mut self, now: Millis, who: &Who, step: Step) -> Result<(), StoreFailure> {
        let Who { key, number, .. } = *who;
        let (app, device_id) = (who.app.clone(), who.device_id.clone());
        let record = BindingRecord { app, key, number, device_id, time: now, step };
        self.scratch.clear();
        record.encode(&mut self.scratch);
        self.stage_event(record::BINDING, who.app.as_str())?;
        self.change_row(&key, |about| about.apply_step(&record.step));
        let mut part = self.shared.index.of_device(&key);
        let left = part.about(&key).map(About::bound);
        if let Some(device) = part.devices.get_mut(&key) {
            device.apply_step(&record.step, &who.app, &self.options.digest_key);
            device.set_may_be_bound(left != Some(Bound::Known(None)));
        }
        Ok(())
    }
}
