//! Rows of devices: what is read and when, what leaves memory, what a damaged one costs, and what a start makes of them.

use std::sync::Arc;

use smallvec::smallvec;

use super::plan::START;
use super::support::{Harness, Told, ack, batch, device, seen, session, small};
use crate::binding::{Binding, Bindings, Change, ChangeError, Unbind};
use crate::ids::Seq;
use crate::limits;
use crate::push::{Acked, Attributes, Event, Failure, Millis, Receipt, Rejection, Seen, StreamEvent};
use crate::store::disk::Disk;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::{Command, DeviceState, Query, QueryAnswer};

const HOUR: Millis = 3_600_000;
const DEVICES: u32 = 20;

/// Attributes of its own, as an id among them makes them.
fn hello(n: u32) -> Seen {
    Seen { attributes: own(n), ..seen(n) }
}

fn own(n: u32) -> Attributes {
    Attributes::whole(format!("attributes of device {n}").into_bytes().into())
}

fn say(harness: &mut Harness<SimDisk>, hello: Seen, n: u32) {
    harness.apply(Command::Seen { device: Box::new(hello), session: session(n) }).expect("the disk works");
}

/// One row fits.
fn options() -> StoreOptions {
    StoreOptions { device_cache_bytes: 300, ..small() }
}

fn opened(options: &StoreOptions) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, options, START);
    for n in 0..DEVICES {
        say(&mut harness, hello(n), n);
    }
    harness.change(1, Change::Bind(Binding::Account("a".into()))).expect("bound");
    harness.change(1, Change::Bind(Binding::Tag("t".into()))).expect("bound");
    harness.settle().expect("the disk works");
    harness.sink.take();
    (disk, harness)
}

/// Killed and opened again; with a checkpoint before, or from the journal alone.
fn crash(
    disk: &Arc<SimDisk>,
    mut harness: Harness<SimDisk>,
    options: &StoreOptions,
    checkpoint: bool,
) -> Harness<SimDisk> {
    if checkpoint {
        harness.checkpoint().expect("the disk works");
    }
    let now = harness.now;
    drop(harness);
    disk.kill();
    Harness::open(disk, options, now)
}

fn known(harness: &mut Harness<SimDisk>, n: u32) -> (Option<Attributes>, Option<Bindings>) {
    let DeviceState { attributes, bindings, .. } = harness.state_of(n).expect("known");
    (attributes, bindings.as_deref().cloned())
}

fn of_one() -> Bindings {
    Bindings { account: Some("a".into()), tags: vec!["t".into()], ..Bindings::default() }
}

/// The receipts of a message, without the device events beside them.
fn receipts(harness: &Harness<SimDisk>) -> Vec<Receipt> {
    let events = harness.stream(Seq(0)).into_iter();
    let receipts = events.filter_map(|(_, event)| match event {
        StreamEvent::Receipt(receipt) => Some(*receipt),
        _ => None,
    });
    receipts.collect()
}

#[test]
fn rows_leave_memory_and_come_back_as_they_were() {
    // Most parts have none of them.
    let (_disk, mut harness) = opened(&StoreOptions { parts: 64, ..options() });
    harness.now += HOUR;
    harness.settle().expect("the disk works");
    assert!(harness.figure("device_rows") <= 2, "{:?}", harness.engine.stats().all());
    assert!(harness.figure("device_row_bytes") <= 300);
    let before = harness.figure("device_row_reads");
    let warm = harness.figure("device_rows");
    for _ in 0..2 {
        for n in 0..DEVICES {
            assert_eq!(known(&mut harness, n), (Some(own(n)), (n == 1).then(of_one)));
        }
    }
    harness.settle().expect("the disk works");
    let reads = harness.figure("device_row_reads") - before;
    assert_eq!(reads, u64::from(DEVICES) - warm, "each is read once, and is in memory since");
}

#[test]
fn a_start_reads_no_row_and_knows_the_same() {
    let (disk, mut harness) = opened(&small());
    for checkpoint in [false, true] {
        harness = crash(&disk, harness, &small(), checkpoint);
        assert_eq!(harness.figure("device_rows"), 0, "all of them are cold");
        assert_eq!(known(&mut harness, 1), (Some(own(1)), Some(of_one())));
        assert_eq!(known(&mut harness, 2), (Some(own(2)), None));
        harness.settle().expect("the disk works");
        assert_eq!(harness.figure("device_row_reads"), 2);
    }
}

