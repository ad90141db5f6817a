//! How subcommands find an edge's admin port, and show that they may change something.

use std::path::PathBuf;

use serde_json::Value;

use super::output::{self, Failure};
use crate::admin::token::{self, TOKEN_FILE};
use crate::client::admin;
use crate::client::local::Ports;
use crate::ids::AppKey;

/// The variable that holds the token where no file does.
const TOKEN_VARIABLE: &str = "MOORING_ADMIN_TOKEN";

/// An edge's admin port.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "The edge")]
pub struct AdminPort {
    /// Its address [default: of the edge on --data-dir, or 127.0.0.1:7480]
    #[arg(long, value_name = "HOST:PORT", global = true)]
    admin: Option<String>,
    /// Take address and token from an edge that runs on this data directory
    #[arg(long, visible_alias = "dev", value_name = "DATA_DIR", global = true)]
    data_dir: Option<PathBuf>,
}

/// An edge's admin port, and how its answer is shown.
#[derive(Clone, Debug, clap::Args)]
pub struct Asking {
    #[command(flatten)]
    edge: AdminPort,
    /// The edge's answer as it is, one JSON line
    #[arg(long, global = true)]
    pub json: bool,
}

impl Asking {
    /// What it answers.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.edge.get(path)
    }

    /// Changes something.
    pub fn post(&self, token: &AdminToken, path: &str, body: &Value) -> Result<Value, Failure> {
        self.edge.post(token, path, body)
    }

    /// The answer as it is, or in these words.
    pub fn show(&self, answer: &Value, words: impl FnOnce(&Value) -> String) {
        output::line(&if self.json { answer.to_string() } else { words(answer) });
    }
}

/// What changes need beside it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "The edge")]
pub struct AdminToken {
    /// A copy of the file admin.token of the edge's data directory; the environment variable `MOORING_ADMIN_TOKEN` may hold its text instead
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
}

impl AdminPort {
    /// "host:port".
    pub fn address(&self) -> Result<String, Failure> {
        match (&self.admin, &self.data_dir) {
            (Some(address), _) => Ok(address.clone()),
            (None, Some(dir)) => {
                let ports = Ports::read(dir).map_err(Failure::failed)?.and_then(|ports| ports.admin);
                let none = || Failure::usage(format!("no edge has run on {}", dir.display()));
                Ok(format!("127.0.0.1:{}", ports.ok_or_else(none)?))
            }
            (None, None) => Ok("127.0.0.1:7480".into()),
        }
    }

    /// What it answers.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        let address = self.address()?;
        runtime()?.block_on(admin::get_json(&address, path)).map_err(Failure::failed)
    }

    /// Changes something.
    pub fn post(&self, token: &AdminToken, path: &str, body: &Value) -> Result<Value, Failure> {
        let (address, token) = (self.address()?, self.token(token)?);
        runtime()?.block_on(admin::post_json(&address, path, &token, body)).map_err(Failure::failed)
    }

    /// From the flag's file, the variable, or the data directory, in this order.
    fn token(&self, given: &AdminToken) -> Result<String, Failure> {
        if given.token_file.is_none()
            && let Ok(text) = std::env::var(TOKEN_VARIABLE)
        {
            return Ok(text.trim().to_owned());
        }
        let file =
            given.token_file.clone().or_else(|| self.data_dir.as_ref().map(|dir| dir.join(TOKEN_FILE)));
        let needed =
            "changes need the admin token: --data-dir DATA_DIR, --token-file FILE or MOORING_ADMIN_TOKEN";
        token::read(&file.ok_or_else(|| Failure::usage(needed))?).map_err(Failure::usage)
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)
}

/// An app key of the command line, ready for a path.
pub fn app_in_path(text: &str) -> Result<String, Failure> {
    let key = AppKey::parse(text).ok_or_else(|| Failure::usage(format!("'{text}' is no app key")))?;
    Ok(escaped(key.as_str()))
}

/// Percent-encoded, as RFC 3986 asks of what isn't unreserved.
pub fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(byte.into());
        } else {
            out.push('%');
            out.push_str(&data_encoding::HEXUPPER.encode(&[byte]));
        }
        out
    })
}
