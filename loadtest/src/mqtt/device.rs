//! A device of a broker: connects, subscribes to its topic once, acknowledges what comes, and connects again when it breaks.

use std::time::Duration;

use mooring::client::device::Leave;
use mooring::client::net::{Stream, deadline};
use mooring::client::{Backoff, Endpoint};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::watch;

use super::packet::{Packet, PacketError};
use super::{End, NUMBER_BYTES, SECONDS, connect, fill, packets, topic, write};
use crate::fleet::{App, device_id};

/// Seconds between two pings: what a device of an edge has by default.
const KEEP_ALIVE_S: u16 = 240;
/// A broker ends a session after one and a half times that: it is asked before.
const PING: Duration = Duration::from_secs(KEEP_ALIVE_S as u64);
/// The id of the only SUBSCRIBE.
const SUBSCRIBE: u16 = 1;
/// A CONNACK's "server unavailable", which may change.
const UNAVAILABLE: u8 = 3;

/// One device.
pub(crate) struct Device {
    endpoint: Endpoint,
    n: u32,
    app: App,
    backoff: Backoff,
    rng: SmallRng,
}

impl Device {
    pub(crate) fn new(endpoint: Endpoint, n: u32, app: App, backoff: Backoff, seed: u64) -> Self {
        Self { endpoint, n, app, backoff, rng: SmallRng::seed_from_u64(seed ^ u64::from(n)) }
    }

    /// Stays connected until it is to leave.
    pub(crate) async fn run(mut self, mut stay: watch::Receiver<Leave>) {
        loop {
            let ended = self.session(&mut stay).await;
            self.app.gone();
            let Err(end) = ended else { return };
            if matches!(end, End::Odd(_)) || matches!(end, End::Refused(_, code) if code != UNAVAILABLE) {
                self.app.turned_away(&device_id(self.n), &end.to_string());
                return;
            }
            let wait = Duration::from_millis(self.backoff.wait(&mut self.rng));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = leaves(&mut stay) => return,
            }
        }
    }

    /// One connection, until it breaks or the device has left.
    async fn session(&mut self, stay: &mut watch::Receiver<Leave>) -> Result<(), End> {
        let mut stream = tokio::select! {
            stream = self.endpoint.connect() => stream?,
            () = leaves(stay) => return Ok(()),
        };
        let mut output = Vec::new();
        if connect(&mut stream, &device_id(self.n), false, KEEP_ALIVE_S).await? {
            self.welcome();
        } else {
            Packet::Subscribe { id: SUBSCRIBE, topic: &topic(self.n), qos: 1 }.put(&mut output);
        }
        let mut input = Vec::new();
        loop {
            write(&mut stream, &mut output).await?;
            tokio::select! {
                filled = tokio::time::timeout(PING, fill(&mut stream, &mut input)) => match filled {
                    Ok(filled) => filled?,
                    Err(_) => Packet::PingReq.put(&mut output),
                },
                () = leaves(stay) => return leave(&mut stream).await,
            }
            packets(&mut input, |packet| self.packet(packet, &mut output))?;
        }
    }

    fn packet(&mut self, packet: Packet<'_>, output: &mut Vec<u8>) -> Result<(), End> {
        match packet {
            Packet::Publish { id, payload, .. } => {
                let number = payload.first_chunk::<NUMBER_BYTES>();
                self.app.came(number.map_or(0, |bytes| u64::from_be_bytes(*bytes)));
                if let Some(id) = id {
                    Packet::PubAck { id }.put(output);
                }
            }
            // QoS 0 would be less work than what is compared.
            Packet::SubAck { code: 1, .. } => self.welcome(),
            Packet::SubAck { code, .. } => return Err(End::Refused("subscription", code)),
            Packet::PingResp => {}
            _ => return Err(End::Odd(PacketError::Malformed)),
        }
        Ok(())
    }

    fn welcome(&mut self) {
        self.backoff.reset();
        self.app.welcome();
    }
}

async fn leaves(stay: &mut watch::Receiver<Leave>) {
    // That nobody is left to say so is the same.
    stay.wait_for(|leave| *leave != Leave::Stay).await.ok();
}

/// Says goodbye, and waits until the broker has closed: then it knows that nobody is connected.
async fn leave(stream: &mut Stream) -> Result<(), End> {
    let mut bytes = Vec::new();
    Packet::Disconnect.put(&mut bytes);
    write(stream, &mut bytes).await?;
    let closed = async {
        while fill(stream, &mut bytes).await.is_ok() {
            bytes.clear();
        }
    };
    Ok(deadline("end of the connection", SECONDS, closed).await?)
}
