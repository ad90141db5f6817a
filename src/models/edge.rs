//! The edge's threads: attaching against hand-overs, sessions that follow each other, commits against everything that is told, bodies that are
//! read back against ends.

use std::sync::{Arc, Mutex};

use shuttle::future::block_on;
use shuttle::thread;
use tokio::sync::oneshot;

use super::phone::Phone;
use super::world::{World, app, device, disk, plan, time};
use super::{finds, found_by, holds};
use crate::client::device::End;
use crate::fault::Fault;
use crate::ids::{Generation, MessageId, ShardId};
use crate::push::Reached;
use crate::sim::{SimShard, Wired};
use crate::store::{Command, Store};
use crate::wire::pb::device::{ErrorCode, Ping, to_edge};

/// A device comes while messages are accepted: it gets each of them once, in order, and nothing that a power loss would take back.
fn attach() {
    let world = World::new(1);
    let router = world.router(&[1, 2]);
    let power = world.power_loss();
    let shard = world.shard(0, |running| {
        running.until(|phone| phone.confirmed.len() == 2);
        assert_eq!(running.phone.got, [1, 2]);
        assert_eq!(running.phone.again, [0; 0]);
        running.hang_up();
        assert!(running.context.directory.is_empty(), "it has left");
    });
    router.join().expect("it ends");
    shard.join().expect("it ends");
    let lost = power.join().expect("it ends");
    let mut left = Vec::new();
    world.store.pull(&device(), Reached::default(), 9, 0, &mut left);
    assert!(left.is_empty(), "pending after its acknowledgement: {left:?}");
    world.close();
    lost.check();
}

/// Two routers share commits: what anybody was told is durable, and each router's order is the order of delivery.
fn group() {
    let world = World::new(1);
    let routers = [world.router(&[1, 2]), world.router(&[3, 4])];
    let power = world.power_loss();
    for router in routers {
        router.join().expect("it ends");
    }
    let lost = power.join().expect("it ends");
    let mut pending = Vec::new();
    world.store.pull(&device(), Reached::default(), 9, 0, &mut pending);
    let order = pending.iter().map(|entry| entry.batch.message.0);
    let (first, second): (Vec<_>, Vec<_>) = order.partition(|message| *message < 3);
    assert_eq!((first, second), (vec![1, 2], vec![3, 4]));
    world.close();
    lost.check();
}

/// A device connects twice, on two shards; the first connection ends at any moment. The newest session has the device, and gets the message.
fn follow() {
    let world = World::new(2);
    // Which one was welcome on each shard, and whether the second one was told that it was replaced.
    let (mine, replaced) = (Arc::new(Mutex::new([None; 2])), Arc::new(Mutex::new(false)));
    let note = mine.clone();
    let first = world.shard(0, move |running| {
        running.until(|phone| phone.is_welcome || phone.end.is_some());
        note.lock().expect("whole")[0] = running.generation();
        running.hang_up();
    });
    let (note, told) = (mine.clone(), replaced.clone());
    let second = world.shard(1, move |running| {
        running.until(|phone| phone.is_welcome || phone.end.is_some());
        let mine = running.generation();
        note.lock().expect("whole")[1] = mine;
        running.until(|phone| phone.confirmed == [1] || phone.end.is_some());
        match running.phone.end {
            None => {
                let found = running.context.directory.find(&device()).map(|session| session.generation);
                assert_eq!(found, mine, "the directory names another session");
            }
            Some(End::Replaced) => *told.lock().expect("whole") = true,
            Some(ref end) => panic!("it ended with {end:?}"),
        }
        running.hang_up();
    });
    first.join().expect("it ends");
    world.router(&[1]).join().expect("it ends");
    second.join().expect("it ends");
    if let ([Some(first), Some(second)], true) =
        (*mine.lock().expect("whole"), *replaced.lock().expect("whole"))
    {
        assert!(first > second, "it was replaced by an older session");
    }
    assert!(world.context.directory.is_empty(), "a session was left behind");
    world.close();
}

