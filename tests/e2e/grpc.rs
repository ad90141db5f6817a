//! The router service over gRPC: the same link, the same store.

use mooring::client::router::{Receiver, Sender};
use mooring::client::{ClientError, Transport};
use mooring::wire::pb::router::{
    BatchAccepted, Open, OpenStream, Outcome, RefuseReason, StreamAck, from_router, stream_event, to_router,
};
use tokio::io::{ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;

use super::device::SECONDS;
use super::edge::{Edge, Way};
use super::grpc_call::{self, Stream};
use super::router::{batch, refused};

type Link = (Sender<WriteHalf<Stream>>, Receiver<ReadHalf<Stream>>);

async fn open(edge: &Edge, streams: Vec<OpenStream>) -> Link {
    let Transport::Tls(tls, _) = edge.router_endpoint().transport else { panic!("TLS") };
    let port = edge.ports.grpc.expect("a port");
    let socket = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    let (read, write) = split(grpc_call::connect((*tls).clone(), socket).await.expect("a call"));
    let (mut sender, mut receiver) = (Sender::over(write), Receiver::over(read));
    let said = Open { version: 1, name: "test".into(), streams, ..Open::default() };
    sender.send(from_router::Frame::Open(said)).await.expect("said");
    let word = receiver.recv(SECONDS).await.expect("a word");
    assert!(matches!(word, to_router::Frame::Opened(_)), "{word:?}");
    (sender, receiver)
}

async fn accepted(receiver: &mut Receiver<ReadHalf<Stream>>) -> BatchAccepted {
    loop {
        match receiver.recv(SECONDS).await.expect("an answer") {
            to_router::Frame::Accepted(accepted) => return accepted,
            // That the device registered, for instance.
            to_router::Frame::Stream(_) => {}
            other => panic!("not accepted: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_push_over_grpc_arrives_and_the_other_link_knows() {
    let mut edge = Edge::start().await;
    let mut device = edge.device(Way::Tls, "d").await;
    let main = OpenStream { stream: "main".into(), ..OpenStream::default() };
    let (mut sender, mut receiver) = open(&edge, vec![main]).await;
    let sent = batch(1, &["d", "nobody"]);
    sender.send(from_router::Frame::Deliver(sent.clone())).await.expect("said");
    let first = accepted(&mut receiver).await;
    assert_eq!((first.accepted, first.repeated), (1, false));
    assert_eq!(refused(&first, RefuseReason::DeviceUnknown), [1]);
    device.takes(1).await;
    let arrived = loop {
        let to_router::Frame::Stream(batch) = receiver.recv(SECONDS).await.expect("a stream batch") else {
            panic!("no stream batch")
        };
        let ack = StreamAck { stream: batch.stream, cursor: batch.cursor };
        sender.send(from_router::Frame::StreamAck(ack)).await.expect("said");
        let receipts = batch.events.into_iter().filter_map(|event| match event.event {
            Some(stream_event::Event::Receipt(receipt)) => Some(receipt),
            _ => None,
        });
        if let Some(receipt) = receipts.into_iter().find(|receipt| receipt.outcome() != Outcome::None) {
            break receipt;
        }
    };
    assert_eq!((arrived.outcome(), arrived.device_id.as_str()), (Outcome::Arrived, "d"));
    assert!((edge.metric("mooring_router_links{transport=\"grpc\"}").await - 1.0).abs() < 0.5);
    // What came in by gRPC is repeated on the framed link, and the other way round.
    let mut router = edge.router_reading(vec![]).await;
    let repeated = router.accepts(sent, 1).await;
    assert_eq!(repeated, BatchAccepted { repeated: true, ..first });
    let other = batch(2, &["d"]);
    let taken = router.accepts(other.clone(), 1).await;
    sender.send(from_router::Frame::Deliver(other)).await.expect("said");
    loop {
        match receiver.recv(SECONDS).await.expect("a frame") {
            to_router::Frame::Accepted(again) => {
                assert_eq!(again, BatchAccepted { repeated: true, ..taken });
                break;
            }
            to_router::Frame::Stream(_) => {}
            frame => panic!("unexpected: {frame:?}"),
        }
    }
    // Leaving: the goodbye, then the end.
    edge.terminate();
    let mut goodbye = false;
    loop {
        match receiver.recv(SECONDS).await {
            Ok(to_router::Frame::GoAway(_)) => goodbye = true,
            Ok(to_router::Frame::Stream(_)) => {}
            Ok(frame) => panic!("unexpected: {frame:?}"),
            Err(ClientError::Closed) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(goodbye);
    assert!(edge.ended().await.success());
}
