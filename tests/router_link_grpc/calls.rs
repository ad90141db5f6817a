//! What only gRPC has: statuses, several links on a connection, health, reflection, connections without a link.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mooring::ids::Seq;
use mooring::limits;
use mooring::router::{Pace, Phase};
use mooring::wire::pb::router as pb;
use pb::{LinkErrorCode, from_router, to_router};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::codegen::{Context, Poll, Service};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;
use tonic_reflection::pb::{v1, v1alpha};

use super::call;
use super::store::receipt;
use super::support::{Edge, NEVER, deliver, main_stream, open, until};

/// tonic's client on a connection of ours.
#[derive(Clone)]
struct Connection(SendRequest<tonic::body::Body>);

impl Service<Request<tonic::body::Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = tonic::codegen::BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        // The client names a path only.
        *request.uri_mut() = format!("https://localhost{}", request.uri().path()).parse().expect("a URI");
        Box::pin(self.0.send_request(request))
    }
}

/// A connection, and its end.
async fn connect(edge: &Edge, name: &str) -> (Connection, JoinHandle<hyper::Result<()>>) {
    let tls =
        call::tls(edge.ca.client(Some(edge.ca.issue(name))), edge.connect_tcp().await).await.expect("TLS");
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.expect("HTTP/2");
    (Connection(sender), tokio::spawn(connection))
}

/// A link of messages.
struct Link {
    says: mpsc::Sender<pb::FromRouter>,
    hears: Streaming<pb::ToRouter>,
}

impl Link {
    async fn begin(connection: &Connection) -> Result<Self, Status> {
        let (says, said) = mpsc::channel(16);
        let said = futures_util::stream::unfold(said, async |mut said| Some((said.recv().await?, said)));
        let mut client = tonic::client::Grpc::new(connection.clone());
        client.ready().await.expect("ready");
        let path = "/mooring.router.v1.Router/Link".parse().expect("a path");
        let codec = ProstCodec::<pb::FromRouter, pb::ToRouter>::default();
        let hears = client.streaming(tonic::Request::new(Box::pin(said)), path, codec).await?.into_inner();
        Ok(Self { says, hears })
    }

    async fn open(connection: &Connection, streams: Vec<pb::OpenStream>) -> Self {
        let mut link = Self::begin(connection).await.expect("a link");
        link.say(open(streams)).await;
        assert!(matches!(link.hear().await, to_router::Frame::Opened(_)));
        link
    }

    async fn say(&self, frame: from_router::Frame) {
        self.says.send(pb::FromRouter { frame: Some(frame) }).await.expect("said");
    }

    async fn next(&mut self) -> Result<Option<pb::ToRouter>, Status> {
        timeout(NEVER, self.hears.message()).await.expect("in time")
    }

    async fn hear(&mut self) -> to_router::Frame {
        self.next().await.expect("no error").expect("a message").frame.expect("a frame")
    }