/// A message is taken back while its body is read: nothing of it stays in memory.
fn bodies() {
    let world = World::new(1);
    world.router(&[1, 2]).join().expect("it ends");
    let store = world.store.clone();
    let reader = thread::spawn(move || {
        let mut pulled = Vec::new();
        store.pull(&device(), Reached::default(), 1, 0, &mut pulled);
        let Some(entry) = pulled.first() else { return };
        if store.body(&entry.batch).is_none() {
            let session =
                crate::ids::SessionRef { generation: Generation(0), slot: 0, shard: crate::ids::ShardId(0) };
            store.want_body(&entry.batch, session).expect("few are wanted");
        }
    });
    let store = world.store.clone();
    let router = thread::spawn(move || {
        for message in [1, 2] {
            let (reply, answer) = oneshot::channel();
            let command = Command::Revoke { app: app(), message: MessageId(message), reply };
            store.submit(command).expect("there is room");
            block_on(answer).expect("the store runs").expect("it is taken back");
        }
    });
    reader.join().expect("it ends");
    router.join().expect("it ends");
    let store = world.store.clone();
    world.close();
    assert_eq!(store.body_bytes(), 0, "bodies of messages that are over stay in memory");
}

/// No order of threads: the frame is read between the revocation and the shard's next turn.
#[test]
fn a_frame_behind_a_revocation_is_not_answered() {
    let Wired { context, mut hands, store, clock, .. } =
        Wired::new(&disk(), &time(), &plan(1)).expect("it opens");
    let mut shard = SimShard::new(ShardId(0), context);
    let mut phone = Phone::connect(&mut shard, clock.now());
    let read = |shard: &mut SimShard, phone: &mut Phone| {
        for connection in shard.woken() {
            shard.poll(connection);
        }
        phone.read(clock.now());
    };
    read(&mut shard, &mut phone);
    let ping = || to_edge::Frame::Ping(Ping {});
    phone.send(ping());
    read(&mut shard, &mut phone);
    assert!(phone.is_welcome && phone.pongs == 1);

    let (reply, mut answer) = oneshot::channel();
    let command = Command::RevokeCredentials { device: device(), epoch: 1, allow_registration: false, reply };
    store.submit(command).expect("there is room");
    while answer.try_recv().is_err() {
        hands.half_turn().expect("the disk works");
    }
    phone.send(ping());
    read(&mut shard, &mut phone);
    assert_eq!(phone.pongs, 1, "answered after its credential was revoked");
    shard.turn(false);
    read(&mut shard, &mut phone);
    assert!(
        matches!(phone.end, Some(End::Refused { code: ErrorCode::Unauthenticated, .. })),
        "{:?}",
        phone.end
    );
}

#[test]
fn who_attaches_misses_nothing() {
    holds(20, attach);
}

#[test]
fn what_was_answered_is_durable() {
    holds(20, group);
}

#[test]
fn the_newest_session_has_the_device() {
    holds(20, follow);
}

#[test]
fn bodies_of_what_is_over_are_not_kept() {
    holds(20, bodies);
}

#[test]
fn a_look_before_entering_the_directory_is_found() {
    finds(Fault::LookBeforeEntering, attach);
}

#[test]
fn no_look_at_what_is_pending_is_found() {
    finds(Fault::ForgetPending, attach);
}

#[test]
fn a_hand_over_before_the_batch_may_be_seen_is_found() {
    finds(Fault::HandOverEarly, attach);
}

#[test]
fn telling_before_the_commit_is_found() {
    finds(Fault::TellBeforeCommit, attach);
    finds(Fault::TellBeforeCommit, group);
}

#[test]
fn showing_what_is_not_durable_is_found() {
    finds(Fault::PullUncommitted, attach);
}

#[test]
fn an_answer_before_its_head_is_found() {
    finds(Fault::AnswerBeforeHead, group);
}

#[test]
fn confirming_what_was_only_read_is_found() {
    finds(Fault::ConfirmOnRead, attach);
}

#[test]
fn a_goodbye_that_removes_a_newcomer_is_found() {
    finds(Fault::RemoveAnySession, follow);
}

#[test]
fn an_older_session_that_takes_the_place_of_a_newer_one_is_found() {
    finds(Fault::LetOlderIn, follow);
}

#[test]
fn a_body_that_is_kept_for_what_has_ended_is_found() {
    finds(Fault::KeepEndedBody, bodies);
}

#[test]
fn one_seed_is_one_set_of_schedules() {
    let found = || (0..8).map(|seed| found_by(seed, Fault::HandOverEarly, attach)).collect::<Vec<_>>();
    let first = found();
    assert!(first.iter().any(Option::is_some), "none of these sets finds it");
    assert_eq!(first, found());
}
