//! The records about devices: what each is, what it is bound to, when it was seen, and that it is forgotten. Those with an event begin with
//! their app and are self-contained, so that a stream is read straight from them.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::binding::{Binding, DeviceChange, DeviceEvent, Step};
use crate::ids::{AppKey, DeviceKey};
use crate::push::{Attributes, Millis, StreamEvent};
use crate::store::codec::{Malformed, Take, put_bytes, put_ip, put_u32, put_u64};

/// The device was unknown.
pub(in crate::store) const NEW: u8 = 1;
/// Its attributes changed.
pub(in crate::store) const ATTRIBUTES: u8 = 2;
/// The push switch changed.
pub(in crate::store) const SWITCH: u8 = 4;
/// It lost its state: what was pending ended.
pub(in crate::store) const STATE_LOST: u8 = 8;
/// Its row couldn't be read, and is written anew: it is bound to nothing.
pub(in crate::store) const ROW: u8 = 16;

/// Events of one record: two at most.
pub(in crate::store) type Events = SmallVec<[StreamEvent; 1]>;

/// Kind 3.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::store) struct DeviceRecord<'a> {
    pub(in crate::store) app: &'a str,
    pub(in crate::store) key: DeviceKey,
    pub(in crate::store) number: u32,
    pub(in crate::store) push_on: bool,
    pub(in crate::store) device_id: &'a str,
    pub(in crate::store) attributes: &'a [u8],
    pub(in crate::store) client_ip: Option<IpAddr>,
    /// When this was said.
    pub(in crate::store) last_active: Millis,
    /// [`NEW`], [`ATTRIBUTES`], [`SWITCH`], [`STATE_LOST`], [`ROW`].
    pub(in crate::store) changed: u8,
}

impl<'a> DeviceRecord<'a> {
    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.app.as_bytes());
        out.extend_from_slice(&self.key.0);
        put_u32(out, self.number);
        out.push(u8::from(self.push_on));
        put_bytes(out, self.device_id.as_bytes());
        put_bytes(out, self.attributes);
        put_ip(out, self.client_ip);
        put_u64(out, self.last_active);
        out.push(self.changed);
    }

    pub(in crate::store) fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let record = Self {
            app: take.text()?,
            key: DeviceKey(take.array()?),
            number: take.u32()?,
            push_on: take.flag()?,
            device_id: take.text()?,
            attributes: take.bytes()?,
            client_ip: take.ip()?,
            last_active: take.u64()?,
            changed: take.u8()?,
        };
        take.0.is_empty().then_some(record).ok_or(Malformed)
    }

    pub(super) fn events(&self) -> Result<Events, Malformed> {
        let attributes = || Attributes::whole(self.attributes.into());
        let mut changes: SmallVec<[DeviceChange; 2]> = SmallVec::new();
        if self.changed & NEW != 0 {
            changes.push(DeviceChange::Registered(attributes()));
        }
        if self.changed & ATTRIBUTES != 0 {
            changes.push(DeviceChange::Attributes(attributes()));
        }
        if self.changed & SWITCH != 0 {
            changes.push(DeviceChange::Switch(self.push_on));
        }
        let (app, device_id) = (AppKey::parse(self.app).ok_or(Malformed)?, Arc::from(self.device_id));
        let event = |change| event(&app, &device_id, self.last_active, change);
        Ok(changes.into_iter().map(event).collect())
    }
}

fn event(app: &AppKey, device_id: &Arc<str>, time: Millis, change: DeviceChange) -> StreamEvent {
    StreamEvent::Device(Box::new(DeviceEvent {
        app: app.clone(),
        device_id: device_id.clone(),
        time,
        change,
    }))
}

/// Kind 11: a binding comes or goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::store) struct BindingRecord {
    pub(in crate::store) app: AppKey,
    pub(in crate::store) key: DeviceKey,
    /// Whoever has the key later has another number, and isn't meant.
    pub(in crate::store) number: u32,
    pub(in crate::store) device_id: Arc<str>,
    pub(in crate::store) time: Millis,
    pub(in crate::store) step: Step,
}

