//! Who may register with an app.

use std::path::PathBuf;

use super::reader::Section;
use super::value::{Context, Raw, Value, within};
use crate::push::Millis;
use crate::token::{KeyError, VerifyingKeys};

/// Whom an app lets register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RegistrationPolicy {
    /// Everybody.
    #[default]
    Open,
    /// Who has a token of the app's backend.
    Token,
    /// Nobody: ids and credentials come from an issuer.
    Off,
}

/// An app's registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Whom it lets in.
    pub policy: RegistrationPolicy,
    /// What tokens are checked with; there is at least one where tokens are asked for.
    pub keys: VerifyingKeys,
    /// A token's lifetime, at most.
    pub token_max_ms: Millis,
    /// Registrations of new devices a second, at most.
    pub per_second: u32,
}

impl Registration {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let policy = section.value("registration", RegistrationPolicy::Open, |_| Ok(()));
        let secrets = section.value("token_secret_file", OptionalPath(None), |_| Ok(()));
        let public = section.value("token_public_key_file", OptionalPath(None), |_| Ok(()));
        let token_max_s = section.value("token_max_s", 3_600, |max| within(max, &(1..=604_800)));
        let per_second = section.value("registrations_per_s", 1_000, |rate| within(rate, &(1..=1_000_000)));
        let mut keys = VerifyingKeys::default();
        let mut load = |key: &str, result: Result<(), KeyError>| {
            if let Err(error) = result {
                section.reader.wrong(&section.key(key), error.to_string());
            }
        };
        if let Some(path) = &secrets.0 {
            load("token_secret_file", keys.add_secrets(path));
        }
        if let Some(path) = &public.0 {
            load("token_public_key_file", keys.add_public_keys(path));
        }
        let named = secrets.0.is_some() || public.0.is_some();
        if policy == RegistrationPolicy::Token && !named {
            let text = "is \"token\", but neither token_secret_file nor token_public_key_file is given: no token could be checked";
            section.reader.wrong(&section.key("registration"), text);
        }
        Self { policy, keys, token_max_ms: token_max_s * 1_000, per_second }
    }
}

impl Value for RegistrationPolicy {
    fn read(raw: Raw<'_>, _: &Context<'_>) -> Result<Self, String> {
        match raw.text()? {
            "open" => Ok(Self::Open),
            "token" => Ok(Self::Token),
            "off" => Ok(Self::Off),
            other => Err(format!("must be \"open\", \"token\" or \"off\", is \"{other}\"")),
        }
    }
}

/// A file, or none if the text is empty.
struct OptionalPath(Option<PathBuf>);

impl Value for OptionalPath {
    fn read(raw: Raw<'_>, context: &Context<'_>) -> Result<Self, String> {
        if raw.text()?.is_empty() {
            return Ok(Self(None));
        }
        PathBuf::read(raw, context).map(|path| Self(Some(path)))
    }
}
