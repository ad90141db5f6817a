//! Keys and certificates: a small CA for development and for routers, and the TLS settings made from PEM files.
//!
//! Keys are ECDSA P-256: the cheapest full handshake for both sides. Key files are 0600. Nothing is overwritten unless asked; what is
//! there is used, so that [`develop`] can be called at every start.
//!
//! In production the edge's own certificate comes from wherever the operator's certificates come from; the CA made here is for
//! routers, of which there are few and all are known.

pub mod file;
mod tls;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use self::file::{Existing, Privacy};
pub use self::tls::{
    ALPN, client_config_device, client_config_router, router_name, server_config_device, server_config_router,
};
use crate::clock::Clock;
use crate::credential::{Secret, SecretError};

/// Days that a development CA holds.
pub const CA_DAYS: u32 = 3_650;
/// Days that a certificate holds unless said otherwise.
pub const CERTIFICATE_DAYS: u32 = 825;
/// The name of the development router.
pub const DEV_ROUTER: &str = "dev-router";
/// The app key of development.
pub const DEV_APP: &str = "demo";
const DAY_S: u64 = 86_400;
/// Certificates hold from this long ago, as clocks differ.
const SKEW: Duration = Duration::from_secs(DAY_S);

/// A key or certificate can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file can't be read.
    #[error("{} can't be read: {error}; `mooring keys --help` says how to make one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file can't be written.
    #[error("{} can't be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It would be overwritten.
    #[error("{} is there already and is not overwritten; use --force, or another name", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A certificate without its key.
    #[error("{} is there, but its key {} is not: bring the key back, or remove the certificate", certificate.display(), key.display())]
    HalfPair {
        /// The certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// A PEM file without what it should have.
    #[error("{} holds no {wanted} in PEM", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What it should have.
        wanted: &'static str,
    },
    /// Certificate and key don't fit, or rustls doesn't take them.
    #[error("certificate {} with key {}: {error}", certificate.display(), key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// Why.
        error: rustls::Error,
    },
    /// What a file holds can't be used.
    #[error("{}: {text}", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// Why.
        text: String,
    },
    /// A router's certificate doesn't say its name.
    #[error("the certificate has no single common name")]
    Name,
    /// A name that can't stand in a certificate.
    #[error("`{name}` can't stand in a certificate: {text}")]
    BadName {
        /// What was given.
        name: String,
        /// Why.
        text: String,
    },
    /// Making failed.
    #[error("certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// TLS can't be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The app's secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// A certificate and its key, as files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM, 0600.
    pub key: PathBuf,
}

impl Pair {
    fn named(dir: &Path, name: &str) -> Self {
        Self { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
    }
}

/// A CA: `ca.pem` and `ca.key` in `dir`.
pub fn make_ca(dir: &Path, days: u32, existing: Existing) -> Result<Pair, PkiError> {
    let pair = Pair::named(dir, "ca");
    let mut params = params("Mooring CA", days);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = key_for(&pair, existing)?;
    let certificate = params.self_signed(&key)?;
    file::write(&pair.certificate, &certificate.pem(), Privacy::Public, existing)?;
    Ok(pair)
}

/// A server certificate for localhost, the loopback addresses and `names` (DNS names or IP addresses): `server.pem` and
/// `server.key` in `out`.
pub fn make_server(
    names: &[String],
    ca: &Path,
    ca_key: &Path,
    days: u32,
    out: &Path,
    existing: Existing,
) -> Result<Pair, PkiError> {
    let mut params = params("Mooring edge", days);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let local = ["localhost", "127.0.0.1", "::1"].into_iter();
    for name in local.chain(names.iter().map(String::as_str)) {
        params.subject_alt_names.push(alternative(name)?);
    }
    let pair = Pair::named(out, "server");
    sign(params, &pair, ca, ca_key, existing)?;
    Ok(pair)
}

/// A router's certificate with this common name, for client authentication: `<name>.pem` and `<name>.key` in `out`.
pub fn make_router(
    name: &str,
    ca: &Path,
    ca_key: &Path,
    days: u32,
    out: &Path,
    existing: Existing,
) -> Result<Pair, PkiError> {
    if !crate::ids::is_name(name, 64) || name.starts_with('.') {
        let text = "1 to 64 letters, digits, - _ . :, not beginning with a dot".into();
        return Err(PkiError::BadName { name: name.into(), text });
    }
    let pair = Pair::named(out, name);
    make_router_pair(name, &pair, ca, ca_key, days, existing)?;
    Ok(pair)
}

fn make_router_pair(
    name: &str,
    pair: &Pair,
    ca: &Path,
    ca_key: &Path,
    days: u32,
    existing: Existing,
) -> Result<(), PkiError> {
    let mut params = params(name, days);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign(params, pair, ca, ca_key, existing)
}

fn sign(
    mut params: CertificateParams,
    pair: &Pair,
    ca: &Path,
    ca_key: &Path,
    existing: Existing,
) -> Result<(), PkiError> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let wrong =
        |path: &Path, error: rcgen::Error| PkiError::Verifier { path: path.into(), text: error.to_string() };
    let issuer_key = KeyPair::from_pem(&file::read(ca_key)?).map_err(|error| wrong(ca_key, error))?;
    let issuer = Issuer::from_ca_cert_pem(&file::read(ca)?, issuer_key).map_err(|error| wrong(ca, error))?;
    let key = key_for(pair, existing)?;
    let certificate = params.signed_by(&key, &issuer)?;
    file::write(&pair.certificate, &certificate.pem(), Privacy::Public, existing)
}

