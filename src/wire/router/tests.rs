//! The codec against the generated code, and against anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::ids::{AppKey, BatchId};
use crate::push::{
    Accepted, Attributes, Channel, Failure, MassOutcome, Ordinals, Receipt, ReceiptGap, ReceiptKind, Refusal,
    StreamEvent,
};
use crate::store::StreamRead;
use crate::wire::frame::{ROUTER_HEAD, router_frame};
use crate::wire::pb::device;
use devices::{device_event, expected_device};

#[path = "tests_devices.rs"]
mod devices;

/// The one frame that these bytes are.
fn one(bytes: &[u8]) -> pb::to_router::Frame {
    let mut head = [0; ROUTER_HEAD];
    head.copy_from_slice(&bytes[..ROUTER_HEAD]);
    let length = router_frame(head, limits::ROUTER_FRAME_BYTES).expect("a head");
    assert_eq!(length, bytes.len() - ROUTER_HEAD);
    pb::ToRouter::decode(&bytes[ROUTER_HEAD..]).expect("a message").frame.expect("a known frame")
}

fn frame(frame: pb::from_router::Frame) -> Vec<u8> {
    pb::FromRouter { frame: Some(frame) }.encode_to_vec()
}

fn failure() -> impl Strategy<Value = Failure> {
    proptest::sample::select(Failure::ALL.to_vec())
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|ip| IpAddr::V4(Ipv4Addr::from_bits(ip))),
        any::<u128>().prop_map(|ip| IpAddr::V6(Ipv6Addr::from_bits(ip))),
    ]
}

fn app() -> impl Strategy<Value = AppKey> {
    "[a-z0-9]{1,32}".prop_map(|key| AppKey::parse(&key).expect("valid"))
}

fn batch_id() -> impl Strategy<Value = BatchId> {
    "[a-z0-9:-]{1,64}".prop_map(|id| BatchId::parse(&id).expect("valid"))
}

prop_compose! {
    fn receipt()(
        kind in proptest::sample::select(vec![
            ReceiptKind::Sent, ReceiptKind::SentFail, ReceiptKind::Arrive, ReceiptKind::Click, ReceiptKind::Clean,
        ]),
        outcome in option::of(prop_oneof![Just(Ok(())), failure().prop_map(Err)]),
        app in app(),
        message in any::<u64>(),
        target in option::of((batch_id(), any::<u32>())),
        device_id in ".{0,16}",
        times in any::<[u64; 4]>(),
        channel in proptest::sample::select(vec![Channel::Unknown, Channel::Online, Channel::Offline]),
        client_ip in option::of(ip()),
        brand in ".{0,8}",
        job_key in ".{0,16}",
        after in option::of(failure()),
        flags in any::<[bool; 3]>(),
    ) -> Receipt {
        let attributes = device::Attributes { brand, ..Default::default() }.encode_to_vec();
        Receipt {
            kind,
            outcome,
            app,
            message: MessageId(message),
            target,
            device_id: device_id.into(),
            event_time: times[0],
            raw_event_time: times[1],
            sent_at: times[2],
            channel,
            last_active: times[3],
            client_ip,
            attributes: Attributes::whole(attributes.into()),
            job_key: job_key.into(),
            after,
            late: flags[0],
            unmatched: flags[1],
            implied: flags[2],
        }
    }
}

prop_compose! {
    fn mass()(
        app in app(),
        message in any::<u64>(),
        batch in batch_id(),
        reason in failure(),
        event_time in any::<u64>(),
        skipped in prop_oneof![Just(0), 0..12_500_u32],
        ordinals in vec(any::<u8>(), 0..64),
        count in any::<u32>(),
        job_key in ".{0,16}",
    ) -> MassOutcome {
        MassOutcome { app, message: MessageId(message), batch, reason, event_time, ordinals: Ordinals::from_parts(skipped, &ordinals), count, job_key: job_key.into() }
    }
}

