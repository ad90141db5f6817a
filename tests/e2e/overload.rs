//! Ten times more than the edge has memory for: what it takes stays within its budget, it refuses the rest at the door, and everything that it
//! accepted arrives.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;
use mooring::client::router::{Receiver, Sender, open};
use mooring::limits;
use mooring::wire::pb::device::{ErrorCode, EventType, to_device};
use mooring::wire::pb::router::{DeliverBatch, Open, RejectCode, from_router, to_router};
use serde_json::Value;
use tokio::sync::watch;

use super::device::{Device, SECONDS, hello_of, is_refused};
use super::edge::{Edge, Way};
use super::router::{End, Router};
use super::sessions::{large, narrow};
use super::strangers::{BEGUN, beginning, write};

/// Bytes: little more than the least that two shards may have.
const BUDGET: usize = 112 * 1024 * 1024;
/// Of those that push without waiting for answers.
const ROUTERS: u64 = 4;
/// Batches in a row before a router looks whether it has pushed enough.
const AT_ONCE: u64 = 32;
/// Devices that are away meanwhile.
const AWAY: u64 = 40;
/// Devices that are there and don't read.
const DEAF: u64 = 40;
/// Devices that have begun a frame: more than there is room for.
const STRANGERS: usize = 240;
/// Routers that push the largest batches, to devices that nobody knows, and how many each.
const LARGE_ROUTERS: u64 = 2;
const LARGE: u64 = 8;
/// How many times more is pushed than is accepted.
const TIMES: u64 = 10;
/// Batches of one router, at most: more than it takes, so that the test ends whatever happens.
const MOST: u64 = 100_000;

/// What one router heard.
#[derive(Default)]
struct Heard {
    accepted: Vec<DeliverBatch>,
    refused: u64,
    /// For want of memory.
    of_memory: u64,
}

/// How far all of them are.
#[derive(Clone, Copy, Default)]
struct Load {
    pushed: u64,
    accepted: u64,
    refused: u64,
}

impl Load {
    fn is_enough(&self) -> bool {
        // More than is asked for at the end: of what isn't answered yet some may be accepted.
        self.refused > 0 && self.pushed >= (TIMES + 1) * self.accepted
    }
}

/// A message of the largest size to one that is away, one that doesn't read, and one that does.
fn batch_of(message: u64) -> DeliverBatch {
    let (away, deaf) = (format!("away-{}", message % AWAY), format!("deaf-{}", message % DEAF));
    large(message, &[&away, &deaf, "healthy"])
}