impl BindingRecord {
    /// Bytes at most: names of full length, and numbers.
    pub(in crate::store) const BYTES: usize = 320;

    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.app.as_str().as_bytes());
        out.extend_from_slice(&self.key.0);
        put_u32(out, self.number);
        put_bytes(out, self.device_id.as_bytes());
        put_u64(out, self.time);
        out.push(u8::from(self.step.bound));
        put_binding(out, &self.step.binding);
    }

    pub(in crate::store) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let record = Self {
            app: AppKey::parse(take.text()?).ok_or(Malformed)?,
            key: DeviceKey(take.array()?),
            number: take.u32()?,
            device_id: take.text()?.into(),
            time: take.u64()?,
            step: Step { bound: take.flag()?, binding: take_binding(&mut take)? },
        };
        take.0.is_empty().then_some(record).ok_or(Malformed)
    }

    pub(super) fn events(self) -> Events {
        let Step { bound, binding } = self.step;
        let change = if bound { DeviceChange::Bound(binding) } else { DeviceChange::Unbound(binding) };
        smallvec![event(&self.app, &self.device_id, self.time, change)]
    }
}

/// Its kind, then its text.
pub(in crate::store) fn put_binding(out: &mut Vec<u8>, binding: &Binding) {
    out.push(match binding {
        Binding::Account(_) => 1,
        Binding::Alias(_) => 2,
        Binding::Tag(_) => 3,
        Binding::Phone(_) => 4,
    });
    put_bytes(out, binding.text().as_bytes());
}

/// What [`put_binding`] wrote.
pub(in crate::store) fn take_binding(take: &mut Take<'_>) -> Result<Binding, Malformed> {
    let kind = take.u8()?;
    let text = take.text()?.into();
    Ok(match kind {
        1 => Binding::Account(text),
        2 => Binding::Alias(text),
        3 => Binding::Tag(text),
        4 => Binding::Phone(text),
        _ => return Err(Malformed),
    })
}

/// Kind 12: a device is known no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::store) struct ForgottenRecord {
    pub(in crate::store) app: AppKey,
    pub(in crate::store) key: DeviceKey,
    pub(in crate::store) number: u32,
    /// Empty, if the device's row couldn't be read: then nobody is told, as nobody could be told of whom.
    pub(in crate::store) device_id: Arc<str>,
    pub(in crate::store) time: Millis,
    pub(in crate::store) last_active: Millis,
}

impl ForgottenRecord {
    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.app.as_str().as_bytes());
        out.extend_from_slice(&self.key.0);
        put_u32(out, self.number);
        put_bytes(out, self.device_id.as_bytes());
        put_u64(out, self.time);
        put_u64(out, self.last_active);
    }

    pub(in crate::store) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let record = Self {
            app: AppKey::parse(take.text()?).ok_or(Malformed)?,
            key: DeviceKey(take.array()?),
            number: take.u32()?,
            device_id: take.text()?.into(),
            time: take.u64()?,
            last_active: take.u64()?,
        };
        take.0.is_empty().then_some(record).ok_or(Malformed)
    }

    pub(super) fn events(&self) -> Events {
        if self.device_id.is_empty() {
            return Events::new();
        }
        let change = DeviceChange::Forgotten { last_active: self.last_active };
        smallvec![event(&self.app, &self.device_id, self.time, change)]
    }
}

/// Bytes of one device in a record of kind 13.
pub(in crate::store) const ACTIVE_BYTES: usize = 24;

/// Kind 13: when devices were active.
pub(in crate::store) fn put_active(out: &mut Vec<u8>, active: &[(DeviceKey, Millis)]) {
    for (key, at) in active {
        out.extend_from_slice(&key.0);
        put_u64(out, *at);
    }
}

/// What [`put_active`] wrote.
pub(in crate::store) fn take_active(payload: &[u8]) -> Result<Vec<(DeviceKey, Millis)>, Malformed> {
    let mut take = Take(payload);
    let mut active = Vec::with_capacity(payload.len() / ACTIVE_BYTES);
    while !take.0.is_empty() {
        active.push((DeviceKey(take.array()?), take.u64()?));
    }
    Ok(active)
}

