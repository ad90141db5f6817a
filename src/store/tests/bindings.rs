//! Device events, bindings, and what ends with them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::plan::START;
use super::support::{Harness, Told, ack, batch, device, of_account, seen, session, small};
use crate::binding::{Binding, Change, ChangeError, DeviceChange, Unbind};
use crate::ids::Seq;
use crate::limits;
use crate::push::{Attributes, Event, Failure, Millis, NewBatch, OfflinePolicy, ReceiptKind, StreamEvent};
use crate::store::Command;
use crate::store::disk::sim::SimDisk;

const HOUR: Millis = 3_600_000;

fn opened() -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &small(), START);
    for n in 0..4 {
        harness.see(n);
    }
    harness.commit().expect("the disk works");
    harness.sink.take();
    (disk, harness)
}

/// Killed and opened again; with a checkpoint before, or from the journal alone.
fn crash(disk: &Arc<SimDisk>, mut harness: Harness<SimDisk>, checkpoint: bool) -> Harness<SimDisk> {
    if checkpoint {
        harness.checkpoint().expect("the disk works");
    }
    let now = harness.now;
    drop(harness);
    disk.kill();
    Harness::open(disk, &small(), now)
}

fn account(name: &str) -> Binding {
    Binding::Account(name.into())
}

fn bound(binding: Binding) -> DeviceChange {
    DeviceChange::Bound(binding)
}

fn unbound(binding: Binding) -> DeviceChange {
    DeviceChange::Unbound(binding)
}

fn attributes(text: &str) -> Attributes {
    Attributes::whole(text.as_bytes().into())
}

fn registered() -> DeviceChange {
    DeviceChange::Registered(attributes("attributes"))
}

fn to(message: u64, targets: &[u32]) -> NewBatch {
    batch(&format!("b{message}"), message, targets, START, HOUR)
}

#[test]
fn each_change_is_one_event_and_no_change_is_none() {
    let (disk, mut harness) = opened();
    let said = |text| Change::Attributes { attributes: attributes(text), push_on: None };
    for change in [
        said("new"),
        said("new"),
        Change::Push(true),
        Change::Push(false),
        Change::Push(false),
        Change::Attributes { attributes: attributes("newer"), push_on: Some(true) },
        Change::Bind(account("a")),
        Change::Bind(account("a")),
        Change::Bind(Binding::Tag("t".into())),
        Change::Bind(account("b")),
        Change::Unbind(Unbind::Account("a".into())),
        Change::Unbind(Unbind::Phone),
        Change::Bind(Binding::Phone("1".into())),
        Change::Bind(Binding::Phone("2".into())),
        Change::Unbind(Unbind::Tag("t".into())),
        Change::Bind(Binding::Alias("x".into())),
    ] {
        assert_eq!(harness.change(0, change), Ok(()));
    }
    // A Hello that says the same is no news; one that says other things is.
    harness.apply(Command::Seen { device: Box::new(seen(0)), session: session(0) }).expect("the disk works");
    harness.commit().expect("the disk works");
    let phone = |number: &str| Binding::Phone(number.into());
    let expected = [
        registered(),
        DeviceChange::Attributes(attributes("new")),
        DeviceChange::Switch(false),
        DeviceChange::Attributes(attributes("newer")),
        DeviceChange::Switch(true),
        bound(account("a")),
        bound(Binding::Tag("t".into())),
        unbound(account("a")),
        bound(account("b")),
        bound(phone("1")),
        unbound(phone("1")),
        bound(phone("2")),
        unbound(Binding::Tag("t".into())),
        bound(Binding::Alias("x".into())),
        DeviceChange::Attributes(attributes("attributes")),
    ];
    assert_eq!(harness.device_events(0, Seq(0)), expected);
    for checkpoint in [false, true] {
        harness = crash(&disk, harness, checkpoint);
        assert_eq!(harness.device_events(0, Seq(0)), expected, "read from the journal alone");
        let bindings = harness.state_of(0).expect("known").bindings.expect("some");
        assert_eq!((bindings.account.as_deref(), bindings.phone.as_deref()), (Some("b"), Some("2")));
        assert_eq!((bindings.aliases.len(), bindings.tags.len()), (1, 0));
        assert_eq!(harness.state_of(1).expect("known").bindings, None);
    }
}

fn commits(harness: &Harness<SimDisk>) -> u64 {
    harness.engine.stats().commits.load(Ordering::Relaxed)
}

