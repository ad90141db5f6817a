//! Any broker of MQTT 3.1.1 at the same work: one client a device, a topic for each, QoS 1 both ways, sessions that stay (clean session 0), an
//! acknowledgement a message. What takes the router's place publishes each message to each device's topic, as MQTT has no batches.
//!
//! A payload begins with the message's number (8 bytes), so it has at least these.

#[cfg(test)]
mod broker;
mod device;
mod packet;
mod publisher;
mod server;

pub(crate) use device::Device;
pub(crate) use publisher::Publisher;
pub(crate) use server::Server;

use mooring::client::ClientError;
use mooring::client::net::Stream;
use mooring::client::net::deadline;
use packet::{Packet, PacketError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::fleet::device_id;

/// Seconds for an answer to CONNECT, and for bytes to go out.
const SECONDS: u64 = 15;
/// Bytes that a connection reads at a time.
const READ_BYTES: usize = 2_048;
/// Bytes of the message's number.
const NUMBER_BYTES: usize = 8;

/// Where a device's messages are published.
fn topic(device: u32) -> String {
    format!("push/{}", device_id(device))
}

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It couldn't be made, or it broke.
    Broken(ClientError),
    /// The broker sent something odd.
    Odd(PacketError),
    /// The broker doesn't want it, by the code of its CONNACK or SUBACK.
    Refused(&'static str, u8),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(error) => error.fmt(f),
            Self::Odd(error) => write!(f, "the broker sent {error}"),
            Self::Refused(what, code) => write!(
                f,
                "the broker refused the {what} (code {code}): it must let anybody in, such as mosquitto's `allow_anonymous true`"
            ),
        }
    }
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        Self::Broken(error)
    }
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// Reads more into the buffer.
async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Result<(), End> {
    buffer.reserve(READ_BYTES);
    match stream.read_buf(buffer).await? {
        0 => Err(ClientError::Closed.into()),
        _ => Ok(()),
    }
}

/// Takes the packets that are whole out of the buffer, and hands each over.
fn packets(buffer: &mut Vec<u8>, mut each: impl FnMut(Packet<'_>) -> Result<(), End>) -> Result<(), End> {
    let mut at = 0;
    while let Some((packet, length)) = Packet::read(&buffer[at..]).map_err(End::Odd)? {
        each(packet)?;
        at += length;
    }
    buffer.drain(..at);
    Ok(())
}

/// Writes all of it, under a deadline.
async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &mut Vec<u8>) -> Result<(), End> {
    if !bytes.is_empty() {
        deadline("room to write", SECONDS, stream.write_all(bytes)).await??;
        bytes.clear();
    }
    Ok(())
}

/// Says CONNECT and waits for the answer. Whether there was a session.
async fn connect(stream: &mut Stream, client_id: &str, clean: bool, keep_alive_s: u16) -> Result<bool, End> {
    let mut bytes = Vec::new();
    Packet::Connect { client_id, clean, keep_alive_s }.put(&mut bytes);
    write(stream, &mut bytes).await?;
    // What comes behind the answer is left for the session.
    let mut answer = [0; 4];
    deadline("answer to CONNECT", SECONDS, stream.read_exact(&mut answer)).await??;
    match Packet::read(&answer) {
        Ok(Some((Packet::ConnAck { session_present, code: 0 }, _))) => Ok(session_present),
        Ok(Some((Packet::ConnAck { code, .. }, _))) => Err(End::Refused("connection", code)),
        Ok(_) => Err(End::Odd(PacketError::Unexpected(answer[0]))),
        Err(error) => Err(End::Odd(error)),
    }
}
