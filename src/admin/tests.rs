use std::collections::HashMap;
use std::sync::Mutex;

use serde_json::{Map, Value};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};

use super::*;
use crate::admin::token::Token;
use crate::admin::{Connection, Deadlines, Readiness, ShardFigures, StoreAccess, WAITING};
use crate::apps::Apps;
use crate::binding::Bindings;
use crate::clock::Clock;
use crate::credential::Revocation;
use crate::directory::Way;
use crate::ids::{DeviceKey, DigestKey, Seq, SessionRef};
use crate::limits;
use crate::push::{Attributes, Counts, Millis, Reached, ReceiptGap, Seen, TargetState};
use crate::store::{
    Batch, Busy, Command, DayStats, DeviceState, MessageState, OnDevice as OnDeviceState, Pulled, Refused,
    RetireError, Retired, Store, StreamBounds, StreamError, StreamRead, StreamState,
};
use crate::telemetry;

const DIGEST_KEY: DigestKey = DigestKey([3; 32]);

const TOKEN: &str = "0123456789abcdef";

type Reply = oneshot::Sender<(Seq, QueryAnswer)>;

/// Answers queries only: message 7 and device `d-1` of `demo` are known.
#[derive(Debug, Default)]
struct FakeStore {
    is_busy: bool,
    /// Replies that are held back, so that nobody answers.
    held: Option<Mutex<Vec<Reply>>>,
    /// Where its journal ends; 42 for ever without.
    head: Option<watch::Sender<Seq>>,
}

impl FakeStore {
    fn answer(query: &Query) -> QueryAnswer {
        let counts =
            Counts { batches: 1, targets: 3, accepted: 2, arrived: 1, pending: 1, ..Counts::default() };
        let counts = Counts { refused: [1, 0, 0, 0, 0], ..counts };
        let known = DeviceKey::of(&DIGEST_KEY, &AppKey::parse("demo").expect("valid"), "d-1");
        match query {
            Query::Totals => QueryAnswer::Totals(Box::new(counts)),
            Query::Message { message: MessageId(7), device, .. } => {
                let on_device = device.map(|key| OnDeviceState {
                    state: if key == known { TargetState::Arrived } else { TargetState::default() },
                    ..OnDeviceState::default()
                });
                let (accepted_at, expires_at, job_key) = (10, 20, "spring".into());
                let state =
                    MessageState { counts, accepted_at, expires_at, job_key, first: Seq(1), on_device };
                QueryAnswer::Message(Some(Box::new(state)))
            }
            Query::Message { .. } => QueryAnswer::Message(None),
            Query::Stats { days, .. } => QueryAnswer::Stats(
                (0..*days)
                    .map(|back| DayStats {
                        day: 20_779 - back,
                        counts: counts.clone(),
                        registered: 5,
                        active: 6,
                    })
                    .collect(),
            ),
            Query::Devices(keys) => QueryAnswer::Devices(
                keys.iter()
                    .map(|key| {
                        (*key == known).then(|| DeviceState {
                            push_on: true,
                            last_active: 99,
                            pending: 4,
                            oldest_pending_at: Some(3),
                            number: 1,
                            // Field 5, `brand`.
                            attributes: Some(Attributes::whole(
                                [0x32, 4, b'v', b'i', b'v', b'o'].as_slice().into(),
                            )),
                            bindings: Some(Arc::new(Bindings {
                                account: Some("alice".into()),
                                tags: vec!["vip".into()],
                                ..Bindings::default()
                            })),
                        })
                    })
                    .collect(),
            ),
        }
    }
}

impl Store for FakeStore {
    fn submit(&self, command: Command) -> Result<(), Refused> {
        if let Command::RetireStream { stream, force, reply } = command {
            let verdict = match &*stream {
                "old" => Ok(Retired { sequence: Seq(43), ended: true }),
                "admin-test" if force => Ok(Retired { sequence: Seq(42), ended: false }),
                "admin-test" => Err(RetireError::Configured),
                _ => Err(RetireError::Unknown),
            };
            reply.send(verdict).expect("it waits");
            return Ok(());
        }
        if self.is_busy || !matches!(command, Command::Query { .. }) {
            return Err(Refused(Box::new(command)));
        }
        let Command::Query { query, reply } = command else { return Ok(()) };
        match &self.held {
            Some(held) => held.lock().expect("one user").push(reply),
            None => reply.send((Seq(42), Self::answer(&query))).expect("it waits"),
        }
        Ok(())
    }

