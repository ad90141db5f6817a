//! What is known of a device follows from what was said of it.

use std::collections::BTreeMap;

use super::plan::{CONNECTED, DEVICES, History, Promised};
use super::support::{Harness, account_digest, device};
use crate::binding::{self, Binding, Bindings, DeviceChange};
use crate::ids::{AccountDigest, Seq};
use crate::push::{Accepted, StreamEvent};
use crate::store::disk::sim::SimDisk;

macro_rules! ensure {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}

/// What is known of a device follows from its events, each of which says something new.
pub(super) fn check_devices(
    harness: &mut Harness<SimDisk>,
    promised: &Promised,
    history: &History,
) -> Result<(), String> {
    for n in 0..DEVICES {
        let name = format!("device-{n}");
        let mut state: Option<(bool, Bindings)> = None;
        let mut registered = false;
        let mut bound = Vec::new();
        for (at, event) in history {
            let StreamEvent::Device(event) = event else { continue };
            if *event.device_id != *name {
                continue;
            }
            let is_new = match (&event.change, &mut state) {
                (DeviceChange::Registered(_), state @ None) => {
                    *state = Some((true, Bindings::default()));
                    registered = true;
                    true
                }
                (DeviceChange::Switch(on), Some((before, _))) => std::mem::replace(before, *on) != *on,
                (DeviceChange::Bound(binding), Some((_, bindings))) => {
                    let step = binding::Step { bound: true, binding: binding.clone() };
                    bound.push(binding.clone());
                    let before = bindings.clone();
                    bindings.apply(&step);
                    before.bind(binding) == Ok(vec![step])
                }
                (DeviceChange::Unbound(binding), Some((_, bindings))) => {
                    let before = bindings.clone();
                    bindings.apply(&binding::Step { bound: false, binding: binding.clone() });
                    before != *bindings
                }
                (DeviceChange::Forgotten { .. }, state @ Some(_)) => {
                    *state = None;
                    !CONNECTED.contains(&n)
                }
                _ => false,
            };
            ensure!(is_new, "{name}: {at:?} {:?} is no news", event.change);
        }
        let now = harness.state_of(n).map(|state| (state.push_on, state.bindings.as_deref().cloned()));
        let now = now.map(|(push_on, bindings)| (push_on, bindings.unwrap_or_default()));
        ensure!(now == state, "{name} is {now:?}, its events say {state:?}");
        ensure!(registered || !promised.seen.contains(&n), "{name} was welcome, and never registered");
        for (_, told) in promised.told_bound.iter().filter(|(of, _)| *of == n) {
            ensure!(bound.contains(told), "{name}: {told:?} was told, and never bound");
        }
    }
    Ok(())
}

/// The account that a device was bound to before this sequence.
fn account_before(history: &History, n: u32, seq: Seq) -> Option<AccountDigest> {
    let name = format!("device-{n}");
    let mut account = None;
    for event in history.range(..(seq, 0)).map(|(_, event)| event) {
        let StreamEvent::Device(event) = event else { continue };
        if *event.device_id != *name {
            continue;
        }
        match &event.change {
            DeviceChange::Bound(Binding::Account(name)) => account = Some(account_digest(name)),
            DeviceChange::Unbound(Binding::Account(_)) | DeviceChange::Forgotten { .. } => account = None,
            _ => {}
        }
    }
    account
}

/// A batch gives a device one of its targets at most, and one of a stale account only if none is better, whatever their order. Answers how often
/// it had to choose.
pub(super) fn check_accounts(
    promised: &Promised,
    answered: &BTreeMap<String, Accepted>,
    history: &History,
) -> Result<usize, String> {
    let mut chosen = 0;
    for (id, answer) in answered {
        let Some(batch) = promised.tried.get(id) else { continue };
        for n in 0..DEVICES {
            let of_device = (0u32..).zip(&batch.targets).filter(|(_, key)| **key == device(n));
            let ordinals: Vec<u32> = of_device.map(|(ordinal, _)| ordinal).collect();
            let is_refused = |ordinal: &u32| answer.refused.iter().any(|(refused, _)| refused == ordinal);
            let accepted: Vec<u32> = ordinals.iter().filter(|one| !is_refused(one)).copied().collect();
            ensure!(accepted.len() <= 1, "{id}: device {n} was accepted more than once: {accepted:?}");
            let account = account_before(history, n, answer.seq);
            let is_stale = |ordinal: &u32| {
                let of = batch.accounts.get(*ordinal as usize).copied().flatten();
                of.is_some() && of != account
            };
            let stale = ordinals.iter().filter(|ordinal| is_stale(ordinal)).count();
            chosen += usize::from(stale > 0 && stale < ordinals.len());
            let worse = accepted.iter().any(is_stale) && stale < ordinals.len();
            ensure!(!worse, "{id}: device {n} got {accepted:?} of {ordinals:?}, {account:?} was bound");
        }
    }
    Ok(chosen)
}
