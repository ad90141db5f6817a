//! What an installation of an app keeps for its whole life: its install secret, and what the edge gave it for that. One JSON file,
//! readable by its owner only, replaced in one step.
//!
//! The secret is durable before it is used: whoever loses it after a registration would come back as another device.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::credential::{self, InstallSecret, SecretError};
use crate::pki::PkiError;
use crate::pki::file::{self, Existing, Privacy};

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// It can't be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It holds something else.
    #[error("{}: {wrong}; without it the device registers as another one", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        wrong: String,
    },
    /// It can't be written.
    #[error(transparent)]
    Write(#[from] PkiError),
    /// No random numbers for a new one.
    #[error(transparent)]
    Random(#[from] SecretError),
}

/// An installation and its file.
#[derive(Debug)]
pub struct Installation {
    path: PathBuf,
    /// Names it, with the app.
    pub install_secret: InstallSecret,
    /// What it was given; empty: it hasn't registered.
    pub device_id: String,
    /// Its newest one.
    pub credential: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    install_secret: String,
    device_id: String,
    credential: String,
}

impl Installation {
    /// From its file; a new one if there is none.
    pub fn open(path: &Path) -> Result<Self, InstallationError> {
        let wrong = |wrong: String| InstallationError::Content { path: path.into(), wrong };
        match std::fs::read(path) {
            Ok(bytes) => {
                let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
                let install_secret = InstallSecret::from_hex(&kept.install_secret)
                    .ok_or_else(|| wrong("install_secret must be 32 hexadecimal digits".into()))?;
                let credential = credential::from_text(&kept.credential)
                    .ok_or_else(|| wrong("credential must be base64url".into()))?;
                Ok(Self { path: path.into(), install_secret, device_id: kept.device_id, credential })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (path, install_secret) = (path.into(), InstallSecret::generate()?);
                let new = Self { path, install_secret, device_id: String::new(), credential: Vec::new() };
                new.write()?;
                Ok(new)
            }
            Err(error) => Err(InstallationError::Read { path: path.into(), error }),
        }
    }

    /// Keeps what the edge gave: durable when this returns.
    pub fn keep(&mut self, device_id: &str, credential: &[u8]) -> Result<(), InstallationError> {
        device_id.clone_into(&mut self.device_id);
        self.credential = credential.into();
        self.write()
    }

    fn write(&self) -> Result<(), InstallationError> {
        let kept = Kept {
            install_secret: self.install_secret.to_hex(),
            device_id: self.device_id.clone(),
            credential: credential::to_text(&self.credential),
        };
        let text = serde_json::to_string(&kept).map_err(|error| InstallationError::Content {
            path: self.path.clone(),
            wrong: error.to_string(),
        })?;
        Ok(file::write(&self.path, &(text + "\n"), Privacy::Secret, Existing::Replace)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_the_same_and_keeps_what_it_was_given() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("demo").join("phone.json");
        let first = Installation::open(&path).expect("new");
        assert!(first.device_id.is_empty());
        let mut second = Installation::open(&path).expect("there");
        assert_eq!(second.install_secret, first.install_secret, "kept before it was used");
        second.keep("d-1", &[1; 37]).expect("written");
        let third = Installation::open(&path).expect("there");
        assert_eq!((third.device_id.as_str(), third.credential), ("d-1", vec![1; 37]));
        assert_eq!(third.install_secret, first.install_secret);
        for bad in ["", "{}", r#"{"install_secret":"00","device_id":"","credential":""}"#] {
            std::fs::write(&path, bad).expect("written");
            assert!(matches!(Installation::open(&path), Err(InstallationError::Content { .. })), "{bad}");
        }
        assert!(matches!(Installation::open(dir.path()), Err(InstallationError::Read { .. })));
    }
}
