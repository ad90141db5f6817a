//! Configuration: one TOML file, the environment over it, flags over both; parsed once into valid types.
//!
//! Invariants: a [`Config`] is within every range and consistent, so that nobody checks again. Everything that is wrong is
//! reported at once, each with its key and line. An unknown key is an error: a misspelt bound would silently be its default.
//! `deploy/mooring.toml` documents every key; a test compares it with the code.
//!
//! Rejected: deriving the parser with serde, which stops at the first error and knows no line of a value that is
//! well-formed but out of range.

mod error;
mod reader;
mod registration;
mod sections;
mod value;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

pub use self::error::{ConfigError, ConfigErrors, Origin};
pub use self::reader::Overrides;
use self::reader::{Reader, Section, suggest};
pub use self::registration::{Registration, RegistrationPolicy};
pub use self::sections::{Admin, Device, Leave, Log, Memory, Router, Stats, Store};
use self::value::{Raw, Value, within};
use crate::credential::Secret;
use crate::ids::{AppKey, is_name};
use crate::push::Rates;
use crate::{limits, telemetry};

/// Bytes of a router's name: those of a common name.
const ROUTER_NAME_BYTES: usize = 64;

/// Everything that is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// Shards; 0 in the file stands for [`usual_shards`].
    pub shards: usize,
    /// `[device]`.
    pub device: Device,
    /// `[router]`.
    pub router: Router,
    /// `[admin]`.
    pub admin: Admin,
    /// `[[apps]]`; at least one.
    pub apps: Vec<App>,
    /// `[store]`.
    pub store: Store,
    /// `[memory]`.
    pub memory: Memory,
    /// `[stats]`.
    pub stats: Stats,
    /// `[leave]`.
    pub leave: Leave,
    /// `[log]`.
    pub log: Log,
    /// Streams that a router may read and no app has now: see [`Config::check_streams`].
    pub former_streams: Vec<FormerStream>,
    /// What is worth a word in the log, but no error.
    pub warnings: Vec<String>,
}

/// An app that this edge serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct App {
    /// Its app key.
    pub key: AppKey,
    /// Its id in the receipt log; the key, unless given.
    pub app_id: String,
    /// The package names it ships under, the main one first; empty: any.
    pub packages: Vec<String>,
    /// The file of its secret.
    pub secret_file: PathBuf,
    /// Its secret.
    pub secret: Secret,
    /// The epoch of its credentials; those of the one before are renewed.
    pub epoch: u32,
    /// Who may register.
    pub registration: Registration,
    /// The stream that its receipts and outcomes go to.
    pub stream: Arc<str>,
    /// What it may do, unless an operator says otherwise at run time.
    pub rates: Rates,
    /// What one of its devices may have pending.
    pub pending: PendingBounds,
}

/// What one device may have pending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingBounds {
    /// Messages; `None`: as `store.max_pending_per_device` says.
    pub messages: Option<u32>,
    /// Bytes of their encodings; `None`: any.
    pub bytes: Option<u64>,
    /// Beyond, the oldest end, instead of the newest being refused.
    pub drop_oldest: bool,
}

/// A stream that a router may read and no app has now: one of before, whose rest is to be read, or a name that is misspelt. Only a data directory can tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormerStream {
    /// Its name.
    pub name: Arc<str>,
    origin: Origin,
    key: String,
}

/// What a router may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouterRights {
    /// The common name of its certificate.
    pub name: String,
    /// The apps it may push to.
    pub apps: Scope<AppKey>,
    /// The streams it may read.
    pub streams: Scope<Arc<str>>,
}

/// All, or some.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope<T> {
    /// `"*"`.
    All,
    /// These.
    Only(Vec<T>),
}

impl<T> Scope<T> {
    /// Whether it is among them.
    pub fn allows<Q: ?Sized + PartialEq>(&self, wanted: &Q) -> bool
    where
        T: std::borrow::Borrow<Q>,
    {
        match self {
            Self::All => true,
            Self::Only(some) => some.iter().any(|one| one.borrow() == wanted),
        }
    }
}

