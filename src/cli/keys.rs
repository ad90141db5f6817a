//! `mooring keys`: app secrets, device credentials, and the certificates of a small CA for routers.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::json;

use crate::credential::{self, Secret, SecretError};
use crate::ids::AppKey;
use crate::limits;
use crate::pki::file::{Existing, Privacy};
use crate::pki::{self, CA_DAYS, CERTIFICATE_DAYS, Pair, PkiError};

/// Make app secrets, device credentials and router certificates.
///
/// Key files are readable by their owner only, and nothing is overwritten unless --force is given.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  mooring keys app-secret --out app.secret
  mooring keys credential --app demo --device d-1 --secret app.secret
  mooring keys credential --app demo --from ids.txt --secret app.secret > credentials.tsv
  mooring keys ca --out-dir ca
  mooring keys router-certificate --name router-1 --ca ca/ca.pem --ca-key ca/ca.key --out-dir routers
  mooring keys server-certificate --host push.example.com --ca ca/ca.pem --ca-key ca/ca.key --out-dir edge")]
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
    #[command(after_help = "\
Examples:
  mooring keys credential --app demo --device d-1 --device d-2 --secret app.secret
  seq -f 'd-%.0f' 1000 | mooring keys credential --app demo --from - --secret app.secret")]
    Credential {
        /// The app key.
        #[arg(long, value_name = "KEY")]
        app: String,
        /// A device id; may be repeated.
        #[arg(long, value_name = "ID", required_unless_present = "from")]
        device: Vec<String>,
        /// File of device ids, one a line; - for standard input.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// The app's secret file.
        #[arg(long, value_name = "FILE", default_value = "app.secret")]
        secret: PathBuf,
        /// The epoch, as in the app's configuration.
        #[arg(long, default_value_t = 1)]
        epoch: u32,
    },
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
  mooring keys server-certificate --host push.example.com --ca ca.pem --ca-key ca.key --out-dir edge")]
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
  mooring keys router-certificate --name router-1 --ca ca.pem --ca-key ca.key --out-dir routers")]
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
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("standard output: {0}")]
    Write(io::Error),
}

impl KeysError {
    /// 2: what was asked for makes no sense; 1: it failed.
    fn code(&self) -> u8 {
        match self {
            Self::AppKey(_) | Self::Epoch | Self::Pki(PkiError::BadName { .. }) => 2,
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
            eprintln!("mooring keys: {error}");
            ExitCode::from(error.code())
        }
    }
}

fn make(args: &Args, out: &mut impl Write) -> Result<(), KeysError> {
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    match &args.make {
        Make::AppSecret { out: file } => app_secret(file.as_deref(), existing, args.json, out),
        Make::Credential { app, device, from, secret, epoch } => {
            let app = AppKey::parse(app).ok_or_else(|| KeysError::AppKey(app.clone()))?;
            let epoch = if *epoch == 0 { return Err(KeysError::Epoch) } else { *epoch };
            let issuing = Issuing { app, secret: Secret::load(secret)?, epoch, json: args.json };
            for id in device {
                issuing.write("--device", id, out)?;
            }
            from.as_deref().map_or(Ok(()), |file| issuing.write_all(file, out))
        }
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

/// What all credentials of one call have in common.
struct Issuing {
    app: AppKey,
    secret: Secret,
    epoch: u32,
    json: bool,
}

impl Issuing {
    fn write(&self, place: &str, id: &str, out: &mut impl Write) -> Result<(), KeysError> {
        if !(1..=limits::DEVICE_ID_BYTES).contains(&id.len()) || id.chars().any(char::is_control) {
            return Err(KeysError::DeviceId { place: place.into(), id: id.escape_debug().to_string() });
        }
        let credential = credential::to_text(&credential::issue(&self.secret, &self.app, id, self.epoch));
        if self.json {
            let line = json!({ "app_key": self.app.as_str(), "device_id": id, "epoch": self.epoch, "credential": credential });
            writeln!(out, "{line}")
        } else {
            writeln!(out, "{id}\t{credential}")
        }
        .map_err(KeysError::Write)
    }

    /// One id a line; empty lines are skipped.
    fn write_all(&self, file: &Path, out: &mut impl Write) -> Result<(), KeysError> {
        let failed = |error| KeysError::Read { path: file.into(), error };
        let input: Box<dyn BufRead> = if file == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            Box::new(BufReader::new(File::open(file).map_err(failed)?))
        };
        for (number, line) in input.lines().enumerate() {
            let line = line.map_err(failed)?;
            let id = line.trim();
            if !id.is_empty() {
                self.write(&format!("{}:{}", file.display(), number + 1), id, out)?;
            }
        }
        Ok(())
    }
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
}