#[test]
fn who_comes_back_brings_its_row_along_and_nothing_is_read_for_its_acks() {
    let (disk, mut harness) = opened(&small());
    let all: Vec<u32> = (0..DEVICES).collect();
    harness.deliver(batch("b", 1, &all, START, HOUR)).expect("accepted");
    harness = crash(&disk, harness, &small(), true);
    for n in 0..DEVICES {
        assert!(harness.is_current(&hello(n)));
        let other = Attributes::whole(b"others".as_slice().into());
        assert!(!harness.is_current(&Seen { attributes: other, ..seen(n) }));
    }
    for n in 0..DEVICES {
        harness.arrive(n, 1);
    }
    harness.settle().expect("the disk works");
    assert_eq!((harness.totals().arrived, harness.figure("device_row_reads")), (u64::from(DEVICES), 0));
    let receipts = receipts(&harness);
    for n in 0..DEVICES {
        let of_device = receipts.iter().filter(|receipt| *receipt.device_id == *format!("device-{n}"));
        assert!(of_device.map(|receipt| &receipt.attributes).eq([&own(n)]), "device {n}");
    }
    // What it is bound to is read when it matters; where there is nothing, not even then.
    harness.change(2, Change::Bind(Binding::Tag("t".into()))).expect("bound");
    harness.settle().expect("the disk works");
    assert_eq!(harness.figure("device_row_reads"), 0);
    harness.change(1, Change::Unbind(Unbind::Tag("t".into()))).expect("unbound");
    harness.settle().expect("the disk works");
    assert_eq!(harness.figure("device_row_reads"), 1);
    let only_account = Bindings { tags: Vec::new(), ..of_one() };
    assert_eq!(known(&mut harness, 1), (Some(own(1)), Some(only_account)));
}

#[test]
fn an_upgrade_rewrites_rows_with_what_they_are_bound_to() {
    let (disk, mut harness) = opened(&small());
    harness = crash(&disk, harness, &small(), true);
    for n in 0..DEVICES {
        let upgraded = Seen { attributes: own(n + 100), ..seen(n) };
        assert!(!harness.is_current(&upgraded));
        say(&mut harness, upgraded, n);
    }
    harness.settle().expect("the disk works");
    assert_eq!(harness.figure("device_row_reads"), 1, "of the one that is bound, when it is written");
    for checkpoint in [false, true] {
        harness = crash(&disk, harness, &small(), checkpoint);
        assert_eq!(known(&mut harness, 1), (Some(own(101)), Some(of_one())));
        assert_eq!(known(&mut harness, 2), (Some(own(102)), None));
    }
}

#[test]
fn shards_bring_in_rows_up_to_twice_what_fits() {
    let (disk, harness) = opened(&small());
    let options = StoreOptions { device_cache_bytes: 600, ..small() };
    let mut harness = crash(&disk, harness, &options, true);
    for n in 0..DEVICES {
        assert!(harness.is_current(&hello(n)), "whether its row is in memory or not");
    }
    let bytes = harness.engine.shared().index.warmth.bytes();
    assert!((1_200..2_000).contains(&bytes), "{bytes}");
    harness.settle().expect("the disk works");
    assert!(harness.figure("device_row_bytes") <= 600, "{:?}", harness.engine.stats().all());
}

#[test]
fn the_address_of_a_receipt_is_where_the_ack_came_from() {
    let (_disk, mut harness) = opened(&options());
    harness.deliver(batch("b", 1, &[3, 4], START, HOUR)).expect("accepted");
    let mut acks = vec![ack(3, 1, &[(1, Event::Arrive)], START), ack(4, 1, &[(1, Event::Arrive)], START)];
    acks[1].client_ip = Some([192, 0, 2, 4].into());
    harness.acks(acks);
    harness.commit().expect("the disk works");
    let addresses: Vec<_> = receipts(&harness).into_iter().map(|receipt| receipt.client_ip).collect();
    assert_eq!(addresses, [Some(seen(3).client_ip), Some([192, 0, 2, 4].into())]);
}

#[test]
fn many_devices_are_answered_without_reading_rows() {
    let (disk, harness) = opened(&small());
    let mut harness = crash(&disk, harness, &small(), true);
    let mut ask = |count: usize| {
        let keys = (0..count as u32).map(|n| device(n % DEVICES)).collect();
        let QueryAnswer::Devices(states) = harness.query(Query::Devices(keys)) else { panic!("no answer") };
        harness.settle().expect("the disk works");
        (states.into_iter().flatten().collect::<Vec<_>>(), harness.figure("device_row_reads"))
    };
    let (states, reads) = ask(limits::QUERY_ROWS + 1);
    assert_eq!((states.len(), reads), (limits::QUERY_ROWS + 1, 0));
    assert!(states.iter().all(|state| state.push_on && state.last_active == START));
    assert!(states.iter().all(|state| state.attributes.is_none() && state.bindings.is_none()));
    let (states, reads) = ask(limits::QUERY_ROWS);
    assert_eq!((states.len(), reads), (limits::QUERY_ROWS, u64::from(DEVICES)));
    assert!(states.iter().all(|state| state.attributes.is_some()));
}

