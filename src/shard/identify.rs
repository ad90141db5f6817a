//! Who a device is: its credential, or its right to register. Everything here is arithmetic on what the Hello says and a look into
//! memory, so that it runs on a shard's thread.
//!
//! The device learns only that something was wrong; the log says what, a few lines a second and app: a fleet with a wrong credential
//! must not fill the disk that the journal is on.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::DeviceContext;
use crate::config::{self, RegistrationPolicy};
use crate::credential::{self, Epochs, InstallSecret};
use crate::error::DeviceError;
use crate::ids::{AppKey, DeviceKey};
use crate::machine::rate::{Quiet, Rate};
use crate::push::Millis;
use crate::telemetry::{self, Counter, RegistrationResult};
use crate::wire::device::{Hello, Identity};

/// Lines a second and app about devices that were refused.
const REFUSAL_LINES: u32 = 5;

/// The line about a device that may not register, whoever it is.
const CLOSED: &str = "not registered";

/// What bounds the strangers of each app, over all shards.
#[derive(Debug)]
pub struct Gates {
    by_app: HashMap<AppKey, Gate>,
    /// Lines about devices of no app at all.
    unknown: Quiet,
}

#[derive(Debug)]
struct Gate {
    registrations: Rate,
    lines: Quiet,
}

impl Gates {
    /// For these apps.
    pub fn new(apps: &[config::App]) -> Self {
        let gate = |app: &config::App| Gate {
            registrations: Rate::new(app.registration.per_second),
            lines: Quiet::new(REFUSAL_LINES),
        };
        let by_app = apps.iter().map(|app| (app.key.clone(), gate(app))).collect();
        Self { by_app, unknown: Quiet::new(REFUSAL_LINES) }
    }
}

/// A device that is who it says.
pub(super) struct Identified {
    /// As the configuration has it: one for all its devices.
    pub app: AppKey,
    pub key: DeviceKey,
    pub device_id: Arc<str>,
    /// Of the newest credential that it has, or is about to get.
    pub epoch: u32,
    pub grant: Grant,
}

/// What a Welcome gives to the device.
#[derive(Default)]
pub(super) struct Grant {
    /// Of a device that registers; else empty.
    pub device_id: String,
    /// A new or renewed one, or empty.
    pub credential: Vec<u8>,
}

/// One Hello on its way to an identity.
struct Caller<'a> {
    context: &'a DeviceContext,
    now: Millis,
    peer: SocketAddr,
    hello: &'a Hello,
}

/// Who says this Hello.
pub(super) fn identify(
    context: &DeviceContext,
    now: Millis,
    peer: SocketAddr,
    hello: &Hello,
) -> Result<Identified, DeviceError> {
    let caller = Caller { context, now, peer, hello };
    let Some(app) = context.apps.get(&hello.app) else {
        return Err(caller.refuse(None, &"unknown app"));
    };
    let result = match &hello.identity {
        Identity::Login { device_id, credential } => caller.login(app, device_id, credential),
        Identity::Register { install_secret, token } => caller.register(app, install_secret, token),
    };
    if let (Err(error), Identity::Register { .. }) = (&result, &hello.identity) {
        telemetry::add(Counter::Registrations(registration_result(*error)), 1);
    }
    result
}

impl Caller<'_> {
    fn login(
        &self,
        app: &config::App,
        device_id: &Arc<str>,
        given: &[u8],
    ) -> Result<Identified, DeviceError> {
        self.check_package(app, device_id)?;
        let key = DeviceKey::of(&self.context.digest_key, &app.key, device_id);
        let epochs = Epochs::of(app.epoch, self.context.store.revocation(&key));
        let verified = credential::verify(&app.secret, &app.key, device_id, given, epochs)
            .map_err(|error| self.refuse(Some(device_id), &error))?;
        let renewed = epochs.current().filter(|_| verified.renew);
        let credential = renewed.map(|epoch| credential::issue(&app.secret, &app.key, device_id, epoch));
        Ok(Identified {
            app: app.key.clone(),
            key,
            device_id: device_id.clone(),
            epoch: renewed.unwrap_or(verified.epoch),
            grant: Grant { device_id: String::new(), credential: credential.unwrap_or_default() },
        })
    }

    /// In this order: what costs nothing first; and nobody without a token uses up the rate of those who have one.
    fn register(
        &self,
        app: &config::App,
        install: &InstallSecret,
        token: &[u8],
    ) -> Result<Identified, DeviceError> {
        let registration = &app.registration;
        if registration.policy == RegistrationPolicy::Off {
            self.say(CLOSED, None, &"`registration` is off");
            return Err(DeviceError::RegistrationClosed);
        }
        self.check_package(app, "")?;
        if registration.policy == RegistrationPolicy::Token {
            registration
                .keys
                .check(token, &app.key, install, self.now, registration.token_max_ms)
                .map_err(|error| self.refuse(None, &error))?;
        }
        let device_id = credential::device_id(&app.secret, &app.key, install);
        let key = DeviceKey::of(&self.context.digest_key, &app.key, &device_id);
        let epochs = Epochs::of(app.epoch, self.context.store.revocation(&key));
        let Some(epoch) = epochs.current() else {
            return Err(self.refuse(Some(&device_id), &credential::CredentialError::DeviceLocked));
        };
        // Who is known already has shown with its install secret that it is that device: a repeat is a login, and bounded as logins are, by the
        // handshakes in flight and the app's sessions. It takes nothing from the rate of new ones: one phone that repeats itself locks out nobody.
        let is_new = self.context.store.last_active(&key).is_none();
        let gate = self.context.gates.by_app.get(&app.key).filter(|_| is_new);
        if gate.is_some_and(|gate| !gate.registrations.take(self.now)) {
            self.say(CLOSED, Some(&device_id), &"`registrations_per_s` is reached");
            return Err(DeviceError::Exhausted);
        }
        let credential = credential::issue(&app.secret, &app.key, &device_id, epoch);
        let grant = Grant { device_id: device_id.clone(), credential };
        Ok(Identified { app: app.key.clone(), key, device_id: device_id.into(), epoch, grant })
    }

    fn check_package(&self, app: &config::App, device_id: &str) -> Result<(), DeviceError> {
        let of_app =
            app.packages.is_empty() || app.packages.iter().any(|package| **package == *self.hello.package);
        if of_app {
            return Ok(());
        }
        Err(self.refuse(Some(device_id), &"the package is not of this app"))
    }

    fn refuse(&self, device_id: Option<&str>, reason: &dyn fmt::Display) -> DeviceError {
        self.say("unauthenticated", device_id, reason);
        DeviceError::Unauthenticated
    }

    fn say(&self, what: &str, device_id: Option<&str>, reason: &dyn fmt::Display) {
        let gates = &self.context.gates;
        let lines = gates.by_app.get(&self.hello.app).map_or(&gates.unknown, |gate| &gate.lines);
        if let Some(suppressed) = lines.allows(self.now) {
            let (peer, app) = (self.peer, &self.hello.app);
            let device_id = device_id.unwrap_or_default();
            tracing::info!(%peer, %app, device_id, %reason, suppressed, "{what}");
        }
    }
}

fn registration_result(error: DeviceError) -> RegistrationResult {
    match error {
        DeviceError::RegistrationClosed => RegistrationResult::Closed,
        DeviceError::Exhausted => RegistrationResult::Exhausted,
        _ => RegistrationResult::Unauthenticated,
    }
}