prop_compose! {
    fn gap()(first in any::<u64>(), last in any::<u64>(), by_event in vec(("[a-z_]{1,12}", any::<u32>()), 0..8)) -> ReceiptGap {
        let mut gap = ReceiptGap::new(Seq(first), Seq(last));
        for (event, count) in by_event {
            gap.count(&event, count.into());
        }
        gap
    }
}

fn event() -> impl Strategy<Value = StreamEvent> {
    prop_oneof![
        receipt().prop_map(|receipt| StreamEvent::Receipt(Box::new(receipt))),
        mass().prop_map(|mass| StreamEvent::Mass(Box::new(mass))),
        gap().prop_map(|gap| StreamEvent::Gap(Box::new(gap))),
        device_event().prop_map(|event| StreamEvent::Device(Box::new(event))),
    ]
}

/// The same by the generated code: the mapping of names, field by field.
fn expected(seq: Seq, event: &StreamEvent) -> pb::StreamEvent {
    let event = match event {
        StreamEvent::Receipt(receipt) => pb::stream_event::Event::Receipt(expected_receipt(receipt)),
        StreamEvent::Mass(mass) => pb::stream_event::Event::MassOutcome(pb::MassOutcome {
            app_key: mass.app.to_string(),
            message_id: mass.message.0,
            batch_id: mass.batch.as_str().into(),
            reason: reason(Some(mass.reason)),
            event_time: mass.event_time,
            ordinals: mass.ordinals.parts().1.to_vec(),
            count: mass.count,
            job_key: mass.job_key.to_string(),
            first_ordinal: mass.ordinals.parts().0 * 8,
        }),
        StreamEvent::Gap(gap) => pb::stream_event::Event::Gap(pb::ReceiptGap {
            first: gap.first.0,
            last: gap.last.0,
            events: gap.events,
            by_event: gap.by_event.clone().into_iter().collect(),
        }),
        StreamEvent::Device(event) => pb::stream_event::Event::Device(expected_device(event)),
    };
    pb::StreamEvent { sequence: seq.0, event: Some(event) }
}

fn reason(reason: Option<Failure>) -> i32 {
    let Some(reason) = reason else { return 0 };
    let name = format!("FAIL_REASON_{}", reason.label().to_uppercase());
    pb::FailReason::from_str_name(&name).expect("the same word in the protocol").into()
}

fn expected_receipt(receipt: &Receipt) -> pb::Receipt {
    let (outcome, why) = match receipt.outcome {
        None => (pb::Outcome::None, None),
        Some(Ok(())) => (pb::Outcome::Arrived, None),
        Some(Err(why)) => (pb::Outcome::Failed, Some(why)),
    };
    let event = match receipt.kind {
        ReceiptKind::Sent => pb::ReceiptEvent::Sent,
        ReceiptKind::SentFail => pb::ReceiptEvent::SentFail,
        ReceiptKind::Arrive => pb::ReceiptEvent::Arrive,
        ReceiptKind::Click => pb::ReceiptEvent::Click,
        ReceiptKind::Clean => pb::ReceiptEvent::Clean,
    };
    let channel = match receipt.channel {
        Channel::Unknown => pb::Channel::Unspecified,
        Channel::Online => pb::Channel::Online,
        Channel::Offline => pb::Channel::Offline,
    };
    let attributes = &*receipt.attributes.bytes();
    pb::Receipt {
        event: event.into(),
        outcome: outcome.into(),
        reason: reason(why),
        app_key: receipt.app.to_string(),
        message_id: receipt.message.0,
        batch_id: receipt.target.as_ref().map_or(String::new(), |(batch, _)| batch.as_str().into()),
        ordinal: receipt.target.as_ref().map_or(0, |(_, ordinal)| *ordinal),
        device_id: receipt.device_id.to_string(),
        event_time: receipt.event_time,
        raw_event_time: if receipt.raw_event_time == receipt.event_time { 0 } else { receipt.raw_event_time },
        sent_time: receipt.sent_at,
        channel: channel.into(),
        last_active_time: receipt.last_active,
        client_ip: receipt.client_ip.map_or(String::new(), |ip| ip.to_string()),
        attributes: (!attributes.is_empty())
            .then(|| device::Attributes::decode(attributes).expect("encoded above")),
        job_key: receipt.job_key.to_string(),
        after: reason(receipt.after),
        late: receipt.late,
        unmatched: receipt.unmatched,
        implied: receipt.implied,
    }
}

