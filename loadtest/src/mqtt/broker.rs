//! A broker for tests, in this process: sessions that stay, topics without wildcards, QoS 1. And the scenarios against it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mooring::client::ClientError;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::packet::Packet;
use super::{End, fill, packets, write};

/// Packets between a publisher and a subscriber's connection.
const QUEUE: usize = 10_000;

/// A session: what is subscribed, what waits, and where it is connected.
#[derive(Default)]
struct Session {
    topics: Vec<String>,
    waiting: Vec<Vec<u8>>,
    connection: Option<mpsc::Sender<Vec<u8>>>,
    next_id: u16,
}

impl Session {
    /// A publication, to the connection or to wait for one.
    fn publish(&mut self, topic: &str, payload: &[u8]) {
        self.next_id = self.next_id % u16::MAX + 1;
        let mut bytes = Vec::new();
        Packet::Publish { topic, id: Some(self.next_id), dup: false, payload }.put(&mut bytes);
        match &self.connection {
            Some(connection) => connection.try_send(bytes).expect("room in a queue of a test"),
            None => self.waiting.push(bytes),
        }
    }
}

type Sessions = Arc<Mutex<HashMap<String, Session>>>;

pub(crate) struct Broker {
    pub(crate) address: SocketAddr,
    sessions: Sessions,
    _accepting: JoinSet<()>,
}

fn locked(sessions: &Sessions) -> MutexGuard<'_, HashMap<String, Session>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    /// Refuses subscriptions if it is told so.
    pub(crate) async fn start(refuses: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let sessions = Sessions::default();
        let shared = Arc::clone(&sessions);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let sessions = Arc::clone(&shared);
                connections.spawn(async move {
                    let mut client = None;
                    // It ends when the client leaves.
                    serve(stream, &sessions, refuses, &mut client).await.err();
                    if let Some(session) = client.and_then(|id| locked(&sessions).remove(&id)) {
                        let kept = Session { connection: None, ..session };
                        locked(&sessions).insert(kept.topics.first().cloned().unwrap_or_default(), kept);
                    }
                });
            }
        });
        Self { address, sessions, _accepting: accepting }
    }

    /// Publications that nobody took.
    pub(crate) fn waiting(&self) -> usize {
        locked(&self.sessions).values().map(|session| session.waiting.len()).sum()
    }
}

