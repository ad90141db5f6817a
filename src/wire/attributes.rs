//! A device's attributes by the names of the receipt log, for troubleshooting.

use prost::Message as _;

use crate::push::Attributes;
use crate::wire::pb::device as pb;

/// Names and values of what is known, in the order of the protocol; nothing for what is not. Vendor tokens are left out: they are
/// secrets of the app.
pub fn named(attributes: &Attributes) -> Vec<(&'static str, String)> {
    // What the edge stored was valid; if it isn't any more, then nothing is known.
    let Ok(a) = pb::Attributes::decode(&*attributes.bytes()) else { return Vec::new() };
    let device_type = match a.device_type() {
        pb::DeviceType::Android => "ANDROID",
        pb::DeviceType::Ios => "IOS",
        pb::DeviceType::Unspecified => "",
    };
    let permission = match a.notification_permission() {
        pb::NotificationPermission::Granted => "granted",
        pb::NotificationPermission::Denied => "denied",
        pb::NotificationPermission::Unspecified => "",
    };
    let vendor = a.vendor.unwrap_or_default();
    let all = [
        ("device_type", device_type.to_owned()),
        ("package", a.package),
        ("app_version", a.app_version),
        ("sdk_version", a.sdk_version),
        ("brand", a.brand),
        ("model", a.model),
        ("os", a.os),
        ("os_version", a.os_version),
        ("network_type", a.network_type),
        ("isp", a.isp),
        ("utdid", a.utdid),
        ("vendor", vendor.vendor),
        ("vendor_error_code", vendor.error_code),
        ("notification_permission", permission.to_owned()),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out_and_tokens_too() {
        let encoded = pb::Attributes {
            device_type: pb::DeviceType::Android.into(),
            brand: "vivo".into(),
            vendor: Some(pb::VendorChannel {
                vendor: "vivo".into(),
                token: "t0k".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let named = named(&Attributes::whole(encoded.encode_to_vec().into()));
        let expected = [("device_type", "ANDROID"), ("brand", "vivo"), ("vendor", "vivo")];
        assert_eq!(named, expected.map(|(name, value)| (name, value.to_owned())));
        assert!(super::named(&Attributes::whole([0xff, 0xff].as_slice().into())).is_empty());
    }
}
