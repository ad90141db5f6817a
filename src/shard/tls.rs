//! TLS 1.3 by rustls' unbuffered API: records come from and go to the shard's shared scratch, so that an idle session holds keys and no buffer.
//! (Rejected: the buffered API, whose deframer keeps 4 KB a session.)

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};

use super::few::Few;

/// TLS of one connection.
///
/// rustls remembers where in the received bytes the pieces of an unfinished handshake message lie, and panics when it is asked
/// without them: so it always gets what is retained, and is never asked again once that is gone.
pub(super) struct Tls {
    inner: UnbufferedServerConnection,
    /// Received and not yet a whole record.
    pub(super) retained: Few<u8>,
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
        let inner = UnbufferedServerConnection::new(config)?;
        Ok(Self { inner, retained: Few::default(), over: false })
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
                    self.alert(out);
                    return Err(error.into());
                }
            }
            received.consumed += discard;
            if done {
                return Ok(received);
            }
        }
    }

    /// Appends what rustls queued before an error: the alert, mostly. As long as something is queued it doesn't look at received bytes, and
    /// it must not: those that broke it would break it again.
    fn alert(&mut self, out: &mut Vec<u8>) {
        while self.inner.wants_write() {
            match self.inner.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
                _ => return,
            }
        }
    }

    /// Appends `plain`, encrypted.
    pub(super) fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.over {
            return Err(TlsError(rustls::Error::General("TLS has ended".into())));
        }
        loop {
            match self.inner.process_tls_records(&mut self.retained).state? {
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
    pub(super) fn close(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.over, true)
            && let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                self.inner.process_tls_records(&mut self.retained).state
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki;
    use proptest::prelude::*;

    fn config() -> Arc<ServerConfig> {
        let dir = tempfile::tempdir().expect("a directory");
        let dev = pki::develop(dir.path()).expect("certificates");
        pki::server_config_device(&dev.server_certificate, &dev.server_key).expect("TLS")
    }

    /// A record, whole as far as its length goes, with the beginning of a handshake message, or anything else, in it.
    fn record() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop_oneof![8 => Just(22u8), 1 => 20u8..=24, 1 => any::<u8>()];
        let handshake = (1u8..=24, 0u16..40, proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(kind, length, body)| [&[kind, 0][..], &length.to_be_bytes(), &body].concat());
        let payload = prop_oneof![handshake, proptest::collection::vec(any::<u8>(), 0..8)];
        (kind, payload).prop_map(|(kind, payload)| {
            [&[kind, 3, 3][..], &(payload.len() as u16).to_be_bytes(), &payload].concat()
        })
    }

    proptest! {
        /// Whatever comes, in whatever pieces, and whenever it is given up: no panic, and at most one end.
        #[test]
        fn no_bytes_and_no_end_make_it_panic(
            records in proptest::collection::vec(record(), 0..6),
            cuts in proptest::collection::vec(1usize..30, 1..20),
            sends in any::<bool>(),
        ) {
            static CONFIG: std::sync::OnceLock<Arc<ServerConfig>> = std::sync::OnceLock::new();
            let mut tls = Tls::new(CONFIG.get_or_init(config).clone()).expect("TLS");
            let bytes = records.concat();
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let cut = rest.len().min(*cuts.next().expect("a cycle"));
                let mut incoming = tls.retained.take();
                incoming.extend_from_slice(&rest[..cut]);
                rest = &rest[cut..];
                let Ok(received) = tls.receive(&mut incoming, &mut plain, &mut out) else { break };
                tls.retained.set(incoming.split_off(received.consumed));
                if sends {
                    prop_assert!(tls.send(b"early", &mut out).is_err());
                }
            }
            tls.close(&mut out);
            let before = out.len();
            tls.retained.take();
            tls.close(&mut out);
            prop_assert!(tls.send(b"late", &mut out).is_err());
            prop_assert_eq!((before, plain.len()), (out.len(), 0));
        }
    }
}
