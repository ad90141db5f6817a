//! The same device id under two apps, two routers with one app each, and one without any rights: whatever they ask, over whichever link, nothing
//! of another's is told, and what isn't theirs is answered in the same words as what isn't there.

use mooring::client::ClientError;
use mooring::client::router::{AskError, Asker, PresenceMap, Receiver, open};
use mooring::ids::AppKey;
use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{ErrorCode, EventType};
use mooring::wire::pb::router::{
    DeliverBatch, LinkErrorCode, Open, OpenStream, PresenceState, RejectCode, StreamAck, from_router,
    to_router,
};

use super::device::{SECONDS, hello_with, is_refused};
use super::edge::{APP_OF_EPOCH_3, Carrier, Edge, Way};
use super::operating::two_streams;
use super::router::{End, Router, batch};

fn app(key: &str) -> AppKey {
    AppKey::parse(key).expect("an app")
}

fn of(app: &str, message_id: u64) -> DeliverBatch {
    DeliverBatch { app_key: app.into(), ..batch(message_id, &["same"]) }
}

fn reading(stream: &str) -> Vec<OpenStream> {
    vec![OpenStream { stream: stream.into(), ..OpenStream::default() }]
}

/// A router, and what is its own.
#[derive(Clone, Copy)]
struct Party<'a> {
    edge: &'a Edge,
    carrier: Carrier,
    router: &'a str,
}

impl Party<'_> {
    async fn link(&self, streams: Vec<OpenStream>) -> Router {
        Router::open(&self.edge.endpoint_of(self.carrier, self.router), streams).await
    }

    /// How the edge refuses this Open.
    async fn is_refused(&self, said: Open) -> (LinkErrorCode, String) {
        let said = Open { version: 1, ..said };
        match open(&self.edge.endpoint_of(self.carrier, self.router), said).await {
            Err(ClientError::Link { code, text }) => (code, text),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{} got a link over {:?}", self.router, self.carrier),
        }
    }

    /// Everything that it can ask about an app that isn't its own gets one named error, the one of an app that there isn't.
    async fn is_nothing_to(&self, foreign: &str) {
        let mut link = self.link(Vec::new()).await;
        let mut texts = Vec::new();
        for app_key in [foreign, "nobody"] {
            let pushed = link.rejects(of(app_key, 77), RejectCode::UnknownApp, "app_key").await;
            let revoked = link.revoke(app_key, 1).await;
            assert_eq!((revoked.code(), revoked.ended, revoked.sequence), (RejectCode::UnknownApp, 0, 0));
            let mut said = vec![pushed.text, revoked.text];
            let endpoint = self.edge.endpoint_of(self.carrier, self.router);
            let mut asker = Asker::new(endpoint, "test");
            for answer in [
                asker.message(&app(app_key), 1, None).await.map(drop),
                asker.message(&app(app_key), 1, Some("same")).await.map(drop),
                asker.devices(&app(app_key), &["same".to_owned()]).await.map(drop),
            ] {
                let Err(AskError::Refused { code, text }) = answer else { panic!("{answer:?}") };
                assert_eq!(code, LinkErrorCode::Unauthorized);
                said.push(text);
            }
            let presence = Some(PresenceMap::default().open(&[app_key.into()]));
            let (code, text) = self.is_refused(Open { presence, ..Open::default() }).await;
            assert_eq!(code, LinkErrorCode::Unauthorized);
            said.push(text);
            texts.push(said);
        }
        assert_eq!(texts[0], texts[1], "that {foreign} exists is nobody's business");
    }

    /// A stream that isn't its own can be neither opened nor acknowledged.
    async fn may_not_read(&self, foreign: &str) {
        let refused = self.is_refused(Open { streams: reading(foreign), ..Open::default() }).await;
        assert_eq!(refused.0, LinkErrorCode::Unauthorized);
        assert_eq!(refused, self.is_refused(Open { streams: reading("nothing"), ..Open::default() }).await);
        let mut codes = Vec::new();
        for stream in [foreign, "nothing"] {
            let mut link = self.link(Vec::new()).await;
            let ack = StreamAck { stream: stream.into(), cursor: 1 };
            link.sender.send(from_router::Frame::StreamAck(ack)).await.expect("sent");
            codes.push(last_word(&mut link.receiver).await);
        }
        assert_eq!(codes, [LinkErrorCode::UnknownStream; 2]);
    }

    /// Presence of everything that it may see.
    async fn sees(&self, at_least: usize) -> PresenceMap {
        let mut map = PresenceMap::default();
        let said = Open { version: 1, presence: Some(map.open(&[])), ..Open::default() };
        let endpoint = self.edge.endpoint_of(self.carrier, self.router);
        let (_sender, mut receiver, _) = open(&endpoint, said).await.expect("a link");
        loop {
            let to_router::Frame::Presence(frame) = receiver.recv(SECONDS).await.expect("a frame") else {
                panic!("no presence")
            };
            let ends = frame.snapshot_end || !frame.snapshot;
            map.handle(frame);
            if ends && map.connected() >= at_least {
                return map;
            }
        }
    }
}

