//! An edge that has only router links, certificates for it, and a router made of frames.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mooring::apps::Apps;
use mooring::clock::Clock;
use mooring::ids::{AppKey, DigestKey};
use mooring::limits;
use mooring::presence::Presence;
use mooring::router::{Allowed, FailureLines, Pace, Phase, Rights, Room, RouterContext, Rules};
use mooring::wire::pb::{device, router as pb};
use pb::{from_router, to_router};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::carrier;
use super::store::FakeStore;

/// What a test waits for comes at once, or never.
pub(crate) const NEVER: Duration = Duration::from_secs(60);

/// A certificate authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

pub(crate) type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signed").der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub(crate) fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".into()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        (certificate, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// The TLS of a client.
    pub(crate) fn client(&self, identity: Option<Identity>) -> ClientConfig {
        let config = ClientConfig::builder().with_root_certificates(self.roots());
        match identity {
            Some((certificate, key)) => {
                config.with_client_auth_cert(vec![certificate], key).expect("an identity")
            }
            None => config.with_no_client_auth(),
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        roots
    }
}

/// A running edge.
pub(crate) struct Edge {
    pub(crate) ca: Ca,
    pub(crate) address: SocketAddr,
    pub(crate) store: Arc<FakeStore>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) served: JoinHandle<()>,
}

impl Edge {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut RouterContext)) -> Self {
        let ca = Ca::new();
        let (certificate, key) = ca.issue("edge");
        let verifier = WebPkiClientVerifier::builder(ca.roots().into()).build().expect("a verifier");
        let tls = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .expect("a certificate");
        let store = FakeStore::new();
        let mut context = context(Arc::clone(&store), tls);
        change(&mut context);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (phase, phases) = watch::channel(Phase::Serving);
        let served = tokio::spawn(carrier::serve(listener, Arc::new(context), phases));
        Self { ca, address, store, phase, served }
    }

    /// A link that is open, with these streams.
    pub(crate) async fn open(&self, streams: Vec<pb::OpenStream>) -> (Router, pb::Opened) {
        let mut router = self.connect("r1").await;
        router.say(open(streams)).await;
        let to_router::Frame::Opened(opened) = router.hear().await else { panic!("not Opened") };
        (router, opened)
    }

    /// A link after TLS.
    pub(crate) async fn connect(&self, name: &str) -> Router {
        let identity = self.ca.issue(name);
        self.connect_as(Some(identity), None).await.expect("a TLS handshake")
    }

    /// A link after TLS as the client sees it: with TLS 1.3 the edge may still refuse.
    pub(crate) async fn connect_as(
        &self,
        identity: Option<Identity>,
        receive_buffer: Option<u32>,
    ) -> std::io::Result<Router> {
        let config = self.ca.client(identity);
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let socket = socket.connect(self.address).await?;
        let stream = carrier::connect(config, socket).await?;
        Ok(Router { stream })
    }

    pub(crate) async fn connect_tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }
}

fn context(store: Arc<FakeStore>, tls: ServerConfig) -> RouterContext {
    let app = |key| AppKey::parse(key).expect("valid");
    let r1 = Rights { apps: Allowed::All, streams: Allowed::All };
    let r2 = Rights { apps: Allowed::Only([app("other")].into()), streams: Allowed::Only([].into()) };
    RouterContext {
        edge: "mooring test".into(),
        doors: Arc::new(Apps::new(&[], store.clone(), 0)),
        store,
        clock: Arc::new(Clock::new(0)),
        tls: Arc::new(tls),
        rules: Rules {
            apps: [app("demo"), app("other")].into(),
            digest_key: DigestKey([1; 32]),
            online_window_ms: 10_000,
        },
        routers: [("r1".into(), Arc::new(r1)), ("r2".into(), Arc::new(r2))].into(),
        credit_targets: 1_000_000,
        credit_bytes: 64 * 1024 * 1024,
        part_targets: limits::PART_TARGETS,
        batch_window_ms: 86_400_000,
        is_connected: Box::new(|key| key.0[0].is_multiple_of(2)),
        presence: Arc::new(Presence::new(Arc::default(), 0, 1, Box::new(|_, _| {}))),
        room: Room::default(),
        pace: Pace { gather: Duration::from_millis(1), ..Pace::default() },
        streams: Arc::default(),
        aside: mooring::router::Aside::Threads,
        events_a_read: mooring::limits::STREAM_BATCH_EVENTS,
        failure_lines: FailureLines::default(),
    }
}

/// A router made of frames.
pub(crate) struct Router {
    stream: carrier::Stream,
}

impl Router {
    pub(crate) async fn say(&mut self, frame: from_router::Frame) {
        self.say_bytes(&encode(frame)).await;
    }

