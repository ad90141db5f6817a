//! The flags by which `device` and `push` find an edge, and what they come to: an endpoint and the means to be let in.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::output::Failure;
use crate::client::device::Installation;
use crate::client::local::Ports;
use crate::client::quic::QuicClient;
use crate::client::{Endpoint, Transport, Way};
use crate::credential::{self, Secret};
use crate::ids::{AppKey, is_name};
use crate::{limits, pki};

/// Where an edge is, and how to trust it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "The edge")]
pub struct Edge {
    /// Take addresses, app, certificates and secret from an edge started with `serve --dev` on this data directory
    #[arg(long, value_name = "DATA_DIR")]
    pub dev: Option<PathBuf>,
    /// Its address
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// The CA that signed its certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The name in its certificate; by default the host of the address
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// The app key
    #[arg(long, value_name = "KEY")]
    pub app: Option<String>,
}

impl Edge {
    /// The app key.
    pub fn app(&self) -> Result<AppKey, Failure> {
        self.check_dev()?;
        let text = match (&self.app, &self.dev) {
            (Some(app), _) => app.as_str(),
            (None, Some(_)) => pki::DEV_APP,
            (None, None) => return Err(Failure::usage("--app KEY is needed (or --dev DATA_DIR)")),
        };
        AppKey::parse(text).ok_or_else(|| Failure::usage(format!("--app: '{text}' is no app key")))
    }

    /// Says what to do first, if no edge was ever started with `serve --dev` on that directory.
    fn check_dev(&self) -> Result<(), Failure> {
        match &self.dev {
            Some(dir) if !dir.join("dev").is_dir() => {
                let dir = dir.display();
                let todo = format!("start one: mooring serve --dev --data-dir {dir}");
                Err(Failure::usage(format!("--dev: no development edge has run on {dir}; {todo}")))
            }
            _ => Ok(()),
        }
    }

    /// A file under the development directory.
    fn dev_file(&self, name: &str) -> Option<PathBuf> {
        self.dev.as_ref().map(|dir| dir.join("dev").join(name))
    }

    /// The ports that the development edge is on.
    fn ports(&self) -> Result<Ports, Failure> {
        self.check_dev()?;
        let Some(dir) = &self.dev else { return Ok(Ports::default()) };
        Ok(Ports::read(dir).map_err(Failure::failed)?.unwrap_or_default())
    }

    fn ca(&self) -> Result<PathBuf, Failure> {
        let ca = self.ca.clone().or_else(|| self.dev_file("ca.pem"));
        ca.ok_or_else(|| Failure::usage("--ca FILE is needed (or --dev DATA_DIR, or --transport tcp)"))
    }

    fn server_name(&self, address: &str) -> Result<ServerName<'static>, Failure> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = self.server_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
        ServerName::try_from(name.to_owned())
            .map_err(|_| Failure::usage(format!("'{name}' is no name that a certificate could hold")))
    }

    /// Where devices connect.
    pub fn device_endpoint(&self, way: Way, source: Option<IpAddr>) -> Result<Endpoint, Failure> {
        let ports = self.ports()?;
        let port = match way {
            Way::Tls => ports.tls.unwrap_or(7443),
            Way::Quic => ports.quic.unwrap_or(7443),
            Way::Tcp => ports.plain.unwrap_or(7444),
        };
        let address = self.address.clone().unwrap_or_else(|| format!("127.0.0.1:{port}"));
        let tls = || pki::client_config_device(&self.ca()?).map_err(Failure::usage);
        let transport = match way {
            Way::Tcp => Transport::Plain,
            Way::Tls => Transport::Tls(tls()?, self.server_name(&address)?),
            Way::Quic => {
                let client = QuicClient::new(&*tls()?, &self.server_name(&address)?);
                Transport::Quic(client.map_err(Failure::usage)?)
            }
        };
        Ok(Endpoint { address: address.into(), transport, source })
    }

    /// Where routers connect, with this certificate and key.
    pub fn router_endpoint(
        &self,
        certificate: Option<&Path>,
        key: Option<&Path>,
    ) -> Result<Endpoint, Failure> {
        let port = self.ports()?.router.unwrap_or(7400);
        let address = self.address.clone().unwrap_or_else(|| format!("127.0.0.1:{port}"));
        let file = |given: Option<&Path>, dev: &str, flag: &str| {
            let path = given.map(Path::to_path_buf).or_else(|| self.dev_file(dev));
            path.ok_or_else(|| Failure::usage(format!("{flag} FILE is needed (or --dev DATA_DIR)")))
        };
        let certificate = file(certificate, "router.pem", "--certificate")?;
        let key = file(key, "router.key", "--key")?;
        let config = pki::client_config_router(&self.ca()?, &certificate, &key).map_err(Failure::usage)?;
        let transport = Transport::Tls(config, self.server_name(&address)?);
        Ok(Endpoint { address: address.into(), transport, source: None })
    }
}

