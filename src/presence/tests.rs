//! A world of shards, sessions and one router, driven by random operations: whatever happens, in the end the router's map is the truth.

use std::collections::VecDeque;

use futures_util::FutureExt;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::client::router::PresenceMap;
use crate::ids::{DeviceKey, Generation, SessionRef};
use crate::wire::frame::ROUTER_HEAD;
use crate::wire::pb::router::{self as pb, PresenceState};

const WAY: crate::directory::Way =
    crate::directory::Way { since: 0, transport: crate::telemetry::Transport::Tcp };

const SHARDS: usize = 2;
const DEVICES: u8 = 6;
/// So few changes are kept that a follower is often too late.
const CHANGES: usize = 4;
/// Slots of a slice.
const SLOTS: u32 = 2;

#[derive(Clone, Debug)]
struct Session {
    device: u8,
    generation: Generation,
    suspect: bool,
}

#[derive(Debug, Default)]
struct Shard {
    slots: Vec<Option<Session>>,
    /// The directory knows, presence doesn't yet: the shard is between two lines of its code.
    unsaid: Option<Mark>,
    replaced: Vec<SessionRef>,
    slices: VecDeque<SliceRequest>,
}

struct World {
    directory: Arc<Directory>,
    presence: Arc<Presence>,
    shards: Vec<Shard>,
    asked: Arc<Mutex<Vec<(ShardId, SliceRequest)>>>,
    follower: Option<Follower>,
    map: PresenceMap,
    snapshots: usize,
    runtime: tokio::runtime::Runtime,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Into the directory; the mark comes when the shard goes on.
    Connect {
        device: u8,
        shard: usize,
    },
    /// The session in this slot ends.
    End {
        shard: usize,
        slot: usize,
    },
    Suspect {
        shard: usize,
        slot: usize,
        suspect: bool,
    },
    /// The shard reads its mail: replaced sessions end, and one slice is answered.
    Turn {
        shard: usize,
    },
    Gather,
    /// Too many marks came.
    Overflow {
        shard: usize,
    },
    /// The router reads what there is.
    Read,
    /// The router's link breaks, and it comes again with what it knows.
    Relink,
    /// It comes again after so long that nothing was kept.
    Forget,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (shard, slot) = (0..SHARDS, 0..6usize);
    let step = prop_oneof![
        6 => (0..DEVICES, shard.clone()).prop_map(|(device, shard)| Step::Connect { device, shard }),
        4 => (shard.clone(), slot.clone()).prop_map(|(shard, slot)| Step::End { shard, slot }),
        3 => (shard.clone(), slot, any::<bool>())
            .prop_map(|(shard, slot, suspect)| Step::Suspect { shard, slot, suspect }),
        4 => shard.clone().prop_map(|shard| Step::Turn { shard }),
        4 => Just(Step::Gather),
        1 => shard.prop_map(|shard| Step::Overflow { shard }),
        6 => Just(Step::Read),
        1 => Just(Step::Relink),
        1 => Just(Step::Forget),
    ];
    proptest::collection::vec(step, 1..120)
}

fn app() -> AppKey {
    AppKey::parse("demo").expect("valid")
}

fn change(session: &Session, state: State) -> Change {
    Change { app: app(), device_id: format!("d-{}", session.device).into(), state, time: 1 }
}

fn mark(session: &Session, state: State) -> Mark {
    let device = DeviceKey([session.device; 16]);
    Mark { device, generation: session.generation, change: change(session, state) }
}

impl World {
    fn new() -> Self {
        let directory = Arc::new(Directory::new());
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let asking = Arc::clone(&asked);
        let ask: AskShard = Box::new(move |shard, request| lock(&asking).push((shard, request)));
        let presence = Presence::new(Arc::clone(&directory), SHARDS, 1_000, ask).keeping(CHANGES);
        Self {
            directory,
            presence: Arc::new(presence),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            asked,
            follower: None,
            map: PresenceMap::default(),
            snapshots: 0,
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
        }
    }

    /// A shard does nothing before it has said what it owes.
    fn go_on(&mut self, shard: usize) {
        if let Some(mark) = self.shards[shard].unsaid.take() {
            self.presence.mark(ShardId(shard as u16), || mark);
        }
    }

