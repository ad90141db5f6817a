//! TLS settings of both sides of both protocols: TLS 1.3 only, from PEM files.

use std::path::Path;
use std::sync::Arc;

use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::{CipherSuite, RootCertStore, version};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::PkiError;

/// The application protocol that devices ask for.
pub const ALPN: &[u8] = b"mooring/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// As phones ask: AES-128 first. The edge takes the suite that the client names first, as a phone without AES in hardware has `ChaCha20` there; and
/// rustls names AES-256 first, whose key schedule by SHA-384 (in software) was 4 % of the CPU of `mooring demo` by a profile.
fn provider_of_devices() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// The edge towards devices. Sessions resume by stateless tickets: the edge keeps nothing of a session that ended.
pub fn server_config_device(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, PkiError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(certificates(certificate)?, private_key(key)?)
        .map_err(|error| PkiError::Pair { certificate: certificate.into(), key: key.into(), error })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new()?;
    // One ticket is enough for a device that has one connection.
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// The edge towards routers: only who shows a certificate of this CA gets past the handshake. No tickets, so that every link is
/// checked against the CA anew.
pub fn server_config_router(
    certificate: &Path,
    key: &Path,
    client_ca: &Path,
) -> Result<Arc<ServerConfig>, PkiError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_ca)?), provider())
        .build()
        .map_err(|error| PkiError::Verifier { path: client_ca.into(), text: error.to_string() })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(certificate)?, private_key(key)?)
        .map_err(|error| PkiError::Pair { certificate: certificate.into(), key: key.into(), error })?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A device that trusts this CA. It doesn't resume: thousands of devices may share one setting in a test or a load, and one
/// would resume the session of another.
pub fn client_config_device(ca: &Path) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider_of_devices())
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A router that trusts this CA and shows its own certificate.
pub fn client_config_router(
    ca: &Path,
    certificate: &Path,
    key: &Path,
) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
        .map_err(|error| PkiError::Pair { certificate: certificate.into(), key: key.into(), error })?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name of a router: the common name of its certificate, of which there must be one.
pub fn router_name(certificate: &CertificateDer<'_>) -> Result<String, PkiError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| PkiError::Name)?;
    let mut names = parsed.subject().iter_common_name().map(x509_parser::x509::AttributeTypeAndValue::as_str);
    match (names.next(), names.next()) {
        (Some(Ok(name)), None) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(PkiError::Name),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let chain = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(PkiError::Nothing { path: path.into(), wanted: "certificate" }),
        Err(error) => Err(pem_error(path, "certificate", error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| pem_error(path, "private key", error))
}

fn roots(path: &Path) -> Result<RootCertStore, PkiError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store
            .add(certificate)
            .map_err(|error| PkiError::Verifier { path: path.into(), text: error.to_string() })?;
    }
    Ok(store)
}

fn pem_error(path: &Path, wanted: &'static str, error: pem::Error) -> PkiError {
    match error {
        pem::Error::Io(error) => PkiError::Read { path: path.into(), error },
        pem::Error::NoItemsFound => PkiError::Nothing { path: path.into(), wanted },
        other => PkiError::Verifier { path: path.into(), text: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, ServerConnection};

    use super::super::{DevSet, develop, make_router};
    use super::*;
    use crate::pki::file::Existing;

    /// Both sides in memory: the names of ALPN and client, or what failed.
    fn shake(
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
        name: &'static str,
    ) -> Result<(Option<Vec<u8>>, Option<String>), rustls::Error> {
        let name = ServerName::try_from(name).expect("a name");
        let mut server = ServerConnection::new(server)?;
        let mut client = ClientConnection::new(client, name)?;
        client.writer().write_all(b"x").expect("buffered");
        for _ in 0..8 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).expect("memory");
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                server.read_tls(&mut rest).expect("memory");
                server.process_new_packets()?;
            }
            bytes.clear();
            while server.wants_write() {
                server.write_tls(&mut bytes).expect("memory");
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).expect("memory");
                client.process_new_packets()?;
            }
        }
        assert!(!server.is_handshaking() && !client.is_handshaking());
        let peer = server.peer_certificates().map(|chain| router_name(&chain[0]).expect("a name"));
        Ok((server.alpn_protocol().map(<[u8]>::to_vec), peer))
    }

    fn dev() -> (tempfile::TempDir, DevSet) {
        let dir = tempfile::tempdir().expect("a directory");
        let set = develop(dir.path()).expect("made");
        (dir, set)
    }

    #[test]
    fn a_device_connects_by_every_local_name_and_only_with_its_ca() {
        let (_dir, set) = dev();
        let (_other_dir, other) = dev();
        let server = server_config_device(&set.server_certificate, &set.server_key).expect("valid");
        for name in ["localhost", "127.0.0.1", "::1"] {
            let client = client_config_device(&set.ca).expect("valid");
            let (alpn, _) = shake(server.clone(), client, name).expect("connected");
            assert_eq!(alpn.as_deref(), Some(ALPN));
        }
        let client = client_config_device(&set.ca).expect("valid");
        assert!(shake(server.clone(), client, "push.example.com").is_err());
        assert!(shake(server, client_config_device(&other.ca).expect("valid"), "localhost").is_err());
    }

    #[test]
    fn a_router_needs_a_certificate_of_the_ca_and_is_known_by_its_name() {
        let (_dir, set) = dev();
        let (_other_dir, other) = dev();
        let server = server_config_router(&set.server_certificate, &set.server_key, &set.ca).expect("valid");
        let client = |set: &DevSet| client_config_router(&set.ca, &set.router_certificate, &set.router_key);
        let (_, name) = shake(server.clone(), client(&set).expect("valid"), "localhost").expect("connected");
        assert_eq!(name.as_deref(), Some("dev-router"));
        // No certificate, one of another CA, and a server's certificate, which isn't for clients.
        assert!(shake(server.clone(), client_config_device(&set.ca).expect("valid"), "localhost").is_err());
        let foreign = client_config_router(&set.ca, &other.router_certificate, &other.router_key);
        assert!(shake(server.clone(), foreign.expect("valid"), "localhost").is_err());
        let of_server = client_config_router(&set.ca, &set.server_certificate, &set.server_key);
        assert!(shake(server, of_server.expect("valid"), "localhost").is_err());
    }

    #[test]
    fn errors_name_the_file() {
        let (dir, set) = dev();
        let text = |result: Result<Arc<ServerConfig>, PkiError>| result.expect_err("an error").to_string();
        let missing = dir.path().join("missing.pem");
        assert!(text(server_config_device(&missing, &set.server_key)).contains("missing.pem"));
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "nothing").expect("written");
        let said = text(server_config_device(&empty, &set.server_key));
        assert!(said.contains("empty.pem holds no certificate"), "{said}");
        let said = text(server_config_device(&set.server_certificate, &set.router_key));
        assert!(said.contains("server.pem") && said.contains("router.key"), "{said}");
        let said = text(server_config_router(&set.server_certificate, &set.server_key, &empty));
        assert!(said.contains("empty.pem"), "{said}");
        let out = dir.path().join("more");
        make_router("r2", &set.ca, &set.ca_key, 30, &out, Existing::Keep).expect("made");
    }
}