#[test]
fn who_was_forgotten_and_comes_back_has_nothing_of_before() {
    let options = StoreOptions { forget_after_ms: 80_000, ..small() };
    let (disk, mut harness) = opened(&options);
    for _ in 0..120 {
        harness.now += 1_000;
        harness.settle().expect("the disk works");
    }
    assert_eq!(harness.state_of(1), None, "forgotten");
    assert!(harness.engine.device_rows().expect("readable").is_empty(), "and so are the rows");
    say(&mut harness, hello(1), 1);
    harness.change(1, Change::Bind(Binding::Alias("x".into()))).expect("bound");
    let number = harness.state_of(1).expect("known").number;
    assert_eq!(number, DEVICES, "nobody had it before");
    let right = Some(Bindings { aliases: vec!["x".into()], ..Bindings::default() });
    for (checkpoint, tables_are_lost) in [(false, false), (true, false), (true, true)] {
        if checkpoint {
            harness.checkpoint().expect("the disk works");
        }
        let now = harness.now;
        drop(harness);
        disk.kill();
        if tables_are_lost {
            // Its hot row is of now, and all that was ever said of its key is replayed for the tables.
            disk.remove("tables.log").expect("there");
        }
        harness = Harness::open(&disk, &options, now);
        harness.settle().expect("the disk works");
        assert_eq!(harness.engine.device_rows().expect("readable"), [number].into());
        assert_eq!((known(&mut harness, 1).1, harness.figure("damaged")), (right.clone(), 0));
    }
}

#[test]
fn a_damaged_row_costs_a_session_and_nothing_that_waits() {
    for row in [None, Some(b"\x01nonsense".to_vec())] {
        let (disk, mut harness) = opened(&small());
        harness.deliver(batch("b", 1, &[1, 2], START, HOUR)).expect("accepted");
        harness = crash(&disk, harness, &small(), true);
        let number =
            harness.engine.shared().index.of_device(&device(1)).number_of(&device(1)).expect("known");
        harness.engine.spoil_row(number, row);
        harness.acks(vec![ack(1, 7, &[(1, Event::Arrive)], START)]);
        harness.commit().expect("the disk works");
        harness.settle().expect("the disk works");
        assert_eq!(harness.sink.take(), [Told::AckRefused(session(1))]);
        assert_eq!((harness.figure("damaged"), harness.pulled(1).len()), (1, 1));
        assert_eq!(harness.state_of(1).map(|state| (state.push_on, state.attributes)), Some((true, None)));
        // Its next Hello says who it is, although it says nothing new.
        assert!(!harness.is_current(&hello(1)));
        say(&mut harness, hello(1), 1);
        harness.commit().expect("the disk works");
        harness.sink.take();
        assert!(harness.is_current(&hello(1)));
        assert_eq!(known(&mut harness, 1), (Some(own(1)), None), "what it was bound to is gone");
        for checkpoint in [false, true] {
            harness = crash(&disk, harness, &small(), checkpoint);
            assert_eq!(known(&mut harness, 1), (Some(own(1)), None));
            assert_eq!(harness.state_of(1).map(|state| state.number), Some(number));
        }
        // It logs in again; what comes for its account meanwhile was its own.
        let of_a = super::support::of_account("a", batch("c", 2, &[1], START, HOUR));
        harness.deliver(of_a).expect("accepted");
        assert_eq!(harness.pulled(1).len(), 2);
        harness.change(1, Change::Bind(Binding::Account("a".into()))).expect("bound");
        harness.arrive(1, 1);
        let counts = harness.totals();
        assert!(counts.identity_holds(), "{counts:?}");
        assert_eq!((counts.arrived, counts.failed[Failure::Unbound as usize - 1], counts.pending), (1, 1, 1));
        assert_eq!(receipts(&harness).last().map(|receipt| receipt.attributes.clone()), Some(own(1)));
    }
}

