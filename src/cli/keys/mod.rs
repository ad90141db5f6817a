//! `mooring keys`: everything that proves who somebody is. App secrets, device ids and credentials, registration tokens, and the
//! certificates of a small CA for routers.

mod devices;
mod tokens;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use super::output::{Failure, note};
use crate::config::ConfigErrors;
use crate::credential::{CredentialError, Secret, SecretError};
use crate::ids::AppKey;
use crate::pki::file::{Existing, Privacy};
use crate::pki::{self, CA_DAYS, CERTIFICATE_DAYS, Pair, PkiError};
use crate::token::{KeyError, TokenError};

/// Make and check app secrets, device credentials, registration tokens and certificates; revoke a device's credentials.
///
/// Key files are readable by their owner only, and nothing is overwritten unless --force is given.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  mooring keys app-secret --out app.secret
  mooring keys credential --app demo --device d-1 --secret app.secret
  mooring keys credential --app demo --from ids.txt \\
      --secret app.secret > credentials.tsv
  mooring keys token-key --algorithm eddsa --out-dir keys
  mooring keys token --app demo --key keys/token.key
  mooring keys revoke demo d-1 --data-dir mooring-data
  mooring keys epochs --config mooring.toml
  mooring keys ca --out-dir ca
  mooring keys router-certificate --name router-1 --ca ca/ca.pem \\
      --ca-key ca/ca.key --out-dir routers
  mooring keys server-certificate --host push.example.com --ca ca/ca.pem \\
      --ca-key ca/ca.key --out-dir edge")]
pub struct Args {
    #[command(subcommand)]
    make: Make,
    /// Answer with one JSON object (a line each, for credentials).
    #[arg(long, global = true)]
    json: bool,
    /// Overwrite files that are there.
    #[arg(long, global = true)]
    force: bool,
}

#[derive(Debug, Subcommand)]
enum Make {
    /// A new secret of an app: 64 hexadecimal digits.
    #[command(after_help = "Example:\n  mooring keys app-secret --out app.secret")]
    AppSecret {
        /// File to write; left out, it is printed.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Credentials of devices: a line each, the device id, a tab, the credential in base64url.
    Credential(devices::Credentials),
    /// Whether a credential is right, and of which epoch.
    CheckCredential(devices::CheckCredential),
    /// The id of the device that registers with an install secret.
    DeviceId(devices::DeviceId),
    /// The epochs of the credentials that an edge takes.
    Epochs(devices::EpochsOf),
    /// Revoke the credentials of one device, at a running edge.
    Revoke(devices::Revoke),
    /// A key that an app's backend signs registration tokens with.
    TokenKey(tokens::TokenKey),
    /// A registration token, as the app's backend would make it.
    Token(tokens::Token),
    /// Whether a registration token is right, and what it says.
    CheckToken(tokens::CheckToken),
    /// A CA: ca.pem and ca.key.
    #[command(after_help = "Example:\n  mooring keys ca --out-dir ca")]
    Ca {
        /// Directory to write to.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out_dir: PathBuf,
        /// Days that it holds.
        #[arg(long, default_value_t = CA_DAYS)]
        days: u32,
    },
    /// A certificate of the edge, for localhost and the given hosts: server.pem and server.key.
    #[command(after_help = "\
Example:
  mooring keys server-certificate --host push.example.com --ca ca.pem \\
      --ca-key ca.key --out-dir edge")]
    ServerCertificate {
        /// A DNS name or IP address that it is for; may be repeated.
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        #[command(flatten)]
        issuer: Issuer,
    },
    /// A certificate of a router: <NAME>.pem and <NAME>.key. The edge's configuration says what that name may do.
    #[command(after_help = "\
Example:
  mooring keys router-certificate --name router-1 --ca ca.pem \\
      --ca-key ca.key --out-dir routers")]
    RouterCertificate {
        /// The router's name, as in [[router.routers]].
        #[arg(long)]
        name: String,
        #[command(flatten)]
        issuer: Issuer,
    },
}

#[derive(Debug, clap::Args)]
struct Issuer {
    /// The CA's certificate.
    #[arg(long, value_name = "FILE", default_value = "ca.pem")]
    ca: PathBuf,
    /// The CA's key.
    #[arg(long, value_name = "FILE", default_value = "ca.key")]
    ca_key: PathBuf,
    /// Directory to write to.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out_dir: PathBuf,
    /// Days that it holds.
    #[arg(long, default_value_t = CERTIFICATE_DAYS)]
    days: u32,
}

#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("`{0}` is no app key: 1 to 32 letters, digits, - _ . :")]
    AppKey(String),
    #[error("{place}: `{id}` is no device id: 1 to 64 bytes without control characters")]
    DeviceId { place: String, id: String },
    #[error("epochs begin at 1")]
    Epoch,
    #[error("an install secret is 32 hexadecimal digits")]
    InstallSecret,
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("no key pair: {0}")]
    KeyPair(String),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Edge(#[from] Failure),
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("standard output: {0}")]
    Write(io::Error),
}

