//! Device events against the generated code.

use proptest::prelude::*;
use prost::Message;

use super::{app, pb};
use crate::binding::{Binding, DeviceChange, DeviceEvent};
use crate::push::Attributes;
use crate::wire::pb::device;

fn binding() -> impl Strategy<Value = Binding> {
    ("\\PC{0,20}", 0..4usize).prop_map(|(text, kind)| {
        [Binding::Account, Binding::Alias, Binding::Tag, Binding::Phone][kind](text.into())
    })
}

prop_compose! {
    pub(super) fn device_event()(
        app in app(),
        device_id in "\\PC{1,20}",
        time in any::<u64>(),
        brand in ".{0,8}",
        on in any::<bool>(),
        binding in binding(),
        kind in 0..6usize,
    ) -> DeviceEvent {
        let attributes = device::Attributes { brand, ..Default::default() }.encode_to_vec();
        let attributes = Attributes::whole(attributes.into());
        let change = match kind {
            0 => DeviceChange::Registered(attributes),
            1 => DeviceChange::Attributes(attributes),
            2 => DeviceChange::Switch(on),
            3 => DeviceChange::Bound(binding),
            4 => DeviceChange::Unbound(binding),
            _ => DeviceChange::Forgotten { last_active: time / 2 },
        };
        DeviceEvent { app, device_id: device_id.into(), time, change }
    }
}

pub(super) fn expected_device(event: &DeviceEvent) -> pb::DeviceEvent {
    use pb::device_event::Change;
    let attributes = |all: &Attributes| device::Attributes::decode(&*all.bytes()).expect("encoded above");
    let binding = |binding: &Binding| {
        let text = binding.text().to_string();
        let binding = match binding {
            Binding::Account(_) => pb::binding::Binding::Account(text),
            Binding::Alias(_) => pb::binding::Binding::Alias(text),
            Binding::Tag(_) => pb::binding::Binding::Tag(text),
            Binding::Phone(_) => pb::binding::Binding::Phone(text),
        };
        pb::Binding { binding: Some(binding) }
    };
    let change = match &event.change {
        DeviceChange::Registered(all) => {
            let none = all.is_empty();
            Change::Registered(pb::Registered { attributes: (!none).then(|| attributes(all)) })
        }
        DeviceChange::Attributes(all) => Change::Attributes(attributes(all)),
        DeviceChange::Switch(true) => Change::Push(device::PushState::On.into()),
        DeviceChange::Switch(false) => Change::Push(device::PushState::Off.into()),
        DeviceChange::Bound(bound) => Change::Bound(binding(bound)),
        DeviceChange::Unbound(unbound) => Change::Unbound(binding(unbound)),
        DeviceChange::Forgotten { last_active } => {
            Change::Forgotten(pb::Forgotten { last_active_time: *last_active })
        }
    };
    pb::DeviceEvent {
        app_key: event.app.to_string(),
        device_id: event.device_id.to_string(),
        time: event.time,
        change: Some(change),
    }
}