    async fn accepted(&mut self) -> pb::BatchAccepted {
        match self.hear().await {
            to_router::Frame::Accepted(accepted) => accepted,
            other => panic!("not accepted: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_stranger_gets_the_same_answer_whatever_it_calls() {
    let edge = Edge::start().await;
    let (connection, _) = connect(&edge, "stranger").await;
    let mut client = HealthClient::new(connection.clone());
    let status = client.check(HealthCheckRequest::default()).await.expect_err("turned away");
    assert_eq!(status.code(), Code::PermissionDenied);
    let mut link = Link::begin(&connection).await.expect("an answer");
    let to_router::Frame::Error(error) = link.hear().await else { panic!("no error") };
    assert_eq!((error.code(), error.text.as_str()), (LinkErrorCode::Unauthorized, status.message()));
    let ended = link.next().await.expect_err("the end");
    assert_eq!((ended.code(), ended.message()), (Code::Aborted, status.message()));
}

#[tokio::test]
async fn a_link_of_messages_pushes_follows_a_stream_and_ends_ok() {
    let edge = Edge::start().await;
    let (connection, _) = connect(&edge, "r1").await;
    let mut link = Link::open(&connection, main_stream()).await;
    link.say(deliver("b1", 3)).await;
    assert_eq!(link.accepted().await.accepted, 3);
    edge.store.append([receipt(1, 0), receipt(2, 0)]);
    let to_router::Frame::Stream(batch) = link.hear().await else { panic!("no stream batch") };
    assert_eq!(batch.events.len(), 2);
    link.say(from_router::Frame::StreamAck(pb::StreamAck { stream: "main".into(), cursor: batch.cursor }))
        .await;
    until(&edge.store.cursor, |cursor| *cursor == Seq(batch.cursor)).await;
    drop(link.says);
    assert_eq!(timeout(NEVER, link.hears.message()).await.expect("in time").expect("OK"), None);
}

#[tokio::test]
async fn an_error_comes_as_a_frame_and_as_a_status() {
    let edge = Edge::start().await;
    let (connection, _) = connect(&edge, "stranger").await;
    let mut link = Link::begin(&connection).await.expect("a call");
    let to_router::Frame::Error(error) = link.hear().await else { panic!("no error") };
    assert_eq!(error.code(), LinkErrorCode::Unauthorized);
    let status = link.next().await.expect_err("the end");
    assert_eq!((status.code(), status.message()), (Code::Aborted, error.text.as_str()));
}

#[tokio::test]
async fn links_of_one_connection_don_t_know_each_other() {
    let edge = Edge::start().await;
    let (connection, _) = connect(&edge, "r1").await;
    let mut good = Link::open(&connection, vec![]).await;
    let mut bad = Link::begin(&connection).await.expect("a call");
    bad.say(deliver("b", 1)).await;
    let to_router::Frame::Error(error) = bad.hear().await else { panic!("no error") };
    assert_eq!(error.code(), LinkErrorCode::OpenExpected);
    good.say(deliver("b", 1)).await;
    assert_eq!(good.accepted().await.accepted, 1);
}

#[tokio::test]
async fn one_link_too_many_is_told_and_taken_when_there_is_room() {
    let edge = Edge::start().await;
    let (mut connections, mut links) = (Vec::new(), Vec::new());
    for n in 0..limits::ROUTER_LINKS {
        if n.is_multiple_of(limits::GRPC_CALLS as usize) {
            connections.push(connect(&edge, "r1").await.0);
        }
        links.push(Link::open(connections.last().expect("one"), vec![]).await);
    }
    let (connection, _) = connect(&edge, "r1").await;
    let refused = Link::begin(&connection).await.err().expect("refused");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let mut one = links.pop().expect("a link");
    drop(one.says);
    assert_eq!(timeout(NEVER, one.hears.message()).await.expect("in time").expect("OK"), None);
    // The room comes back when the edge has heard that the call is over.
    let look = async {
        while Link::begin(&connection).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(NEVER, look).await.expect("taken");
}

#[tokio::test]
async fn another_method_is_not_implemented() {
    let edge = Edge::start().await;
    let (connection, _) = connect(&edge, "r1").await;
    for path in ["/mooring.router.v1.Router/Other", "/other.Service/Link"] {
        let mut client = tonic::client::Grpc::new(connection.clone());
        client.ready().await.expect("ready");
        let codec = ProstCodec::<pb::FromRouter, pb::ToRouter>::default();
        let request = tonic::Request::new(pb::FromRouter { frame: None });
        let answer = client.unary(request, path.parse().expect("a path"), codec).await;
        assert_eq!(answer.expect_err("refused").code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn health_is_told_and_leaving_too() {
    let edge = Edge::start().await;
    let (connection, ended) = connect(&edge, "r1").await;
    let mut client = HealthClient::new(connection.clone());
    let mut asked = Vec::new();
    for service in ["", "mooring.router.v1.Router"] {
        let request = HealthCheckRequest { service: service.into() };
        let answer = client.check(request.clone()).await.expect("an answer").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
        asked.push(client.watch(request).await.expect("a watch").into_inner());
    }
    let mut heard = async || {
        for watch in &mut asked {
            let next = timeout(NEVER, watch.message()).await.expect("in time");
            let status = next.expect("no error").expect("a status").status();
            assert_eq!(
                status,
                if *edge.phase.borrow() == Phase::Serving {
                    ServingStatus::Serving
                } else {
                    ServingStatus::NotServing
                }
            );
        }
    };
    heard().await;
    edge.phase.send_replace(Phase::Leaving);
    heard().await;
    // A watch has no end: the connection goes all the same.
    edge.phase.send_replace(Phase::Closing);
    timeout(NEVER, edge.served).await.expect("every link has ended").expect("no panic");
    timeout(NEVER, ended).await.expect("closed").expect("no panic").ok();
}

#[tokio::test]
async fn reflection_gives_both_protocols() {
    let edge = Edge::start().await;
    let (connection, _) = connect(&edge, "r1").await;
    macro_rules! ask {
        ($version:ident, $question:expr) => {{
            use $version::server_reflection_request::MessageRequest;
            let mut client =
                $version::server_reflection_client::ServerReflectionClient::new(connection.clone());
            let question =
                $version::ServerReflectionRequest { host: String::new(), message_request: Some($question) };
            let asked = futures_util::stream::iter([question]);
            let mut answers = client.server_reflection_info(asked).await.expect("answers").into_inner();
            answers.message().await.expect("no error").expect("an answer").message_response.expect("one")
        }};
    }
    macro_rules! check {
        ($version:ident) => {{
            use $version::server_reflection_response::MessageResponse;
            let MessageResponse::ListServicesResponse(list) =
                ask!($version, MessageRequest::ListServices(String::new()))
            else {
                panic!("no list")
            };
            let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
            for name in ["mooring.router.v1.Router", "grpc.health.v1.Health"] {
                assert!(names.contains(&name), "{names:?}");
            }
            for symbol in ["mooring.router.v1.Router.Link", "mooring.device.v1.Push"] {
                let MessageResponse::FileDescriptorResponse(file) =
                    ask!($version, MessageRequest::FileContainingSymbol(symbol.into()))
                else {
                    panic!("no file")
                };
                assert!(!file.file_descriptor_proto.is_empty(), "{symbol}");
            }
        }};
    }
    check!(v1);
    check!(v1alpha);
}

#[tokio::test]
async fn a_connection_without_a_link_goes_away() {
    let pace =
        Pace { silence: Duration::from_millis(50), settle: Duration::from_millis(50), ..Pace::default() };
    let edge = Edge::start_with(|context| context.pace = pace).await;
    // It never speaks HTTP/2 at all.
    let mut mute =
        call::tls(edge.ca.client(Some(edge.ca.issue("r1"))), edge.connect_tcp().await).await.expect("TLS");
    let mut rest = Vec::new();
    timeout(NEVER, mute.read_to_end(&mut rest)).await.expect("closed").ok();
    // It does, but has no link.
    let (_connection, ended) = connect(&edge, "r1").await;
    timeout(NEVER, ended).await.expect("closed").expect("no panic").ok();
}
