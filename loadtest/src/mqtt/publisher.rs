//! What takes the router's place: publishes each message to the topic of each device, by QoS 1, and counts the acknowledgements. A broker
//! sends one when it has taken the message over, which says nothing of its disk.

use std::sync::Arc;

use mooring::cli::output::Failure;
use mooring::client::Endpoint;
use mooring::client::net::{Stream, deadline};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::packet::{Packet, PacketError};
use super::{End, NUMBER_BYTES, connect, fill, packets, topic, write};

/// Publications that wait for their acknowledgement; there are 65,535 ids.
const IN_FLIGHT: usize = 5_000;
/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 64 * 1024;
/// Seconds without an acknowledgement after which it gives up.
const STALLED_SECONDS: u64 = 30;

/// A connection that publishes.
pub(crate) struct Publisher {
    stream: WriteHalf<Stream>,
    output: Vec<u8>,
    payload: Vec<u8>,
    next_id: u16,
    sent: u64,
    room: Arc<Semaphore>,
    acked: watch::Receiver<Acked>,
    /// Reads acknowledgements; ends with this.
    _reader: JoinSet<()>,
}

#[derive(Default)]
struct Acked {
    count: u64,
    /// Why there will be no more.
    end: Option<String>,
}

impl Publisher {
    /// Connects; clean, as it subscribes to nothing.
    pub(crate) async fn connect(endpoint: &Endpoint, payload_bytes: u32) -> Result<Self, Failure> {
        let id = format!("loadtest-{:08x}", rand::random::<u32>());
        let open = async {
            let mut stream = endpoint.connect().await?;
            connect(&mut stream, &id, true, 0).await?;
            Ok(stream)
        };
        let stream = open.await.map_err(|end: End| Failure::failed(format!("publishing: {end}")))?;
        let (read, stream) = tokio::io::split(stream);
        let room = Arc::new(Semaphore::new(IN_FLIGHT));
        let (ack, acked) = watch::channel(Acked::default());
        let mut reader = JoinSet::new();
        reader.spawn(acks(read, ack, Arc::clone(&room)));
        let payload = vec![b'x'; NUMBER_BYTES.max(payload_bytes as usize)];
        Ok(Self { stream, output: Vec::new(), payload, next_id: 0, sent: 0, room, acked, _reader: reader })
    }

    /// Publishes message `number` to each of these.
    pub(crate) async fn publish(
        &mut self,
        number: u64,
        devices: impl Iterator<Item = u32>,
    ) -> Result<(), Failure> {
        self.payload[..NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
        for device in devices {
            self.take_room().await?;
            // 0 is no id.
            self.next_id = self.next_id % u16::MAX + 1;
            let id = Some(self.next_id);
            Packet::Publish { topic: &topic(device), id, dup: false, payload: &self.payload }
                .put(&mut self.output);
            self.sent += 1;
            if self.output.len() >= WRITE_BYTES {
                self.flush().await?;
            }
        }
        self.flush().await
    }

    async fn take_room(&mut self) -> Result<(), Failure> {
        let permit = if let Ok(permit) = self.room.try_acquire() {
            permit
        } else {
            self.flush().await?;
            let permit = deadline("acknowledgement", STALLED_SECONDS, self.room.acquire()).await;
            permit.map_err(Failure::failed)?.map_err(|_| self.ended())?
        };
        permit.forget();
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        write(&mut self.stream, &mut self.output)
            .await
            .map_err(|end| Failure::failed(format!("publishing: {end}")))
    }

    /// Waits until all is acknowledged.
    pub(crate) async fn all_acked(&self) -> Result<(), Failure> {
        let mut acked = self.acked.clone();
        loop {
            {
                let now = acked.borrow_and_update();
                if now.count >= self.sent {
                    return Ok(());
                }
                if now.end.is_some() {
                    break;
                }
            }
            let changed = deadline("acknowledgement", STALLED_SECONDS, acked.changed()).await;
            if changed.map_err(Failure::failed)?.is_err() {
                break;
            }
        }
        Err(self.ended())
    }

    fn ended(&self) -> Failure {
        let why = self.acked.borrow().end.clone();
        Failure::failed(format!("publishing: {}", why.unwrap_or_else(|| "the connection has ended".into())))
    }
}

/// Counts acknowledgements until the connection ends.
async fn acks(mut stream: ReadHalf<Stream>, acked: watch::Sender<Acked>, room: Arc<Semaphore>) {
    let mut input = Vec::new();
    let end = loop {
        let mut count = 0;
        let read = fill(&mut stream, &mut input).await.and_then(|()| {
            packets(&mut input, |packet| match packet {
                Packet::PubAck { .. } => {
                    count += 1;
                    Ok(())
                }
                _ => Err(End::Odd(PacketError::Malformed)),
            })
        });
        room.add_permits(count);
        acked.send_modify(|acked| acked.count += count as u64);
        if let Err(end) = read {
            break end;
        }
    };
    acked.send_modify(|acked| acked.end = Some(end.to_string()));
    room.close();
}
