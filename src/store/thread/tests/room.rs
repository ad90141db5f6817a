//! What may wait, and what it is taken to hold while it does.

use smallvec::smallvec;

use super::super::command::{is_urgent, to_come, weight};
use super::*;
use crate::binding::{Binding, Change};
use crate::ids::{
    AccountDigest, AppKey, BatchId, DeviceKey, DigestKey, Generation, MessageId, Seq, SessionRef, ShardId,
};
use crate::push::{Acked, Attributes, BatchPart, Event, NewBatch, OfflinePolicy, Priority, Seen};
use crate::store::{AppChange, DeviceAck, Query, SentAlone};

const SESSION: SessionRef = SessionRef { generation: Generation(1), slot: 1, shard: ShardId(0) };
const DEVICE: DeviceKey = DeviceKey([3; 16]);

fn app() -> AppKey {
    AppKey::parse("app").expect("valid")
}

/// A batch of so many bytes for so many devices, each resolved from an account.
fn deliver(bytes: usize, targets: usize) -> Command {
    let batch = NewBatch {
        id: BatchId::parse("b").expect("valid"),
        app: app(),
        message: MessageId(1),
        body: vec![7; bytes].into(),
        body_digest: [1; 16],
        digest: [1; 16],
        targets: vec![DEVICE; targets],
        part: BatchPart::default(),
        offline_policy: OfflinePolicy::Store,
        created_at: 0,
        expires_at: 1,
        online_only: false,
        job_key: "job".into(),
        priority: Priority::Normal,
        collapse_key: "".into(),
        accounts: vec![Some(AccountDigest::of(&DigestKey([7; 32]), &app(), "alice")); targets],
    };
    Command::Deliver { batch: Box::new(batch), reply: oneshot::channel().0 }
}

/// Acks of so many frames with so many events each.
fn acks(frames: usize, events: usize) -> Command {
    let event = Acked { message: MessageId(1), event: Event::Arrive, time: 0, sent_at: None };
    let ack = DeviceAck {
        device: DEVICE,
        session: SESSION,
        number: 1,
        client_ip: None,
        events: smallvec![event; events],
    };
    Command::Acks { shard: ShardId(0), acks: vec![ack; frames] }
}

fn last_active(devices: usize) -> Command {
    Command::LastActive(vec![(DEVICE, 0); devices])
}

fn sees(attributes: usize) -> Command {
    let device = Seen {
        key: DEVICE,
        app: app(),
        device_id: "d".into(),
        attributes: Attributes::whole(vec![7; attributes].into()),
        push_on: None,
        client_ip: [127, 0, 0, 1].into(),
        state_lost: false,
    };
    Command::Seen { device: Box::new(device), session: SESSION }
}

fn changes(change: Change) -> Command {
    Command::Change { device: DEVICE, session: SESSION, change: Box::new(change) }
}

fn query(query: Query) -> Command {
    Command::Query { query, reply: oneshot::channel().0 }
}

#[test]
fn a_command_weighs_what_it_holds_and_little_more() {
    let attributes =
        Change::Attributes { attributes: Attributes::whole(vec![7; 5_000].into()), push_on: None };
    let sent = SentAlone { device: DEVICE, batch: Seq(1), sent_at: 0 };
    let weighed = [
        (deliver(10_000, 0), 10_000),
        (deliver(10_000, 1_000), 10_000 + 1_000 * (16 + 8)),
        (sees(5_000), 5_000),
        (changes(attributes), 5_000),
        (changes(Change::Bind(Binding::Tag("t".into()))), 1),
        (acks(1, 1_000), 1_000 * size_of::<Acked>()),
        (acks(100, 1), 100 * (size_of::<DeviceAck>() + size_of::<Acked>())),
        (Command::Sent(vec![sent; 1_000]), 1_000 * size_of::<SentAlone>()),
        (last_active(1_000), 1_000 * 24),
        (query(Query::Devices(vec![DEVICE; 1_000])), 1_000 * 16),
        (query(Query::Totals), 0),
    ];
    for (command, holds) in weighed {
        let weight = weight(&command);
        let about = holds * 3 / 4..holds * 3 / 2 + 512;
        assert!(about.contains(&weight), "{weight} for {holds} bytes: {command:?}");
    }
}

#[test]
fn what_somebody_waits_for_is_urgent() {
    let stream = || Arc::from("main");
    let urgent = [
        deliver(1, 1),
        sees(1),
        changes(Change::Push(true)),
        query(Query::Totals),
        flush(),
        Command::Revoke { app: app(), message: MessageId(1), reply: oneshot::channel().0 },
        Command::ControlApp { app: app(), change: AppChange::Suspend, reply: oneshot::channel().0 },
        Command::RetireStream { stream: stream(), force: false, reply: oneshot::channel().0 },
        Command::RevokeCredentials {
            device: DEVICE,
            epoch: 1,
            allow_registration: true,
            reply: oneshot::channel().0,
        },
    ];
    let patient = [
        acks(1, 1),
        last_active(1),
        Command::Sent(Vec::new()),
        Command::StreamAck { stream: stream(), cursor: Seq(1) },
    ];
    assert!(urgent.iter().all(is_urgent) && !patient.iter().any(is_urgent));
}