#[test]
fn ends_dont_wait_for_a_damaged_row() {
    let options = StoreOptions { forget_after_ms: 800_000, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.deliver(batch("b", 1, &[1], START, 10_000)).expect("accepted");
    harness.deliver(batch("c", 2, &[1], START, 10 * HOUR)).expect("accepted");
    harness = crash(&disk, harness, &options, true);
    assert_eq!(harness.pulled(1).len(), 2);
    let number = harness.state_of(1).expect("known").number;
    harness = crash(&disk, harness, &options, true);
    harness.engine.spoil_row(number, Some(Vec::new()));
    assert_eq!(harness.pulled(1).len(), 2, "written, so that their ends are receipts of their own");
    for _ in 0..120 {
        harness.now += 10_000;
        harness.settle().expect("the disk works");
    }
    assert_eq!(harness.state_of(1), None, "forgotten");
    let said: Vec<_> =
        receipts(&harness).into_iter().map(|one| (one.outcome, one.device_id, one.target)).collect();
    let [(expired, who, of_b), (forgotten, _, of_c)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((expired, forgotten), (&Some(Err(Failure::Expired)), &Some(Err(Failure::Forgotten))));
    assert_eq!((&**who, of_b.as_ref().map(|of| of.1), of_c.as_ref().map(|of| of.1)), ("", Some(0), Some(0)));
    let told = harness.device_events(1, Seq(0));
    assert_eq!(
        told.len(),
        3,
        "registered and bound twice; that it is forgotten nobody could be told: {told:?}"
    );
    for checkpoint in [false, true] {
        harness = crash(&disk, harness, &options, checkpoint);
        assert_eq!((harness.state_of(1), harness.totals().pending), (None, 0));
    }
}

/// Devices that register until the first is refused, with what is done after each.
fn storm(harness: &mut Harness<SimDisk>, then: impl Fn(&mut Harness<SimDisk>)) -> u32 {
    for n in 0..1_000 {
        say(harness, hello(1_000 + n), n);
        harness.commit().expect("the disk works");
        then(harness);
        if harness.sink.take().contains(&Told::Refused(session(n))) {
            return n;
        }
    }
    panic!("never refused");
}

#[test]
fn a_storm_that_the_tables_cant_follow_is_refused() {
    let options = StoreOptions { max_unwritten: 40, ..small() };
    let (_disk, mut harness) = opened(&options);
    assert_eq!(storm(&mut harness, |_| ()), 40);
    assert_eq!(harness.change(1, Change::Bind(Binding::Tag("u".into()))), Err(ChangeError::Exhausted));
    assert_eq!(
        harness.deliver(batch("b", 1, &[1], START, HOUR)),
        Err(Rejection::Exhausted),
        "what changes nothing of devices changes push records"
    );
    harness.now += 1_000;
    harness.settle().expect("the disk works");
    assert_eq!(harness.change(1, Change::Bind(Binding::Tag("u".into()))), Ok(()));
    assert_eq!(storm(&mut harness, |_| ()), 40 + 39, "the first are known by now, and one was bound");
}

#[test]
fn what_finds_no_space_in_the_tables_counts_until_it_does() {
    let options =
        StoreOptions { max_unwritten: 40, segment_bytes: 256 * 1024, reserve_segments: 0, ..small() };
    let (disk, mut harness) = opened(&options);
    disk.set_capacity(Some(disk.used()));
    let taken = storm(&mut harness, |harness| {
        harness.now += 10_000;
        harness.settle().expect("a full disk is no failure");
    });
    assert!((20..=40).contains(&taken) && harness.engine.is_behind(), "{taken}");
    disk.set_capacity(None);
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    say(&mut harness, hello(5_000), 1);
    harness.commit().expect("the disk works");
    assert_eq!(harness.sink.take(), [Told::Seen(session(1))]);
}

#[test]
fn an_ack_reads_the_row_of_a_device_that_left_memory() {
    let (_disk, mut harness) = opened(&options());
    harness.now += HOUR;
    harness.settle().expect("the disk works");
    let before = harness.figure("device_row_reads");
    harness.deliver(batch("b", 1, &[1, 2, 3, 4, 5, 6], harness.now, HOUR)).expect("accepted");
    harness.settle().expect("the disk works");
    assert_eq!(harness.figure("device_row_reads"), before, "admission needs none");
    let now = harness.now;
    let event = Acked { message: crate::ids::MessageId(1), event: Event::Arrive, time: now, sent_at: None };
    harness.acks(
        (1..7).map(|n| crate::store::DeviceAck { events: smallvec![event], ..ack(n, 1, &[], now) }).collect(),
    );
    harness.settle().expect("the disk works");
    assert!((4..=6).contains(&(harness.figure("device_row_reads") - before)));
    let of = receipts(&harness).into_iter().map(|receipt| receipt.attributes).collect::<Vec<_>>();
    assert_eq!(of, (1..7).map(own).collect::<Vec<_>>());
}