    fn connect(&mut self, device: u8, shard: usize) {
        self.go_on(shard);
        let generation = self.directory.next_generation();
        let session = Session { device, generation, suspect: false };
        let slots = &mut self.shards[shard].slots;
        let slot = slots.iter().position(Option::is_none).unwrap_or(slots.len());
        slots.resize(slots.len().max(slot + 1), None);
        slots[slot] = Some(session.clone());
        let here = SessionRef { generation, slot: slot as u32, shard: ShardId(shard as u16) };
        if let Ok(Some(older)) = self.directory.enter(DeviceKey([device; 16]), here, WAY) {
            self.shards[usize::from(older.shard.0)].replaced.push(older);
        }
        self.shards[shard].unsaid = Some(mark(&session, State::Connected));
    }

    fn end(&mut self, shard: usize, slot: usize) {
        self.go_on(shard);
        let Some(session) = self.shards[shard].slots.get_mut(slot).and_then(Option::take) else { return };
        if self.directory.leave(&DeviceKey([session.device; 16]), session.generation) {
            self.shards[shard].unsaid = Some(mark(&session, State::Disconnected));
        }
    }

    fn suspect(&mut self, shard: usize, slot: usize, suspect: bool) {
        self.go_on(shard);
        let Some(Some(session)) = self.shards[shard].slots.get_mut(slot) else { return };
        if session.suspect != suspect {
            session.suspect = suspect;
            let state = if suspect { State::Suspect } else { State::Connected };
            let mark = mark(session, state);
            self.presence.mark(ShardId(shard as u16), || mark);
        }
    }

    fn turn(&mut self, shard: usize) {
        self.go_on(shard);
        let mine = |asked: &mut (ShardId, SliceRequest)| usize::from(asked.0.0) == shard;
        let asked: Vec<_> = lock(&self.asked).extract_if(.., mine).collect();
        self.shards[shard].slices.extend(asked.into_iter().map(|(_, request)| request));
        for older in std::mem::take(&mut self.shards[shard].replaced) {
            let slot = older.slot as usize;
            let still = self.shards[shard].slots.get(slot).and_then(Option::as_ref);
            if still.is_some_and(|session| session.generation == older.generation) {
                self.end(shard, slot);
            }
        }
        self.go_on(shard);
        let shard = &mut self.shards[shard];
        if let Some(request) = shard.slices.pop_front() {
            let until = request.from + SLOTS;
            let part = shard.slots.iter().skip(request.from as usize).take(SLOTS as usize).flatten();
            let state = |s: &Session| if s.suspect { State::Suspect } else { State::Connected };
            let sessions = part.map(|session| change(session, state(session))).collect();
            let next = ((until as usize) < shard.slots.len()).then_some(until);
            request.reply.send(Slice { sessions, next }).ok();
        }
    }

    fn gather(&mut self) {
        self.runtime.block_on(self.presence.gather());
    }

    /// Reads until nothing comes at once. Whether anything came.
    fn read(&mut self) -> bool {
        let Some(follower) = &mut self.follower else { return false };
        let mut any = false;
        while let Some(update) = follower.next().now_or_never() {
            let bytes = crate::wire::router::presence(&update);
            let message = pb::ToRouter::decode(&bytes[ROUTER_HEAD..]).expect("decodes");
            let Some(pb::to_router::Frame::Presence(frame)) = message.frame else { panic!("no presence") };
            self.snapshots += usize::from(frame.snapshot_end);
            self.map.handle(frame);
            any = true;
        }
        any
    }