/// Puts the same in again and again until there is no room; answers how many there were.
fn fill(inbox: &Inbox, command: impl Fn() -> Command) -> usize {
    (0..1_000_000).find(|_| inbox.put(command()).is_err()).expect("it is bounded")
}

#[test]
fn batches_leave_a_quarter_of_the_bytes_to_everything_else() {
    let inbox = Inbox::new(&Arc::default(), 100_000);
    assert_eq!(fill(&inbox, || deliver(10_000, 0)), 7, "three quarters");
    assert_eq!(fill(&inbox, || last_active(400)), 2, "the last quarter");
    let Err(Refused(back)) = inbox.put(last_active(400)) else { panic!("there is no room") };
    assert!(
        matches!(*back, Command::LastActive(active) if active.len() == 400),
        "whoever sent it has it again"
    );
    let mut group = Vec::new();
    assert!(inbox.take(Duration::ZERO, Wakes::Any, &mut group).is_some_and(|damaged| damaged.is_empty()));
    assert_eq!((group.len(), fill(&inbox, || deliver(10_000, 0))), (9, 7), "what was taken waits no more");
}

#[test]
fn batches_leave_a_quarter_of_the_places_to_everything_else() {
    let inbox = Inbox::new(&Arc::default(), usize::MAX);
    let quarter = limits::STORE_COMMANDS / 4;
    assert_eq!(fill(&inbox, || deliver(0, 0)), 3 * quarter);
    assert_eq!(fill(&inbox, || last_active(0)), quarter);
}

#[test]
fn what_is_larger_than_all_room_is_taken_alone() {
    let inbox = Inbox::new(&Arc::default(), 1_000);
    inbox.put(deliver(10_000, 0)).expect("nothing else waits");
    assert!(inbox.put(last_active(0)).is_err() && inbox.put(deliver(0, 0)).is_err());
}

#[test]
fn what_waits_counts_in_the_budget_with_what_it_will_take_until_it_is_taken() {
    let budget = Arc::new(Budget::default());
    let held = || budget.part(Part::StoreWork);
    let inbox = Inbox::new(&budget, usize::MAX);
    let all = || [deliver(10_000, 500), last_active(100), deliver(3_000, 0)];
    let (mut weights, mut coming) = (0, 0);
    for command in all() {
        (weights, coming) = (weights + weight(&command), coming + to_come(&command));
        inbox.put(command).expect("there is room");
        assert_eq!(held(), weights + coming);
    }
    // An entry in the index has sixteen bytes, beside its list and its push record.
    assert!(coming >= 2 * 512 + 500 * 16, "{coming}");
    let mut group = Vec::new();
    assert!(inbox.take(Duration::ZERO, Wakes::Any, &mut group).is_some());
    assert_eq!((group.len(), held()), (3, 0));
    inbox.put(last_active(1)).expect("there is room");
    assert!(inbox.take(Duration::ZERO, Wakes::Any, &mut group).is_some());
    assert_eq!(held(), 0, "alone, too");
    for command in all().into_iter().chain([flush()]) {
        inbox.put(command).expect("there is room");
    }
    inbox.clear();
    assert_eq!(held(), 0);
    assert!(
        !inbox.lock().has_work(Wakes::Urgent) && !inbox.lock().has_work(Wakes::Any),
        "what is cleared is no work"
    );
}

#[test]
fn a_turn_takes_one_group() {
    let inbox = Inbox::new(&Arc::default(), limits::STORE_COMMAND_BYTES);
    let some = limits::GROUP_BYTES / 4 * 3;
    (0..3).for_each(|_| inbox.put(deliver(some, 0)).expect("there is room"));
    let taken = [(); 3].map(|()| {
        let mut group = Vec::new();
        assert!(inbox.take(Duration::ZERO, Wakes::Any, &mut group).is_some(), "it isn't closed");
        group.len()
    });
    assert_eq!(taken, [2, 1, 0], "as much as makes a group, and the rest");
    inbox.put(flush()).expect("there is room");
    inbox.close();
    let mut group = Vec::new();
    assert!(
        inbox.take(IDLE, Wakes::Any, &mut group).is_some() && group.len() == 1,
        "what waits is still taken"
    );
    group.clear();
    assert!(inbox.take(IDLE, Wakes::Any, &mut group).is_none(), "and then it is over");
}

#[test]
fn so_many_damaged_batches_wait_at_most_and_wake_who_sleeps() {
    let inbox = Inbox::new(&Arc::default(), limits::STORE_COMMAND_BYTES);
    let batch = Arc::new(Batch::of_test(Seq(1), MessageId(1), 0));
    inbox.report_damaged(batch.clone());
    assert!(inbox.lock().has_work(Wakes::Urgent), "also while more is gathered");
    for _ in 0..limits::BODY_READS {
        inbox.report_damaged(batch.clone());
    }
    let taken =
        |inbox: &Inbox| inbox.take(Duration::ZERO, Wakes::Any, &mut Vec::new()).map(|damaged| damaged.len());
    assert_eq!([taken(&inbox), taken(&inbox)], [Some(limits::BODY_READS), Some(0)]);
}