/// A new key in its file. The key is written before its certificate, so a key alone is what an interrupted run left: it is used.
fn key_for(pair: &Pair, existing: Existing) -> Result<KeyPair, PkiError> {
    if existing == Existing::Keep {
        if pair.certificate.exists() {
            return Err(PkiError::Exists { path: pair.certificate.clone() });
        }
        if pair.key.exists() {
            return KeyPair::from_pem(&file::read(&pair.key)?)
                .map_err(|error| PkiError::Verifier { path: pair.key.clone(), text: error.to_string() });
        }
    }
    let key = KeyPair::generate()?;
    file::write(&pair.key, &key.serialize_pem(), Privacy::Secret, existing)?;
    Ok(key)
}

fn params(common_name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = date_time_ymd(1970, 1, 1) + Duration::from_millis(Clock::new(0).now());
    params.not_before = now - SKEW;
    params.not_after = now + Duration::from_secs(DAY_S * u64::from(days));
    params
}

fn alternative(name: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let bad = |text: String| PkiError::BadName { name: name.into(), text };
    if name.is_empty() {
        return Err(bad("it is empty".into()));
    }
    Ok(SanType::DnsName(name.try_into().map_err(|error: rcgen::Error| bad(error.to_string()))?))
}

/// What a development edge, its devices and its router need.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DevSet {
    /// Where it all is.
    pub dir: PathBuf,
    /// What devices and the router trust, and what signed the router's certificate.
    pub ca: PathBuf,
    /// Its key.
    pub ca_key: PathBuf,
    /// The edge's certificate.
    pub server_certificate: PathBuf,
    /// Its key.
    pub server_key: PathBuf,
    /// The router's certificate; its name is [`DEV_ROUTER`].
    pub router_certificate: PathBuf,
    /// Its key.
    pub router_key: PathBuf,
    /// The secret of the app [`DEV_APP`].
    pub app_secret: PathBuf,
    /// A configuration of all that.
    pub config: PathBuf,
}

/// Makes what isn't there yet under `<data_dir>/dev/`, and says where all of it is. A second call changes nothing.
pub fn develop(data_dir: &Path) -> Result<DevSet, PkiError> {
    let dir = data_dir.join("dev");
    let (ca, server, router) =
        (Pair::named(&dir, "ca"), Pair::named(&dir, "server"), Pair::named(&dir, "router"));
    if !is_there(&ca)? {
        make_ca(&dir, CA_DAYS, Existing::Keep)?;
    }
    if !is_there(&server)? {
        make_server(&[], &ca.certificate, &ca.key, CERTIFICATE_DAYS, &dir, Existing::Keep)?;
    }
    if !is_there(&router)? {
        let (path, key) = (&ca.certificate, &ca.key);
        make_router_pair(DEV_ROUTER, &router, path, key, CERTIFICATE_DAYS, Existing::Keep)?;
    }
    let app_secret = dir.join("app.secret");
    if !app_secret.exists() {
        let secret = Secret::generate()?.to_hex() + "\n";
        file::write(&app_secret, &secret, Privacy::Secret, Existing::Keep)?;
    }
    let config = dir.join("mooring.toml");
    if !config.exists() {
        file::write(&config, DEV_CONFIG, Privacy::Public, Existing::Keep)?;
    }
    Ok(DevSet {
        dir,
        ca: ca.certificate,
        ca_key: ca.key,
        server_certificate: server.certificate,
        server_key: server.key,
        router_certificate: router.certificate,
        router_key: router.key,
        app_secret,
        config,
    })
}