    fn relink(&mut self) {
        self.follower = None;
        let (epoch, sequence) = self.map.point();
        let scope = Arc::new(HashSet::from([app()]));
        self.follower = Some(self.presence.follow(scope, Some(Point { epoch, sequence })));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Connect { device, shard } => self.connect(device, shard),
            Step::End { shard, slot } => self.end(shard, slot),
            Step::Suspect { shard, slot, suspect } => self.suspect(shard, slot, suspect),
            Step::Turn { shard } => self.turn(shard),
            Step::Gather => self.gather(),
            Step::Overflow { shard } => {
                *lock(&self.presence.marks[shard]) = Marks { list: Vec::new(), lost: true };
            }
            Step::Read => {
                self.read();
            }
            Step::Relink => self.relink(),
            Step::Forget => {
                self.follower = None;
                self.presence.close();
                self.relink();
            }
        }
    }

    /// Everything is said, gathered and read.
    fn settle(&mut self) {
        for _ in 0..3 {
            for shard in 0..SHARDS {
                self.turn(shard);
            }
            self.gather();
        }
        while self.read() || !lock(&self.asked).is_empty() || self.shards.iter().any(|s| !s.slices.is_empty())
        {
            for shard in 0..SHARDS {
                self.turn(shard);
            }
        }
    }

    fn truth(&self, device: u8) -> PresenceState {
        let Some(found) = self.directory.find(&DeviceKey([device; 16])) else {
            return PresenceState::Disconnected;
        };
        let session = self.shards[usize::from(found.shard.0)].slots[found.slot as usize].as_ref();
        if session.expect("the directory names sessions that are").suspect {
            PresenceState::Suspect
        } else {
            PresenceState::Connected
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn in_the_end_a_followers_map_is_the_truth(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        if world.follower.is_none() {
            world.relink();
        }
        world.settle();
        for device in 0..DEVICES {
            prop_assert_eq!(world.map.state("demo", &format!("d-{device}")), world.truth(device), "{}", device);
        }
        let connected = (0..DEVICES).filter(|d| world.truth(*d) != PresenceState::Disconnected).count();
        prop_assert_eq!(world.map.connected(), connected);
    }
}

#[test]
fn nothing_is_kept_until_somebody_follows() {
    let mut world = World::new();
    for device in 0..DEVICES {
        world.connect(device, 0);
    }
    world.go_on(0);
    assert!(lock(&world.presence.marks[0]).list.is_empty());
    world.relink();
    world.settle();
    assert_eq!((world.map.connected(), world.snapshots), (usize::from(DEVICES), 1));
}

#[test]
fn a_router_that_comes_back_in_time_gets_what_it_missed_and_one_that_is_late_a_snapshot() {
    let mut world = World::new();
    world.relink();
    world.settle();
    world.follower = None;
    world.connect(1, 0);
    world.gather();
    world.relink();
    world.settle();
    assert_eq!((world.map.connected(), world.snapshots), (1, 1), "resumed");
    world.follower = None;
    for device in 0..DEVICES {
        world.connect(device, 1);
        world.go_on(1);
        world.gather();
    }
    world.relink();
    world.settle();
    assert_eq!((world.map.connected(), world.snapshots), (usize::from(DEVICES), 2), "the changes are gone");
}

#[test]
fn a_point_of_another_epoch_or_of_the_future_does_not_hold() {
    let mut hub = Hub::new(7, 4);
    let here = hub.point();
    assert!(hub.holds(here));
    assert!(!hub.holds(Point { epoch: 6, ..here }));
    assert!(!hub.holds(Point { sequence: here.sequence + 1, ..here }));
    assert!(!hub.holds(Point { epoch: 7, sequence: 0 }));
    hub.handle_lost();
    assert!(!hub.holds(here) && hub.holds(hub.point()));
}

#[test]
fn the_last_change_of_a_device_wins_and_an_older_sessions_word_counts_for_nothing() {
    let mut hub = Hub::new(7, 4);
    let session = |generation| Session { device: 1, generation: Generation(generation), suspect: false };
    hub.handle_mark(mark(&session(1), State::Connected), |_| Some(Generation(1)));
    hub.handle_mark(mark(&session(2), State::Connected), |_| Some(Generation(2)));
    hub.handle_mark(mark(&session(1), State::Disconnected), |_| Some(Generation(2)));
    hub.handle_mark(mark(&session(2), State::Suspect), |_| Some(Generation(2)));
    let (changes, upto) = hub.read(1, 10).expect("held");
    assert_eq!(changes.map(|change| change.state).collect::<Vec<_>>(), [State::Suspect]);
    assert_eq!(upto, hub.point().sequence);
}