#[test]
fn a_request_that_changes_nothing_is_answered_and_writes_nothing() {
    let (_disk, mut harness) = opened();
    let said = Change::Attributes { attributes: attributes("vivo"), push_on: Some(false) };
    harness.change(1, said.clone()).expect("taken");
    harness.change(1, Change::Bind(account("alice"))).expect("taken");
    let before = (harness.head(), commits(&harness));
    for change in [
        said,
        Change::Attributes { attributes: attributes("vivo"), push_on: None },
        Change::Push(false),
        Change::Moved([127, 0, 0, 9].into()),
        Change::Bind(account("alice")),
        Change::Unbind(Unbind::Phone),
    ] {
        assert_eq!(harness.change(1, change), Ok(()));
    }
    assert_eq!((harness.head(), commits(&harness)), before);
    // Said anew, it is a record again.
    harness.change(1, Change::Push(true)).expect("taken");
    assert!(harness.head() > before.0);
}

#[test]
fn a_new_device_with_push_off_is_two_events_of_one_record() {
    let (_disk, mut harness) = opened();
    let mut off = seen(4);
    off.push_on = Some(false);
    harness.apply(Command::Seen { device: Box::new(off), session: session(4) }).expect("the disk works");
    harness.commit().expect("the disk works");
    let said = harness.try_stream(Seq(0)).expect("readable");
    let [.., (first, _), (second, _)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((first, second), (&harness.head(), &harness.head()));
    assert_eq!(harness.device_events(4, Seq(0)), [registered(), DeviceChange::Switch(false)]);
}

#[test]
fn aliases_and_tags_beyond_their_number_are_refused() {
    let (disk, mut harness) = opened();
    let makes: [fn(Arc<str>) -> Binding; 2] = [Binding::Alias, Binding::Tag];
    for n in 0..limits::ALIASES {
        for make in makes {
            assert_eq!(harness.change(0, Change::Bind(make(n.to_string().into()))), Ok(()));
        }
    }
    for checkpoint in [false, true] {
        harness = crash(&disk, harness, checkpoint);
        for make in makes {
            let one_more = harness.change(0, Change::Bind(make("one more".into())));
            assert_eq!(one_more, Err(ChangeError::TooMany(128)));
        }
    }
}

#[test]
fn what_was_resolved_from_an_account_ends_before_the_answer_that_it_is_gone() {
    let (disk, mut harness) = opened();
    harness.change(0, Change::Bind(account("a"))).expect("bound");
    let of_a = harness.deliver(of_account("a", to(1, &[0]))).expect("accepted");
    let of_nobody = harness.deliver(to(2, &[0])).expect("accepted");
    harness.change(0, Change::Bind(account("a"))).expect("it stands already");
    assert_eq!(harness.pulled(0).len(), 2, "the same account keeps what is its own");
    harness = crash(&disk, harness, true);
    harness.stage_change(0, Change::Bind(account("b")));
    assert_eq!(harness.pulled(0), [(2, true)], "gone before the commit");
    harness.commit().expect("the disk works");
    let ended = Told::Ended(device(0), of_a.seq, Failure::Unbound);
    assert_eq!(harness.sink.take(), [ended, Told::Changed(session(0), Ok(()))]);
    for checkpoint in [false, true] {
        harness = crash(&disk, harness, checkpoint);
        let pulled = harness.pull(0);
        assert_eq!(pulled.iter().map(|pulled| pulled.batch.seq).collect::<Vec<_>>(), [of_nobody.seq]);
        let counts = harness.totals();
        assert_eq!((counts.failed[Failure::Unbound as usize - 1], counts.pending), (1, 1));
        assert!(counts.identity_holds(), "{counts:?}");
    }
    // The end is a receipt, and stands before what it follows from.
    let said = harness.try_stream(Seq(0)).expect("readable");
    let end = said.iter().position(|(_, event)| match event {
        StreamEvent::Receipt(receipt) => {
            assert_eq!((receipt.kind, receipt.outcome), (ReceiptKind::SentFail, Some(Err(Failure::Unbound))));
            true
        }
        _ => false,
    });
    let gone = said.iter().position(
        |(_, event)| matches!(event, StreamEvent::Device(event) if event.change == unbound(account("a"))),
    );
    assert!(end < gone && end.is_some());
    // Unbinding, and binding it again, doesn't bring anything back.
    harness.deliver(of_account("b", to(3, &[0]))).expect("accepted");
    harness.change(0, Change::Unbind(Unbind::Account("b".into()))).expect("unbound");
    harness.change(0, Change::Bind(account("a"))).expect("bound");
    assert_eq!(harness.pulled(0).len(), 1);
}

#[test]
fn a_target_of_an_account_that_is_not_bound_there_ends_at_once() {
    let (disk, mut harness) = opened();
    harness.change(1, Change::Bind(account("a"))).expect("bound");
    harness.change(2, Change::Bind(account("b"))).expect("bound");
    let answer = harness.deliver(of_account("a", to(1, &[0, 1, 2]))).expect("accepted");
    assert_eq!((answer.accepted, answer.refused.len()), (3, 0));
    assert_eq!(
        harness.sink.take(),
        [Told::Batch(answer.seq, vec![device(1)])],
        "no session knows of the others"
    );
    for checkpoint in [false, true, true] {
        for (n, pending) in [(0, 0), (1, 1), (2, 0)] {
            assert_eq!(harness.pulled(n).len(), pending, "device {n}");
        }
        harness = crash(&disk, harness, checkpoint);
    }
    let masses: Vec<_> = harness.stream(Seq(0));
    let [(_, StreamEvent::Mass(mass))] = &masses[..] else { panic!("{masses:?}") };
    assert_eq!((mass.reason, mass.count, mass.ordinals.parts()), (Failure::Unbound, 2, (0, &[0b101][..])));
    assert_eq!(masses[0].0, answer.seq, "the batch's record says so itself");
    // Who stands twice is a duplicate, bound or not; and if nobody is left the batch is done.
    let again = harness.deliver(of_account("a", to(2, &[0, 0]))).expect("accepted");
    assert_eq!((again.accepted, again.refused.len()), (1, 1));
    assert_eq!((harness.totals().pending, harness.stream(again.seq).len()), (1, 0));
    harness = crash(&disk, harness, false);
    assert!(harness.totals().identity_holds() && harness.totals().pending == 1);
    // What is left of it still knows that it is of an account.
    harness.change(1, Change::Unbind(Unbind::Account("a".into()))).expect("unbound");
    assert!(harness.pull(1).is_empty() && harness.totals().pending == 0);
}

#[test]
fn nobody_is_sent_elsewhere_for_an_account_that_is_not_there() {
    let (_disk, mut harness) = opened();
    harness.change(1, Change::Bind(account("a"))).expect("bound");
    let mut asking = of_account("a", to(1, &[0, 1]));
    asking.offline_policy = OfflinePolicy::Return;
    let answer = harness.deliver(asking).expect("accepted");
    assert_eq!(answer.refused.iter().map(|refused| refused.0).collect::<Vec<_>>(), [1], "offline");
    let mut at_once = of_account("a", to(2, &[0, 1]));
    at_once.online_only = true;
    harness.deliver(at_once).expect("accepted");
    let counts = harness.totals();
    let failed = |reason: Failure| counts.failed[reason as usize - 1];
    assert_eq!((failed(Failure::Unbound), failed(Failure::Offline)), (2, 1));
}

#[test]
fn a_reinstalled_app_starts_with_nothing_but_what_is_new() {
    let (disk, mut harness) = opened();
    harness.change(0, Change::Bind(account("a"))).expect("bound");
    harness.change(0, Change::Bind(Binding::Tag("t".into()))).expect("bound");
    let first = harness.deliver(of_account("a", to(1, &[0]))).expect("accepted");
    let second = harness.deliver(to(2, &[0, 1])).expect("accepted");
    harness.sink.take();
    let lost = || {
        let mut lost = seen(0);
        lost.state_lost = true;
        Command::Seen { device: Box::new(lost), session: session(0) }
    };
    harness.apply(lost()).expect("the disk works");
    harness.deliver(to(3, &[0])).expect("accepted");
    let ended = |seq| Told::Ended(device(0), seq, Failure::Reinstalled);
    let told = harness.sink.take();
    assert_eq!(told[..3], [ended(first.seq), ended(second.seq), Told::Seen(session(0))]);
    let events = harness.device_events(0, Seq(0));
    assert_eq!(events[2..], [bound(Binding::Tag("t".into())), unbound(account("a"))]);
    for checkpoint in [false, true] {
        harness = crash(&disk, harness, checkpoint);
        assert_eq!(harness.pulled(0), [(3, true)]);
        let bindings = harness.state_of(0).expect("known").bindings.expect("the tag");
        assert_eq!((bindings.account.as_deref(), bindings.tags.len()), (None, 1));
    }
    // Said again, it ends what came since.
    harness.apply(lost()).expect("the disk works");
    harness.commit().expect("the disk works");
    assert!(harness.pull(0).is_empty());
    harness.acks(vec![ack(0, 1, &[(1, Event::Arrive)], START)]);
    harness.commit().expect("the disk works");
    let counts = harness.totals();
    assert_eq!((counts.failed[Failure::Reinstalled as usize - 1], counts.late, counts.pending), (3, 1, 1));
}

#[test]
fn a_change_without_room_changes_nothing() {
    let (disk, mut harness) = opened();
    harness.change(0, Change::Bind(account("a"))).expect("bound");
    harness.deliver(of_account("a", to(1, &[0]))).expect("accepted");
    disk.set_capacity(Some(disk.used()));
    let mut n = 0;
    while harness.change(1, Change::Bind(account(&format!("{n:>100}")))).is_ok() {
        n += 1;
        assert!(n < 10_000, "never full");
    }
    let before = harness.device_events(0, Seq(0));
    let refused = harness.change(0, Change::Bind(account("b")));
    assert_eq!(refused, Err(ChangeError::Exhausted));
    assert_eq!((harness.pulled(0).len(), harness.device_events(0, Seq(0))), (1, before));
    assert_eq!(harness.change(0, Change::Bind(account("a"))), Ok(()), "it needs no room");
    assert_eq!(harness.change(0, Change::Unbind(Unbind::Phone)), Ok(()));
}

#[test]
fn a_stale_account_never_takes_the_place_of_the_right_one_in_any_order() {
    use crate::push::{Refusal, TargetState};
    let (disk, mut harness) = opened();
    harness.change(0, Change::Bind(account("a"))).expect("bound");
    harness.change(1, Change::Bind(account("a"))).expect("bound");
    let accounts = |names: &[Option<&str>]| -> Vec<_> {
        names.iter().map(|name| name.map(super::support::account_digest)).collect()
    };
    let orders: [(&[Option<&str>], u32); 5] = [
        (&[Some("x"), Some("a")], 1),
        (&[Some("a"), Some("x")], 0),
        (&[Some("x"), Some("y"), Some("a"), Some("x")], 2),
        (&[Some("x"), None], 1),
        (&[Some("x"), Some("y")], 0),
    ];
    for (message, (names, right)) in (1..).zip(orders) {
        let mut new = to(message, &vec![0; names.len()]);
        new.accounts = accounts(names);
        let answer = harness.deliver(new).expect("accepted");
        let duplicates: Vec<_> = (0..names.len() as u32).filter(|&ordinal| ordinal != right).collect();
        assert_eq!(answer.accepted, 1, "{names:?}");
        assert_eq!(
            answer.refused.iter().map(|refused| refused.0).collect::<Vec<_>>(),
            duplicates,
            "{names:?}"
        );
        assert!(answer.refused.iter().all(|refused| refused.1 == Refusal::Duplicate));
        let nobody = message == 5;
        let on = harness.message(message, Some(0)).expect("a record").on_device.expect("asked for");
        let state = if nobody { TargetState::Failed(Failure::Unbound) } else { TargetState::Pending };
        assert_eq!((on.state, on.refused[Refusal::Duplicate as usize - 1]), (state, true), "{names:?}");
        assert_eq!(harness.stream(answer.seq).len(), 0);
        let pulled: Vec<_> =
            harness.pull(0).iter().map(|pulled| (pulled.batch.seq, pulled.ordinal)).collect();
        assert_eq!(pulled.contains(&(answer.seq, right)), !nobody, "{names:?}: {pulled:?}");
    }
    // The better one decides even where it is refused.
    let mut asking = to(9, &[1, 1]);
    (asking.accounts, asking.offline_policy) = (accounts(&[Some("x"), Some("a")]), OfflinePolicy::Return);
    let answer = harness.deliver(asking).expect("accepted");
    assert_eq!(answer.refused, [(0, Refusal::Duplicate), (1, Refusal::Offline)]);
    let before = harness.totals();
    assert!(before.identity_holds() && before.pending == 4, "{before:?}");
    for checkpoint in [false, true] {
        harness = crash(&disk, harness, checkpoint);
        assert_eq!((harness.pull(0).len(), harness.totals()), (4, before.clone()));
    }
}
