//! Presence: who is connected, as a router that follows it learns.

use mooring::client::ClientError;
use mooring::client::router::{PresenceMap, Receiver, Sender, open};
use mooring::pki::DEV_APP;
use mooring::wire::pb::router::{LinkErrorCode, Open, OpenPresence, Presence, PresenceState, to_router};

use super::device::SECONDS;
use super::edge::{APP_OF_EPOCH_3, Edge, Way};
use super::router::batch;

/// A router that follows presence.
struct Follower {
    _sender: Sender,
    receiver: Receiver,
    map: PresenceMap,
    snapshots: usize,
}

impl Follower {
    async fn open(edge: &Edge, map: PresenceMap) -> Self {
        Self::try_open(edge, map.open(&[]), map).await.expect("a link")
    }

    async fn try_open(edge: &Edge, asked: OpenPresence, map: PresenceMap) -> Result<Self, ClientError> {
        let said = Open { version: 1, name: "test".into(), presence: Some(asked), ..Open::default() };
        let (sender, receiver, _) = open(&edge.router_endpoint(), said).await?;
        Ok(Self { _sender: sender, receiver, map, snapshots: 0 })
    }

    async fn hear(&mut self) -> Presence {
        match self.receiver.recv(SECONDS).await.expect("a frame") {
            to_router::Frame::Presence(frame) => frame,
            other => panic!("no presence: {other:?}"),
        }
    }

    async fn step(&mut self) {
        let frame = self.hear().await;
        self.snapshots += usize::from(frame.snapshot_end);
        self.map.handle(frame);
    }

    /// Follows until a device has this state.
    async fn sees(&mut self, device_id: &str, state: PresenceState) {
        self.sees_of(DEV_APP, device_id, state).await;
    }

    async fn sees_of(&mut self, app: &str, device_id: &str, state: PresenceState) {
        // Nothing is known before the first frame.
        while self.map.point() == (0, 0) || self.map.state(app, device_id) != state {
            self.step().await;
        }
    }

    /// The link breaks.
    fn breaks(self) -> PresenceMap {
        self.map
    }
}

#[tokio::test]
async fn a_router_sees_who_is_there_who_comes_and_who_goes() {
    let edge = Edge::start().await;
    let first = edge.device(Way::Tls, "first").await;
    let mut follower = Follower::open(&edge, PresenceMap::default()).await;
    follower.sees("first", PresenceState::Connected).await;
    assert_eq!((follower.snapshots, follower.map.connected()), (1, 1));
    let second = edge.device(Way::Plain, "second").await;
    follower.sees("second", PresenceState::Connected).await;
    first.leave(&edge, "first").await;
    follower.sees("first", PresenceState::Disconnected).await;
    assert_eq!((follower.snapshots, follower.map.connected()), (1, 1));
    drop(second);
    follower.sees("second", PresenceState::Disconnected).await;
}

#[tokio::test]
async fn a_device_that_comes_again_is_connected_whatever_becomes_of_its_older_session() {
    let edge = Edge::start().await;
    let mut follower = Follower::open(&edge, PresenceMap::default()).await;
    let mut older = edge.device(Way::Tls, "d").await;
    follower.sees("d", PresenceState::Connected).await;
    let _newer = edge.device(Way::Plain, "d").await;
    older.goes_away().await;
    drop(older);
    edge.counted("mooring_session_ends_total{reason=\"replaced\"}", 1.0).await;
    // Later than whatever the older session's end could have brought about.
    let _other = edge.device(Way::Plain, "other").await;
    while follower.map.state(DEV_APP, "other") != PresenceState::Connected {
        follower.step().await;
        assert_eq!(follower.map.state(DEV_APP, "d"), PresenceState::Connected);
    }
}

