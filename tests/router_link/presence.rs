//! Presence on a link: rights, pace and order, in front of sessions that the test makes.

use std::sync::{Arc, Mutex};

use mooring::client::router::PresenceMap;
use mooring::directory::{Directory, Way};
use mooring::ids::{AppKey, DeviceKey, SessionRef, ShardId};
use mooring::presence::{Change, Mark, Presence, Slice, SliceRequest, State};
use mooring::telemetry::Transport;
use mooring::wire::pb::router as pb;
use pb::{LinkErrorCode, PresenceState, from_router, to_router};

use super::support::{Edge, Router};

/// Changes that are kept.
const CHANGES: usize = 1_000;

/// One shard, whose sessions are those of the test.
struct Sessions {
    directory: Arc<Directory>,
    presence: Arc<Presence>,
    /// As slots.
    listed: Arc<Mutex<Vec<(DeviceKey, Change)>>>,
}

fn app(key: &str) -> AppKey {
    AppKey::parse(key).expect("valid")
}

fn key(app: &str, id: &str) -> DeviceKey {
    DeviceKey::of(&mooring::ids::DigestKey([1; 32]), &self::app(app), id)
}

impl Sessions {
    fn new() -> Self {
        let sessions: Arc<Mutex<Vec<(DeviceKey, Change)>>> = Arc::default();
        let directory = Arc::new(Directory::new());
        let listed = Arc::clone(&sessions);
        let ask = move |_, request: SliceRequest| {
            // Two a slice.
            let all = listed.lock().expect("lock");
            let (from, until) = (request.from as usize, request.from as usize + 2);
            let slots = all.iter().skip(from).take(2);
            let sessions = slots.filter(|(_, c)| request.scope.contains(&c.app)).map(|(_, c)| c.clone());
            let next = (until < all.len()).then_some(until as u32);
            request.reply.send(Slice { sessions: sessions.collect(), next }).ok();
        };
        let presence = Presence::new(Arc::clone(&directory), 1, 1, Box::new(ask)).keeping(CHANGES);
        Self { directory, presence: Arc::new(presence), listed: sessions }
    }

    async fn edge(&self) -> Edge {
        let presence = Arc::clone(&self.presence);
        Edge::start_with(move |context| context.presence = presence).await
    }

    fn connect(&self, app_key: &str, id: &str) {
        let generation = self.directory.next_generation();
        let session = SessionRef { generation, slot: 0, shard: ShardId(0) };
        let device = key(app_key, id);
        let way = Way { since: 5, transport: Transport::Tls };
        self.directory.enter(device, session, way).expect("the newest");
        let change = Change { app: app(app_key), device_id: id.into(), state: State::Connected, time: 5 };
        self.listed.lock().expect("lock").push((device, change.clone()));
        self.presence.mark(ShardId(0), || Mark { device, generation, change });
    }

    fn disconnect(&self, app_key: &str, id: &str) {
        let device = key(app_key, id);
        let generation = self.directory.find(&device).expect("connected").generation;
        assert!(self.directory.leave(&device, generation));
        self.listed.lock().expect("lock").retain(|(other, _)| *other != device);
        let change = Change { app: app(app_key), device_id: id.into(), state: State::Disconnected, time: 6 };
        self.presence.mark(ShardId(0), || Mark { device, generation, change });
    }
}

fn open(app_keys: &[&str], epoch: u64, sequence: u64) -> from_router::Frame {
    let app_keys = app_keys.iter().map(ToString::to_string).collect();
    let presence = Some(pb::OpenPresence { app_keys, epoch, sequence });
    from_router::Frame::Open(pb::Open { version: 1, name: "test".into(), streams: vec![], presence })
}

async fn follow(edge: &Edge, name: &str, said: from_router::Frame) -> Router {
    let mut router = edge.connect(name).await;
    router.say(said).await;
    let to_router::Frame::Opened(_) = router.hear().await else { panic!("not Opened") };
    router
}

async fn hear(router: &mut Router) -> pb::Presence {
    match router.hear().await {
        to_router::Frame::Presence(frame) => frame,
        other => panic!("no presence: {other:?}"),
    }
}

/// A snapshot to its end: who is in it, and the last frame.
async fn snapshot(router: &mut Router) -> (Vec<String>, pb::Presence) {
    let mut all = Vec::new();
    loop {
        let frame = hear(router).await;
        assert!(frame.snapshot);
        all.extend(frame.changes.iter().map(|c| format!("{}/{}", c.app_key, c.device_id)));
        if frame.snapshot_end {
            all.sort();
            return (all, frame);
        }
    }
}

