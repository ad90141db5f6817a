//! What records take at most: room is asked for by these figures, so that a record which takes more would find none on a full disk.

use std::net::{IpAddr, Ipv6Addr};

use roaring::RoaringBitmap;

use super::Engine;
use super::acks::{Limiter, receipt_bytes};
use super::apply::{Together, channel};
use super::deliver::batch_bytes;
use super::ends::Cost;
use super::expiry::Live;
use crate::ids::{AppKey, BatchId, DeviceKey, MessageId, Seq};
use crate::limits;
use crate::push::{
    Attributes, BatchPart, Channel, Failure, MassOutcome, NewBatch, OfflinePolicy, Ordinals, Priority,
    Receipt, ReceiptKind, Refusal,
};
use crate::store::disk::sim::SimDisk;
use crate::store::journal::RECORD_OVERHEAD;
use crate::store::push_record::bitmap_bytes;
use crate::store::record::{
    BatchRecord, MassRecord, ReceiptRecord, Target, Who, put_refused, put_targets, put_who,
};

fn longest_app() -> AppKey {
    AppKey::parse(&"a".repeat(limits::APP_KEY_BYTES)).expect("valid")
}

fn longest_batch() -> BatchId {
    BatchId::parse(&"b".repeat(limits::BATCH_ID_BYTES)).expect("valid")
}

#[test]
fn the_longest_receipt_takes_no_more_than_is_asked_for() {
    for attributes in [0, 1, limits::ATTRIBUTES_BYTES] {
        let receipt = Receipt {
            kind: ReceiptKind::Arrive,
            outcome: Some(Ok(())),
            app: longest_app(),
            message: MessageId(u64::MAX),
            target: Some((longest_batch(), u32::MAX)),
            device_id: "d".repeat(limits::DEVICE_ID_BYTES).into(),
            event_time: u64::MAX,
            raw_event_time: u64::MAX,
            sent_at: u64::MAX,
            channel: Channel::Offline,
            last_active: u64::MAX,
            client_ip: Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            attributes: Attributes::whole(vec![1; attributes].into()),
            job_key: "j".repeat(limits::LABEL_BYTES).into(),
            after: Some(Failure::Expired),
            late: true,
            unmatched: true,
            implied: true,
        };
        let record =
            ReceiptRecord { receipt, key: DeviceKey([1; 16]), number: u32::MAX, batch: Seq(u64::MAX) };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert!(bytes.len() <= receipt_bytes(attributes), "{} bytes", bytes.len());
        assert!(receipt_bytes(attributes) < bytes.len() + 64, "it asks for much more than {}", bytes.len());
    }
}

#[test]
fn the_longest_mass_record_takes_no_more_than_is_asked_for() {
    for count in [0u32, 1, 8, 1_000] {
        // Far apart, which costs most: by ordinal the first and the last of the largest batch, by number a container each.
        let highest = if count < 2 { 0 } else { limits::BATCH_TARGETS as u32 - 1 };
        let far = || [0, highest].into_iter().cycle().take(count as usize);
        let ordinals = far().collect();
        let numbers: RoaringBitmap = (0..count).map(|n| n << 16).collect();
        let mass = MassOutcome {
            app: longest_app(),
            message: MessageId(u64::MAX),
            batch: longest_batch(),
            reason: Failure::Expired,
            event_time: u64::MAX,
            ordinals,
            count,
            job_key: "j".repeat(limits::LABEL_BYTES).into(),
        };
        let mut bytes = Vec::new();
        MassRecord { mass, batch: Seq(u64::MAX), numbers: bitmap_bytes(&numbers) }.encode(&mut bytes);
        let asked = far().collect::<Together>().mass_bytes();
        assert!(bytes.len() <= asked, "{} bytes, {asked} asked for", bytes.len());
        assert!(asked < bytes.len() + 320, "{asked} is much more than {}", bytes.len());
    }
}

