//! The token that writes need: a file of the data directory, made at the first start, readable by its owner only. Whoever may read
//! that file may change the edge. Replace its content and restart to change it.
//!
//! Rejected: mutual TLS here (an operator at the edge's own shell would need a certificate for what a file's mode says as well).

use std::fmt;
use std::path::{Path, PathBuf};

use crate::credential::{Secret, SecretError};
use crate::pki::PkiError;
use crate::pki::file::{self, Existing, Privacy};

/// The file's name in the data directory.
pub const TOKEN_FILE: &str = "admin.token";
/// Bytes of a token.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=256;

/// The token can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Its file can't be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It holds something else.
    #[error("{} must hold {} to {} visible characters; the edge's own is admin.token in its data directory: if that is removed, its next start makes a new one",
        path.display(), TOKEN_BYTES.start(), TOKEN_BYTES.end())]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// It can't be made.
    #[error(transparent)]
    Write(#[from] PkiError),
    /// Nor random.
    #[error(transparent)]
    Random(#[from] SecretError),
}

/// A hash of the token: comparing hashes takes the same time whatever differs.
#[derive(Clone, Copy)]
pub struct Token(blake3::Hash);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// The one of a data directory, made if there is none.
    pub fn open(data_dir: &Path) -> Result<Self, TokenError> {
        let path = data_dir.join(TOKEN_FILE);
        if !path.exists() {
            let text = Secret::generate()?.to_hex() + "\n";
            match file::write(&path, &text, Privacy::Secret, Existing::Keep) {
                // Somebody was faster: theirs counts.
                Ok(()) | Err(PkiError::Exists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        read(&path).map(|text| Self::new(&text))
    }

    /// From its text.
    pub fn new(text: &str) -> Self {
        Self(blake3::hash(text.as_bytes()))
    }

    /// Whether the value of an `Authorization` header shows it.
    pub fn is_shown_by(&self, authorization: &[u8]) -> bool {
        let shown = authorization.split_first_chunk::<7>();
        shown.is_some_and(|(scheme, token)| {
            // `blake3::Hash` compares in constant time.
            scheme.eq_ignore_ascii_case(b"bearer ") && blake3::hash(token.trim_ascii()) == self.0
        })
    }
}

/// The text of a token's file.
pub fn read(path: &Path) -> Result<String, TokenError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| TokenError::Read { path: path.into(), error })?;
    let token = text.trim();
    let good = TOKEN_BYTES.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok(token.to_owned()) } else { Err(TokenError::Content { path: path.into() }) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_private_and_must_be_shown_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let token = Token::open(dir.path()).expect("made");
        let path = dir.path().join(TOKEN_FILE);
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = read(&path).expect("read");
        assert_eq!(text.len(), 64);
        let again = Token::open(dir.path()).expect("read again");
        for token in [token, again] {
            assert!(token.is_shown_by(format!("Bearer {text}").as_bytes()));
            assert!(token.is_shown_by(format!("bearer  {text} ").as_bytes()));
            let wrong =
                ["", "Bearer", "Bearer ", &text, &format!("Basic {text}"), &format!("Bearer {text}0")];
            for wrong in wrong {
                assert!(!token.is_shown_by(wrong.as_bytes()), "{wrong}");
            }
            assert!(!token.is_shown_by(format!("Bearer {}", &text[1..]).as_bytes()));
        }
        assert!(!format!("{token:?}").contains(&text));
        std::fs::write(&path, "short").expect("written");
        assert!(matches!(Token::open(dir.path()), Err(TokenError::Content { .. })));
    }
}