impl Config {
    /// Reads the file, if any, and what stands over it.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigErrors> {
        let Some(file) = file else { return Self::parse("", Path::new(""), overrides) };
        let text = std::fs::read_to_string(file).map_err(|error| {
            let text = format!("{} can't be read: {error}", file.display());
            ConfigErrors(vec![ConfigError { origin: Origin::Nowhere, key: String::new(), text }])
        })?;
        Self::parse(&text, file, overrides)
    }

    /// Parses a file's text. Relative paths in it are relative to the directory of `file`.
    pub fn parse(text: &str, file: &Path, overrides: &Overrides) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(text, file, overrides);
        let (document, syntax) = DeTable::parse_recoverable(text);
        for error in &syntax {
            reader.syntax(error);
        }
        let mut root = Section::new(&mut reader, Some(document.get_ref()), "");
        let data_dir = root.value("data_dir", PathBuf::from("mooring-data"), |_| Ok(()));
        let shards = root.value("shards", 0, |shards| within(shards, &(0..=limits::SHARDS)));
        let apps = read_apps(&mut root);
        let mut config = Self {
            data_dir,
            shards: if shards == 0 { usual_shards() } else { shards },
            device: whole(root.section("device"), Device::read),
            router: whole(root.section("router"), |section| Router {
                routers: read_routers(section, &apps),
                ..Router::read(section)
            }),
            admin: whole(root.section("admin"), Admin::read),
            store: whole(root.section("store"), Store::read),
            memory: whole(root.section("memory"), Memory::read),
            stats: whole(root.section("stats"), Stats::read),
            leave: whole(root.section("leave"), Leave::read),
            log: whole(root.section("log"), Log::read),
            apps,
            former_streams: Vec::new(),
            warnings: Vec::new(),
        };
        root.finish();
        // An empty list says nothing by itself.
        let has_apps = document.get_ref().get("apps").is_some_and(|apps| match apps.get_ref() {
            DeValue::Array(apps) => !apps.is_empty(),
            _ => true,
        });
        let has_apps = has_apps || !syntax.is_empty();
        config.check(&mut reader, has_apps);
        config.former_streams = std::mem::take(&mut reader.former_streams);
        let nobody = config.router.routers.is_empty();
        config.warnings = reader.finish()?;
        let known = config.streams();
        config.warnings.extend(config.former_streams.iter().map(|former| former.error(&known).to_string()));
        if nobody {
            config
                .warnings
                .push("no [[router.routers]]: no router may connect, so nothing can be pushed".into());
        }
        Ok(config)
    }

    /// The streams that apps map to, each once.
    pub fn streams(&self) -> Vec<Arc<str>> {
        self.apps.iter().map(|app| app.stream.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What is wrong if the data directory has these streams, those of the configuration among them: a router may read none of this name.
    pub fn check_streams(&self, known: &[Arc<str>]) -> Result<(), ConfigErrors> {
        let unknown = self.former_streams.iter().filter(|former| !known.contains(&former.name));
        let errors: Vec<ConfigError> = unknown.map(|former| former.error(known)).collect();
        if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
    }

    /// The app of a key.
    pub fn app(&self, key: &str) -> Option<&App> {
        self.apps.iter().find(|app| app.key.as_str() == key)
    }

    /// What concerns more than one key.
    fn check(&self, reader: &mut Reader<'_>, has_apps: bool) {
        let device = &self.device;
        if device.tls.is_none() && device.plain.is_none() {
            reader.wrong("device.tls", "is off, and device.plain too: no device could connect");
        }
        let tcp = (device.heartbeat_min_s, device.heartbeat_default_s, device.heartbeat_max_s);
        let quic =
            (device.quic_heartbeat_min_s, device.quic_heartbeat_default_s, device.quic_heartbeat_max_s);
        for (prefix, (min, default, max)) in [("", tcp), ("quic_", quic)] {
            if min > default {
                let text = format!("must be at most {prefix}heartbeat_default_s ({default})");
                reader.wrong(&format!("device.{prefix}heartbeat_min_s"), text);
            }
            if max < default {
                let text = format!("must be at least {prefix}heartbeat_default_s ({default})");
                reader.wrong(&format!("device.{prefix}heartbeat_max_s"), text);
            }
        }
        if self.router.grpc.is_some() && !cfg!(feature = "grpc") {
            let text = "this program was built without gRPC: say \"off\", or build it with `--features grpc`";
            reader.wrong("router.grpc", text);
        }
        let leave = &self.leave;
        if leave.drain_lead_ms + leave.window_ms >= leave.deadline_ms {
            let spent = leave.drain_lead_ms + leave.window_ms;
            reader
                .wrong("leave.deadline_ms", format!("must be more than drain_lead_ms + window_ms ({spent})"));
        }
        if let Err(error) = telemetry::check_filter(&self.log.filter) {
            reader.wrong("log.filter", error.to_string());
        }
        let store = &self.store;
        let least = u64::from(store.segment_bytes) * u64::from(store.reserve_segments + 2);
        if store.max_bytes != 0 && store.max_bytes < least {
            reader.wrong(
                "store.max_bytes",
                format!("must be 0, or at least {least}: two segments and the reserve"),
            );
        }
        let least = store.stream_soft_bytes + 2 * u64::from(store.segment_bytes);
        if store.stream_hard_bytes < least {
            let text = format!("must be at least stream_soft_bytes and two segments ({least})");
            reader.wrong("store.stream_hard_bytes", text);
        }
        // Else the last parts of a batch would drive out the first one's.
        let least = limits::least_batch_ids(self.router.part_targets);
        if store.max_batch_ids < least {
            let text = format!(
                "each part of a batch has an id: store.max_batch_ids must be at least {least} for that"
            );
            reader.wrong("router.part_targets", text);
        }
        let (budget, floor) = (self.memory.budget_bytes, memory_floor(self.shards));
        if budget != 0 && budget < floor {
            let text = format!(
                "must be 0, or at least {floor}: that is twice the program itself with {} shards and the largest frame of a router",
                self.shards
            );
            reader.wrong("memory.budget_bytes", text);
        }
        // Where one is there and wrong, or the file can't be read to its end, the others say so.
        if self.apps.is_empty() && !has_apps {
            reader.wrong(
                "apps",
                "at least one [[apps]] with key and secret_file is needed; `serve --dev` makes one to try",
            );
        }
    }
}

/// The least budget of memory: twice what the program takes with so many shards before anybody connects, and the largest frame of a router.
pub fn memory_floor(shards: usize) -> u64 {
    2 * (memory_base(shards) + limits::ROUTER_FRAME_BYTES as u64)
}

/// What the program takes with so many shards before anybody connects, at least.
pub fn memory_base(shards: usize) -> u64 {
    limits::BASE_BYTES + limits::SHARD_BYTES * shards as u64
}

/// Reads a section, then notes what it had left.
fn whole<'r, 'a, T>(mut section: Section<'r, 'a>, read: impl FnOnce(&mut Section<'r, 'a>) -> T) -> T {
    let value = read(&mut section);
    section.finish();
    value
}

/// Shards, where nobody says how many: one a core, but one core is left to the store and to routers. On two cores a second shard had messages
/// cost a tenth more, as both were for ever going to sleep (`benches/RESULTS.md`).
pub fn usual_shards() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.saturating_sub(1).clamp(1, limits::SHARDS)
}

