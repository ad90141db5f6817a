//! However little room there is, whatever is asked for is done or refused: it is never the end of the store, and a start finds what was said.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::common::{HOUR, SEGMENT, opened};
use super::plan::START;
use super::support::{Harness, ack, app, batch, device, of_account, seen, session, small};
use crate::binding::{Binding, Change, Unbind};
use crate::ids::MessageId;
use crate::limits;
use crate::push::{Attributes, Event, NewBatch, Seen};
use crate::store::disk::sim::SimDisk;
use crate::store::options::{Quota, StoreOptions};
use crate::store::{AppChange, Command};

fn options(reserve_segments: u32) -> StoreOptions {
    StoreOptions {
        reserve_segments,
        // Forgetting is looked at in a grain, an eighth of it.
        forget_after_ms: HOUR,
        unmatched_per_second: u32::MAX,
        max_bytes: u64::from(2 + reserve_segments) * SEGMENT,
        app_quotas: [(app(), Quota { max_entries: 4, max_bytes: u64::MAX, drop_oldest: true })].into(),
        ..small()
    }
}

type Asked = (&'static str, fn(&mut Harness<SimDisk>));

fn large() -> Attributes {
    Attributes::whole(vec![7; 2_000].into())
}

fn apply(harness: &mut Harness<SimDisk>, command: Command) {
    harness.apply(command).expect("it is done or refused");
}

fn say(harness: &mut Harness<SimDisk>, seen: Seen, n: u32) {
    apply(harness, Command::Seen { device: Box::new(seen), session: session(n) });
}

fn ask<T>(harness: &mut Harness<SimDisk>, command: impl FnOnce(oneshot::Sender<T>) -> Command) {
    let (reply, _) = oneshot::channel();
    apply(harness, command(reply));
}

/// What may be asked for.
const ASKED: [Asked; 18] = [
    ("a new device", |harness| say(harness, Seen { attributes: large(), ..seen(9) }, 9)),
    ("other attributes", |harness| say(harness, Seen { attributes: large(), ..seen(0) }, 0)),
    ("an app that is reinstalled", |harness| {
        say(harness, Seen { attributes: large(), state_lost: true, ..seen(0) }, 0);
    }),
    ("the switch", |harness| harness.stage_change(0, Change::Push(false))),
    ("another account", |harness| {
        harness.stage_change(0, Change::Bind(Binding::Account("z".repeat(128).into())));
    }),
    ("no account", |harness| harness.stage_change(0, Change::Unbind(Unbind::Account("a".into())))),
    ("a tag", |harness| harness.stage_change(1, Change::Bind(Binding::Tag("t".repeat(128).into())))),
    ("activity", |harness| {
        let now = harness.now + HOUR;
        apply(
            harness,
            Command::LastActive((0..200).map(|n| (device(n % 4), now + u64::from(n) * 1_000)).collect()),
        );
    }),
    ("activity of many", |harness| {
        let now = harness.now + HOUR;
        let all: Vec<_> = (0..400).map(|n| (device(n % 4), now + u64::from(n / 4) * HOUR)).collect();
        apply(harness, Command::LastActive(all));
    }),
    ("a suspended app", |harness| {
        ask(harness, |reply| Command::ControlApp { app: app(), change: AppChange::Suspend, reply });
    }),
    ("a credential", |harness| {
        ask(harness, |reply| Command::RevokeCredentials {
            device: device(3),
            epoch: 4,
            allow_registration: true,
            reply,
        });
    }),
    ("a message back", |harness| {
        ask(harness, |reply| Command::Revoke { app: app(), message: MessageId(1), reply });
    }),
    ("a message back that nobody knows", |harness| {
        ask(harness, |reply| Command::Revoke { app: app(), message: MessageId(777), reply });
    }),
    ("an end of the stream's events", |harness| {
        ask(harness, |reply| Command::RetireStream { stream: "main".into(), force: true, reply });
    }),
    ("a cursor", |harness| {
        let cursor = harness.head();
        apply(harness, Command::StreamAck { stream: "main".into(), cursor });
    }),
    ("a message that takes others' places", |harness| {
        let now = harness.now;
        let new = NewBatch { body: vec![7; 600].into(), ..batch("newest", 9, &[0, 1, 2, 3], now, HOUR) };
        drop(harness.stage_batch(new));
    }),
    ("a message for who is online", |harness| {
        let now = harness.now;
        let new = NewBatch { online_only: true, ..batch("online", 9, &[0, 1, 2, 3], now, HOUR) };
        drop(harness.stage_batch(new));
    }),
    ("taps", |harness| {
        let events: Vec<_> = (0..10).map(|n| (n % 5, Event::Click)).collect();
        let now = harness.now;
        harness.acks(vec![ack(0, 1, &events, now), ack(1, 1, &events, now)]);
    }),
];

/// Done or refused; then time passes until everything has ended, and somebody is forgotten.
fn check(disk: &SimDisk, options: &StoreOptions, (what, asked): &Asked) {
    let disk = Arc::new(disk.fork());
    let mut harness = Harness::open(&disk, options, START);
    for n in 0..2 {
        // Written, so that their ends are receipts of their own.
        harness.pull(n);
    }
    asked(&mut harness);
    harness.commit().unwrap_or_else(|error| panic!("{what}: {error}"));
    for passed in [0, 1_000, 2 * HOUR, 1_000, 2 * HOUR] {
        let totals = harness.totals();
        assert!(totals.identity_holds(), "{what}: {totals:?}");
        let lists: Vec<_> = (0..4).map(|n| of(&harness, n)).collect();
        disk.kill();
        harness = Harness::open(&disk, options, harness.now);
        assert_eq!(harness.totals(), totals, "{what}");
        assert_eq!((0..4).map(|n| of(&harness, n)).collect::<Vec<_>>(), lists, "{what}");
        harness.now += passed;
        harness.settle().unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// Without writing them.
fn of(harness: &Harness<SimDisk>, n: u32) -> Vec<u64> {
    let shared = harness.engine.shared();
    let part = shared.index.of_device(&device(n));
    let device = part.devices.get(&device(n));
    device
        .map(|device| device.pending.iter().map(|entry| entry.batch.message.0).collect())
        .unwrap_or_default()
}

/// Something small.
pub(super) fn filler(harness: &mut Harness<SimDisk>) -> bool {
    let before = harness.head();
    ask(harness, |reply| Command::ControlApp { app: app(), change: AppChange::Resume, reply });
    harness.commit().expect("the disk works");
    harness.head() > before
}

#[test]
fn what_is_asked_for_is_done_or_refused_however_little_room_there_is() {
    for reserve in 0..2 {
        let options = options(reserve);
        let (disk, mut harness) = opened(&options);
        harness.change(0, Change::Bind(Binding::Account("a".into()))).expect("bound");
        for message in 1..=3 {
            // One expires, and the others are there when their devices are forgotten.
            let keep = if message == 1 { HOUR } else { 100 * HOUR };
            let new = batch(&format!("b{message}"), message, &[0, 1, 2], START, keep);
            harness.deliver(if message == 2 { of_account("a", new) } else { new }).expect("accepted");
        }
        harness.settle().expect("the disk works");
        let (mut levels, mut step) = (0, 0);
        loop {
            let room = harness.engine.room();
            // Near the end of a segment, and near that of all.
            let near = room % (SEGMENT - 64) < 4_000 && room < 2 * SEGMENT;
            step += 1;
            if near && step % 2 == 0 {
                levels += 1;
                for asked in &ASKED {
                    check(&disk, &options, asked);
                }
            }
            if !filler(&mut harness) {
                break;
            }
        }
        assert!(levels > 30, "{levels}");
    }
}

/// Each event of one ack may make two records.
#[test]
fn an_ack_of_many_taps_is_taken_or_refused() {
    let options = StoreOptions { max_bytes: 4 * SEGMENT, reserve_segments: 0, ..small() };
    let (disk, mut harness) = opened(&options);
    say(&mut harness, Seen { attributes: large(), ..seen(0) }, 0);
    for message in 1..=8 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    }
    // How often all of its taps were taken, and none: of four, and of eight.
    let mut taken = [[0; 2]; 2];
    let mut step = 0;
    while filler(&mut harness) {
        step += 1;
        let room = harness.engine.room();
        if room < 5_000 || room < 2 * SEGMENT - 1_000 && step % 16 != 0 {
            continue;
        }
        for (taken, taps) in taken.iter_mut().zip([4, 8]) {
            let disk = Arc::new(disk.fork());
            let mut harness = Harness::open(&disk, &options, START);
            let events: Vec<_> = (1..=taps).map(|message| (message, Event::Click)).collect();
            harness.acks(vec![ack(0, 1, &events, START)]);
            harness.commit().expect("the disk works");
            let arrived = harness.totals().arrived;
            assert!(arrived == 0 || arrived == taps, "{arrived} of {taps}");
            taken[usize::from(arrived == 0)] += 1;
        }
    }
    assert!(taken[0][0] > 0 && taken[0][1] > 5 && taken[1][1] > 5, "{taken:?}");
}

/// The ends of segments that are asked for besides are no more than a few records.
#[test]
fn an_ack_of_many_taps_leaves_what_is_for_ends() {
    const TAPS: u64 = 24;
    let options = StoreOptions { max_bytes: 18 * SEGMENT, reserve_segments: 16, ..small() };
    let ends = options.max_bytes / 18 * 16 / 2;
    let (disk, mut harness) = opened(&options);
    say(&mut harness, Seen { attributes: large(), ..seen(0) }, 0);
    for message in 1..=TAPS {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    }
    let (mut taken, mut refused, mut step) = (0, 0, 0);
    while harness.engine.room() > ends && filler(&mut harness) {
        step += 1;
        if step % 32 > 0 {
            continue;
        }
        let disk = Arc::new(disk.fork());
        let mut harness = Harness::open(&disk, &options, START);
        let events: Vec<_> = (1..=TAPS).map(|message| (message, Event::Click)).collect();
        harness.acks(vec![ack(0, 1, &events, START)]);
        harness.commit().expect("the disk works");
        match harness.totals().arrived {
            0 => refused += 1,
            arrived => {
                assert_eq!(arrived, TAPS);
                assert!(harness.engine.room() >= ends, "{} left", harness.engine.room());
                taken += 1;
            }
        }
    }
    assert!(taken > 0 && refused > 5, "{taken} taken, {refused} refused");
}

/// Its end is part of what it asks for: the reserve is for what comes later.
#[test]
fn a_batch_that_ends_at_once_leaves_the_reserve_as_it_was() {
    let targets: Vec<u32> = (0..4).collect();
    for taken_back in [false, true] {
        let (disk, mut harness) = opened(&small());
        if taken_back {
            ask(&mut harness, |reply| Command::Revoke { app: app(), message: MessageId(1), reply });
        }
        harness.settle().expect("the disk works");
        // What is left at the end is another number of bytes each time.
        for bytes in 0..100 {
            let disk = Arc::new(disk.fork());
            disk.kill();
            let mut harness = Harness::open(&disk, &small(), START);
            disk.set_capacity(Some(disk.used()));
            let mut n = 0;
            loop {
                n += 1;
                // Names as long as they may be: both records have them.
                let id = format!("{n:0>width$}", width = limits::BATCH_ID_BYTES);
                let new = NewBatch {
                    job_key: "j".repeat(limits::LABEL_BYTES).into(),
                    online_only: !taken_back,
                    body: vec![7; 600 + 7 * bytes].into(),
                    ..batch(&id, if taken_back { 1 } else { n }, &targets, START, HOUR)
                };
                if harness.deliver(new).is_err() {
                    break;
                }
                assert_eq!(harness.figure("disk_full"), 0);
                let room = harness.engine.room();
                assert!(room >= SEGMENT - 100, "{taken_back}, {n} of {bytes}: {room} left");
            }
            assert!(n > 2 && harness.figure("disk_full") == 1, "{n}");
            assert_eq!(harness.totals().pending, 0);
        }
    }
}