/// Pushes batches of as many targets as may be, all at once: their frames are large, and what is remembered of them too.
async fn pushes_large(edge: &Edge, first: u64) {
    let said = Open { version: 1, name: "large".into(), ..Open::default() };
    let (mut sender, mut receiver, _) = open(&edge.router_endpoint(), said).await.expect("a link");
    let ids: Vec<String> = (0..limits::BATCH_TARGETS).map(|n| format!("nobody-knows-{n:06}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    for message in (first..).take(LARGE as usize) {
        sender.send(from_router::Frame::Deliver(large(message, &ids))).await.expect("sent");
    }
    for _ in 0..LARGE {
        match receiver.recv(SECONDS).await.expect("an answer") {
            to_router::Frame::Accepted(answer) => assert_eq!(answer.accepted, 0),
            to_router::Frame::Rejected(answer) => assert_eq!(answer.code(), RejectCode::ResourceExhausted),
            other => panic!("{other:?} came"),
        }
    }
}

/// Pushes as fast as it can, and takes in answers as they come.
async fn floods(edge: &Edge, first: u64, load: &watch::Sender<Load>) -> Heard {
    let said = Open { version: 1, name: "flood".into(), ..Open::default() };
    let (mut sender, mut receiver, _) = open(&edge.router_endpoint(), said).await.expect("a link");
    let pushed = watch::Sender::new((0, false));
    let (heard, ()) = tokio::join!(
        hears(&mut receiver, first, load, pushed.subscribe()),
        pushes(&mut sender, first, load, &pushed)
    );
    heard
}

async fn pushes(
    sender: &mut Sender,
    first: u64,
    load: &watch::Sender<Load>,
    pushed: &watch::Sender<(u64, bool)>,
) {
    let mut count = 0;
    while !load.borrow().is_enough() {
        assert!(count < MOST, "memory never was full");
        for message in (first + count..).take(AT_ONCE as usize) {
            sender.queue(from_router::Frame::Deliver(batch_of(message)));
        }
        sender.flush().await.expect("sent");
        count += AT_ONCE;
        pushed.send_replace((count, false));
        load.send_modify(|load| load.pushed += AT_ONCE);
    }
    pushed.send_replace((count, true));
}

/// Until everything that was pushed is answered.
async fn hears(
    receiver: &mut Receiver,
    first: u64,
    load: &watch::Sender<Load>,
    mut pushed: watch::Receiver<(u64, bool)>,
) -> Heard {
    let mut heard = Heard::default();
    let mut answers = 0;
    loop {
        if answers == pushed.borrow_and_update().0 {
            if pushed.borrow().1 {
                return heard;
            }
            pushed.changed().await.expect("it pushes");
            continue;
        }
        answers += 1;
        match receiver.recv(SECONDS).await.expect("an answer") {
            to_router::Frame::Accepted(answer) => {
                assert_eq!(answer.accepted, 3, "{answer:?}");
                let number = answer.batch_id.trim_start_matches("b-").parse().expect("a number");
                assert!(number >= first);
                heard.accepted.push(batch_of(number));
                load.send_modify(|load| load.accepted += 1);
            }
            to_router::Frame::Rejected(answer) => {
                assert_eq!(answer.code(), RejectCode::ResourceExhausted, "{answer:?}");
                assert!(answer.retry_after_milliseconds > 0, "{answer:?}");
                heard.refused += 1;
                if answer.text.contains("memory") {
                    heard.of_memory += 1;
                    load.send_modify(|load| load.refused += 1);
                }
            }
            other => panic!("{other:?} came"),
        }
    }
}

/// Takes pushes, each once, until it has so many; says of all that they arrived.
async fn drains(device: &mut Device, wanted: usize) -> HashSet<u64> {
    let (mut got, mut unsaid, mut said) = (HashSet::new(), Vec::new(), 0);
    while got.len() < wanted {
        let push = device.push().await;
        assert!(got.insert(push.message_id) || push.redelivered, "{} came twice", push.message_id);
        unsaid.push((push.message_id, EventType::Arrive));
        if unsaid.len() == limits::WINDOW / 2 || got.len() == wanted {
            said = device.say(&unsaid).await;
            unsaid.clear();
        }
    }
    device.is_confirmed(said).await;
    got
}

/// Reads until all messages that are to come have come; how many those are is said at the end of the load.
async fn stays_healthy(device: &mut Device, mut expected: watch::Receiver<Option<usize>>) -> HashSet<u64> {
    let (mut got, mut numbers) = (HashSet::new(), 0);
    loop {
        if expected.borrow_and_update().is_some_and(|expected| got.len() == expected) {
            device.is_confirmed(numbers).await;
            return got;
        }
        tokio::select! {
            frame = device.link.recv(SECONDS) => match frame.expect("a frame") {
                to_device::Frame::Push(push) => {
                    assert!(got.insert(push.message_id), "{} came twice", push.message_id);
                    numbers = device.say(&[(push.message_id, EventType::Arrive)]).await;
                }
                to_device::Frame::AckConfirm(confirm) => device.confirmed = confirm.number,
                other => panic!("{other:?} came"),
            },
            changed = expected.changed() => changed.expect("the load goes on"),
        }
    }
}

/// The most that the kernel ever counted for it, in bytes.
fn high_water(edge: &Edge) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", edge.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("kilobytes") * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_times_too_much_stays_within_the_budget_and_nothing_accepted_is_lost() {
    let budget = BUDGET.to_string();
    let settings = [
        ("memory.budget_bytes", &*budget),
        ("device.stall_deadline_ms", "600_000"),
        ("device.ack_deadline_ms", "600_000"),
        ("device.frame_deadline_ms", "600_000"),
        ("store.max_pending_per_device", "100_000"),
        ("store.segment_bytes", "\"16MiB\""),
    ];
    let edge = Edge::start_with(&settings).await;
    let away: Vec<String> = (0..AWAY).map(|n| format!("away-{n}")).collect();
    edge.register(&away.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut healthy = edge.device(Way::Tls, "healthy").await;
    let mut deaf = Vec::new();
    for n in 0..DEAF {
        let link = narrow(&edge, Way::ALL[n as usize % 3]).await;
        deaf.push(Device::over(link, hello_of(&edge, &format!("deaf-{n}"))).await);
    }
    let mut strangers = Vec::new();
    for n in 0..STRANGERS {
        let device = edge.device(Way::Plain, &format!("stranger-{n}")).await;
        strangers.push(write(device.link, &beginning(BEGUN)).await);
    }
    let mut reader = edge.router().await;
    let before = edge.ask("/v1/memory").await;

    let load = watch::Sender::new(Load::default());
    let (say, expected) = watch::channel(None);
    let flood = async {
        let large = join_all((0..LARGE_ROUTERS).map(|n| pushes_large(&edge, 100_000_000 + n * 1_000_000)));
        let floods = join_all((0..ROUTERS).map(|n| floods(&edge, 1 + n * 1_000_000, &load)));
        let (floods, _) = tokio::join!(floods, large);
        say.send_replace(Some(floods.iter().map(|heard| heard.accepted.len()).sum()));
        floods
    };
    let (floods, healthy_got) = tokio::join!(flood, stays_healthy(&mut healthy, expected));
    let full = edge.ask("/v1/memory").await;
    let of_memory: u64 = floods.iter().map(|heard| heard.of_memory).sum();
    let refused: u64 = floods.iter().map(|heard| heard.refused).sum();
    let accepted: Vec<&DeliverBatch> = floods.iter().flat_map(|heard| &heard.accepted).collect();
    let Load { pushed, .. } = *load.borrow();
    println!(
        "of {pushed} batches {} were accepted, {refused} refused, {of_memory} of them for want of memory",
        accepted.len()
    );
    println!("at first {before}\nunder load {full}\nmost resident {}", high_water(&edge));
    assert_eq!(accepted.len() as u64 + refused, pushed, "each is answered once");
    assert!(pushed >= TIMES * accepted.len() as u64 && of_memory > 0);
    assert!(edge.metric("mooring_memory_refused_total{what=\"batches\"}").await >= of_memory as f64);

    // Over now: everybody comes, and reads.
    let mut wanted: HashMap<&str, HashSet<u64>> = HashMap::new();
    for batch in &accepted {
        for target in &batch.targets {
            wanted.entry(&target.device_id).or_default().insert(batch.message_id);
        }
    }
    assert_eq!(healthy_got, wanted["healthy"]);
    is_refused(&mut strangers.remove(0), ErrorCode::ResourceExhausted).await;
    drop(strangers);
    for (n, mut device) in deaf.into_iter().enumerate() {
        let wanted = wanted.remove(&*format!("deaf-{n}")).unwrap_or_default();
        assert_eq!(drains(&mut device, wanted.len()).await, wanted);
    }
    for id in &away {
        let mut device = edge.device(Way::Plain, id).await;
        let wanted = wanted.remove(&**id).unwrap_or_default();
        assert_eq!(drains(&mut device, wanted.len()).await, wanted);
    }
    ended(&mut reader, &accepted).await;
    let totals = edge.totals().await;
    assert_eq!(
        (&totals["arrived"], &totals["pending"]),
        (&(accepted.len() * 3).into(), &0.into()),
        "{totals}"
    );
    // And there is room again.
    let mut number = 9_000_000;
    while reader.deliver(large(number, &["healthy"])).await.is_err() {
        number += 1;
        tokio::time::sleep(super::edge::LOOK).await;
    }
    healthy.takes(number).await;
    reader.end(&format!("b-{number}"), 0).await;
    for part in ["outboxes", "begun_frames"] {
        edge.metric_comes_to(&format!("mooring_memory_bytes{{part=\"{part}\"}}"), |bytes| bytes == 0.0).await;
    }
    let told = edge.cli(&format!("inspect memory --json --admin 127.0.0.1:{}", edge.ports.admin)).await;
    println!("in the end {told}");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let parts = told["parts"].as_object().expect("parts").values().filter_map(Value::as_u64);
    assert_eq!(Some(parts.sum()), told["used_bytes"].as_u64());
    assert_eq!(told["budget_bytes"], BUDGET);
    let most = high_water(&edge);
    assert!(most <= BUDGET, "{most} bytes were resident, of a budget of {BUDGET}");
}

/// Every accepted target has one end, and has arrived.
async fn ended(reader: &mut Router, accepted: &[&DeliverBatch]) {
    for batch in accepted {
        for ordinal in 0..3 {
            assert_eq!(reader.end(&batch.batch_id, ordinal).await, End::Arrived);
        }
    }
    assert_eq!(reader.ends.len(), accepted.len() * 3);
}