fn deliver_batch() -> impl Strategy<Value = pb::DeliverBatch> {
    let targets = vec(("[^\\x00]{0,8}", ".{0,3}"), 0..20);
    (".{0,8}", ".{0,8}", any::<u64>(), targets, any::<i32>(), option::of(any::<u32>())).prop_map(
        |(batch_id, app_key, message_id, targets, priority, retention_seconds)| pb::DeliverBatch {
            batch_id,
            app_key,
            message_id,
            body: Some(device::Push { title: "t".into(), ..Default::default() }),
            targets: targets
                .into_iter()
                .map(|(device_id, account)| pb::Target { device_id, account })
                .collect(),
            priority,
            retention_seconds,
            ..Default::default()
        },
    )
}

proptest! {
    #[test]
    fn stream_events_read_back_by_the_generated_code(
        events in vec((0u64..3, event()), 1..20),
        max_bytes in 1usize..2_000,
        trailing in 0u64..5,
        epoch in any::<u64>(),
    ) {
        // Ascending sequences, some shared by several events.
        let mut seq = 1;
        let events: Vec<_> = events.into_iter().map(|(step, event)| { seq += step; (Seq(seq), event) }).collect();
        let read = StreamRead { cursor: Seq(seq + trailing), events };
        let frames = stream_batches("main", epoch, &read, max_bytes);
        let mut back = Vec::new();
        let mut before = 0;
        for (cursor, bytes) in &frames {
            let pb::to_router::Frame::Stream(batch) = one(bytes) else { panic!("no stream batch") };
            prop_assert_eq!((batch.stream.as_str(), batch.epoch, batch.cursor), ("main", epoch, cursor.0));
            // A cursor never names half of a record, and everything in a frame is behind the cursor before it.
            prop_assert!(batch.events.iter().all(|event| (before + 1..=cursor.0).contains(&event.sequence)));
            before = cursor.0;
            back.extend(batch.events);
        }
        prop_assert_eq!(frames.last().map(|(cursor, _)| *cursor), Some(read.cursor));
        let wanted: Vec<_> = read.events.iter().map(|(seq, event)| expected(*seq, event)).collect();
        prop_assert_eq!(back, wanted);
    }

    #[test]
    fn a_batch_reads_as_the_generated_code_reads_it(batch in deliver_batch()) {
        let bytes = frame(pb::from_router::Frame::Deliver(batch.clone()));
        let FromRouter::Deliver(deliver) = parse(&bytes).expect("valid") else { panic!("no batch") };
        prop_assert_eq!(deliver.target_count, batch.targets.len());
        prop_assert_eq!(deliver.encoded_bytes(), batch.encoded_len() as u64);
        let targets: Vec<_> = deliver.targets().map(|target| target.expect("valid")).collect();
        let wanted: Vec<_> =
            batch.targets.iter().map(|t| Target { device_id: &t.device_id, account: &t.account }).collect();
        prop_assert_eq!(targets, wanted);
        prop_assert_eq!(*deliver.fields, pb::DeliverBatch { targets: Vec::new(), ..batch });
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200)) {
        touch(&bytes);
    }

    #[test]
    fn no_damage_to_a_batch_makes_it_panic(
        batch in deliver_batch(), at in any::<proptest::sample::Index>(), to in any::<u8>(), cut in any::<bool>(),
    ) {
        let mut bytes = frame(pb::from_router::Frame::Deliver(batch));
        let at = at.index(bytes.len());
        bytes[at] = to;
        if cut {
            bytes.truncate(at);
        }
        touch(&bytes);
    }

    #[test]
    fn refused_ordinals_come_by_reason_and_ascending(
        mut refused in vec((any::<u32>(), proptest::sample::select(Refusal::ALL.to_vec())), 0..50),
    ) {
        refused.sort_unstable();
        refused.dedup_by_key(|(ordinal, _)| *ordinal);
        let answer = Accepted {
            seq: Seq(9), first_seq: Seq(8), accepted: 7, refused: refused.clone(), accepted_at: 3, expires_at: 4, repeated: true,
        };
        let pb::to_router::Frame::Accepted(back) = one(&accepted(&BatchName::new("b", "a"), &answer)) else {
            panic!("no answer")
        };
        let numbers = (back.sequence, back.first_sequence, back.accepted, back.repeated, back.expires_at);
        prop_assert_eq!(numbers, (9, 8, 7, true, 4));
        let mut pairs = Vec::new();
        for group in &back.refused {
            prop_assert!(group.ordinals.is_sorted() && !group.ordinals.is_empty());
            let number = usize::try_from(group.reason).expect("a number");
            let reason = Refusal::ALL[number - 1];
            pairs.extend(group.ordinals.iter().map(|ordinal| (*ordinal, reason)));
        }
        pairs.sort_unstable();
        prop_assert_eq!(pairs, refused);
    }
}