    fn pull(&self, _: &DeviceKey, _: Reached, _: usize, _: Millis, _: &mut Vec<Pulled>) {}

    fn revocation(&self, _: &DeviceKey) -> Revocation {
        Revocation::default()
    }

    fn is_current(&self, _: &Seen) -> bool {
        false
    }

    fn body(&self, _: &Arc<Batch>) -> Option<Arc<[u8]>> {
        None
    }

    fn want_body(&self, _: &Arc<Batch>, _: SessionRef) -> Result<(), Busy> {
        Err(Busy)
    }

    fn stream_bounds(&self, stream: &str) -> Result<StreamBounds, StreamError> {
        if stream != "admin-test" {
            return Err(StreamError::Unknown);
        }
        Ok(StreamBounds { cursor: Seq(40), oldest: Seq(1), head: Seq(42) })
    }

    fn streams(&self) -> Vec<StreamState> {
        let bounds = StreamBounds { cursor: Seq(40), oldest: Seq(1), head: Seq(42) };
        let mut gap = ReceiptGap::new(Seq(41), Seq(41));
        gap.count("arrive", 3);
        vec![StreamState {
            name: "admin-test".into(),
            configured: true,
            bounds,
            unread: true,
            unread_since: Some(1),
            pinned_bytes: 4_096,
            full: false,
            gaps: vec![gap],
        }]
    }

    fn read_stream(&self, _: &str, _: Seq, _: usize, _: usize) -> Result<StreamRead, StreamError> {
        Err(StreamError::Unknown)
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.head.as_ref().map_or_else(|| watch::channel(Seq(42)).1, watch::Sender::subscribe)
    }

    fn oldest_created_at(&self) -> Millis {
        0
    }
}

struct Running {
    address: std::net::SocketAddr,
    admin: Arc<Admin>,
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Status and body.
    async fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("closed by the edge");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.to_lowercase().contains("connection: close"), "{head}");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.get(path).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
    }
}

async fn start(store: Option<FakeStore>) -> Running {
    start_with(store, Deadlines::default()).await
}

async fn start_with(store: Option<FakeStore>, deadlines: Deadlines) -> Running {
    let shards = || vec![ShardFigures { shard: 0, sessions: 2, handshakes: 1, deliveries: 9, quic: true }];
    let mut admin = Admin::new(
        Arc::new(Readiness::default()),
        telemetry::install(),
        Box::new(shards),
        Box::new(|key| {
            let way = Way { since: 9, transport: telemetry::Transport::Quic };
            let known = DeviceKey::of(&DIGEST_KEY, &AppKey::parse("demo").expect("valid"), "d-1");
            (*key == known).then_some(Connection { shard: 1, way })
        }),
        vec![Box::new(|| telemetry::set(telemetry::Gauge::JournalLiveBytes, 12_345.0))],
    );
    admin.deadlines = deadlines;
    admin.token = Some(Token::new(TOKEN));
    if let Some(store) = store {
        telemetry::configure_streams(&["admin-test".into()]);
        let store: Arc<dyn Store> = Arc::new(store);
        let access = StoreAccess {
            doors: Arc::new(Apps::new(&[], store.clone(), 0)),
            store,
            digest_key: DIGEST_KEY,
            apps: [(AppKey::parse("demo").expect("valid"), "admin-test".into())].into(),
            former_streams: vec!["read-by-name".into()],
            readers: Arc::default(),
            clock: Arc::new(Clock::new(0)),
            epochs: HashMap::from([(AppKey::parse("demo").expect("valid"), 3)]),
        };
        admin.store.set(access).expect("once");
    }
    let admin = Arc::new(admin);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = oneshot::channel::<()>();
    let done = tokio::spawn(serve(listener, admin.clone(), async {
        stopped.await.ok();
    }));
    Running { address, admin, stop, done }
}