async fn serve(
    mut stream: TcpStream,
    sessions: &Sessions,
    refuses: bool,
    client: &mut Option<String>,
) -> Result<(), End> {
    let (to_here, mut here) = mpsc::channel(QUEUE);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    loop {
        write(&mut stream, &mut output).await?;
        tokio::select! {
            filled = fill(&mut stream, &mut input) => filled?,
            Some(bytes) = here.recv() => {
                output.extend(bytes);
                continue;
            }
        }
        packets(&mut input, |packet| {
            let mut sessions = locked(sessions);
            match packet {
                Packet::Connect { client_id, clean, .. } => {
                    let known = (!clean).then(|| format!("push/{client_id}"));
                    let kept = known.as_ref().and_then(|topic| sessions.remove(topic));
                    Packet::ConnAck { session_present: kept.is_some(), code: 0 }.put(&mut output);
                    let mut session = kept.unwrap_or_default();
                    session.waiting.drain(..).for_each(|bytes| output.extend(bytes));
                    session.connection = Some(to_here.clone());
                    *client = Some(client_id.to_owned());
                    sessions.insert(client_id.to_owned(), session);
                }
                Packet::Subscribe { id, topic, .. } => {
                    let code = if refuses { 0x80 } else { 1 };
                    Packet::SubAck { id, code }.put(&mut output);
                    let session = client.as_ref().and_then(|client| sessions.get_mut(client));
                    session.expect("a session").topics.push(topic.to_owned());
                }
                Packet::Publish { topic, id, payload, .. } => {
                    let subscribed = |session: &&mut Session| session.topics.iter().any(|t| t == topic);
                    sessions.values_mut().filter(subscribed).for_each(|s| s.publish(topic, payload));
                    Packet::PubAck { id: id.expect("QoS 1") }.put(&mut output);
                }
                Packet::PubAck { .. } => {}
                Packet::Disconnect => {
                    if let Some(session) = client.as_ref().and_then(|client| sessions.get_mut(client)) {
                        session.connection = None;
                    }
                    return Err(End::Broken(ClientError::Closed));
                }
                Packet::PingReq => Packet::PingResp.put(&mut output),
                other => panic!("{other:?} from a client"),
            }
            Ok(())
        })?;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use mooring::cli::output::Failure;

    use super::*;
    use crate::figures::Figures;
    use crate::{Cli, FLOOD, Scenario, burst, hold, offline, storm, unicast};

    /// Runs a scenario against this broker, whose process is this one.
    async fn run(broker: &Broker, args: &[&str]) -> Result<Figures, Failure> {
        let (address, pid) = (broker.address.to_string(), std::process::id().to_string());
        let common =
            ["--target", "mqtt", "--devices", "6", "--json", "--addr", &address, "--server-pid", &pid];
        let args = [&["loadtest"], args, &common].concat();
        match Cli::try_parse_from(args).expect("good arguments").scenario {
            Scenario::Hold(args) => hold::measure(&args).await,
            Scenario::Unicast(args) => unicast::measure(&args).await,
            Scenario::Broadcast(args) => burst::measure(&args, "broadcast", 1).await,
            Scenario::Flood(args) => burst::measure(&args, "flood", FLOOD).await,
            Scenario::Offline(args) => offline::measure(&args).await,
            Scenario::Storm(args) => storm::measure(&args).await,
            _ => panic!("no scenario of a broker"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_scenario_drives_a_broker() {
        let broker = Broker::start(false).await;
        let unicast = run(&broker, &["unicast", "--rate", "100", "--seconds", "1"]).await.expect("measured");
        assert_eq!((unicast.target, unicast.lost), ("mqtt", 0));
        assert!(unicast.deliveries.is_some_and(|n| n > 50) && unicast.p50_ms.is_some());
        let broadcast = run(&broker, &["broadcast", "--rounds", "3"]).await.expect("measured");
        assert_eq!((broadcast.deliveries, broadcast.lost), (Some(18), 0));
        let flood = run(&broker, &["flood", "--rounds", "2"]).await.expect("measured");
        assert_eq!((flood.deliveries, flood.lost), (Some(120), 0));
        let hold = run(&broker, &["hold", "--seconds", "0"]).await.expect("measured");
        assert_eq!((hold.deliveries, hold.lost), (Some(18), 0));
        assert!(hold.rss_bytes_per_session.is_some() && hold.cpu_us_per_connect.is_some());
        assert_eq!(broker.waiting(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_pushed_to_devices_that_are_away_waits_at_the_broker() {
        let broker = Broker::start(false).await;
        let offline = run(&broker, &["offline", "--messages", "5"]).await.expect("measured");
        assert_eq!((offline.pointers, offline.disk_bytes_per_pointer), (Some(30), None));
        assert_eq!(broker.waiting(), 30);
        let refused = run(&broker, &["storm"]).await.expect_err("it isn't ours to kill");
        assert!(refused.to_string().contains("--start"), "{refused}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_broker_that_refuses_is_said_with_what_to_do() {
        let broker = Broker::start(true).await;
        let refused = run(&broker, &["broadcast"]).await.expect_err("refused");
        assert!(refused.to_string().contains("allow_anonymous true"), "{refused}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn flags_that_do_not_go_together_say_which_do() {
        let wrong = async |args: &[&str]| {
            let args = [&["loadtest", "unicast", "--devices", "6"], args].concat();
            let Scenario::Unicast(args) = Cli::try_parse_from(args).expect("parsed").scenario else {
                panic!("another scenario")
            };
            unicast::measure(&args).await.expect_err("wrong").to_string()
        };
        assert!(wrong(&["--target", "mqtt"]).await.contains("--start 'mosquitto"));
        assert!(
            wrong(&["--target", "mqtt", "--transport", "quic", "--start", "true"])
                .await
                .contains("tcp or tls")
        );
        assert!(wrong(&["--start", "mosquitto"]).await.contains("--target mqtt"));
        assert!(wrong(&["--target", "mqtt", "--start", "false"]).await.contains("`false` ended"));
        assert!(wrong(&["--addr", "127.0.0.1:1", "--server-pid", "1"]).await.contains("--router-addr"));
    }
}