/// How a router proves who it is.
#[derive(Clone, Debug, clap::Args)]
pub struct RouterIdentity {
    /// The router's certificate, PEM
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl RouterIdentity {
    /// Where routers connect, with this identity.
    pub fn endpoint(&self, edge: &Edge) -> Result<Endpoint, Failure> {
        edge.router_endpoint(self.certificate.as_deref(), self.key.as_deref())
    }
}

/// How devices prove who they are.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Credentials")]
pub struct Credentials {
    /// The credential, as `mooring keys credential` prints it (one device)
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["credential_file", "secret"])]
    pub credential: Option<String>,
    /// A file with that line, or with the credential alone (one device)
    #[arg(long, value_name = "FILE", conflicts_with = "secret")]
    pub credential_file: Option<PathBuf>,
    /// The app's secret: credentials are issued here. For tests: a device never has it
    #[arg(long, value_name = "FILE")]
    pub secret: Option<PathBuf>,
    /// The epoch of the credentials issued by --secret
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub epoch: u32,
}

/// Where credentials come from.
#[derive(Clone, Debug)]
pub enum Issuer {
    /// This one, for one device.
    Fixed(Vec<u8>),
    /// Issued for any device.
    Secret(Arc<Secret>, u32),
}

impl Credentials {
    /// Reads what the flags name.
    pub fn issuer(&self, edge: &Edge) -> Result<Issuer, Failure> {
        let text = match (&self.credential, &self.credential_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => Some(
                std::fs::read_to_string(path)
                    .map_err(|e| Failure::usage(format!("{} can't be read: {e}", path.display())))?,
            ),
            (None, None) => None,
        };
        if let Some(text) = text {
            // `keys credential` prints the id before it.
            let text = text.trim().rsplit('\t').next().unwrap_or_default();
            let bytes = credential::from_text(text);
            let bytes = bytes.filter(|b| (1..=limits::CREDENTIAL_BYTES).contains(&b.len()));
            let wrong = || Failure::usage("the credential is not what `mooring keys credential` prints");
            return bytes.map(Issuer::Fixed).ok_or_else(wrong);
        }
        let path = self.secret.clone().or_else(|| edge.dev_file("app.secret"));
        let needed = "--credential, --credential-file or --secret is needed (or --dev DATA_DIR)";
        let path = path.ok_or_else(|| Failure::usage(needed))?;
        let secret = Secret::load(&path).map_err(Failure::usage)?;
        Ok(Issuer::Secret(Arc::new(secret), self.epoch))
    }
}

impl Issuer {
    /// The credential of a device.
    pub fn credential(&self, app: &AppKey, device_id: &str) -> Vec<u8> {
        match self {
            Self::Fixed(bytes) => bytes.clone(),
            Self::Secret(secret, epoch) => credential::issue(secret, app, device_id, *epoch),
        }
    }
}

/// Where devices have their identities from.
#[derive(Clone, Debug)]
pub enum Identities {
    /// Credentials that exist or are issued here.
    Issued(Issuer),
    /// They register; what they keep is in this directory.
    Registered(PathBuf),
}

/// How a device begins.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Empty: it has none yet.
    pub device_id: String,
    /// The same.
    pub credential: Vec<u8>,
    /// With it the device registers.
    pub install_secret: Option<[u8; 16]>,
}

impl Identities {
    /// Of devices that register and keep what they get in `state`, or beside the development edge.
    pub fn registered(edge: &Edge, state: Option<PathBuf>, app: &AppKey) -> Result<Self, Failure> {
        let state = state.or_else(|| edge.dev_file("devices"));
        let needed = "--state DIR is needed with --register (or --dev DATA_DIR)";
        Ok(Self::Registered(state.ok_or_else(|| Failure::usage(needed))?.join(app.as_str())))
    }

    /// A device's, and what it keeps if it registers.
    pub fn of_device(&self, app: &AppKey, id: &str) -> Result<(Identity, Option<Installation>), Failure> {
        match self {
            Self::Issued(issuer) => {
                let (device_id, credential) = (id.to_owned(), issuer.credential(app, id));
                Ok((Identity { device_id, credential, install_secret: None }, None))
            }
            Self::Registered(state) => {
                if !is_name(id, limits::DEVICE_ID_BYTES) {
                    let text = format!("'{id}': the name of an installation has letters, digits, - _ . :");
                    return Err(Failure::usage(text));
                }
                let kept = Installation::open(&state.join(format!("{id}.json"))).map_err(Failure::failed)?;
                let identity = Identity {
                    device_id: kept.device_id.clone(),
                    credential: kept.credential.clone(),
                    install_secret: Some(*kept.install_secret.as_bytes()),
                };
                Ok((identity, Some(kept)))
            }
        }
    }
}
