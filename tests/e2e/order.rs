//! Order over everything: numbered pushes of two priorities to devices that come and go over every transport, with the edge killed in the middle.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;
use mooring::wire::pb::device::{EventType, Hello};
use serde_json::Value;
use tokio::sync::Notify;

use super::device::{Device, hello_of};
use super::edge::{Edge, Way};
use super::priority::high;
use super::router::{End, Router, batch};

const DEVICES: [&str; 3] = ["d-0", "d-1", "d-2"];
/// Numbered pushes, in three parts: the edge is killed in the middle of the first and of the second.
const PUSHES: u64 = 360;
const PARTS: u64 = 3;
/// Batches that the router has on their way.
const IN_FLIGHT: u64 = 16;

fn is_high(message: u64) -> bool {
    message.is_multiple_of(3)
}

/// Most go to all, some to one.
fn targets(message: u64) -> Vec<&'static str> {
    if message.is_multiple_of(5) { vec![DEVICES[message as usize % 3]] } else { DEVICES.to_vec() }
}

/// How many pushes were seen for the first time, over all devices.
#[derive(Default)]
struct Progress {
    seen: Cell<usize>,
    changed: Notify,
}

impl Progress {
    async fn reaches(&self, seen: usize) {
        while self.seen.get() < seen {
            self.changed.notified().await;
        }
    }
}

/// A phone: what it keeps when connections break, and whatever the edge does.
struct Phone {
    index: usize,
    /// In the order of first coming: what the app was handed.
    first_seen: Vec<u64>,
    seen: HashSet<u64>,
    /// Acknowledged, and the edge has said that it is durable.
    confirmed: HashSet<u64>,
    /// Acknowledged, and the connection broke before the edge said so: to be said again.
    said: HashSet<u64>,
    sessions: usize,
}

impl Phone {
    fn new(index: usize) -> Self {
        let (first_seen, seen, confirmed, said) = Default::default();
        Self { index, first_seen, seen, confirmed, said, sessions: 0 }
    }

    /// Sessions, each over another transport, until everything that is expected is confirmed.
    async fn live(&mut self, edge: &Edge, expected: u64, progress: &Progress) {
        let expected: HashSet<u64> =
            (1..=expected).filter(|message| targets(*message).contains(&DEVICES[self.index])).collect();
        while !expected.is_subset(&self.confirmed) {
            let way = Way::ALL[(self.index + self.sessions) % Way::ALL.len()];
            self.sessions += 1;
            let received = self.said.iter().copied().collect();
            let hello = Hello { received, ..hello_of(edge, DEVICES[self.index]) };
            let device = edge.device_saying(way, hello).await;
            self.session(device, &expected, progress).await;
        }
    }

    /// Some pushes, acknowledged in threes; then the connection breaks, perhaps with some that are not.
    async fn session(&mut self, mut device: Device, expected: &HashSet<u64>, progress: &Progress) {
        let pushes = 7 + (self.index * 5 + self.sessions * 11) % 17;
        let said = self.said.iter().copied().collect();
        self.acknowledge(&mut device, said).await;
        let mut unsaid = Vec::new();
        for n in 1..=pushes {
            let push = device.push().await;
            let message = push.message_id;
            assert!(
                !self.confirmed.contains(&message),
                "message {message} came again after it was confirmed"
            );
            if self.seen.insert(message) {
                self.first_seen.push(message);
                progress.seen.set(progress.seen.get() + 1);
                progress.changed.notify_one();
            } else {
                assert!(push.redelivered, "message {message} came again, unmarked");
            }
            unsaid.push(message);
            let rest =
                expected.difference(&self.confirmed).filter(|message| !unsaid.contains(message)).count();
            if n % 3 == 0 || rest == 0 {
                self.acknowledge(&mut device, std::mem::take(&mut unsaid)).await;
            }
            if expected.is_subset(&self.confirmed) {
                return;
            }
        }
        // Some are acknowledged perhaps: nobody waits for the confirmation.
        if self.sessions.is_multiple_of(2) {
            self.say(&mut device, &unsaid).await;
        }
    }

    /// Until it is durable.
    async fn acknowledge(&mut self, device: &mut Device, messages: Vec<u64>) {
        let number = self.say(device, &messages).await;
        device.is_confirmed(number).await;
        for message in messages {
            self.said.remove(&message);
            self.confirmed.insert(message);
        }
    }

