use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use super::*;
use crate::ids::BatchId;

const ACCEPTED: Millis = 1_800_000_000_000;

fn entry(seq: u64, message: u64, priority: Priority) -> Entry {
    let app = AppKey::parse("app").expect("valid");
    let batch = Batch {
        seq: Seq(seq),
        home: MessageKey::of(&app, MessageId(message)),
        app,
        message: MessageId(message),
        id: BatchId::parse("b").expect("valid"),
        job_key: "".into(),
        accepted_at: ACCEPTED,
        expires_at: ACCEPTED + 1,
        online_only: false,
        recovered: false,
        only: None,
        place: AtomicU64::new(0),
        bytes: AtomicU32::new(0),
        live: AtomicU32::new(1),
        damaged: AtomicBool::new(false),
        unreadable_since: AtomicU64::new(0),
        body: RwLock::new(None),
        priority,
        collapse_key: "".into(),
        body_bytes: 0,
        revoked: AtomicBool::new(false),
    };
    Entry::new(Arc::new(batch), 0, 0)
}

fn device() -> Device {
    let (number, app, last_active) = (7, AppId(1), 5_999);
    Device::new(&Described { number, app, push_on: true, attributes: (3, 4), last_active })
}

#[test]
fn an_entry_is_sixteen_bytes_and_a_device_sixty_four() {
    assert_eq!((size_of::<Entry>(), size_of::<Cold>()), (16, 16));
    assert_eq!(size_of::<Device>(), 64);
}

#[test]
fn the_first_writing_counts_and_flags_stay() {
    for flags in 0..4 {
        for (after, known) in [(0, 0), (1, 1), (72 * 3_600_000, 72 * 3_600_000), (1 << 40, (1 << 30) - 2)] {
            let mut entry = Entry::new(entry(1, 1, Priority::Normal).batch, 0, flags);
            assert_eq!((entry.written_at(), entry.flags()), (None, flags));
            for later in [0, 5] {
                entry.mark_written(ACCEPTED + after + later);
                assert_eq!((entry.written_at(), entry.flags()), (Some(ACCEPTED + known), flags));
            }
            entry.report_sent();
            assert_eq!((entry.written_at(), entry.flags()), (Some(ACCEPTED + known), flags | SENT_REPORTED));
            assert_eq!((entry.sent_reported(), entry.is_of_account()), (true, flags & OF_ACCOUNT != 0));
        }
    }
}

#[test]
fn a_device_has_each_flag_by_itself_and_its_activity_to_the_second() {
    let mut device = device();
    let flags = |device: &Device| [device.is_returning(), device.may_be_bound(), device.is_lost()];
    assert_eq!(flags(&device), [false; 3]);
    device.returns();
    device.set_may_be_bound(true);
    device.set_may_be_bound(true);
    assert_eq!(flags(&device), [true, true, false]);
    device.set_may_be_bound(false);
    device.set(LOST, true);
    assert_eq!(flags(&device), [true, false, true]);
    assert_eq!((device.last_active(), device.active_until()), (5_000, 5_999));
}

#[test]
fn who_was_active_returns_no_more() {
    let (mut part, key) = (Part::default(), DeviceKey([1; 16]));
    assert_eq!(part.was_active(&key, 9_000), None);
    let mut device = device();
    device.returns();
    part.devices.insert(key, device);
    assert_eq!(part.was_active(&key, 9_000), Some(5_000));
    assert_eq!(part.was_active(&key, 8_000), Some(9_000), "what is known is the latest");
    let device = part.devices.get(&key).expect("known");
    assert_eq!((device.last_active(), device.is_returning()), (9_000, false));
}

#[test]
fn a_message_is_looked_for_among_the_newest_of_its_priority() {
    let mut device = device();
    for (seq, message, priority) in [
        (1, 11, Priority::Normal),
        (2, 12, Priority::High),
        (3, 13, Priority::Normal),
        (4, 14, Priority::High),
    ] {
        device.push(entry(seq, message, priority));
    }
    let has = |message, priority, first| device.has_since(MessageId(message), priority, Seq(first));
    assert!(has(13, Priority::Normal, 2) && has(11, Priority::Normal, 1));
    assert!(has(14, Priority::High, 4) && has(12, Priority::High, 2));
    assert!(!has(11, Priority::Normal, 2), "older than the first that may have it");
    assert!(!has(12, Priority::Normal, 1) && !has(13, Priority::High, 1), "of the other priority");
}

