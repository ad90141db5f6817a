//! TLS 1.3 by rustls' unbuffered API: records come from and go to the shard's shared scratch, so that an idle session holds keys and no buffer.
//! (Rejected: the buffered API, whose deframer keeps 4 KB a session.)

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};

/// TLS of one connection.
///
/// rustls remembers where in the received bytes the pieces of an unfinished handshake message lie, and panics when it is asked
/// without them: so it always gets what is retained, and is never asked again once that is gone.
pub(super) struct Tls {
    inner: UnbufferedServerConnection,
    /// Broken, or goodbye was said.
    over: bool,
}

/// What came of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Received {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// The handshake is complete.
    pub established: bool,
    /// The peer said goodbye.
    pub closed: bool,
}

/// The peer broke TLS; an alert for it was appended to the output.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TlsError(#[from] rustls::Error);

impl Tls {
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self { inner: UnbufferedServerConnection::new(config)?, over: false })
    }

    /// Works on `incoming`, appends plaintext to `plain`, and what has to be sent to `out`. What is not consumed comes again, with more behind it.
    pub(super) fn receive(
        &mut self,
        incoming: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Received, TlsError> {
        let mut received = Received::default();
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.inner.process_tls_records(&mut incoming[received.consumed..]);
            let mut done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
                // What was encoded is in `out`, which is sent in order: as good as transmitted.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => received.closed = true,
                Ok(ConnectionState::WriteTraffic(_)) => {
                    received.established = true;
                    done = true;
                }
                // Never offered, so never sent; taken off the queue all the same.
                Ok(ConnectionState::ReadEarlyData(mut data)) => while data.next_record().is_some() {},
                Ok(_) => done = true,
                Err(error) => {
                    self.over = true;
                    self.alert(&mut incoming[received.consumed + discard..], out);
                    return Err(error.into());
                }
            }
            received.consumed += discard;
            if done {
                return Ok(received);
            }
        }
    }

    /// Appends the alert that rustls queued with an error.
    fn alert(&mut self, rest: &mut [u8], out: &mut Vec<u8>) {
        let mut consumed = 0;
        loop {
            let UnbufferedStatus { discard, state, .. } =
                self.inner.process_tls_records(&mut rest[consumed..]);
            match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                _ => return,
            }
            consumed += discard;
        }
    }

    /// Appends `plain`, encrypted. `retained` is what was received and not consumed.
    pub(super) fn send(
        &mut self,
        retained: &mut [u8],
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        if self.over {
            return Err(TlsError(rustls::Error::General("TLS has ended".into())));
        }
        loop {
            match self.inner.process_tls_records(retained).state? {
                // A key update that goes before.
                ConnectionState::EncodeTlsData(mut data) => encode(&mut data, out),
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(mut traffic) => {
                    let guess = plain.len() + 32 * (plain.len() / 16_384 + 1);
                    append(out, guess, |room| match traffic.encrypt(plain, room) {
                        Ok(written) => Ok(Some(written)),
                        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                        Err(EncryptError::EncryptExhausted) => Ok(None),
                    });
                    return Ok(());
                }
                _ => return Err(TlsError(rustls::Error::HandshakeNotComplete)),
            }
        }
    }

    /// Appends a `close_notify`, if the handshake got that far. Nothing is sent or received after it.
    pub(super) fn close(&mut self, retained: &mut [u8], out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.over, true)
            && let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                self.inner.process_tls_records(retained).state
        {
            append(out, 32, |room| match traffic.queue_close_notify(room) {
                Ok(written) => Ok(Some(written)),
                Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                Err(EncryptError::EncryptExhausted) => Ok(None),
            });
        }
    }
}

/// Appends a handshake record, an alert or a key update.
fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) {
    append(out, 0, |room| match data.encode(room) {
        Ok(written) => Ok(Some(written)),
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        Err(EncodeError::AlreadyEncoded) => Ok(None),
    });
}

/// Lets `fill` write behind the end of `out`, into `room` bytes; `Err` says how many it needs.
fn append(
    out: &mut Vec<u8>,
    mut room: usize,
    mut fill: impl FnMut(&mut [u8]) -> Result<Option<usize>, usize>,
) {
    let start = out.len();
    loop {
        out.resize(start + room, 0);
        match fill(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written.unwrap_or(0));
                return;
            }
            Err(needed) => room = needed,
        }
    }
}