impl KeysError {
    /// 2: what was asked for makes no sense; 1: it failed.
    fn code(&self) -> u8 {
        match self {
            Self::AppKey(_)
            | Self::Epoch
            | Self::InstallSecret
            | Self::Config(_)
            | Self::Edge(Failure::Usage(_))
            | Self::Pki(PkiError::BadName { .. }) => 2,
            _ => 1,
        }
    }
}

/// Does what was asked.
pub fn run(args: &Args) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = make(args, &mut out).and_then(|()| out.flush().map_err(KeysError::Write));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has had enough: `| head`.
        Err(KeysError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {error}"));
            ExitCode::from(error.code())
        }
    }
}

fn make(args: &Args, out: &mut impl Write) -> Result<(), KeysError> {
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    match &args.make {
        Make::AppSecret { out: file } => app_secret(file.as_deref(), existing, args.json, out),
        Make::Credential(of) => devices::credentials(of, args.json, out),
        Make::CheckCredential(of) => devices::check_credential(of, args.json, out),
        Make::DeviceId(of) => devices::device_id(of, args.json, out),
        Make::Epochs(of) => devices::epochs(of, args.json, out),
        Make::Revoke(of) => devices::revoke(of, args.json, out),
        Make::TokenKey(of) => tokens::token_key(of, existing, args.json, out),
        Make::Token(of) => tokens::token(of, args.json, out),
        Make::CheckToken(of) => tokens::check_token(of, args.json, out),
        Make::Ca { out_dir, days } => say(&pki::make_ca(out_dir, *days, existing)?, args.json, out),
        Make::ServerCertificate { host, issuer: Issuer { ca, ca_key, out_dir, days } } => {
            say(&pki::make_server(host, ca, ca_key, *days, out_dir, existing)?, args.json, out)
        }
        Make::RouterCertificate { name, issuer: Issuer { ca, ca_key, out_dir, days } } => {
            say(&pki::make_router(name, ca, ca_key, *days, out_dir, existing)?, args.json, out)
        }
    }
}

fn app_secret(
    file: Option<&Path>,
    existing: Existing,
    json: bool,
    out: &mut impl Write,
) -> Result<(), KeysError> {
    let secret = Secret::generate()?.to_hex();
    match file {
        Some(path) => {
            pki::file::write(path, &format!("{secret}\n"), Privacy::Secret, existing)?;
            if json {
                writeln!(out, "{}", json!({ "secret_file": path }))
            } else {
                writeln!(out, "{}", path.display())
            }
        }
        None if json => writeln!(out, "{}", json!({ "secret": secret })),
        None => writeln!(out, "{secret}"),
    }
    .map_err(KeysError::Write)
}

/// An app key of the command line.
fn app_key(text: &str) -> Result<AppKey, KeysError> {
    AppKey::parse(text).ok_or_else(|| KeysError::AppKey(text.to_owned()))
}

/// One answer: a JSON object, or text.
fn say_line(out: &mut impl Write, json: bool, object: &Value, text: &str) -> Result<(), KeysError> {
    if json { writeln!(out, "{object}") } else { writeln!(out, "{text}") }.map_err(KeysError::Write)
}

