//! The inbox alone: nothing is lost in it, and nobody sleeps through what came.

mod room;

use shuttle::thread;

use super::*;
use crate::models::{finds, holds};

/// Two threads put commands in and a third one wakes; the owner sleeps as long as it may, and ends when the inbox is closed.
fn commands() {
    let inbox = Arc::new(Inbox::new(&Arc::default(), limits::STORE_COMMAND_BYTES));
    let cursor = |seq| Command::StreamAck { stream: "main".into(), cursor: crate::ids::Seq(seq) };
    let putters = [[11, 12], [21, 22]].map(|cursors| {
        let inbox = inbox.clone();
        thread::spawn(move || {
            for seq in cursors {
                inbox.put(cursor(seq)).expect("there is room");
            }
        })
    });
    let waker = {
        let inbox = inbox.clone();
        thread::spawn(move || inbox.wake())
    };
    let closer = {
        let inbox = inbox.clone();
        thread::spawn(move || {
            for other in putters.into_iter().chain([waker]) {
                other.join().expect("it ends");
            }
            inbox.close();
            assert!(inbox.put(cursor(99)).is_err(), "it takes nothing more");
        })
    };
    let (mut taken, mut group) = (Vec::new(), Vec::new());
    while inbox.take(IDLE, Wakes::Any, &mut group).is_some() {
        taken.append(&mut group);
    }
    closer.join().expect("it ends");
    let cursors = taken.iter().map(|command| match command {
        Command::StreamAck { cursor, .. } => cursor.0,
        other => panic!("nobody put {other:?} in"),
    });
    let (first, second): (Vec<_>, Vec<_>) = cursors.partition(|cursor| *cursor < 20);
    assert_eq!((first, second), (vec![11, 12], vec![21, 22]));
}

/// The engine waits for something that happens on another thread, and for nothing else.
fn wake_up() {
    let inbox = Arc::new(Inbox::new(&Arc::default(), limits::STORE_COMMAND_BYTES));
    let waker = {
        let inbox = inbox.clone();
        thread::spawn(move || inbox.wake())
    };
    assert!(inbox.take(IDLE, Wakes::Any, &mut Vec::new()).is_some(), "it isn't closed");
    waker.join().expect("it ends");
}

fn flush() -> Command {
    Command::Flush { checkpoint: false, reply: oneshot::channel().0 }
}

/// While more is gathered, what somebody waits for ends the sleep; and then everything is taken.
fn gathering() {
    let inbox = Arc::new(Inbox::new(&Arc::default(), limits::STORE_COMMAND_BYTES));
    let putter = {
        let inbox = inbox.clone();
        thread::spawn(move || {
            inbox.put(Command::LastActive(Vec::new())).expect("there is room");
            inbox.put(flush()).expect("there is room");
        })
    };
    let mut group = Vec::new();
    while group.len() < 2 {
        assert!(inbox.take(IDLE, Wakes::Urgent, &mut group).is_some(), "it isn't closed");
    }
    putter.join().expect("it ends");
}

#[test]
fn who_gathers_does_not_sleep_through_what_somebody_waits_for() {
    holds(40, gathering);
}

#[test]
fn what_nobody_waits_for_is_no_reason_to_stop_gathering() {
    let inbox = Inbox::new(&Arc::default(), limits::STORE_COMMAND_BYTES);
    let reasons = || [Wakes::Any, Wakes::Urgent, Wakes::Many].map(|wakes| inbox.lock().has_work(wakes));
    assert_eq!(reasons(), [false; 3]);
    inbox.put(Command::LastActive(Vec::new())).expect("there is room");
    assert_eq!(reasons(), [true, false, false]);
    inbox.put(flush()).expect("there is room");
    assert_eq!(reasons(), [true, true, false]);
    let mut group = Vec::new();
    assert!(inbox.take(Duration::from_secs(3_600), Wakes::Urgent, &mut group).is_some(), "it isn't closed");
    assert_eq!((group.len(), reasons()), (2, [false; 3]));
    assert!(!inbox.has_urgent(), "nobody waits: the next group isn't put off");
    inbox.put(flush()).expect("there is room");
    assert!(inbox.has_urgent());
    assert_eq!(reasons(), [true, true, false], "what waits for its turn wakes nobody before it");
    assert!(inbox.take(Duration::ZERO, Wakes::Many, &mut group).is_some(), "it isn't closed");
    assert_eq!((group.len(), inbox.has_urgent()), (3, false), "its turn takes everything");
    for _ in 0..MANY_COMMANDS {
        assert!(!reasons()[2], "so few are not worth a sync");
        inbox.put(flush()).expect("there is room");
    }
    assert_eq!(reasons(), [true; 3]);
    assert!(inbox.take(Duration::ZERO, Wakes::Many, &mut group).is_some(), "it isn't closed");
    inbox
        .put(Command::LastActive(vec![(crate::ids::DeviceKey([0; 16]), 0); limits::GROUP_BYTES / 24]))
        .expect("there is room");
    assert_eq!(reasons(), [true; 3], "a whole group is one");
}

#[test]
fn no_command_is_lost_or_slept_through() {
    holds(40, commands);
}

#[test]
fn no_wake_up_is_slept_through() {
    holds(20, wake_up);
}

#[test]
fn a_sleep_that_begins_after_another_look_is_found() {
    finds(Fault::LookThenSleep, wake_up);
    finds(Fault::LookThenSleep, commands);
}

#[test]
fn a_wake_up_that_is_not_kept_is_found() {
    finds(Fault::ForgetWake, wake_up);
}

#[test]
fn a_wake_up_before_the_sleep_is_kept() {
    let inbox = Arc::new(Inbox::new(&Arc::default(), limits::STORE_COMMAND_BYTES));
    inbox.wake();
    let (telling, told) = std::sync::mpsc::sync_channel(1);
    let sleeper = inbox.clone();
    let thread = std::thread::spawn(move || {
        let taken = sleeper.take(Duration::from_secs(3_600), Wakes::Any, &mut Vec::new());
        // The test may have given up.
        telling.send(taken.is_some()).ok();
    });
    let awake = told.recv_timeout(Duration::from_secs(10));
    inbox.close();
    thread.join().expect("it ends");
    assert_eq!(awake, Ok(true), "it slept on");
}
