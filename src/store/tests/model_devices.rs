//! What is known of a device follows from what was said of it.

use super::plan::{CONNECTED, DEVICES, History, Promised};
use super::support::Harness;
use crate::binding::{self, Bindings, DeviceChange};
use crate::push::StreamEvent;
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