#[tokio::test]
async fn a_router_goes_on_where_it_was_and_gets_a_snapshot_from_a_new_edge() {
    let mut edge = Edge::start().await;
    let mut follower = Follower::open(&edge, PresenceMap::default()).await;
    let stays = edge.device(Way::Tls, "stays").await;
    let goes = edge.device(Way::Tls, "goes").await;
    follower.sees("stays", PresenceState::Connected).await;
    follower.sees("goes", PresenceState::Connected).await;

    let known = follower.breaks();
    goes.leave(&edge, "goes").await;
    let _comes = edge.device(Way::Tls, "comes").await;
    let mut follower = Follower::open(&edge, known).await;
    follower.sees("goes", PresenceState::Disconnected).await;
    follower.sees("comes", PresenceState::Connected).await;
    assert_eq!((follower.snapshots, follower.map.connected()), (0, 2), "resumed");

    let known = follower.breaks();
    let epoch = known.point().0;
    edge.kill().await;
    drop(stays);
    edge.run().await;
    let _again = edge.device(Way::Tls, "comes").await;
    let mut follower = Follower::open(&edge, known).await;
    follower.sees("stays", PresenceState::Disconnected).await;
    follower.sees("comes", PresenceState::Connected).await;
    assert_eq!(follower.snapshots, 1, "nothing of the process before holds");
    assert!(follower.map.point().0 > epoch);
}

#[tokio::test]
async fn a_device_that_leaves_a_push_unacknowledged_is_suspect_until_it_says_anything() {
    let edge = Edge::start_with(&[("device.suspect_after_ms", "300")]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    let mut follower = Follower::open(&edge, PresenceMap::default()).await;
    follower.sees("d", PresenceState::Connected).await;
    router.push(1, &["d"]).await;
    follower.sees("d", PresenceState::Suspect).await;
    // Whoever comes now learns it from the snapshot.
    let mut late = Follower::open(&edge, PresenceMap::default()).await;
    late.sees("d", PresenceState::Suspect).await;
    device.takes(1).await;
    follower.sees("d", PresenceState::Connected).await;
    late.sees("d", PresenceState::Connected).await;
    // It acknowledges in time: no suspicion.
    router.push(2, &["d"]).await;
    device.takes(2).await;
    router.accepts(batch(3, &["d"]), 1).await;
    follower.sees("d", PresenceState::Suspect).await;
    device.leave(&edge, "d").await;
    follower.sees("d", PresenceState::Disconnected).await;
}

#[tokio::test]
async fn a_snapshot_of_many_comes_in_parts_and_is_whole() {
    let edge = Edge::start().await;
    let mut devices = Vec::new();
    for n in 0..1_200 {
        devices.push(edge.device(Way::Plain, &format!("d-{n}")).await);
    }
    let mut follower = Follower::open(&edge, PresenceMap::default()).await;
    let (mut parts, mut came) = (0, 0);
    loop {
        let frame = follower.hear().await;
        assert!(frame.snapshot && frame.changes.len() <= 1_024, "{} changes", frame.changes.len());
        (parts, came) = (parts + 1, came + frame.changes.len());
        let is_whole = frame.snapshot_end;
        follower.map.handle(frame);
        if is_whole {
            break;
        }
        assert_eq!(follower.map.connected(), 0, "nothing holds before the end");
    }
    assert!(parts >= 2, "two shards at least");
    assert_eq!((came, follower.map.connected()), (1_200, 1_200));
}

#[tokio::test]
async fn a_router_sees_its_own_apps_and_those_it_asks_for_only() {
    let edge = Edge::start().await;
    let _demo = edge.device(Way::Plain, "d").await;
    let hello = super::device::hello_with(APP_OF_EPOCH_3, "d", edge.credential(APP_OF_EPOCH_3, "d", 3));
    let _other = edge.device_saying(Way::Plain, hello).await;
    let mut all = Follower::open(&edge, PresenceMap::default()).await;
    all.sees("d", PresenceState::Connected).await;
    all.sees_of(APP_OF_EPOCH_3, "d", PresenceState::Connected).await;
    assert_eq!(all.map.connected(), 2);

    let map = PresenceMap::default();
    let mut one = Follower::try_open(&edge, map.open(&[APP_OF_EPOCH_3.into()]), map).await.expect("a link");
    one.sees_of(APP_OF_EPOCH_3, "d", PresenceState::Connected).await;
    assert_eq!(one.map.connected(), 1);

    let map = PresenceMap::default();
    let refused = Follower::try_open(&edge, map.open(&["nobody".into()]), map).await;
    let Err(ClientError::Link { code, .. }) = refused else { panic!("a refusal") };
    assert_eq!(code, LinkErrorCode::Unauthorized);
}