fn say(pair: &Pair, json: bool, out: &mut impl Write) -> Result<(), KeysError> {
    if json {
        writeln!(out, "{}", json!({ "certificate": pair.certificate, "key": pair.key }))
    } else {
        writeln!(out, "{}\n{}", pair.certificate.display(), pair.key.display())
    }
    .map_err(KeysError::Write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential;

    fn keys(dir: &Path, line: &str) -> Result<String, KeysError> {
        let line = line.replace("DIR", dir.to_str().expect("text"));
        let args = Args::try_parse_from(["keys"].into_iter().chain(line.split(' '))).expect("understood");
        let mut out = Vec::new();
        make(&args, &mut out)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_credential_made_here_is_one_that_the_edge_takes() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        keys(dir, "app-secret --out DIR/app.secret").expect("made");
        std::fs::write(dir.join("ids.txt"), "d-2\n\n d-3 \n").expect("written");
        let line = "credential --app demo --device d-1 --from DIR/ids.txt --secret DIR/app.secret --epoch 3";
        let out = keys(dir, line).expect("made");
        let secret = Secret::load(&dir.join("app.secret")).expect("there");
        let app = AppKey::parse("demo").expect("valid");
        let mut ids = Vec::new();
        for line in out.lines() {
            let (id, text) = line.split_once('\t').expect("a tab");
            let credential = credential::from_text(text).expect("base64url");
            let epochs = credential::Epochs::of(3, credential::Revocation::default());
            credential::verify(&secret, &app, id, &credential, epochs).expect("genuine");
            ids.push(id);
        }
        assert_eq!(ids, ["d-1", "d-2", "d-3"]);
        let object: serde_json::Value = serde_json::from_str(
            keys(dir, &format!("{line} --json")).expect("made").lines().next().expect("a line"),
        )
        .expect("JSON");
        assert_eq!(object["device_id"], "d-1");
    }

    #[test]
    fn certificates_made_here_are_ones_that_rustls_takes() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        keys(dir, "ca --out-dir DIR").expect("made");
        let issuer = "--ca DIR/ca.pem --ca-key DIR/ca.key --out-dir DIR";
        keys(dir, &format!("server-certificate --host push.example.com --host 10.0.0.1 {issuer}"))
            .expect("made");
        let out = keys(dir, &format!("router-certificate --name r-1 {issuer} --json")).expect("made");
        assert!(out.contains("r-1.pem"), "{out}");
        let path = |name: &str| dir.join(name);
        pki::server_config_router(&path("server.pem"), &path("server.key"), &path("ca.pem")).expect("valid");
        pki::client_config_router(&path("ca.pem"), &path("r-1.pem"), &path("r-1.key")).expect("valid");
    }

    #[test]
    fn nothing_is_overwritten_unless_forced_and_bad_names_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        keys(dir, "app-secret --out DIR/app.secret").expect("made");
        let before = std::fs::read(dir.join("app.secret")).expect("read");
        let again = keys(dir, "app-secret --out DIR/app.secret").expect_err("kept");
        assert_eq!(again.code(), 1);
        assert_eq!(std::fs::read(dir.join("app.secret")).expect("read"), before);
        keys(dir, "app-secret --out DIR/app.secret --force").expect("replaced");
        assert_ne!(std::fs::read(dir.join("app.secret")).expect("read"), before);
        let long = format!("credential --app demo --device {} --secret DIR/app.secret", "x".repeat(65));
        assert!(matches!(keys(dir, &long), Err(KeysError::DeviceId { .. })));
        let bad = keys(dir, "credential --app a/b --device d --secret DIR/app.secret").expect_err("refused");
        assert_eq!(bad.code(), 2);
        assert_eq!(keys(dir, "app-secret").expect("made").trim().len(), 64);
    }

    #[test]
    fn tokens_made_here_are_taken_and_say_why_if_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        keys(dir, "token-key --algorithm eddsa --out-dir DIR").expect("made");
        keys(dir, "token-key --algorithm hs256 --out-dir DIR").expect("made");
        assert!(keys(dir, "token-key --algorithm hs256 --out-dir DIR").is_err(), "kept");
        let install = "--install-secret 3f1c0a5e9b7d42886e54c1f0a2b3948d";
        for (signs, checks) in [("token.key", "token.pem"), ("token.secret", "token.secret")] {
            let token = keys(dir, &format!("token --app demo --key DIR/{signs} {install}")).expect("signed");
            let check = |app: &str, more: &str| {
                keys(dir, &format!("check-token --app {app} --key DIR/{checks}{more} {}", token.trim()))
            };
            let said = check("demo", &format!(" {install}")).expect("valid");
            assert!(said.starts_with("valid: {\"aud\":\"demo\""), "{said}");
            assert!(matches!(check("other", ""), Err(KeysError::Token(TokenError::Audience))));
            assert!(matches!(check("demo", " --max 10"), Err(KeysError::Token(TokenError::TooLong))));
            let other = format!(" {}", install.replace("3f", "3e"));
            assert!(matches!(check("demo", &other), Err(KeysError::Token(TokenError::OtherInstall))));
        }
        assert!(keys(dir, "token --app demo --key DIR/token.pem").is_err(), "a public key signs nothing");
        assert!(keys(dir, "token --app demo --key DIR/token.key --install-secret 3f").is_err());
    }

    #[test]
    fn ids_credentials_and_epochs_can_be_looked_at() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        keys(dir, "app-secret --out DIR/app.secret").expect("made");
        let id =
            "device-id --app demo --secret DIR/app.secret --install-secret 3f1c0a5e9b7d42886e54c1f0a2b3948d";
        let id = keys(dir, id).expect("derived");
        assert_eq!(id.trim().len(), 32);
        let issue = format!("credential --app demo --device {} --secret DIR/app.secret --epoch 2", id.trim());
        let line = keys(dir, &issue).expect("issued");
        let credential = line.trim().split_once('\t').expect("a tab").1.to_owned();
        let check = |epoch: u32| {
            let of = format!("--app demo --device {} --secret DIR/app.secret", id.trim());
            keys(dir, &format!("check-credential {of} --epoch {epoch} {credential}"))
        };
        assert_eq!(check(2).expect("valid"), "valid, of epoch 2\n");
        assert!(check(3).expect("valid").contains("gets a new one"));
        assert!(matches!(check(4), Err(KeysError::Credential(CredentialError::Revoked { .. }))));
        let app = "[[apps]]\nkey = \"demo\"\nsecret_file = \"app.secret\"\nepoch = 3\n";
        std::fs::write(dir.join("edge.toml"), app).expect("written");
        let said = keys(dir, "epochs --config DIR/edge.toml").expect("read");
        assert_eq!(said, "demo\tepoch 3; those of 2 are renewed, earlier ones refused\n");
        assert_eq!(keys(dir, "epochs --config DIR/none.toml").expect_err("none").code(), 2);
        let nowhere = keys(dir, "revoke demo d-1 --data-dir DIR").expect_err("no edge");
        assert_eq!(nowhere.code(), 2, "{nowhere}");
    }
}
