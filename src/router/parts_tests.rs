use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::budget::Budget;
use crate::ids::{BatchId, DigestKey, MessageId, Seq};
use crate::push::{OfflinePolicy, Priority, Refusal};

fn key(n: u8) -> DeviceKey {
    DeviceKey([n; 16])
}

fn batch(targets: &[u8], with_accounts: bool) -> NewBatch {
    let app = AppKey::parse("app").expect("valid");
    let account = |n: &u8| {
        n.is_multiple_of(3).then(|| AccountDigest::of(&DigestKey([1; 32]), &app, &format!("account-{n}")))
    };
    NewBatch {
        id: BatchId::parse("b").expect("valid"),
        message: MessageId(1),
        body: vec![7; 10].into(),
        body_digest: [1; 16],
        digest: [2; 16],
        targets: targets.iter().map(|n| key(*n)).collect(),
        part: BatchPart::default(),
        offline_policy: OfflinePolicy::Return,
        created_at: 1,
        expires_at: 2,
        online_only: true,
        job_key: "job".into(),
        priority: Priority::High,
        collapse_key: "key".into(),
        accounts: if with_accounts { targets.iter().map(account).collect() } else { Vec::new() },
        app,
    }
}

/// So many targets are taken, and this is the answer.
fn answer(targets: usize, repeated: bool) -> Accepted {
    Accepted {
        seq: Seq(1),
        first_seq: Seq(1),
        accepted: targets as u32,
        refused: Vec::new(),
        accepted_at: 1,
        expires_at: 2,
        repeated,
    }
}

fn parts(targets: &[u8], with_accounts: bool, each: usize) -> Vec<NewBatch> {
    let mut all = Parts::new(batch(targets, with_accounts), each);
    let mut parts = Vec::new();
    while all.at < targets.len() {
        let part = all.part();
        all.took(&answer(part.targets.len(), false));
        parts.push(part);
    }
    assert_eq!(parts.len() > 1, Parts::new(batch(targets, with_accounts), each).is_many());
    parts
}

fn ordinals(part: &NewBatch) -> Vec<u32> {
    (0..part.targets.len()).map(|position| part.part.ordinal(position)).collect()
}

#[test]
fn parts_follow_each_other() {
    let of = |targets: &[u8], each| {
        let what = |part: &NewBatch| (part.part.number, ordinals(part), part.part.to_come);
        parts(targets, false, each).iter().map(what).collect::<Vec<_>>()
    };
    assert_eq!(of(&[1, 2, 3], 3), [(0, vec![0, 1, 2], 0)]);
    assert_eq!(of(&[1, 2, 3, 4, 5], 2), [(0, vec![0, 1], 3), (1, vec![2, 3], 1), (2, vec![4], 0)]);
    // One device stands first and last.
    assert_eq!(of(&[1, 2, 3, 4, 1], 3), [(0, vec![0, 1, 4], 2), (1, vec![2, 3], 0)]);
    // More of them than a part has.
    assert_eq!(of(&[1, 2, 1, 2, 3], 2), [(0, vec![0, 1, 2, 3], 1), (1, vec![4], 0)]);
    assert_eq!(of(&[1, 1, 1], 2), [(0, vec![0, 1, 2], 0)]);
}

#[test]
fn the_next_part_begins_behind_what_the_answer_is_of() {
    // An edge that took other sizes has answered for three, and for all.
    let mut parts = Parts::new(batch(&[1, 2, 3, 4, 1], false), 2);
    parts.took(&Accepted { accepted: 2, refused: vec![(9, Refusal::Duplicate)], ..answer(0, true) });
    let next = parts.part();
    assert_eq!((next.part.number, ordinals(&next), next.part.to_come), (1, vec![2, 3], 0));
    assert!(!next.part.follows, "it may have been taken before as well");
    parts.took(&answer(100_000, false));
    assert_eq!((parts.at, parts.part().part.follows), (5, true));
}

#[test]
fn all_parts_expire_when_the_first_one_does() {
    let whole = |online_only| {
        let body =
            crate::wire::pb::device::Push { message_id: 1, expires_milliseconds: 2, ..Default::default() };
        NewBatch { online_only, body: prost::Message::encode_to_vec(&body).into(), ..batch(&[1, 2], false) }
    };
    let after = |online_only| {
        let mut parts = Parts::new(whole(online_only), 1);
        let first = Accepted { expires_at: 300, ..answer(1, true) };
        parts.took(&first);
        parts.expires_with(&first);
        let part = parts.part();
        let body = <crate::wire::pb::device::Push as prost::Message>::decode(&*part.body).expect("a push");
        assert_eq!((body.message_id, body.expires_milliseconds), (1, part.expires_at));
        part.expires_at
    };
    assert_eq!((after(false), after(true)), (300, 2), "what is only for now has its own window");
}

