//! Bind and Unbind: what a device is bound to, and what ends when its account goes.
//!
//! Invariants: a pending entry that was resolved from an account is of the account that its device is bound to now, since one of another account
//! ends when it is accepted, and those of a former one ended with that binding. So an entry needs one bit, not the account.
//! Its end is staged before the binding's: see [`super::devices`].

use super::acks::{Who, receipt_bytes};
use super::{Engine, StoreFailure};
use crate::binding::{Binding, ChangeError, Step, Unbind};
use crate::push::{Failure, Millis};
use crate::store::disk::Disk;
use crate::store::fault::{self, Fault};
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
        match who.about.bindings.clone().unwrap_or_default().bind(binding) {
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
        let step = who.about.bindings.as_ref().and_then(|bindings| bindings.unbind(what));
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
        } else if steps.iter().any(|step| !step.bound && step.binding.is_account()) {
            self.pending_of(&who.key, Entry::is_of_account)
        } else {
            Vec::new()
        };
        let bytes = receipt_bytes(&who.about).max(BindingRecord::BYTES);
        if !steps.is_empty() && !self.has_room_beside_ends(steps.len() + ended.len(), bytes) {
            return Ok(Err(ChangeError::Exhausted));
        }
        for pointed in &ended {
            self.fail_one(now, who.key, who.number, &who.about, pointed, Failure::Unbound)?;
        }
        for step in steps {
            self.take_step(now, who, step)?;
        }
        Ok(Ok(()))
    }

    /// Stages one step and takes it.
    pub(super) fn take_step(&mut self, now: Millis, who: &Who, step: Step) -> Result<(), StoreFailure> {
        let about = &who.about;
        let (app, device_id) = (about.app.clone(), about.device_id.clone());
        let record = BindingRecord { app, key: who.key, device_id, time: now, step };
        self.scratch.clear();
        record.encode(&mut self.scratch);
        self.stage_event(record::BINDING, about.app.as_str())?;
        let mut part = self.shared.index.of_device(&who.key);
        if let Some(device) = part.devices.get_mut(&who.key) {
            device.apply_step(&record.step, &self.options.digest_key);
        }
        Ok(())
    }
}