#[tokio::test]
async fn health_and_readiness_are_two_answers() {
    let running = start(None).await;
    assert_eq!(running.get("/healthz").await, (200, "alive\n".into()));
    for (phase, status) in
        [(Phase::Starting, 503), (Phase::Serving, 200), (Phase::Leaving, 503), (Phase::Failed, 503)]
    {
        running.admin.readiness.set(phase);
        assert_eq!(running.get("/readyz").await, (status, format!("{}\n", phase.text())));
        assert_eq!(running.get("/healthz").await.0, 200);
    }
    running.stop.send(()).expect("it runs");
    running.done.await.expect("it ends");
}

#[tokio::test]
async fn metrics_are_copied_at_the_scrape() {
    let running = start(Some(FakeStore::default())).await;
    let (status, text) = running.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(text.contains("mooring_journal_live_bytes 12345\n"), "{text}");
    assert!(text.contains("mooring_stream_backlog_records{stream=\"admin-test\"} 2\n"), "{text}");
    assert!(text.contains("mooring_stream_pinned_bytes{stream=\"admin-test\"} 4096\n"), "{text}");
}

#[tokio::test]
async fn totals_messages_devices_and_shards() {
    let running = start(Some(FakeStore::default())).await;
    let (status, totals) = running.json("/v1/totals").await;
    assert_eq!(status, 200);
    assert_eq!(totals["sequence"], 42);
    assert_eq!(totals["identity"], true);
    assert_eq!((&totals["accepted"], &totals["refused"]["device_unknown"]), (&2.into(), &1.into()));
    assert_eq!(totals["failed"].as_object().map(Map::len), Some(11));

    let (status, message) = running.json("/v1/message/demo/7").await;
    assert_eq!((status, &message["message_id"], &message["job_key"]), (200, &"7".into(), &"spring".into()));
    assert!(message.get("on_device").is_none());
    let (_, message) = running.json("/v1/message/demo/7?device=d-1").await;
    assert_eq!(message["on_device"]["target"], true);
    assert_eq!(message["on_device"]["connected"], true);
    assert_eq!(message["on_device"]["state"], "arrived");
    let (_, message) = running.json("/v1/message/demo/7?device=d-2").await;
    assert_eq!(message["on_device"]["target"], false);
    assert_eq!(message["on_device"]["state"], "not_a_target");

    let (_, device) = running.json("/v1/device/demo/d-1").await;
    assert_eq!(
        (&device["known"], &device["connected"], &device["push_on"]),
        (&true.into(), &true.into(), &true.into())
    );
    assert_eq!(device["attributes"]["brand"], "vivo");
    assert_eq!(device["connection"], serde_json::json!({"since": 9, "shard": 1, "transport": "quic"}));
    assert_eq!((&device["oldest_pending_at"], &device["last_events"]), (&3.into(), &serde_json::json!([])));
    assert_eq!(device["bindings"], serde_json::json!({"account": "alice", "tags": ["vip"]}));
    let (status, device) = running.json("/v1/device/demo/d-2").await;
    assert_eq!((status, &device["known"], &device["connected"]), (200, &false.into(), &false.into()));
    // The same id under another app is another device.
    assert_eq!(running.json("/v1/device/other/d-1").await.0, 404);

    let (_, shards) = running.json("/v1/shards").await;
    assert_eq!(shards[0]["deliveries"], 9);
    let (_, memory) = running.json("/v1/memory").await;
    assert_eq!((&memory["state"], &memory["parts"]["index"]), (&"ample".into(), &0.into()));
}