#[test]
fn what_waits_is_counted_as_long_as_it_waits() {
    let budget = Arc::new(Budget::default());
    let mut parts = Parts::new(batch(&[1, 2, 3], true), 1);
    parts.hold(budget.hold(crate::budget::Part::Admission));
    let used = || budget.part(crate::budget::Part::Admission);
    let all = used();
    assert!(all >= 3 * (16 + 8 + TO_COME));
    parts.took(&answer(1, false));
    assert_eq!(used(), all - TO_COME);
    drop(parts);
    assert_eq!(used(), 0);
}

#[test]
fn batches_with_one_key_take_turns_and_no_others() {
    let collapsing = Collapsing::default();
    let keyed = |key: &str| NewBatch { collapse_key: key.into(), ..batch(&[1], false) };
    let enter = |key: &str, is_large: bool| collapsing.enter(&keyed(key), is_large);
    let comes = |turn: &mut Turn| {
        let mut come = std::pin::pin!(turn.come());
        come.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    };
    assert!(enter("a", false).is_none(), "nobody is there, and nobody has to wait for it");
    let large = enter("a", true).expect("others wait for it");
    assert!(!large.waits() && enter("b", false).is_none());
    let (mut second, mut third) = (enter("a", false).expect("waits"), enter("a", true).expect("waits"));
    assert!(second.waits() && third.waits());
    assert!(!comes(&mut second));
    drop(large);
    assert!(enter("b", false).is_none(), "who looks for another key forgets nobody who is under way");
    let mut third_comes = std::pin::pin!(third.come());
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(third_comes.as_mut().poll(&mut cx).is_pending(), "the second is under way");
    drop(second);
    assert!(third_comes.as_mut().poll(&mut cx).is_ready());
}

proptest! {
    #[test]
    fn each_target_is_in_one_part_and_a_device_in_one_part_too(
        targets in prop::collection::vec(0..40_u8, 1..60),
        with_accounts in any::<bool>(),
        each in 1..70_usize,
    ) {
        let whole = batch(&targets, with_accounts);
        let parts = parts(&targets, with_accounts, each);
        let (mut found, mut places) = (BTreeMap::new(), BTreeMap::<DeviceKey, u32>::new());
        let mut left = targets.len();
        for (number, part) in (0..).zip(&parts) {
            left -= part.targets.len();
            prop_assert_eq!((part.part.number, part.part.to_come as usize), (number, left));
            prop_assert!(!part.targets.is_empty());
            prop_assert!(part.targets.len() <= each || number == 0);
            let ordinals = ordinals(part);
            prop_assert!(ordinals.is_sorted());
            for (position, ordinal) in ordinals.into_iter().enumerate() {
                let target = (part.targets[position], part.accounts.get(position).copied());
                prop_assert_eq!(found.insert(ordinal, target), None);
                let place = places.entry(part.targets[position]).or_insert(number);
                prop_assert_eq!(*place, number);
            }
            prop_assert_eq!((part.digest, &part.body, &part.collapse_key), (whole.digest, &whole.body, &whole.collapse_key));
        }
        let all = (0..).zip(&whole.targets);
        let all: BTreeMap<_, _> =
            all.map(|(ordinal, key)| (ordinal, (*key, whole.accounts.get(ordinal as usize).copied()))).collect();
        prop_assert_eq!(found, all);
    }
}

#[test]
fn larger_parts_go_on_where_smaller_ones_ended() {
    // Of an edge that took two at a time: both places of the device that stands twice, ordinals 0 and 4.
    let mut smaller = Parts::new(batch(&[1, 2, 3, 4, 1], false), 2);
    let first = smaller.part();
    smaller.took(&answer(2, false));
    let left = |parts: &mut Parts| {
        let mut left = Vec::new();
        while parts.at < 5 {
            let part = parts.part();
            left.extend(ordinals(&part));
            parts.took(&answer(part.targets.len(), false));
        }
        left.sort_unstable();
        left
    };
    assert_eq!((ordinals(&first), left(&mut smaller)), (vec![0, 4], vec![1, 2, 3]));
    // The next life takes five at a time; the batch waits for its turn among those with its collapse key, and so goes by `follow`.
    let mut larger = Parts::new(batch(&[1, 2, 3, 4, 1], false), 5);
    larger.took(&answer(2, true));
    assert_eq!(left(&mut larger), [1, 2, 3]);
}
