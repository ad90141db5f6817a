//! What is read where it stands is what the generated code reads.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::encoding::encode_varint;

use super::*;
use crate::wire::pb::device;
use crate::wire::pb::router as pb;
use pb::stream_event::Event;

/// Fields of number 100, of each kind of value: of a newer protocol.
const NEWER: &[u8] = &[
    0xa0, 6, 1, 0xa1, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0xa2, 6, 1, 7, 0xa3, 6, 8, 1, 0xa4, 6, 0xa5, 6, 1, 2, 3, 4,
];

/// Of the enums too what nobody knows.
fn word() -> impl Strategy<Value = i32> {
    prop_oneof![4 => 0..13, 1 => any::<i32>()]
}

fn text() -> impl Strategy<Value = String> {
    "(|.{1,12})"
}

prop_compose! {
    fn receipt()(
        (event, outcome, reason, channel, after) in (word(), word(), word(), word(), word()),
        (app_key, batch_id, device_id) in (text(), text(), text()),
        (client_ip, job_key) in (text(), text()),
        (message_id, ordinal) in any::<(u64, u32)>(),
        (event_time, raw_event_time, sent_time, last_active_time) in any::<(u64, u64, u64, u64)>(),
        brand in option::of(text()),
        (late, unmatched, implied) in any::<(bool, bool, bool)>(),
    ) -> pb::Receipt {
        let attributes = brand.map(|brand| device::Attributes { brand, ..Default::default() });
        pb::Receipt {
            event, outcome, reason, app_key, message_id, batch_id, ordinal, device_id, event_time, raw_event_time, sent_time,
            channel, last_active_time, client_ip, attributes, job_key, after, late, unmatched, implied,
        }
    }
}

fn event() -> impl Strategy<Value = pb::StreamEvent> {
    let mass = (text(), vec(any::<u8>(), 0..9)).prop_map(|(batch_id, ordinals)| {
        Event::MassOutcome(pb::MassOutcome { batch_id, ordinals, ..Default::default() })
    });
    let gap = any::<(u64, u64)>().prop_map(|(first, events)| {
        let by_event = [("arrive".to_owned(), events)].into();
        Event::Gap(pb::ReceiptGap { first, last: first, events, by_event })
    });
    let device = (text(), any::<i32>()).prop_map(|(device_id, state)| {
        let change = Some(pb::device_event::Change::Push(state));
        Event::Device(pb::DeviceEvent { device_id, change, ..Default::default() })
    });
    let event =
        option::of(prop_oneof![5 => receipt().prop_map(Event::Receipt), 1 => mass, 1 => gap, 1 => device]);
    (any::<u64>(), event).prop_map(|(sequence, event)| pb::StreamEvent { sequence, event })
}

fn batch() -> impl Strategy<Value = pb::StreamBatch> {
    (text(), any::<(u64, u64)>(), vec(event(), 0..9))
        .prop_map(|(stream, (epoch, cursor), events)| pb::StreamBatch { stream, epoch, cursor, events })
}

/// The same as the generated code has it.
fn generated(read: &StreamEvents<'_>) -> pb::StreamBatch {
    let event = |(sequence, told): &(u64, Told<'_>)| pb::StreamEvent {
        sequence: *sequence,
        event: match told.clone() {
            Told::Receipt(r) => Some(Event::Receipt(pb::Receipt {
                event: r.event,
                outcome: r.outcome,
                reason: r.reason,
                app_key: r.app_key.into(),
                message_id: r.message_id,
                batch_id: r.batch_id.into(),
                ordinal: r.ordinal,
                device_id: r.device_id.into(),
                event_time: r.event_time,
                raw_event_time: r.raw_event_time,
                sent_time: r.sent_time,
                channel: r.channel,
                last_active_time: r.last_active_time,
                client_ip: r.client_ip.into(),
                attributes: r.attributes().expect("attributes"),
                job_key: r.job_key.into(),
                after: r.after,
                late: r.late,
                unmatched: r.unmatched,
                implied: r.implied,
            })),
            Told::Mass(mass) => Some(Event::MassOutcome(mass)),
            Told::Gap(gap) => Some(Event::Gap(gap)),
            Told::Device(device) => Some(Event::Device(*device)),
            Told::Unknown => None,
        },
    };
    pb::StreamBatch {
        stream: read.stream.into(),
        epoch: read.epoch,
        cursor: read.cursor,
        events: read.events.iter().map(event).collect(),
    }
}