#[tokio::test]
async fn totals_wait_for_the_journal_to_go_on() {
    let head = watch::channel(Seq(42)).0;
    let running = start(Some(FakeStore { head: Some(head.clone()), ..FakeStore::default() })).await;
    let places = &running.admin.waiting;
    assert_eq!(running.json("/v1/totals?after=41").await.1["sequence"], 42, "it is beyond already");
    let goes_on = async {
        while places.available_permits() == WAITING as usize {
            tokio::task::yield_now().await;
        }
        head.send_replace(Seq(43));
    };
    let (answer, ()) = tokio::join!(running.json("/v1/totals?after=42"), goes_on);
    assert_eq!((answer.0, &answer.1["identity"]), (200, &true.into()));
    assert_eq!(running.json("/v1/totals?after=43&wait_s=1").await.0, 200, "as things are, after a second");

    let all = places.acquire_many(WAITING).await.expect("free again");
    let (status, said) = running.json("/v1/totals?after=43").await;
    assert_eq!((status, said["what_to_do"].is_string()), (503, true));
    assert_eq!(running.json("/v1/totals").await.0, 200, "who doesn't wait is answered");
    drop(all);
    for wrong in ["after=-1", "after=x", "after=1&wait_s=0", "after=1&wait_s=6"] {
        assert_eq!(running.json(&format!("/v1/totals?{wrong}")).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn statistics_name_their_days_and_leave_out_what_is_no_days() {
    let running = start(Some(FakeStore::default())).await;
    let (code, stats) = running.json("/v1/stats/demo?days=2").await;
    assert_eq!((code, &stats["sequence"], &stats["app_key"]), (200, &42.into(), &"demo".into()));
    assert_eq!(stats["days"].as_array().map(Vec::len), Some(2));
    let today = &stats["days"][0];
    assert_eq!((&today["day"], &today["accepted"]), (&"2026-11-22".into(), &2.into()));
    assert_eq!((&today["registered"], &today["active"]), (&5.into(), &6.into()));
    assert!(today.get("pending").is_none() && today.get("identity").is_none());
    assert_eq!(stats["days"][1]["day"], "2026-11-21");
    assert_eq!(running.json("/v1/stats/demo").await.1["days"].as_array().map(Vec::len), Some(7));
    for days in ["0", "31", "many"] {
        let (code, body) = running.json(&format!("/v1/stats/demo?days={days}")).await;
        assert_eq!((code, body["what_to_do"].is_string()), (400, true), "{days}");
    }
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let running = start(Some(FakeStore::default())).await;
    let long = format!("/v1/device/demo/{}", "x".repeat(65));
    for (path, expected) in [
        ("/v1/message/demo/8", 404),
        ("/v1/message/demo/0", 400),
        ("/v1/message/demo/x", 400),
        ("/v1/message/has%20space/7", 400),
        (&*long, 400),
        ("/nothing", 404),
    ] {
        let (status, body) = running.json(path).await;
        assert_eq!(status, expected, "{path}");
        assert!(body["error"].is_string() && body["what_to_do"].is_string(), "{body}");
    }
    let (status, _) = running.ask("POST /v1/totals HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn a_store_that_is_not_open_busy_or_silent() {
    let running = start(None).await;
    assert_eq!(running.json("/v1/totals").await.0, 503);
    assert_eq!(running.json("/v1/device/demo/d-1").await.0, 503);
    let running = start(Some(FakeStore { is_busy: true, ..FakeStore::default() })).await;
    assert_eq!(running.json("/v1/totals").await.0, 503);
}

#[tokio::test]
async fn a_silent_store_and_a_silent_client_meet_their_deadlines() {
    let store = FakeStore { held: Some(Mutex::default()), ..FakeStore::default() };
    let deadlines = Deadlines { query: Duration::from_millis(50), ..Deadlines::default() };
    let running = start_with(Some(store), deadlines).await;
    assert_eq!(running.json("/v1/totals").await.0, 504);
    let deadlines = Deadlines { connection: Duration::from_millis(500), ..deadlines };
    let running = start_with(None, deadlines).await;
    // More connections than are served at a time, all silent: they are closed, and then others have their turn.
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(running.address).await.expect("connected"));
    }
    assert_eq!(running.get("/healthz").await.0, 200);
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0; 16]).await.expect("closed"), 0);
    }
    running.stop.send(()).expect("it runs");
    running.done.await.expect("it ends");
}

