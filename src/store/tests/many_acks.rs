//! Many acks in one command: what becomes of them is what becomes of each alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::plan::START;
use super::support::{Harness, Told, ack, batch, small};
use crate::ids::Seq;
use crate::push::{Event, Receipt, StreamEvent};
use crate::store::DeviceAck;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;

/// Some of each kind.
const DEVICES: u32 = 700;
const MINUTE: u64 = 60_000;

/// What each device says, in the order of its session: arrives alone and several at once, some of them twice, with what was tapped or is not known among
/// them.
fn acks_of(n: u32) -> Vec<DeviceAck> {
    use Event::{Arrive, Clean, Click};
    let now = START + 10;
    match n % 5 {
        0 => vec![ack(n, 1, &[(7, Arrive)], now), ack(n, 2, &[(8, Arrive)], now)],
        1 => vec![ack(n, 1, &[(7, Arrive), (8, Arrive), (7, Arrive)], now)],
        2 => vec![ack(n, 1, &[(8, Arrive), (7, Click)], now), ack(n, 2, &[(8, Clean), (7, Clean)], now)],
        3 => vec![ack(n, 1, &[(9, Arrive), (7, Arrive)], now)],
        _ => vec![ack(n, 1, &[(7, Arrive)], now), ack(n, 2, &[(7, Arrive), (8, Click)], now)],
    }
}

fn options() -> StoreOptions {
    StoreOptions { segment_bytes: 1024 * 1024, unmatched_per_second: DEVICES, ..small() }
}

fn opened() -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &options(), START);
    let all: Vec<u32> = (0..DEVICES).collect();
    for n in &all {
        harness.see(*n);
    }
    // Two batches of one message, and one of another.
    let (first, second) = all.split_at(all.len() / 2);
    for (id, message, targets) in [("a", 7, first), ("bb", 7, second), ("ccc", 8, &all[..])] {
        harness.deliver(batch(id, message, targets, START, MINUTE)).expect("accepted");
    }
    harness.now += 20;
    harness.sink.take();
    (disk, harness)
}

/// By device: its receipts in their order, and what was confirmed to it.
fn told(harness: &Harness<SimDisk>) -> BTreeMap<String, (Vec<Receipt>, Vec<u64>)> {
    let mut all: BTreeMap<String, (Vec<Receipt>, Vec<u64>)> = BTreeMap::new();
    for (_, event) in harness.stream(Seq(0)) {
        if let StreamEvent::Receipt(receipt) = event {
            all.entry(receipt.device_id.to_string()).or_default().0.push(*receipt);
        }
    }
    for told in harness.sink.take() {
        if let Told::Confirmed(confirm) = told {
            all.entry(format!("device-{}", confirm.session.slot)).or_default().1.push(confirm.number);
        }
    }
    all
}

#[test]
fn many_acks_of_one_command_are_what_they_are_one_by_one() {
    let (_disk, mut apart) = opened();
    let (disk, mut together) = opened();
    // Each device's in their order, devices mixed.
    let first = |acks: usize| (0..DEVICES).map(acks_of).filter_map(move |all| all.get(acks).cloned());
    let acks: Vec<DeviceAck> = first(0).chain(first(1)).collect();
    for ack in &acks {
        apart.acks(vec![ack.clone()]);
    }
    together.acks(acks);
    apart.settle().expect("the disk works");
    together.settle().expect("the disk works");
    let all = told(&together);
    assert_eq!(all, told(&apart));
    assert_eq!(all.len(), DEVICES as usize);
    for n in 0..DEVICES {
        let (receipts, confirmed) = &all[&format!("device-{n}")];
        assert!(!receipts.is_empty());
        assert_eq!(confirmed.len(), acks_of(n).len(), "all of it is confirmed");
    }
    assert_eq!(together.totals(), apart.totals());
    assert!(together.totals().identity_holds());
    assert_eq!(together.days(3), apart.days(3));
    for message in [7, 8, 9] {
        let counts =
            |harness: &mut Harness<SimDisk>| harness.message(message, Some(2)).map(|state| state.counts);
        assert_eq!(counts(&mut together), counts(&mut apart), "message {message}");
    }
    // A start makes the same of the records.
    let (now, before) = (together.now, (together.totals(), together.days(3)));
    drop(together);
    disk.kill();
    let mut again = Harness::open(&disk, &options(), now);
    assert_eq!((again.totals(), again.days(3)), before);
}