fn read_apps(root: &mut Section<'_, '_>) -> Vec<App> {
    let mut apps: Vec<App> = Vec::new();
    for (path, table) in root.list("apps") {
        let section = Section::new(root.reader, Some(table), path.clone());
        let Some(app) = whole(section, read_app) else { continue };
        if apps.iter().any(|other| other.key == app.key) {
            root.reader.wrong(&format!("{path}.key"), format!("the app {} stands here twice", app.key));
        }
        apps.push(app);
    }
    apps
}

fn read_app(section: &mut Section<'_, '_>) -> Option<App> {
    let key = section.required::<String>("key", "\"23456789\"");
    let secret_file = section.required::<PathBuf>("secret_file", "\"app.secret\"");
    let app_id = section.value("app_id", key.clone().unwrap_or_default(), |id: &String| {
        within(&id.len(), &(1..=limits::ATTRIBUTE_BYTES)).map_err(|text| format!("bytes {text}"))
    });
    let packages = section.value("packages", Vec::new(), |packages: &Vec<String>| {
        let fits = |name: &String| (1..=limits::ATTRIBUTE_BYTES).contains(&name.len());
        if packages.iter().all(fits) { Ok(()) } else { Err("an empty or over-long package name".into()) }
    });
    let epoch = section.value("epoch", 1, |epoch| within(epoch, &(1..=u32::MAX)));
    let registration = Registration::read(section);
    let stream =
        section.value("stream", String::from("main"), |stream: &String| name(stream, limits::LABEL_BYTES));
    let rates = Rates {
        batches_per_s: section.value("batches_per_s", 0, |_| Ok(())),
        targets_per_s: section.value("targets_per_s", 0, |_| Ok(())),
        sessions_per_s: section.value("sessions_per_s", 0, |_| Ok(())),
        max_sessions: section.value("max_sessions", 0, |_| Ok(())),
    };
    let pending = read_pending(section);
    let parsed = key.as_deref().map(AppKey::parse);
    if parsed == Some(None) {
        let text = format!("must be 1 to {} letters, digits, - _ . :", limits::APP_KEY_BYTES);
        section.reader.wrong(&section.key("key"), text);
    }
    let secret_file = secret_file?;
    let secret = match Secret::load(&secret_file) {
        Ok(secret) => secret,
        Err(error) => {
            section.reader.wrong(&section.key("secret_file"), error.to_string());
            return None;
        }
    };
    let (key, stream) = (parsed??, stream.into());
    Some(App { key, app_id, packages, secret_file, secret, epoch, registration, stream, rates, pending })
}