fn is_there(pair: &Pair) -> Result<bool, PkiError> {
    match (pair.certificate.exists(), pair.key.exists()) {
        (true, false) => {
            Err(PkiError::HalfPair { certificate: pair.certificate.clone(), key: pair.key.clone() })
        }
        (certificate, _) => Ok(certificate),
    }
}

const DEV_CONFIG: &str = "\
# Made by `mooring serve --dev`: for this machine only. deploy/mooring.toml documents every key.
data_dir = \"..\"

[device]
tls = \"127.0.0.1:7443\"
plain = \"127.0.0.1:7444\"
certificate = \"server.pem\"
key = \"server.key\"

[router]
listen = \"127.0.0.1:7400\"
certificate = \"server.pem\"
key = \"server.key\"
client_ca = \"ca.pem\"

[[router.routers]]
name = \"dev-router\"
apps = \"*\"
streams = \"*\"

[admin]
listen = \"127.0.0.1:7480\"

[[apps]]
key = \"demo\"
secret_file = \"app.secret\"
stream = \"main\"
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    fn content(set: &DevSet) -> Vec<Vec<u8>> {
        let mut names: Vec<_> =
            std::fs::read_dir(&set.dir).expect("listed").map(|e| e.expect("entry").path()).collect();
        names.sort();
        assert_eq!(names.len(), 8, "{names:?}");
        names.iter().map(|path| std::fs::read(path).expect("read")).collect()
    }

    #[test]
    fn developing_twice_changes_nothing_and_mends_what_is_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let set = develop(dir.path()).expect("made");
        let before = content(&set);
        assert_eq!(develop(dir.path()).expect("there"), set);
        assert_eq!(content(&set), before);
        // An interrupted run leaves a key alone.
        std::fs::remove_file(&set.router_certificate).expect("removed");
        let key = std::fs::read(&set.router_key).expect("read");
        develop(dir.path()).expect("mended");
        assert_eq!(std::fs::read(&set.router_key).expect("read"), key);
        client_config_router(&set.ca, &set.router_certificate, &set.router_key).expect("they fit");
        std::fs::remove_file(&set.server_key).expect("removed");
        assert!(matches!(develop(dir.path()), Err(PkiError::HalfPair { .. })));
    }

    #[test]
    fn the_development_configuration_is_valid() {
        let dir = tempfile::tempdir().expect("a directory");
        let set = develop(dir.path()).expect("made");
        let config = Config::load(Some(&set.config), &Overrides::default()).expect("valid");
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert_eq!(config.data_dir.canonicalize().expect("there"), dir.path().canonicalize().expect("there"));
        assert_eq!(config.apps[0].key.as_str(), DEV_APP);
        assert_eq!(config.router.routers[0].name, DEV_ROUTER);
        server_config_device(&config.device.certificate, &config.device.key).expect("valid");
        server_config_router(&config.router.certificate, &config.router.key, &config.router.client_ca)
            .expect("valid");
    }

    #[test]
    fn names_in_certificates_are_checked() {
        assert!(alternative("push.example.com").is_ok());
        assert!(alternative("10.0.0.1").is_ok());
        assert!(alternative("").is_err());
        assert!(alternative("ü").is_err());
        let dir = tempfile::tempdir().expect("a directory");
        let ca = make_ca(dir.path(), 1, Existing::Keep).expect("made");
        let bad = make_router("../x", &ca.certificate, &ca.key, 1, dir.path(), Existing::Keep);
        assert!(matches!(bad, Err(PkiError::BadName { .. })));
        let again = make_ca(dir.path(), 1, Existing::Keep);
        assert!(matches!(again, Err(PkiError::Exists { .. })));
        make_ca(dir.path(), 1, Existing::Replace).expect("replaced");
    }
}