#[tokio::test]
async fn changes_need_the_token_and_a_small_json_body() {
    let running = start(Some(FakeStore::default())).await;
    let post = |path: &str, token: &str, body: &str| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nHost: x\r\n{token}Content-Length: {length}\r\n\r\n{body}")
    };
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(limits::ADMIN_BODY_BYTES));
    for (path, token, body, expected) in [
        ("/v1/ping", "", "{}", 401),
        ("/v1/ping", "Authorization: Bearer 0123456789abcdeX\r\n", "{}", 401),
        // Who has no token learns nothing about bodies.
        ("/v1/ping", "", "no json", 401),
        ("/v1/ping", &*bearer, "", 200),
        ("/v1/ping", &*bearer, "{}", 200),
        ("/v1/ping", &*bearer, "no json", 400),
        ("/v1/ping", &*bearer, "{\"unheard\":1}", 400),
        ("/v1/ping", &*bearer, &*large, 400),
        ("/v1/totals", &*bearer, "{}", 405),
        ("/v1/nothing", &*bearer, "{}", 404),
    ] {
        let (status, answer) = running.ask(&post(path, token, body)).await;
        assert_eq!(status, expected, "{path} {token} {}", &body[..body.len().min(20)]);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert!(status == 200 || answer["error"].is_string() && answer["what_to_do"].is_string(), "{answer}");
    }
    // Reading is open, writing paths can't be read.
    assert_eq!(running.get("/v1/ping").await.0, 405);
    // The client's way.
    let address = running.address.to_string();
    let nothing = serde_json::json!({});
    let ping = crate::client::admin::post_json(&address, "/v1/ping", TOKEN, &nothing).await;
    assert_eq!(ping.expect("allowed")["ok"], true);
    let refused = crate::client::admin::post_json(&address, "/v1/ping", "wrong", &nothing).await;
    assert!(refused.expect_err("refused").to_string().contains("admin.token"));
}

#[tokio::test]
async fn streams_are_listed_and_retired() {
    let running = start(Some(FakeStore::default())).await;
    let (status, answer) = running.json("/v1/streams").await;
    let stream = &answer["streams"][0];
    assert_eq!((status, &answer["sequence"], &stream["name"]), (200, &42.into(), &"admin-test".into()));
    assert_eq!(stream["apps"], serde_json::json!(["demo"]));
    assert_eq!(
        (&stream["cursor"], &stream["pinned_bytes"], &stream["reader"]),
        (&40.into(), &4_096.into(), &Value::Null)
    );
    assert_eq!(
        (&stream["gaps"][0]["events"], &stream["gaps"][0]["by_event"]["arrive"]),
        (&3.into(), &3.into())
    );
    let address = running.address.to_string();
    let retire = async |name: &str, body: Value| {
        let answer =
            crate::client::admin::post(&address, &format!("/v1/streams/{name}/retire"), TOKEN, &body).await;
        let answer = answer.expect("an answer");
        (answer.status, serde_json::from_str::<Value>(&answer.body).expect("JSON"))
    };
    let (status, answer) = retire("old", serde_json::json!({})).await;
    assert_eq!((status, &answer["ended"], &answer["sequence"]), (200, &true.into(), &43.into()));
    let (status, answer) = retire("admin-test", serde_json::json!({ "force": true })).await;
    assert_eq!((status, &answer["ended"]), (200, &false.into()));
    for (name, body, expected) in [
        ("admin-test", serde_json::json!({}), 409),
        ("read-by-name", serde_json::json!({}), 409),
        ("none", serde_json::json!({}), 404),
        ("old", serde_json::json!({ "force": 1 }), 400),
        ("old", serde_json::json!({ "farce": true }), 400),
    ] {
        let (status, answer) = retire(name, body).await;
        assert_eq!(status, expected, "{answer}");
        assert!(answer["error"].is_string() && answer["what_to_do"].is_string(), "{answer}");
    }
}
