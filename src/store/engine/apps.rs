//! What an operator sets for an app: one record each time, with all that holds from then on.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::{Effect, Engine, StoreFailure};
use crate::ids::{AppKey, Seq};
use crate::push::{AppControl, RateOverrides};
use crate::store::codec::{Malformed, Take, put_bytes, put_u32, put_varint};
use crate::store::disk::Disk;
use crate::store::{AppChange, record};

/// Bytes of the record, at most.
const BYTES: usize = 128;

/// The apps for which an operator set something.
pub(in crate::store) type Controls = HashMap<AppKey, AppControl>;

/// Kind 24.
pub(super) fn put(out: &mut Vec<u8>, app: &AppKey, control: &AppControl) {
    put_bytes(out, app.as_str().as_bytes());
    out.push(u8::from(control.suspended));
    for rate in control.rates.all() {
        out.push(u8::from(rate.is_some()));
        put_u32(out, rate.unwrap_or(0));
    }
}

/// What [`put`] wrote, into what is known.
pub(in crate::store) fn take_into(take: &mut Take<'_>, controls: &mut Controls) -> Result<(), Malformed> {
    let app = AppKey::parse(take.text()?).ok_or(Malformed)?;
    let suspended = take.flag()?;
    let mut rates = [None; 4];
    for rate in &mut rates {
        let (set, value) = (take.flag()?, take.u32()?);
        *rate = set.then_some(value);
    }
    controls.insert(app, AppControl { suspended, rates: RateOverrides::of(rates) });
    Ok(())
}

/// All of them, for a checkpoint.
pub(super) fn put_all(out: &mut Vec<u8>, controls: &Controls) {
    put_varint(out, controls.len() as u64);
    for (app, control) in controls {
        put(out, app, control);
    }
}

/// What [`put_all`] wrote.
pub(super) fn take_all(take: &mut Take<'_>) -> Result<Controls, Malformed> {
    let mut controls = Controls::new();
    for _ in 0..take.varint()? {
        take_into(take, &mut controls)?;
    }
    Ok(controls)
}

impl<D: Disk> Engine<D> {
    /// See [`crate::store::Command::ControlApp`].
    pub(super) fn control_app(
        &mut self,
        app: AppKey,
        change: AppChange,
        reply: oneshot::Sender<Option<(Seq, AppControl)>>,
    ) -> Result<(), StoreFailure> {
        if !self.has_room(1, BYTES) {
            self.effects.push(Effect::AppAnswer(reply, None));
            return Ok(());
        }
        let mut control = self.controls.get(&app).copied().unwrap_or_default();
        match change {
            AppChange::Suspend => control.suspended = true,
            AppChange::Resume => control.suspended = false,
            AppChange::Rates(change) => control.rates = control.rates.changed(&change),
        }
        self.scratch.clear();
        put(&mut self.scratch, &app, &control);
        let (seq, _) = self.stage(record::APP)?;
        // From this record on, in the journal's order.
        self.controls.insert(app.clone(), control);
        self.effects.push(Effect::App(app, control));
        self.effects.push(Effect::AppAnswer(reply, Some((seq, control))));
        Ok(())
    }
}