#[test]
fn a_list_that_was_long_gives_its_room_back() {
    let mut device = device();
    for seq in 1..=3 {
        device.push(entry(seq, seq, Priority::Normal));
    }
    assert!(device.take(Seq(9)).is_none());
    device.take(Seq(1)).expect("there");
    assert!(device.pending.spilled());
    device.take(Seq(3)).expect("there");
    assert!(!device.pending.spilled() && device.entry(MessageId(2)).is_some());
}

#[test]
fn what_is_in_the_tables_only_says_when_it_was_accepted_and_whether_it_is_pending() {
    for pending in [false, true] {
        let cold = Cold::new(Seq(5), ACCEPTED, pending).at(Seq(6));
        assert_eq!((cold.row, cold.accepted_at(), cold.is_pending()), (Seq(6), ACCEPTED, pending));
    }
}

#[test]
fn sequences_are_spread_over_high_and_low_bits() {
    use std::hash::BuildHasher;
    let of = |n: u64| Spread::default().hash_one(Seq(n));
    let low: std::collections::HashSet<u64> = (0..1_024).map(|n| of(n << 10) % 1_024).collect();
    let high: std::collections::HashSet<u64> = (0..1_024).map(|n| of(n << 10) >> 54).collect();
    assert!(low.len() > 512 && high.len() > 512, "{} and {}", low.len(), high.len());
}

#[test]
fn what_is_forgotten_takes_no_room_and_another_device_of_its_name_has_only_its_list() {
    let (mut part, warmth, key) = (Part::default(), Warmth::new(usize::MAX), DeviceKey([1; 16]));
    let described = |number| Described { number, ..device().described() };
    let about = || {
        let attributes = crate::push::Attributes::whole(b"attributes".as_slice().into());
        About::new(Says { device_id: "d".into(), attributes, client_ip: None }, Bound::Known(None))
    };
    part.know(key, &described(7), &warmth);
    part.warm(&key, about(), &warmth);
    let known = part.devices.get_mut(&key).expect("known");
    known.push(entry(1, 11, Priority::Normal));
    known.set_may_be_bound(true);
    part.know(key, &described(7), &warmth);
    let known = part.devices.get(&key).expect("known");
    assert!(part.about(&key).is_some() && known.may_be_bound(), "it is the same one");
    assert_eq!(warmth.rows(), 1);
    // The record of its end was lost: what waits is all that is left.
    part.know(key, &described(8), &warmth);
    let now = part.devices.get(&key).expect("known");
    assert_eq!((now.number, now.pending.len(), now.may_be_bound()), (8, 1, false));
    assert_eq!((part.about(&key).is_none(), warmth.rows(), warmth.bytes()), (true, 0, 0));
    part.warm(&key, about(), &warmth);
    assert_eq!(part.forget(&key, &warmth).map(|device| device.number), Some(8));
    assert_eq!((part.number_of(&key), warmth.rows(), warmth.bytes()), (None, 0, 0));
}

#[test]
fn rows_leave_memory_only_when_they_are_written_and_nobody_used_them_lately() {
    let (mut part, warmth) = (Part::default(), Warmth::new(0));
    let keys: Vec<DeviceKey> = (0..4).map(|n| DeviceKey([n; 16])).collect();
    for (number, key) in (0..).zip(&keys) {
        part.know(*key, &Described { number, ..device().described() }, &warmth);
        let attributes = crate::push::Attributes::whole(b"attributes".as_slice().into());
        let says = Says { device_id: "d".into(), attributes, client_ip: None };
        part.warm(key, About::new(says, Bound::Known(None)), &warmth);
    }
    let here = |part: &Part| keys.iter().map(|key| part.about(key).is_some()).collect::<Vec<_>>();
    assert_eq!(part.make_room(9, &warmth), 4);
    assert_eq!(here(&part), [true; 4], "they came just now");
    assert!(part.change_about(&keys[1], &warmth, |about| about.touched = false));
    assert!(!part.change_about(&keys[1], &warmth, |_| {}), "it has to be written already");
    let touch = |part: &mut Part, n: usize, touched| {
        let about = part.devices.get_mut(&keys[n]).expect("known").about.as_mut().expect("here");
        about.touched = touched;
    };
    touch(&mut part, 1, false);
    touch(&mut part, 2, true);
    part.make_room(9, &warmth);
    assert_eq!((here(&part), warmth.rows()), (vec![false, true, true, false], 2));
    part.make_room(9, &warmth);
    assert_eq!(here(&part), [false, true, false, false], "what isn't written stays");
    warmth.set_max(usize::MAX);
    assert_eq!(part.make_room(9, &warmth), 0, "there is room enough");
}