/// Looks at everything that a frame holds.
fn touch(bytes: &[u8]) {
    if let Ok(FromRouter::Deliver(deliver)) = parse(bytes) {
        assert_eq!(deliver.targets().count(), deliver.target_count);
    }
}

#[test]
fn unknown_frames_and_fields_are_skipped() {
    assert!(matches!(parse(&[]), Ok(FromRouter::Unknown)));
    // Field 100, three bytes; then a Ping.
    let mut bytes = vec![0xa2, 0x06, 3, 1, 2, 3];
    assert!(matches!(parse(&bytes), Ok(FromRouter::Unknown)));
    bytes.extend(frame(pb::from_router::Frame::Ping(pb::Ping { nonce: 7 })));
    assert!(matches!(parse(&bytes), Ok(FromRouter::Ping { nonce: 7 })));
}

#[test]
fn two_frames_in_one_are_malformed() {
    let mut bytes = frame(pb::from_router::Frame::Ping(pb::Ping { nonce: 7 }));
    bytes.extend(frame(pb::from_router::Frame::Ping(pb::Ping { nonce: 8 })));
    assert!(matches!(parse(&bytes), Err(LinkError::Malformed(_))));
}

#[test]
fn millions_of_empty_targets_are_counted_without_being_held() {
    let count = 4_000_000;
    let batch: Vec<u8> = [5 << 3 | 2, 0].into_iter().cycle().take(2 * count).collect();
    let mut bytes = vec![2 << 3 | 2];
    prost::encoding::encode_varint(batch.len() as u64, &mut bytes);
    bytes.extend(batch);
    let FromRouter::Deliver(deliver) = parse(&bytes).expect("valid") else { panic!("no batch") };
    assert_eq!((deliver.target_count, deliver.fields.targets.len()), (count, 0));
}

#[test]
fn other_frames_are_small() {
    let ids = vec!["x".repeat(100); 20_000];
    let devices = pb::query::Of::Devices(pb::DeviceIds { ids });
    let query = pb::Query { of: Some(devices), ..Default::default() };
    let bytes = frame(pb::from_router::Frame::Query(query));
    assert!(matches!(parse(&bytes), Err(LinkError::FrameTooLarge { .. })));
}

