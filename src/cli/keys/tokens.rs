//! Registration tokens: keys for an app's backend, and tokens to try things with.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::json;

use super::KeysError;
use super::devices::install_secret;
use crate::clock::Clock;
use crate::credential::Secret;
use crate::pki::file::{self, Existing, Privacy};
use crate::token::{Audience, Claims, KeyError, SigningKey, VerifyingKeys, bound_to};

/// How tokens are signed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Algorithm {
    /// A secret that backend and edge share
    Hs256,
    /// A key pair: the edge has the public key only
    Eddsa,
}

/// Flags of `keys token-key`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mooring keys token-key --algorithm eddsa --out-dir keys    token.key for the backend, token.pem for the edge
  mooring keys token-key --algorithm hs256 --out-dir keys    token.secret for both

In the edge's configuration, under [[apps]]: registration = \"token\", and token_public_key_file or
token_secret_file. A token_secret_file holds hexadecimal digits: the key is the bytes that they stand for.")]
pub(super) struct TokenKey {
    /// How tokens will be signed
    #[arg(long, value_enum)]
    algorithm: Algorithm,
    /// Directory to write to
    #[arg(long, value_name = "DIR", default_value = ".")]
    out_dir: PathBuf,
}

/// Flags of `keys token`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mooring keys token --app demo --key keys/token.key > phone.token
  mooring keys token --app demo --key keys/token.secret --lifetime 60 \\
      --subject account-7
  mooring keys token --app demo --key keys/token.key \\
      --install-secret 3f1c0a5e9b7d42886e54c1f0a2b3948d

Any JWT library makes the same: aud is the app key, exp is required, iat and nbf are checked if given.
A sub of \"sha256:\" and the hexadecimal SHA-256 of the install secret binds the token to that installation.")]
pub(super) struct Token {
    /// The app key
    #[arg(long, value_name = "KEY")]
    app: String,
    /// The backend's key, as `keys token-key` made it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Seconds that it holds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    lifetime: u32,
    /// Whom it is for, in the backend's own words
    #[arg(long, value_name = "TEXT", conflicts_with = "install_secret")]
    subject: Option<String>,
    /// Only for this installation: its 16 random bytes, 32 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    install_secret: Option<String>,
}

/// Flags of `keys check-token`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mooring keys check-token --app demo \\
      --key keys/token.pem \"$(cat phone.token)\"")]
pub(super) struct CheckToken {
    /// The app key
    #[arg(long, value_name = "KEY")]
    app: String,
    /// The secret or the public key, as the edge has it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The longest lifetime that the edge allows, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600)]
    max: u64,
    /// The installation that it is to be for, 32 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    install_secret: Option<String>,
    /// The token
    token: String,
}

pub(super) fn token_key(
    args: &TokenKey,
    existing: Existing,
    json: bool,
    out: &mut impl Write,
) -> Result<(), KeysError> {
    let path = |name: &str| args.out_dir.join(name);
    match args.algorithm {
        Algorithm::Hs256 => {
            let secret = path("token.secret");
            let text = Secret::generate()?.to_hex() + "\n";
            file::write(&secret, &text, Privacy::Secret, existing)?;
            super::say_line(out, json, &json!({ "secret": secret }), &secret.display().to_string())
        }
        Algorithm::Eddsa => {
            let (key, public) = (path("token.key"), path("token.pem"));
            let pair = KeyPair::generate_for(&PKCS_ED25519)
                .map_err(|error| KeysError::KeyPair(error.to_string()))?;
            file::write(&key, &pair.serialize_pem(), Privacy::Secret, existing)?;
            file::write(&public, &pair.public_key_pem(), Privacy::Public, existing)?;
            let text = format!("{}\n{}", key.display(), public.display());
            super::say_line(out, json, &json!({ "key": key, "public_key": public }), &text)
        }
    }
}

pub(super) fn token(args: &Token, json: bool, out: &mut impl Write) -> Result<(), KeysError> {
    let app = super::app_key(&args.app)?;
    let key = SigningKey::load(&args.key)?;
    let sub = match &args.install_secret {
        Some(text) => Some(bound_to(&install_secret(text)?)),
        None => args.subject.clone(),
    };
    let now = (Clock::new(0).now() / 1_000) as f64;
    let exp = now + f64::from(args.lifetime);
    let aud = Audience::One(app.as_str().to_owned());
    let token = key.sign(&Claims { aud, exp, iat: Some(now), nbf: None, sub })?;
    let line = json!({ "token": token, "algorithm": key.algorithm(), "expires": exp });
    super::say_line(out, json, &line, &token)
}

pub(super) fn check_token(args: &CheckToken, json: bool, out: &mut impl Write) -> Result<(), KeysError> {
    let app = super::app_key(&args.app)?;
    let claims = verifying(&args.key)?.verify(args.token.trim().as_bytes())?;
    claims.check(&app, Clock::new(0).now(), args.max.saturating_mul(1_000))?;
    if let Some(text) = &args.install_secret {
        claims.check_install(&install_secret(text)?)?;
    }
    let line = serde_json::to_value(&claims)?;
    super::say_line(out, json, &line, &format!("valid: {line}"))
}

/// A secret, a public key, or a private key, which has the public one in it.
fn verifying(path: &Path) -> Result<VerifyingKeys, KeyError> {
    let mut keys = VerifyingKeys::default();
    if keys.add_secrets(path).or_else(|_| keys.add_public_keys(path)).is_ok() {
        return Ok(keys);
    }
    SigningKey::load(path).map(|key| key.verifying())
}