    pub(crate) async fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("written");
        self.stream.flush().await.expect("flushed");
    }

    /// Ends this half of the link.
    pub(crate) async fn say_no_more(&mut self) {
        self.stream.shutdown().await.expect("shut down");
    }

    /// The next frame.
    pub(crate) async fn hear(&mut self) -> to_router::Frame {
        self.try_hear().await.expect("a frame")
    }

    /// The next frame, or how the link ended.
    pub(crate) async fn try_hear(&mut self) -> std::io::Result<to_router::Frame> {
        let read = async {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head).await?;
            assert_eq!(head[0], 0);
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; length as usize];
            self.stream.read_exact(&mut body).await?;
            Ok(pb::ToRouter::decode(&*body).expect("a message").frame.expect("a frame"))
        };
        timeout(NEVER, read).await.expect("in time")
    }

    pub(crate) async fn hear_accepted(&mut self) -> pb::BatchAccepted {
        match self.hear().await {
            to_router::Frame::Accepted(accepted) => accepted,
            other => panic!("not accepted: {other:?}"),
        }
    }

    pub(crate) async fn hear_rejected(&mut self) -> pb::BatchRejected {
        match self.hear().await {
            to_router::Frame::Rejected(rejected) => rejected,
            other => panic!("not rejected: {other:?}"),
        }
    }

    pub(crate) async fn hear_stream(&mut self) -> pb::StreamBatch {
        match self.hear().await {
            to_router::Frame::Stream(batch) => batch,
            other => panic!("no stream batch: {other:?}"),
        }
    }

    /// The last frame is an Error, and then the link ends.
    pub(crate) async fn hear_error(&mut self) -> pb::LinkErrorCode {
        let to_router::Frame::Error(error) = self.hear().await else { panic!("no error") };
        assert!(self.try_hear().await.is_err(), "the link ends");
        error.code()
    }

    /// A Ping is answered before anything else comes: nothing more was under way.
    pub(crate) async fn nothing_more_comes(&mut self, nonce: u64) {
        self.say(from_router::Frame::Ping(pb::Ping { nonce })).await;
        let to_router::Frame::Pong(pong) = self.hear().await else { panic!("something came") };
        assert_eq!(pong.nonce, nonce);
    }

    pub(crate) async fn acknowledge(&mut self, cursor: u64) {
        let ack = pb::StreamAck { stream: "main".into(), cursor };
        self.say(from_router::Frame::StreamAck(ack)).await;
    }
}

pub(crate) fn encode(frame: from_router::Frame) -> Vec<u8> {
    let message = pb::FromRouter { frame: Some(frame) };
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(message.encoded_len() as u32).to_be_bytes());
    message.encode(&mut bytes).expect("grows");
    bytes
}

pub(crate) fn open(streams: Vec<pb::OpenStream>) -> from_router::Frame {
    from_router::Frame::Open(pb::Open { version: 1, name: "test".into(), streams, presence: None })
}

/// The stream `main`, from its durable cursor.
pub(crate) fn main_stream() -> Vec<pb::OpenStream> {
    vec![pb::OpenStream { stream: "main".into(), ..pb::OpenStream::default() }]
}

pub(crate) fn main_from(from: pb::open_stream::From) -> Vec<pb::OpenStream> {
    vec![pb::OpenStream { stream: "main".into(), from: Some(from), ..pb::OpenStream::default() }]
}

/// The stream `main`, after a cursor that was read in this history.
pub(crate) fn main_after(cursor: u64, history: u64) -> Vec<pb::OpenStream> {
    let from = Some(pb::open_stream::From::After(cursor));
    vec![pb::OpenStream { stream: "main".into(), from, history }]
}

pub(crate) fn batch(id: &str, targets: usize) -> pb::DeliverBatch {
    pb::DeliverBatch {
        batch_id: id.into(),
        app_key: "demo".into(),
        message_id: 5,
        body: Some(device::Push {
            kind: device::Kind::Message.into(),
            body: "hello".into(),
            ..Default::default()
        }),
        targets: (0..targets)
            .map(|i| pb::Target { device_id: format!("device-{i}"), account: String::new() })
            .collect(),
        created_at: 1_700_000_000_000,
        ..Default::default()
    }
}

pub(crate) fn deliver(id: &str, targets: usize) -> from_router::Frame {
    from_router::Frame::Deliver(batch(id, targets))
}

/// Waits until a number that grows satisfies a condition.
pub(crate) async fn until<T: Send + Sync + 'static>(
    sender: &watch::Sender<T>,
    condition: impl FnMut(&T) -> bool,
) {
    let mut receiver = sender.subscribe();
    timeout(NEVER, receiver.wait_for(condition)).await.expect("in time").expect("the store lives");
}