/// 0 stands for no bound of the app's own.
fn read_pending(section: &mut Section<'_, '_>) -> PendingBounds {
    let messages = section.value("max_pending_per_device", 0u32, |most| within(most, &(0..=100_000)));
    let bytes = section.value("max_pending_bytes_per_device", 0u64, |most| within(most, &(0..=1 << 40)));
    let over =
        section.value("over_quota", String::from("refuse_newest"), |over: &String| match over.as_str() {
            "refuse_newest" | "drop_oldest" => Ok(()),
            _ => Err("must be \"refuse_newest\" or \"drop_oldest\"".into()),
        });
    PendingBounds {
        messages: (messages > 0).then_some(messages),
        bytes: (bytes > 0).then_some(bytes),
        drop_oldest: over == "drop_oldest",
    }
}

fn read_routers(router: &mut Section<'_, '_>, apps: &[App]) -> Vec<RouterRights> {
    let mut routers: Vec<RouterRights> = Vec::new();
    for (path, table) in router.list("routers") {
        let section = Section::new(router.reader, Some(table), path.clone());
        let Some(rights) = whole(section, |section| read_router(section, apps)) else { continue };
        if routers.iter().any(|other| other.name == rights.name) {
            router
                .reader
                .wrong(&format!("{path}.name"), format!("the router {} stands here twice", rights.name));
        }
        routers.push(rights);
    }
    routers
}

fn read_router(section: &mut Section<'_, '_>, apps: &[App]) -> Option<RouterRights> {
    let name = section.required::<String>("name", "\"router-1\"");
    let app_names = section.required::<Names>("apps", "\"*\"");
    let stream_names = section.value("streams", Names(Scope::Only(Vec::new())), |_| Ok(()));
    let known_apps: Vec<&str> = apps.iter().map(|app| app.key.as_str()).collect();
    let known_streams: Vec<&str> = apps.iter().map(|app| &*app.stream).collect();
    let apps = app_names.map(|names| names.resolve(section, "apps", &known_apps, AppKey::parse));
    let streams = stream_names.streams(section, &known_streams);
    let name = name?;
    if let Err(text) = within(&name.len(), &(1..=ROUTER_NAME_BYTES)) {
        section.reader.wrong(&section.key("name"), format!("bytes {text}"));
    }
    Some(RouterRights { name, apps: apps?, streams })
}

fn name(text: &str, max: usize) -> Result<(), String> {
    if is_name(text, max) { Ok(()) } else { Err(format!("must be 1 to {max} letters, digits, - _ . :")) }
}

/// `"*"` or a list of names.
struct Names(Scope<String>);

impl Value for Names {
    fn read(raw: Raw<'_>, context: &value::Context<'_>) -> Result<Self, String> {
        match raw {
            Raw::Toml(DeValue::String(text)) if text == "*" => Ok(Self(Scope::All)),
            _ => Vec::read(raw, context)
                .map(|names| Self(Scope::Only(names)))
                .map_err(|text| format!("{text}, or \"*\"")),
        }
    }
}

impl Names {
    fn resolve<T>(
        self,
        section: &mut Section<'_, '_>,
        key: &str,
        known: &[&str],
        parse: impl Fn(&str) -> Option<T>,
    ) -> Scope<T> {
        let Scope::Only(names) = self.0 else { return Scope::All };
        for name in names.iter().filter(|name| !known.contains(&name.as_str())) {
            let text = format!("`{name}` is not in [[apps]]{}", suggest(name, known.iter().copied()));
            section.reader.wrong(&section.key(key), text);
        }
        Scope::Only(names.iter().filter_map(|name| parse(name)).collect())
    }
}

impl Names {
    /// Of streams: one that no app has may be known to the data directory.
    fn streams(self, section: &mut Section<'_, '_>, known: &[&str]) -> Scope<Arc<str>> {
        let Scope::Only(names) = self.0 else { return Scope::All };
        let names: Vec<Arc<str>> = names.into_iter().map(Arc::from).collect();
        let key = section.key("streams");
        let origin = section.reader.origin(&key);
        let former = names.iter().filter(|name| !known.contains(&&***name));
        let former =
            former.map(|name| FormerStream { name: name.clone(), origin: origin.clone(), key: key.clone() });
        section.reader.former_streams.extend(former);
        Scope::Only(names)
    }
}

impl FormerStream {
    /// That none of the known ones has its name.
    fn error(&self, known: &[Arc<str>]) -> ConfigError {
        let near = suggest(&self.name, known.iter().map(|name| &**name));
        let text = format!(
            "`{}` is not in [[apps]], and only the data directory may have such a stream{near}",
            self.name
        );
        ConfigError { origin: self.origin.clone(), key: self.key.clone(), text }
    }
}

#[cfg(test)]
mod tests;
