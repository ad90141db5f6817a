//! Device ids, credentials and their revocation.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::KeysError;
use crate::cli::admin::{AdminPort, AdminToken, app_in_path, escaped};
use crate::cli::output::printable;
use crate::config::{Config, Overrides};
use crate::credential::{self, Epochs, InstallSecret, Revocation, Secret};
use crate::ids::AppKey;
use crate::wire::device::is_device_id;

/// Flags of `keys credential`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mooring keys credential --app demo --device d-1 --device d-2 \\
      --secret app.secret
  seq -f 'd-%.0f' 1000 | mooring keys credential --app demo --from - --secret app.secret")]
pub(super) struct Credentials {
    #[command(flatten)]
    app: App,
    /// A device id; may be repeated
    #[arg(long, value_name = "ID", required_unless_present = "from")]
    device: Vec<String>,
    /// File of device ids, one a line; - for standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The epoch, as in the app's configuration
    #[arg(long, default_value_t = 1)]
    epoch: u32,
}

/// An app, and the secret that its edges share.
#[derive(Debug, clap::Args)]
pub(super) struct App {
    /// The app key
    #[arg(long, value_name = "KEY")]
    app: String,
    /// The app's secret file
    #[arg(long, value_name = "FILE", default_value = "app.secret")]
    secret: PathBuf,
}

impl App {
    fn load(&self) -> Result<(AppKey, Secret), KeysError> {
        Ok((super::app_key(&self.app)?, Secret::load(&self.secret)?))
    }
}

/// Flags of `keys device-id`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mooring keys device-id --app demo --secret app.secret \\
      --install-secret 3f1c0a5e9b7d42886e54c1f0a2b3948d")]
pub(super) struct DeviceId {
    #[command(flatten)]
    app: App,
    /// The installation's 16 random bytes, 32 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    install_secret: String,
}

/// Flags of `keys check-credential`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mooring keys check-credential --app demo --device d-1 --epoch 2 \\
      --secret app.secret AQAAAAG...")]
pub(super) struct CheckCredential {
    #[command(flatten)]
    app: App,
    /// The device id that it should be for
    #[arg(long, value_name = "ID")]
    device: String,
    /// The app's epoch
    #[arg(long, default_value_t = 1)]
    epoch: u32,
    /// As `keys credential` prints it, in base64url
    credential: String,
}

/// Flags of `keys epochs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mooring keys epochs --config mooring.toml

Raise an app's `epoch` by one and restart: devices get a new credential as they connect. Raise it once
more when they had time to: credentials that were not renewed are refused, and those devices register
again (or need a new credential from your issuer).")]
pub(super) struct EpochsOf {
    /// The edge's configuration
    #[arg(long, value_name = "FILE", env = "MOORING_CONFIG")]
    config: PathBuf,
}

/// Flags of `keys revoke`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mooring keys revoke demo 4f2a --data-dir mooring-data
  mooring keys revoke demo 4f2a --allow-registration \\
      --admin 10.0.0.5:7480 --token-file admin.token

The device is locked out: its session ends, no credential of it is taken, and registering gives it
none, also after the app's epoch is raised. That is for a phone that was stolen or abused.

With --allow-registration only what was given out so far is refused: the device may register for a
new credential with the install secret that it has (and a token, where the app asks for one). That is
for a credential that leaked, and it is how a device that was locked out is let in again.

A revocation is durable, and holds on the edge that it was told: tell every edge that serves the app.
Messages for the device stay pending until they expire, or until it is back.")]
pub(super) struct Revoke {
    /// The app key
    app: String,
    /// The device id
    device: String,
    /// Let it register for a new credential
    #[arg(long)]
    allow_registration: bool,
    #[command(flatten)]
    edge: AdminPort,
    #[command(flatten)]
    token: AdminToken,
}

pub(super) fn credentials(args: &Credentials, json: bool, out: &mut impl Write) -> Result<(), KeysError> {
    let (app, secret) = args.app.load()?;
    let epoch = if args.epoch == 0 { return Err(KeysError::Epoch) } else { args.epoch };
    let issuing = Issuing { app, secret, epoch, json };
    for id in &args.device {
        issuing.write("--device", id, out)?;
    }
    args.from.as_deref().map_or(Ok(()), |file| issuing.write_all(file, out))
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
        if !is_device_id(id) {
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

pub(super) fn device_id(args: &DeviceId, json: bool, out: &mut impl Write) -> Result<(), KeysError> {
    let (app, secret) = args.app.load()?;
    let id = credential::device_id(&secret, &app, &install_secret(&args.install_secret)?);
    let line = json!({ "app_key": app.as_str(), "device_id": id });
    super::say_line(out, json, &line, &id)
}

/// From 32 hexadecimal digits.
pub(super) fn install_secret(text: &str) -> Result<InstallSecret, KeysError> {
    InstallSecret::from_hex(text).ok_or(KeysError::InstallSecret)
}

pub(super) fn check_credential(
    args: &CheckCredential,
    json: bool,
    out: &mut impl Write,
) -> Result<(), KeysError> {
    let (app, secret) = args.app.load()?;
    let given = credential::from_text(&args.credential).unwrap_or_default();
    let epochs = Epochs::of(args.epoch, Revocation::default());
    let verified = credential::verify(&secret, &app, &args.device, &given, epochs)?;
    let line = json!({ "device_id": args.device, "epoch": verified.epoch, "renewed": verified.renew });
    let renewed = if verified.renew { "; the device gets a new one when it connects" } else { "" };
    super::say_line(out, json, &line, &format!("valid, of epoch {}{renewed}", verified.epoch))
}

pub(super) fn epochs(args: &EpochsOf, json: bool, out: &mut impl Write) -> Result<(), KeysError> {
    let overrides = Overrides::from_env(std::env::vars_os());
    let config = Config::load(Some(&args.config), &overrides)?;
    for app in &config.apps {
        let (key, epoch) = (app.key.as_str(), app.epoch);
        let line = json!({ "app_key": key, "epoch": epoch, "renewed": epoch - 1 });
        let renewed = match epoch - 1 {
            0 => String::new(),
            before => format!("; those of {before} are renewed, earlier ones refused"),
        };
        super::say_line(out, json, &line, &format!("{key}\tepoch {epoch}{renewed}"))?;
    }
    Ok(())
}

pub(super) fn revoke(args: &Revoke, json: bool, out: &mut impl Write) -> Result<(), KeysError> {
    let path = format!("/v1/device/{}/{}/revoke", app_in_path(&args.app)?, escaped(&args.device));
    let body = json!({ "allow_registration": args.allow_registration });
    let answer = args.edge.post(&args.token, &path, &body)?;
    let known = if answer["known"] == true { "" } else { " (this edge has never seen it: is the id right?)" };
    let next = match answer["revoked"]["registration"].as_str() {
        Some("allowed") => format!(
            "it may register for a new credential, of epoch {}",
            answer["revoked"]["credentials_before_epoch"]
        ),
        _ => "it is locked out; --allow-registration would let it register again".into(),
    };
    let text = format!("{}: all credentials are revoked, {next}{known}", printable(&args.device));
    super::say_line(out, json, &answer, &text)
}