    async fn say(&mut self, device: &mut Device, messages: &[u64]) -> u64 {
        // Before it is: the connection may break at any time.
        self.said.extend(messages);
        if messages.is_empty() {
            return device.confirmed;
        }
        let events: Vec<_> = messages.iter().map(|message| (*message, EventType::Arrive)).collect();
        device.say(&events).await
    }
}

/// The router's own memory: which batches are answered, and at which place of the journal.
#[derive(Default)]
struct Pusher {
    sequences: HashMap<u64, u64>,
}

impl Pusher {
    /// Pushes what isn't answered up to this number, some at a time.
    async fn push(&mut self, router: &mut Router, until: u64) {
        let open: Vec<u64> = (1..=until).filter(|message| !self.sequences.contains_key(message)).collect();
        for some in open.chunks(IN_FLIGHT as usize) {
            for message in some {
                let new = if is_high(*message) { high } else { batch };
                router.send(new(*message, &targets(*message))).await;
            }
            for message in some {
                let answer = router.answer(&format!("b-{message}")).await.expect("accepted");
                assert_eq!(answer.accepted as usize, targets(*message).len(), "{answer:?}");
                self.sequences.insert(*message, answer.sequence);
            }
        }
    }
}

#[tokio::test]
async fn each_device_first_sees_each_priority_in_the_order_of_acceptance_whatever_happens() {
    let mut edge = Edge::start().await;
    edge.register(&DEVICES).await;
    edge.register(&["away", "taken"]).await;
    let mut phones: Vec<Phone> = (0..DEVICES.len()).map(Phone::new).collect();
    let (mut pusher, progress) = (Pusher::default(), Progress::default());
    for part in 1..PARTS {
        let until = PUSHES * part / PARTS;
        // Two thirds of what the devices are to see by then.
        let enough: usize = (1..=until).map(|message| targets(message).len()).sum::<usize>() * 2 / 3;
        {
            let mut router = edge.router().await;
            let push = async {
                pusher.push(&mut router, until).await;
                // More than is read before the kill waits for nobody.
                std::future::pending::<()>().await;
            };
            let live = join_all(phones.iter_mut().map(|phone| phone.live(&edge, until, &progress)));
            tokio::select! {
                () = progress.reaches(enough) => {}
                () = push => {}
                _ = live => panic!("they can't be done before"),
            }
        }
        edge.kill().await;
        edge.run().await;
    }
    let mut router = edge.router_from_the_oldest().await;
    let live = join_all(phones.iter_mut().map(|phone| phone.live(&edge, PUSHES, &progress)));
    tokio::join!(pusher.push(&mut router, PUSHES), live);

    for phone in &phones {
        let device = DEVICES[phone.index];
        let expected = (1..=PUSHES).filter(|message| targets(*message).contains(&device)).count();
        assert_eq!(
            phone.first_seen.len(),
            expected,
            "{device}: nothing is lost, nothing is handed over twice"
        );
        assert!(phone.sessions >= Way::ALL.len(), "{device} has tried every transport");
        for priority in [true, false] {
            let of = phone.first_seen.iter().filter(|message| is_high(**message) == priority);
            let order: Vec<u64> = of.map(|message| pusher.sequences[message]).collect();
            assert!(
                order.is_sorted(),
                "{device}, high {priority}: not in the order of acceptance: {order:?}"
            );
        }
    }
    for message in 1..=PUSHES {
        for ordinal in 0..targets(message).len() as u32 {
            assert_eq!(router.end(&format!("b-{message}"), ordinal).await, End::Arrived);
        }
    }
    adds_up(&edge, &mut router).await;
}

/// With something in each term, `accepted = arrived + failed + pending` in `inspect`.
async fn adds_up(edge: &Edge, router: &mut Router) {
    router.push(PUSHES + 1, &["away"]).await;
    router.push(PUSHES + 2, &["taken"]).await;
    assert_eq!(router.revoke(mooring::pki::DEV_APP, PUSHES + 2).await.ended, 1);
    let line = format!("inspect totals --admin 127.0.0.1:{} --json", edge.ports.admin);
    let totals: Value = serde_json::from_str(&edge.cli(&line).await).expect("JSON");
    let count = |value: &Value| value.as_u64().expect("a count");
    let failed: u64 = totals["failed"].as_object().expect("by reason").values().map(count).sum();
    let arrived = (1..=PUSHES).map(|message| targets(message).len() as u64).sum::<u64>();
    let terms = (count(&totals["arrived"]), failed, count(&totals["pending"]));
    assert_eq!(terms, (arrived, 1, 1), "{totals}");
    assert_eq!((count(&totals["accepted"]), &totals["identity"]), (arrived + 2, &true.into()), "{totals}");
}
