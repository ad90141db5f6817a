//! What is known of a device follows from what was said of it.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{CONNECTED, DEVICES, History, Promised};
use super::support::{Harness, account_digest, device};
use crate::binding::{self, Binding, Bindings, DeviceChange, DeviceEvent};
use crate::ids::{AccountDigest, Seq};
use crate::push::{Accepted, Attributes, Failure, Millis, StreamEvent};
use crate::store::disk::sim::SimDisk;

macro_rules! ensure {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}

/// What a device's events have said of it up to some place.
#[derive(Clone, Debug)]
struct Said {
    push_on: bool,
    bindings: Bindings,
    attributes: Attributes,
    /// When it registered: since then its sessions say when it was active.
    at: Millis,
}

/// The next event of a device; whether it says something new, as each does.
fn hear(said: &mut Option<Said>, n: u32, event: &DeviceEvent) -> bool {
    match (&event.change, &mut *said) {
        (DeviceChange::Registered(attributes), said @ None) => {
            let (bindings, attributes) = (Bindings::default(), attributes.clone());
            *said = Some(Said { push_on: true, bindings, attributes, at: event.time });
            true
        }
        (DeviceChange::Attributes(attributes), Some(said)) => {
            std::mem::replace(&mut said.attributes, attributes.clone()) != *attributes
        }
        (DeviceChange::Switch(on), Some(said)) => std::mem::replace(&mut said.push_on, *on) != *on,
        (DeviceChange::Bound(binding), Some(said)) => {
            let step = binding::Step { bound: true, binding: binding.clone() };
            let before = said.bindings.clone();
            said.bindings.apply(&step);
            before.bind(binding) == Ok(vec![step])
        }
        (DeviceChange::Unbound(binding), Some(said)) => {
            let before = said.bindings.clone();
            said.bindings.apply(&binding::Step { bound: false, binding: binding.clone() });
            before != said.bindings
        }
        (DeviceChange::Forgotten { .. }, said @ Some(_)) => {
            *said = None;
            !CONNECTED.contains(&n)
        }
        _ => false,
    }
}

/// What is known of a device follows from its events, each of which says something new; and its receipts say the same of it.
pub(super) fn check_devices(
    harness: &mut Harness<SimDisk>,
    promised: &Promised,
    history: &History,
) -> Result<(), String> {
    for n in 0..DEVICES {
        let name = format!("device-{n}");
        let mut said: Option<Said> = None;
        let (mut registered, mut bound) = (false, Vec::new());
        for (at, event) in history {
            match event {
                StreamEvent::Device(event) if *event.device_id == *name => {
                    ensure!(hear(&mut said, n, event), "{name}: {at:?} {:?} is no news", event.change);
                    match &event.change {
                        DeviceChange::Registered(_) => registered = true,
                        DeviceChange::Bound(binding) => bound.push(binding.clone()),
                        _ => {}
                    }
                }
                StreamEvent::Receipt(receipt) if *receipt.device_id == *name => {
                    // An end that comes with a Hello has the attributes of that Hello.
                    let of_hello =
                        matches!(receipt.outcome, Some(Err(Failure::PushDisabled | Failure::Reinstalled)));
                    let right = said.as_ref().is_some_and(|said| said.attributes == receipt.attributes);
                    ensure!(right || of_hello, "{name}: {at:?} {receipt:?} is of somebody else: {said:?}");
                }
                _ => {}
            }
        }
        let now = harness.state_of(n);
        let known = now.as_ref().map(|now| {
            let bindings = now.bindings.as_deref().cloned().unwrap_or_default();
            (now.push_on, bindings, now.attributes.clone())
        });
        let expected = said.clone().map(|said| (said.push_on, said.bindings, Some(said.attributes)));
        ensure!(known == expected, "{name} is {known:?}, its events say {expected:?}");
        if let (Some(now), Some(said)) = (now, said) {
            let active = now.last_active;
            ensure!(
                said.at / 1_000 * 1_000 <= active && active <= promised.now,
                "{name} was active at {active}, and registered at {}",
                said.at
            );
        }
        ensure!(registered || !promised.seen.contains(&n), "{name} was welcome, and never registered");
        for (_, told) in promised.told_bound.iter().filter(|(of, _)| *of == n) {
            ensure!(bound.contains(told), "{name}: {told:?} was told, and never bound");
        }
    }
    Ok(())
}

/// When everything is written, the table has a row of each device that is known, and no other.
pub(super) fn check_rows(harness: &mut Harness<SimDisk>) -> Result<(), String> {
    harness.checkpoint().map_err(|error| error.to_string())?;
    let known = (0..DEVICES).filter_map(|n| Some(harness.state_of(n)?.number));
    let known: BTreeSet<u32> = known.collect();
    let rows = harness.engine.device_rows().map_err(|error| error.to_string())?;
    ensure!(rows == known, "{known:?} are known, the table has {rows:?}");
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