#[test]
fn an_open_says_where_each_stream_begins() {
    let from = |from, history| pb::OpenStream { stream: "main".into(), from, history };
    let open = pb::Open {
        version: 1,
        name: "r1".into(),
        streams: vec![
            from(None, 0),
            from(Some(pb::open_stream::From::After(5)), 0),
            from(Some(pb::open_stream::From::After(5)), 9),
            from(Some(pb::open_stream::From::Oldest(true)), 0),
        ],
        presence: None,
    };
    let bytes = frame(pb::from_router::Frame::Open(open));
    let FromRouter::Open(open) = parse(&bytes).expect("valid") else { panic!("no Open") };
    let begins: Vec<_> = open.streams.iter().map(|stream| stream.from).collect();
    assert_eq!(
        begins,
        [From::Durable, From::After(Seq(5), None), From::After(Seq(5), HistoryId::new(9)), From::Oldest]
    );
}

#[test]
fn codes_are_those_of_the_protocol() {
    for (code, name) in [
        (Reject::Invalid, "INVALID"),
        (Reject::UnknownApp, "UNKNOWN_APP"),
        (Reject::Expired, "EXPIRED"),
        (Reject::PayloadTooLarge, "PAYLOAD_TOO_LARGE"),
        (Reject::NoTargets, "NO_TARGETS"),
        (Reject::TooManyTargets, "TOO_MANY_TARGETS"),
        (Reject::BatchConflict, "BATCH_CONFLICT"),
        (Reject::MessageConflict, "MESSAGE_CONFLICT"),
        (Reject::TooOld, "TOO_OLD"),
        (Reject::ResourceExhausted, "RESOURCE_EXHAUSTED"),
        (Reject::Unavailable, "UNAVAILABLE"),
        (Reject::AppSuspended, "APP_SUSPENDED"),
        (Reject::Unimplemented, "UNIMPLEMENTED"),
    ] {
        let named = pb::RejectCode::from_str_name(&format!("REJECT_CODE_{name}")).expect("in the protocol");
        assert_eq!(code as i32, named as i32, "{name}");
    }
    for refusal in Refusal::ALL {
        let name = format!("REFUSE_REASON_{}", refusal.label().to_uppercase());
        assert_eq!(pb::RefuseReason::from_str_name(&name).expect("in the protocol") as i32, refusal as i32);
    }
}

#[test]
fn over_long_names_are_cut_at_a_character() {
    let name = BatchName::new(&"é".repeat(1_000), "app");
    assert_eq!((name.batch_id.len(), name.app_key.as_str()), (128, "app"));
    let answer = rejected(
        &name,
        &Rejected { code: Reject::Invalid, field: "batch_id".into(), text: "t".into(), retry_after_ms: 5 },
    );
    let pb::to_router::Frame::Rejected(back) = one(&answer) else { panic!("no rejection") };
    assert_eq!((back.code(), back.retry_after_milliseconds), (pb::RejectCode::Invalid, 5));
}

#[test]
fn an_answer_over_the_frame_limit_is_an_error() {
    let attributes: Arc<[u8]> =
        device::Attributes { brand: "x".repeat(2_000), ..Default::default() }.encode_to_vec().into();
    let state = crate::store::DeviceState {
        push_on: true,
        last_active: 1,
        pending: 2,
        oldest_pending_at: None,
        number: 0,
        attributes: Some(Attributes::whole(attributes)),
        bindings: None,
    };
    let devices = |count| {
        (0..count).map(|i| (i.to_string(), Some(state.clone()), true)).collect::<Vec<_>>().into_iter()
    };
    assert!(devices_answer(1, Seq(1), devices(10_000)).is_err());
    let fits = devices_answer(1, Seq(1), devices(5_000)).expect("fits");
    let pb::to_router::Frame::Answer(answer) = one(&fits) else { panic!("no answer") };
    let Some(pb::answer::Of::Devices(states)) = answer.of else { panic!("no devices") };
    assert_eq!(states.devices.len(), 5_000);
}