#[cfg(test)]
mod tests {
    use super::super::{BINDING, DEVICE, FORGOTTEN, app_of, stream_events};
    use super::*;

    fn changes(kind: u8, payload: &[u8]) -> Vec<DeviceChange> {
        assert_eq!(app_of(kind, payload), Ok(Some("app")));
        let events = stream_events(kind, payload).expect("understood").into_iter();
        let changes = events.map(|event| match event {
            StreamEvent::Device(event) => {
                assert_eq!((event.app.as_str(), &*event.device_id, event.time), ("app", "d", 9));
                event.change
            }
            other => panic!("{other:?}"),
        });
        changes.collect()
    }

    #[test]
    fn a_device_record_says_what_changed() {
        let mut record = DeviceRecord {
            app: "app",
            key: DeviceKey([3; 16]),
            number: 4,
            push_on: false,
            device_id: "d",
            attributes: b"a",
            client_ip: Some(IpAddr::from([127, 0, 0, 1])),
            last_active: 9,
            changed: 0,
        };
        let attributes = || Attributes::whole(b"a".as_slice().into());
        let all = [
            (0, vec![]),
            (STATE_LOST, vec![]),
            (NEW, vec![DeviceChange::Registered(attributes())]),
            (NEW | SWITCH, vec![DeviceChange::Registered(attributes()), DeviceChange::Switch(false)]),
            (ATTRIBUTES, vec![DeviceChange::Attributes(attributes())]),
        ];
        for (changed, expected) in all {
            record.changed = changed;
            let mut out = Vec::new();
            record.encode(&mut out);
            assert_eq!(DeviceRecord::decode(&out).as_ref(), Ok(&record));
            assert_eq!(changes(DEVICE, &out), expected);
            assert!((0..out.len()).all(|cut| DeviceRecord::decode(&out[..cut]).is_err()));
        }
    }

    #[test]
    fn bindings_and_the_end_come_back_whole() {
        let app = AppKey::parse("app").expect("valid");
        for make in [Binding::Account, Binding::Alias, Binding::Tag, Binding::Phone] {
            for bound in [true, false] {
                let step = Step { bound, binding: make("x".into()) };
                let record = BindingRecord {
                    app: app.clone(),
                    key: DeviceKey([3; 16]),
                    number: 4,
                    device_id: "d".into(),
                    time: 9,
                    step: step.clone(),
                };
                let mut out = Vec::new();
                record.encode(&mut out);
                assert_eq!(BindingRecord::decode(&out).as_ref(), Ok(&record));
                let Step { binding, .. } = step;
                let expected =
                    if bound { DeviceChange::Bound(binding) } else { DeviceChange::Unbound(binding) };
                assert_eq!(changes(BINDING, &out), [expected]);
                assert!((0..out.len()).all(|cut| BindingRecord::decode(&out[..cut]).is_err()));
            }
        }
        let key = DeviceKey([3; 16]);
        let mut record =
            ForgottenRecord { app, key, number: 4, device_id: "d".into(), time: 9, last_active: 5 };
        let mut out = Vec::new();
        record.encode(&mut out);
        assert_eq!(ForgottenRecord::decode(&out).as_ref(), Ok(&record));
        assert_eq!(changes(FORGOTTEN, &out), [DeviceChange::Forgotten { last_active: 5 }]);
        record.device_id = "".into();
        out.clear();
        record.encode(&mut out);
        assert_eq!(changes(FORGOTTEN, &out), []);
    }

    #[test]
    fn times_of_activity_come_back() {
        let active = [(DeviceKey([1; 16]), 5), (DeviceKey([2; 16]), u64::MAX)];
        let mut out = Vec::new();
        put_active(&mut out, &active);
        assert_eq!(out.len(), 2 * ACTIVE_BYTES);
        assert_eq!(take_active(&out).as_deref(), Ok(&active[..]));
        assert!(take_active(&out[1..]).is_err());
    }
}