/// Of the largest batch there is, and of a small one: none of them takes more, and both little less.
#[test]
fn the_longest_batch_takes_no_more_than_is_asked_for() {
    let cases =
        [(1_u32, 1, false), (100_000, 1, false), (100_000, 1, true), (1_000, 100, false), (1_000, 100, true)];
    for (count, apart, all_refused) in cases {
        // Far apart by ordinal: every second one is left out; and those of a part may be as far apart as it goes.
        let targets: Vec<u32> = (0..count).collect();
        let ordinals: Vec<u32> = targets.iter().map(|n| n * apart).collect();
        let new = NewBatch {
            id: longest_batch(),
            app: longest_app(),
            message: MessageId(u64::MAX),
            body: vec![7; 1_000].into(),
            body_digest: [7; 16],
            digest: [7; 16],
            targets: targets.iter().map(|n| DeviceKey(u128::from(*n).to_le_bytes())).collect(),
            part: BatchPart { listed: ordinals.clone().into(), ..BatchPart::default() },
            offline_policy: OfflinePolicy::Store,
            created_at: u64::MAX,
            expires_at: u64::MAX,
            online_only: false,
            job_key: "j".repeat(limits::LABEL_BYTES).into(),
            priority: Priority::High,
            collapse_key: "c".repeat(limits::LABEL_BYTES).into(),
            accounts: vec![None; targets.len()],
        };
        let (mut refused, mut refused_who, mut accepted) = (Vec::new(), Vec::new(), Vec::new());
        let (mut of_account, mut unbound) = (Ordinals::default(), Ordinals::default());
        if all_refused {
            let all: Vec<_> = ordinals.iter().map(|ordinal| (*ordinal, Refusal::DeviceUnknown)).collect();
            put_refused(&mut refused, &all);
            let who: Vec<_> = new.targets.iter().map(|key| Who::of(key, None)).collect();
            put_who(&mut refused_who, &who);
        } else {
            let target =
                |n: &u32| Target { ordinal: n * apart, key: new.targets[*n as usize], number: u32::MAX };
            let all: Vec<_> = targets.iter().filter(|n| *n % 2 == 0).map(target).collect();
            put_targets(&mut accepted, &all);
            let others: Vec<_> =
                targets.iter().filter(|n| *n % 2 == 1).map(|n| (n * apart, Refusal::Duplicate)).collect();
            put_refused(&mut refused, &others);
            let who: Vec<_> =
                others.iter().map(|(n, _)| Who::of(&new.targets[(n / apart) as usize], None)).collect();
            put_who(&mut refused_who, &who);
            for ordinal in [0, ordinals[ordinals.len() - 1]] {
                of_account.insert(ordinal);
                unbound.insert(ordinal);
            }
        }
        let record = BatchRecord {
            seq: Seq(u64::MAX),
            app: new.app.as_str(),
            message: new.message,
            id: new.id.as_str(),
            job_key: &new.job_key,
            body_digest: new.body_digest,
            digest: new.digest,
            created_at: new.created_at,
            accepted_at: u64::MAX,
            expires_at: new.expires_at,
            online_only: false,
            named: count,
            refused: &refused,
            body: &new.body,
            targets: &accepted,
            priority: new.priority,
            collapse_key: &new.collapse_key,
            refused_who: &refused_who,
            of_account,
            unbound,
            part: u32::MAX,
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let asked = batch_bytes(&new);
        assert!(bytes.len() <= asked, "{} bytes, {asked} asked for", bytes.len());
        assert!(
            all_refused || asked < bytes.len() + 100 + 12 * count as usize,
            "{asked} is much more than {}",
            bytes.len()
        );
    }
}

#[test]
fn costs_add_up_and_the_largest_is_known() {
    let mut cost = Cost::default();
    for bytes in [10, 30, 20] {
        cost.add(bytes);
    }
    assert_eq!((cost.records, cost.bytes, cost.largest), (3, 60, 30));
}

#[test]
fn records_fit_if_each_segment_may_lose_as_much_as_the_largest_takes() {
    let (segment, largest) = (10_000, 30);
    // Within one segment, one may be begun already and one more needed: two ends may be lost.
    for (room, ends) in [(9_000, 2), (10_000, 3), (55_000, 7)] {
        let lost = ends * (largest + RECORD_OVERHEAD);
        let cost = Cost { records: 3, bytes: room - lost - 3 * RECORD_OVERHEAD, largest };
        assert!(cost.fits(room as u64, segment), "{room}");
        assert!(!Cost { bytes: cost.bytes + 1, ..cost }.fits(room as u64, segment), "{room}");
    }
    let Cost { records, bytes, largest } = Cost::of(4, 30);
    assert_eq!((records, bytes, largest), (4, 120, 30));
}

#[test]
fn ends_cost_a_record_each_if_they_say_when_they_were_sent_and_one_together() {
    let live = |ordinal, receipt_bytes| Live {
        target: Target { ordinal, key: DeviceKey([1; 16]), number: ordinal },
        written: receipt_bytes > 0,
        receipt_bytes,
    };
    let ended = [live(1, 0), live(2, 300), live(800, 0), live(4, 400)];
    let cost = |apart| {
        let Cost { records, bytes, largest } = Engine::<SimDisk>::cost_of(ended.iter(), apart);
        (records, bytes, largest)
    };
    let mass_bytes = |ordinals: &[u32]| ordinals.iter().copied().collect::<Together>().mass_bytes();
    let (two, four) = (mass_bytes(&[1, 800]), mass_bytes(&[1, 2, 800, 4]));
    assert_eq!(cost(true), (3, 700 + two, two.max(400)));
    assert_eq!(cost(false), (1, four, four));
    let written = Engine::<SimDisk>::cost_of(ended[1..2].iter(), true);
    assert_eq!((written.records, written.bytes), (1, 300), "nothing is left for a record of many");
}

#[test]
fn so_many_a_second_and_then_none_until_the_next() {
    let mut limiter = Limiter::default();
    let allowed = |limiter: &mut Limiter, now| (0..5).filter(|_| limiter.allow(now, 3)).count();
    assert_eq!(allowed(&mut limiter, 7_000), 3);
    assert_eq!(allowed(&mut limiter, 7_999), 0);
    assert_eq!(allowed(&mut limiter, 8_000), 3);
    assert!(!limiter.allow(9_000, 0));
}

#[test]
fn written_within_a_second_is_online() {
    let of = |sent_at| channel(5_000, sent_at);
    assert_eq!((of(None), of(Some(0))), (Channel::Unknown, Channel::Unknown));
    assert_eq!((of(Some(6_000)), of(Some(6_001))), (Channel::Online, Channel::Offline));
}