#[tokio::test]
async fn a_snapshot_comes_first_and_then_changes_each_device_in_its_last_state() {
    let sessions = Sessions::new();
    for id in ["a", "b", "c"] {
        sessions.connect("demo", id);
    }
    let edge = sessions.edge().await;
    let mut router = follow(&edge, "r1", open(&[], 0, 0)).await;
    let (all, end) = snapshot(&mut router).await;
    assert_eq!(all, ["demo/a", "demo/b", "demo/c"]);
    sessions.disconnect("demo", "a");
    sessions.connect("demo", "d");
    sessions.disconnect("demo", "d");
    sessions.connect("demo", "d");
    sessions.presence.gather().await;
    let frame = hear(&mut router).await;
    assert!(frame.epoch == end.epoch && frame.sequence > end.sequence && !frame.snapshot);
    let changes: Vec<_> = frame.changes.iter().map(|c| (c.device_id.as_str(), c.state())).collect();
    assert_eq!(changes, [("a", PresenceState::Disconnected), ("d", PresenceState::Connected)]);
    router.nothing_more_comes(1).await;
}

#[tokio::test]
async fn a_router_resumes_by_epoch_and_sequence_and_anything_else_is_a_snapshot() {
    let sessions = Sessions::new();
    sessions.connect("demo", "a");
    let edge = sessions.edge().await;
    let mut router = follow(&edge, "r1", open(&[], 0, 0)).await;
    let (_, at) = snapshot(&mut router).await;
    drop(router);
    sessions.connect("demo", "b");
    sessions.presence.gather().await;
    let mut router = follow(&edge, "r1", open(&[], at.epoch, at.sequence)).await;
    let first = hear(&mut router).await;
    assert_eq!((first.snapshot, first.sequence, first.changes.len()), (false, at.sequence, 0));
    assert_eq!(hear(&mut router).await.changes[0].device_id, "b");
    for (epoch, sequence) in [(at.epoch + 1, at.sequence), (at.epoch, at.sequence + 1_000), (at.epoch, 0)] {
        let mut router = follow(&edge, "r1", open(&[], epoch, sequence)).await;
        assert_eq!(snapshot(&mut router).await.0, ["demo/a", "demo/b"]);
    }
}

#[tokio::test]
async fn a_router_hears_of_its_own_apps_only() {
    let sessions = Sessions::new();
    sessions.connect("demo", "a");
    sessions.connect("other", "a");
    let edge = sessions.edge().await;
    // r2 has the app `other`.
    let mut router = follow(&edge, "r2", open(&[], 0, 0)).await;
    assert_eq!(snapshot(&mut router).await.0, ["other/a"]);
    sessions.disconnect("demo", "a");
    sessions.presence.gather().await;
    router.nothing_more_comes(1).await;
    sessions.disconnect("other", "a");
    sessions.presence.gather().await;
    assert_eq!(hear(&mut router).await.changes.len(), 1);
    let mut refused = edge.connect("r2").await;
    refused.say(open(&["other", "demo"], 0, 0)).await;
    assert_eq!(refused.hear_error().await, LinkErrorCode::Unauthorized);
    let mut one = follow(&edge, "r1", open(&["other"], 0, 0)).await;
    assert_eq!(snapshot(&mut one).await.0, [""; 0]);
}

#[tokio::test]
async fn a_router_that_does_not_read_holds_nothing_up_and_gets_a_snapshot_of_what_it_missed() {
    let sessions = Sessions::new();
    let edge = sessions.edge().await;
    let mut slow = follow(&edge, "r1", open(&[], 0, 0)).await;
    let (_, begun) = snapshot(&mut slow).await;
    // More devices change than are kept, while it reads nothing. The sockets' buffers don't take them all.
    let filler = "x".repeat(600);
    for n in 0..40_000 {
        let generation = sessions.directory.next_generation();
        let device = key("demo", &n.to_string());
        let id = format!("{filler}-{n}");
        let change = Change { app: app("demo"), device_id: id.into(), state: State::Connected, time: 5 };
        sessions.presence.mark(ShardId(0), || Mark { device, generation, change });
        if n % 10_000 == 0 {
            sessions.presence.gather().await;
        }
    }
    sessions.presence.gather().await;
    sessions.connect("demo", "last");
    sessions.presence.gather().await;
    // Another one is served meanwhile.
    let mut other = follow(&edge, "r1", open(&[], 0, 0)).await;
    assert_eq!(snapshot(&mut other).await.0, ["demo/last"]);
    let (mut map, mut snapshots, mut changes) = (PresenceMap::default(), 0, 0);
    while map.state("demo", "last") != PresenceState::Connected {
        let news = hear(&mut slow).await;
        assert!(news.sequence >= begun.sequence);
        (snapshots, changes) = (snapshots + usize::from(news.snapshot_end), changes + news.changes.len());
        map.handle(news);
    }
    assert!(snapshots > 0 && changes < 40_000, "{snapshots} snapshots, {changes} changes");
    slow.nothing_more_comes(1).await;
}
