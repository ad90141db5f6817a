use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::{AppKey, BatchId, DigestKey, MessageId};
use crate::push::{OfflinePolicy, Priority};

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

fn parts(targets: &[u8], with_accounts: bool, each: usize) -> Vec<NewBatch> {
    let (first, rest) = split(batch(targets, with_accounts), each);
    let mut parts = vec![*first];
    if let Some(mut rest) = rest {
        while let Some(part) = rest.next() {
            parts.push(*part);
        }
    }
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
fn a_batch_with_a_key_is_over_when_its_guard_goes() {
    let collapsing = Arc::new(Collapsing::default());
    let is_over = || {
        let mut none = std::pin::pin!(collapsing.none());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        none.as_mut().poll(&mut cx).is_ready()
    };
    assert!(is_over());
    let (one, two) = (collapsing.begin(), collapsing.begin());
    assert!(!is_over());
    drop(one);
    assert!(!is_over(), "the other one isn't");
    drop(two);
    assert!(is_over());
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
