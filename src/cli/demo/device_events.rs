//! What the routers are told of devices, counted once each: a stream says again what was not acknowledged.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;

use crate::client::router::OnEvents;
use crate::wire::pb::device::PushState;
use crate::wire::pb::router::device_event;
use crate::wire::router::told::Told;

/// Counts of both streams together.
#[derive(Debug, Default)]
pub(super) struct ToldOfDevices {
    registered: AtomicU64,
    bound: AtomicU64,
    switched_off: AtomicU64,
    /// What was counted: its sequence, and all of it.
    known: Mutex<HashSet<(u64, Vec<u8>)>>,
}

impl ToldOfDevices {
    /// Counts the events of a stream.
    pub(super) fn listener(told: &Arc<Self>) -> OnEvents {
        let told = Arc::clone(told);
        Box::new(move |batch| {
            for (sequence, event) in &batch.events {
                let Told::Device(device) = event else { continue };
                let mut known = told.known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.insert((*sequence, device.encode_to_vec())) {
                    told.count(device.change.as_ref());
                }
            }
        })
    }

    fn count(&self, change: Option<&device_event::Change>) {
        let count = match change {
            Some(device_event::Change::Registered(_)) => &self.registered,
            Some(device_event::Change::Bound(_)) => &self.bound,
            Some(device_event::Change::Push(state)) if *state == PushState::Off as i32 => &self.switched_off,
            _ => return,
        };
        count.fetch_add(1, Ordering::AcqRel);
    }

    /// Devices that were seen for the first time.
    pub(super) fn registered(&self) -> u64 {
        self.registered.load(Ordering::Acquire)
    }

    /// Bindings that were made.
    pub(super) fn bound(&self) -> u64 {
        self.bound.load(Ordering::Acquire)
    }

    /// Devices whose push switch went off.
    pub(super) fn switched_off(&self) -> u64 {
        self.switched_off.load(Ordering::Acquire)
    }
}