async fn last_word(receiver: &mut Receiver) -> LinkErrorCode {
    let to_router::Frame::Error(error) = receiver.recv(SECONDS).await.expect("a word") else {
        panic!("no error")
    };
    error.code()
}

#[tokio::test]
async fn nothing_of_an_app_is_told_to_another_over_either_link() {
    let mut edge = Edge::prepare(&[]);
    edge.configure(|text| {
        let text = two_streams(text);
        format!("{text}[[router.routers]]\nname = \"without\"\napps = []\nstreams = []\n")
    });
    edge.run().await;
    let mut demo = edge.device(Way::Tls, "same").await;
    let credential = edge.credential(APP_OF_EPOCH_3, "same", 3);
    let mut epochs =
        edge.device_saying(Way::Quic, hello_with(APP_OF_EPOCH_3, "same", credential.clone())).await;
    // A credential of one app is none of the other's, whatever the device is called.
    let mut crossed = edge.connect(Way::Plain).await;
    let hello = hello_with(DEV_APP, "same", credential);
    crossed.send(mooring::wire::pb::device::to_edge::Frame::Hello(hello)).await.expect("sent");
    is_refused(&mut crossed, ErrorCode::Unauthenticated).await;

    let mut message = 0;
    for carrier in Carrier::ALL {
        let party = |router| Party { edge: &edge, carrier: *carrier, router };
        let (first, second, without) = (party("first"), party("second"), party("without"));
        let (mut one, mut two) = (first.link(reading("main")).await, second.link(reading("second")).await);
        // The same device id and message id under two apps; each ends in its own way.
        message += 1;
        one.accepts(of(DEV_APP, message), 1).await;
        two.accepts(of(APP_OF_EPOCH_3, message), 1).await;
        demo.takes(message).await;
        assert_eq!(epochs.push().await.message_id, message);
        assert_eq!(one.end(&format!("b-{message}"), 0).await, End::Arrived);
        assert_eq!(two.revoke(APP_OF_EPOCH_3, message).await.ended, 1);
        epochs.is_revoked(message).await;
        assert!(matches!(two.end(&format!("b-{message}"), 0).await, End::Failed(_)));
        for (router, app) in [(&one, DEV_APP), (&two, APP_OF_EPOCH_3)] {
            assert!(router.receipts.iter().all(|receipt| receipt.app_key == app));
            assert!(router.devices.iter().all(|(_, event)| event.app_key == app));
        }
        // A message of the other app, as the device of this one has heard of it: unmatched, counted nowhere.
        let unheard = 5_000 + message;
        two.accepts(of(APP_OF_EPOCH_3, unheard), 1).await;
        let number = demo.say(&[(unheard, EventType::Arrive), (unheard, EventType::Click)]).await;
        demo.is_confirmed(number).await;
        epochs.takes(unheard).await;
        let known = edge.ask(&format!("/v1/message/{APP_OF_EPOCH_3}/{unheard}")).await;
        assert_eq!((&known["arrived"], &known["clicked"]), (&1.into(), &0.into()), "{known}");

        let before = edge.totals().await;
        for (party, own, foreign, stream) in [
            (first, Some(DEV_APP), APP_OF_EPOCH_3, "second"),
            (second, Some(APP_OF_EPOCH_3), DEV_APP, "main"),
        ] {
            party.is_nothing_to(foreign).await;
            party.may_not_read(stream).await;
            let seen = party.sees(1).await;
            assert_eq!(seen.connected(), 1);
            assert_eq!(seen.state(own.expect("one"), "same"), PresenceState::Connected);
        }
        for (foreign, stream) in [(DEV_APP, "main"), (APP_OF_EPOCH_3, "second")] {
            without.is_nothing_to(foreign).await;
            without.may_not_read(stream).await;
        }
        assert_eq!(without.sees(0).await.connected(), 0);
        let (code, text) = party("stranger").is_refused(Open::default()).await;
        assert_eq!(code, LinkErrorCode::Unauthorized, "{text}");
        let after = edge.totals().await;
        for name in ["batches", "targets", "accepted", "arrived", "failed", "pending"] {
            assert_eq!(before[name], after[name], "{name}");
        }
        demo.has_nothing().await;
        epochs.has_nothing().await;
    }
}
