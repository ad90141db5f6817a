//! Mail: everything that is put in comes out once, and whoever waits for it is woken.

use std::sync::Arc;

use shuttle::future::block_on;
use shuttle::thread;

use super::{finds, holds};
use crate::fault::Fault;
use crate::ids::{Generation, Seq, SessionRef, ShardId};
use crate::push::{Failure, Priority};
use crate::shard::Mailbox;

fn session(slot: u32) -> SessionRef {
    SessionRef { generation: Generation(u64::from(slot)), slot, shard: ShardId(0) }
}

/// Two threads put something in, each several things; the owner takes until it has everything.
fn mail() {
    let mailbox = Arc::new(Mailbox::default());
    let store = {
        let mailbox = mailbox.clone();
        thread::spawn(move || {
            assert!(mailbox.newer(Priority::Normal, &mut vec![session(1), session(2)]));
            mailbox.ended(session(1), Seq(7), Failure::Expired);
        })
    };
    let shard = {
        let mailbox = mailbox.clone();
        thread::spawn(move || {
            mailbox.replaced(session(3));
            assert!(mailbox.newer(Priority::High, &mut vec![session(4)]));
        })
    };
    let (mut newer, mut urgent, mut replaced, mut ended) = (vec![], vec![], vec![], vec![]);
    while newer.len() + urgent.len() + replaced.len() + ended.len() < 5 {
        block_on(mailbox.notified());
        mailbox.hush();
        let mail = mailbox.take();
        newer.extend(mail.newer);
        urgent.extend(mail.urgent);
        replaced.extend(mail.replaced);
        ended.extend(mail.ended);
    }
    assert_eq!((newer, urgent), (vec![session(1), session(2)], vec![session(4)]));
    assert_eq!((replaced, ended), (vec![session(3)], vec![(session(1), Seq(7), Failure::Expired)]));
    store.join().expect("it ends");
    shard.join().expect("it ends");
}

#[test]
fn mail_is_never_left_lying() {
    holds(40, mail);
}

#[test]
fn ringing_before_the_mail_is_in_is_found() {
    finds(Fault::RingBeforePut, mail);
}