proptest! {
    #[test]
    fn a_batch_is_read_as_the_generated_code_reads_it(batch in batch()) {
        let bytes = batch.encode_to_vec();
        let read = StreamEvents::read(&bytes).expect("a batch");
        prop_assert_eq!(generated(&read), batch);
    }

    /// Whatever a byte of it is changed to: both read as many events, or neither does; but bad attributes are told to who looks at them only.
    #[test]
    fn a_damaged_batch_is_read_alike(batch in batch(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = batch.encode_to_vec();
        // Not a text that turns to attributes beside others: the generated code merges them.
        prop_assume!(!bytes.is_empty() && byte != 0x7a);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let theirs = pb::StreamBatch::decode(&*bytes);
        match (StreamEvents::read(&bytes), &theirs) {
            (None, theirs) => prop_assert!(theirs.is_err(), "{theirs:?}"),
            (Some(read), Ok(theirs)) => prop_assert_eq!(read.events.len(), theirs.events.len()),
            (Some(read), Err(_)) => {
                let attributes = read.events.iter().any(|(_, told)| {
                    matches!(told, Told::Receipt(receipt) if receipt.attributes().is_err())
                });
                prop_assert!(attributes, "only the attributes may be at fault");
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _read = StreamEvents::read(&bytes);
        let _inner = stream_in(&bytes);
    }
}

#[test]
fn a_streams_frame_is_told_from_others() {
    let batch = pb::StreamBatch { stream: "main".into(), cursor: 7, ..Default::default() };
    let frame = |frame| pb::ToRouter { frame: Some(frame) }.encode_to_vec();
    let bytes = frame(pb::to_router::Frame::Stream(batch.clone()));
    assert_eq!(stream_in(&bytes), Ok(Some(&*batch.encode_to_vec())));
    assert_eq!(stream_in(&frame(pb::to_router::Frame::Pong(pb::Pong::default()))), Ok(None));
    assert_eq!(stream_in(&[]), Ok(None));
    // Something newer beside it is passed over.
    assert_eq!(stream_in(&[NEWER, &bytes].concat()), stream_in(&bytes));
}

#[test]
fn a_frame_with_another_beside_its_stream_is_none() {
    let stream = within(4, &[]);
    assert_eq!(stream_in(&stream), Ok(Some(&[][..])));
    for number in 1..=11 {
        let other = within(number, &[]);
        assert!(pb::ToRouter::decode(&*other).expect("a frame").frame.is_some(), "{number} is known");
        for two in [[&stream[..], &other], [&other, &stream]] {
            assert_eq!(stream_in(&two.concat()), Err(FrameError::Malformed), "{number}");
        }
    }
    assert!(pb::ToRouter::decode(&*within(12, &[])).expect("a frame").frame.is_none());
    assert_eq!(stream_in(&[&stream[..], &[0x62, 1]].concat()), Ok(None), "it ends too early");
}

fn within(tag: u8, inner: &[u8]) -> Vec<u8> {
    [&[tag << 3 | 2, inner.len() as u8], inner].concat()
}

/// Both read it alike, or neither does.
fn assert_alike(batch: &[u8]) {
    let read = StreamEvents::read(batch).map(|read| generated(&read));
    assert_eq!(read, pb::StreamBatch::decode(batch).ok(), "{batch:02x?}");
}

/// Of each number that the protocol has, and more, at each depth.
#[test]
fn fields_of_any_kind_are_read_as_the_generated_code_reads_them() {
    let values: [&[u8]; 6] = [&[2], &[0; 8], &[0], &[], &[], &[0; 4]];
    for (number, kind) in (1..=21_u64).flat_map(|number| (0..6).map(move |kind| (number, kind))) {
        let mut field = Vec::new();
        encode_varint(number << 3 | kind, &mut field);
        field.extend_from_slice(values[kind as usize]);
        if kind == WireType::StartGroup as u64 {
            encode_varint(number << 3 | WireType::EndGroup as u64, &mut field);
        }
        assert_alike(&field);
        assert_alike(&within(4, &field));
        assert_alike(&within(4, &within(2, &field)));
    }
}

#[test]
fn odd_ways_to_write_a_value_are_read_as_the_generated_code_reads_them() {
    const FULL: [u8; 9] = [0xff; 9];
    let receipts: &[&[u8]] = &[
        // The last one counts.
        &[0x28, 1, 0x28, 2, 0x42, 1, b'a', 0x42, 1, b'b'],
        // Beyond 32 bits; beyond 64; of more bytes than it takes; any number but zero is true.
        &[0x38, 0x83, 0x80, 0x80, 0x80, 0x10],
        &[0x10, 0x82, 0x80, 0x80, 0x80, 0x10],
        &[&[0x28], &FULL[..], &[1]].concat(),
        &[&[0x28], &FULL[..], &[2]].concat(),
        &[0x28, 0x81, 0],
        &[0x90, 1, 2],
        // No text; no tag; beyond the end.
        &[0x22, 1, 0xff],
        &[0x42, 1, 0xff],
        &[0, 1],
        &[0x22, 9, b'a'],
    ];
    for receipt in receipts {
        assert_alike(&within(4, &within(2, receipt)));
    }
    let mass = within(3, &within(1, b"a"));
    let receipt = within(2, &[0x28, 1]);
    for event in [[&mass[..], &receipt], [&receipt, &mass], [&receipt, &[8, 5]], [&[8, 4], &[8, 5]]] {
        assert_alike(&within(4, &event.concat()));
    }
}

#[test]
fn what_is_newer_than_this_program_is_none_that_it_knows() {
    let receipt = Receipt { event: 99, outcome: 99, reason: 0x101, ..Receipt::default() };
    assert_eq!((receipt.event(), receipt.outcome(), receipt.failure()), Default::default());
}

#[test]
fn what_is_newer_is_passed_over() {
    let receipt = pb::Receipt { message_id: 9, ..Default::default() };
    let inner = [NEWER, &receipt.encode_to_vec()].concat();
    let event = [NEWER, &[0x12, inner.len() as u8], &inner].concat();
    let bytes = [NEWER, &[0x22, event.len() as u8], &event].concat();
    let read = StreamEvents::read(&bytes).expect("a batch");
    assert!(matches!(read.events[..], [(0, Told::Receipt(Receipt { message_id: 9, .. }))]), "{read:?}");
}
