use std::net::SocketAddr;

use super::*;

const DOCUMENTED: &str = include_str!("../../deploy/mooring.toml");

/// A directory with `app.secret`, and the path of a file beside it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("app.secret"), Secret::from_bytes([7; 32]).to_hex()).expect("written");
    let file = dir.path().join("mooring.toml");
    (dir, file)
}

const LEAST: &str = "[[apps]]\nkey = \"demo\"\nsecret_file = \"app.secret\"\n";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    let (_dir, file) = place();
    Config::parse(text, &file, &Overrides::default())
}

fn errors(text: &str) -> Vec<(usize, String, String)> {
    let ConfigErrors(errors) = parse(text).expect_err("errors");
    errors
        .into_iter()
        .map(|error| {
            let line = if let Origin::File(_, line) = error.origin { line } else { 0 };
            (line, error.key, error.text)
        })
        .collect()
}

fn has(errors: &[(usize, String, String)], line: usize, key: &str, text: &str) {
    let found = errors.iter().any(|(l, k, t)| *l == line && k == key && t.contains(text));
    assert!(found, "line {line}, {key}, `{text}` is not in {errors:#?}");
}

#[test]
fn the_documented_file_is_valid_and_says_the_defaults() {
    let (dir, file) = place();
    // The file is that of the usual build.
    let text = if cfg!(feature = "grpc") {
        DOCUMENTED.to_owned()
    } else {
        DOCUMENTED.replace("grpc = \"127.0.0.1:7401\"", "grpc = \"off\"")
    };
    let documented = Config::parse(&text, &file, &Overrides::default()).expect("valid");
    let mut least = Config::parse(LEAST, &file, &Overrides::default()).expect("valid");
    assert_eq!(documented.device, least.device);
    assert_eq!(documented.admin, least.admin);
    assert_eq!(documented.store, least.store);
    assert_eq!(documented.memory, least.memory);
    assert_eq!(documented.leave, least.leave);
    assert_eq!(documented.log, least.log);
    assert_eq!((documented.shards, &documented.data_dir), (least.shards, &least.data_dir));
    assert_eq!(documented.data_dir, dir.path().join("mooring-data"));
    let rights = RouterRights { name: "router-1".into(), apps: Scope::All, streams: Scope::All };
    least.router.routers.push(rights);
    assert_eq!(documented.router, least.router);
    let app = |config: &Config| {
        let app = &config.apps[0];
        (app.packages.clone(), app.epoch, app.registration.clone(), app.stream.clone())
    };
    assert_eq!(app(&documented), app(&least));
    assert_eq!(least.apps[0].app_id, "demo");
    assert!(documented.warnings.is_empty());
    assert!(!least.router.routers.is_empty() && least.warnings.len() == 1);
}

#[test]
fn every_key_of_the_code_stands_in_the_documented_file() {
    let text = DOCUMENTED;
    let (_dir, file) = place();
    let overrides = Overrides::default();
    let mut reader = Reader::new(text, &file, &overrides);
    let document = DeTable::parse(text).expect("valid");
    // Debug output of the defaults names every key of a section.
    for (name, shown) in [
        ("device", format!("{:#?}", Device::default())),
        ("router", format!("{:#?}", Router::default())),
        ("admin", format!("{:#?}", Admin::default())),
        ("store", format!("{:#?}", Store::default())),
        ("memory", format!("{:#?}", Memory::default())),
        ("leave", format!("{:#?}", Leave::default())),
        ("log", format!("{:#?}", Log::default())),
    ] {
        let table = document.get_ref().get(name).and_then(|value| value.get_ref().as_table());
        let mut section = Section::new(&mut reader, table, name);
        for line in shown.lines().filter(|line| line.starts_with("    ") && !line.starts_with("     ")) {
            if let Some((key, _)) = line.trim().split_once(": ") {
                assert!(section.raw(key.to_owned().leak()).is_some(), "{name}.{key} is not documented");
            }
        }
    }
}

#[test]
fn a_build_without_grpc_says_so() {
    let config = |grpc: &str| parse(&format!("{LEAST}[router]\ngrpc = \"{grpc}\"\n"));
    assert_eq!(config("off").expect("valid").router.grpc, None);
    let given = config("127.0.0.1:1").map(|config| config.router.grpc).map_err(|errors| errors.to_string());
    if cfg!(feature = "grpc") {
        assert_eq!(given, Ok(Some(SocketAddr::from(([127, 0, 0, 1], 1)))));
    } else {
        assert!(given.expect_err("refused").contains("built without gRPC"));
    }
}

#[test]
fn all_errors_come_at_once_each_with_key_and_line() {
    let text = "\
shards = 300
dta_dir = \"x\"
[device]
tls = \"7443\"
heartbeat_min_s = 500
heartbeat_defualt_s = 5
max_sessions = \"many\"
[[apps]]
key = \"has space\"
secret_file = \"none\"
[[apps]]
app_id = \"x\"
[[router.routers]]
name = \"r\"
apps = [\"demo\", \"dmeo\"]
[store]
segment_bytes = \"64MB\"
max_bytes = 5
[leave]
deadline_ms = 3_000
[log]
filter = \"mooring=loud\"
format = \"xml\"
[memory]
budget_bytes = \"16MiB\"
[colour]
x = 1
";
    let errors = errors(text);
    has(&errors, 1, "shards", "must be 0 to 256, is 300");
    has(&errors, 2, "dta_dir", "no such key; did you mean `data_dir`?");
    has(&errors, 4, "device.tls", "must be an IP address and port");
    has(&errors, 5, "device.heartbeat_min_s", "must be at most heartbeat_default_s (240)");
    has(&errors, 6, "device.heartbeat_defualt_s", "did you mean `heartbeat_default_s`?");
    has(&errors, 7, "device.max_sessions", "must be a whole number from 0, is text");
    has(&errors, 9, "apps[0].key", "must be 1 to 32 letters");
    has(&errors, 10, "apps[0].secret_file", "keys app-secret");
    has(&errors, 11, "apps[1].key", "is missing; for instance: key = \"23456789\"");
    has(&errors, 11, "apps[1].secret_file", "is missing");
    has(&errors, 15, "router.routers[0].apps", "`demo` is not in [[apps]]");
    has(&errors, 17, "store.segment_bytes", "must be a number of bytes, or one such as \"64MiB\"");
    has(&errors, 18, "store.max_bytes", "must be 0, or at least");
    has(&errors, 20, "leave.deadline_ms", "must be more than drain_lead_ms + window_ms (6000)");
    has(&errors, 22, "log.filter", "not understood");
    has(&errors, 23, "log.format", "must be \"human\" or \"json\", is \"xml\"");
    has(&errors, 25, "memory.budget_bytes", "must be 0, or at least");
    has(&errors, 26, "colour", "no such key");
}

#[test]
fn names_and_apps_that_stand_twice_are_errors_and_near_names_are_suggested() {
    let router = "[[router.routers]]\nname = \"r\"\napps = [\"dmeo\"]\nstreams = [\"main\"]\n";
    let errors = errors(&[LEAST, LEAST, router, router].concat());
    has(&errors, 5, "apps[1].key", "the app demo stands here twice");
    has(&errors, 9, "router.routers[0].apps", "`dmeo` is not in [[apps]]; did you mean `demo`?");
    has(&errors, 12, "router.routers[1].name", "the router r stands here twice");
}

/// Its rest is to be read by who read it. Only a data directory tells it from a name that is misspelt.
#[test]
fn a_router_may_read_a_stream_that_no_app_has_if_the_data_directory_has_it() {
    let router = "[[router.routers]]\nname = \"r\"\napps = \"*\"\nstreams = [\"main\", \"second\"]\n";
    let config = parse(&[LEAST, router].concat()).expect("valid");
    let rights = &config.router.routers[0].streams;
    assert!(rights.allows("second") && rights.allows("main") && !rights.allows("third"));
    let [warning] = &config.warnings[..] else { panic!("one warning: {:?}", config.warnings) };
    assert!(warning.contains(":7: router.routers[0].streams: `second` is not in [[apps]]"), "{warning}");
    let check =
        |known: &[&str]| config.check_streams(&known.iter().map(|name| Arc::from(*name)).collect::<Vec<_>>());
    assert_eq!(check(&["main", "second"]), Ok(()));
    let error = check(&["main", "sceond"]).expect_err("misspelt").to_string();
    assert!(
        error.contains("`second` is not in [[apps]]") && error.contains("did you mean `sceond`?"),
        "{error}"
    );
    assert!(
        parse(&[LEAST, &router.replace("\"second\"", "\"main\"")].concat())
            .expect("valid")
            .warnings
            .is_empty()
    );
}

#[test]
fn errors_of_syntax_have_their_line_too() {
    let errors = errors(&[LEAST, "[device]\ntls = = 3\nplain = \"x\n"].concat());
    assert!(errors.iter().any(|(line, key, _)| *line == 5 && key.is_empty()), "{errors:#?}");
}

fn errors_of(text: &str) -> String {
    parse(text).expect_err("errors").to_string()
}

#[test]
fn nothing_at_all_says_what_is_needed() {
    let errors = Config::load(None, &Overrides::default()).expect_err("errors").to_string();
    assert!(errors.contains("apps: at least one [[apps]]"), "{errors}");
    let empty = Config::parse("apps = []\n", Path::new("m.toml"), &Overrides::default());
    assert!(empty.expect_err("errors").to_string().contains("apps: at least one [[apps]]"));
    // One that is there and wrong is no second error.
    let wrong = errors_of("[[apps]]\nkey = \"demo\"\nsecret_file = \"none\"\n");
    assert!(wrong.contains("secret") && !wrong.contains("at least one"), "{wrong}");
    let missing = Config::load(Some(Path::new("/nonexistent/m.toml")), &Overrides::default());
    assert!(missing.expect_err("errors").to_string().contains("/nonexistent/m.toml can't be read"));
}

#[test]
fn flags_stand_over_the_environment_and_that_over_the_file() {
    let (_dir, file) = place();
    let text = ["shards = 2\n", LEAST, "[device]\nplain = \"127.0.0.1:1\"\nheartbeat_max_s = 300\n"].concat();
    let variables = [
        ("MOORING_SHARDS", "3"),
        ("MOORING_DEVICE_PLAIN", "127.0.0.1:2"),
        ("MOORING_DATA_DIR", "elsewhere"),
        ("MOORING_LOG", "debug"),
        ("MOORING_STORE_BODY_CACHE_BYTES", "1GiB"),
        ("MOORING_SERVICE_HOST", "10.0.0.1"),
        ("MOORING_CONFIG", "x"),
        ("HOME", "/"),
    ];
    let mut overrides = Overrides::from_env(variables.map(|(name, value)| (name.into(), value.into())));
    overrides.flag("--shards", "shards", &4);
    let config = Config::parse(&text, &file, &overrides).expect("valid");
    assert_eq!(config.shards, 4);
    assert_eq!(config.device.plain, Some(SocketAddr::from(([127, 0, 0, 1], 2))));
    assert_eq!(config.device.heartbeat_max_s, 300);
    assert_eq!(config.data_dir, Path::new("elsewhere"));
    assert_eq!(config.log.filter, "debug");
    assert_eq!(config.store.body_cache_bytes, 1 << 30);
    // An orchestrator may set what nobody asked for: a word, no error.
    assert!(
        config.warnings.iter().any(|text| text.contains("MOORING_SERVICE_HOST")),
        "{:?}",
        config.warnings
    );

    overrides.flag("--set", "device.plian", &"off");
    overrides.flag("--shards", "shards", &"many");
    let text = Config::parse(&text, &file, &overrides).expect_err("errors").to_string();
    assert!(text.contains("flag --set: device.plian: no such key; did you mean `device.plain`?"), "{text}");
    assert!(text.contains("flag --shards: shards: must be a whole number"), "{text}");
}

#[test]
fn rights() {
    let text = [LEAST, "[[router.routers]]\nname = \"r\"\napps = [\"demo\"]\n"].concat();
    let config = parse(&text).expect("valid");
    let rights = &config.router.routers[0];
    let key = AppKey::parse("demo").expect("valid");
    assert!(rights.apps.allows(&key));
    assert!(!rights.apps.allows(&AppKey::parse("other").expect("valid")));
    assert!(!rights.streams.allows("main"));
    assert!(Scope::<Arc<str>>::All.allows("main"));
    assert_eq!(config.streams(), vec![Arc::from("main")]);
    assert_eq!(config.app("demo").map(|app| app.secret.clone()), Some(Secret::from_bytes([7; 32])));
    assert!(!format!("{config:?}").contains("0707"));
}

#[test]
fn registration_is_open_unless_said_and_tokens_need_a_key() {
    let app = |text: &str| parse(&[LEAST, text].concat()).map(|config| config.apps[0].registration.clone());
    let registration = app("").expect("valid");
    assert_eq!((registration.policy, registration.per_second), (RegistrationPolicy::Open, 1_000));
    assert!(registration.keys.is_empty());
    let registration = app("registration = \"token\"\ntoken_secret_file = \"app.secret\"\n").expect("valid");
    assert_eq!(registration.policy, RegistrationPolicy::Token);
    assert!(!registration.keys.is_empty());
    let text = [LEAST, "registration = \"token\"\n"].concat();
    has(&errors(&text), 4, "apps[0].registration", "neither token_secret_file nor token_public_key_file");
    let text = [LEAST, "registration = \"closed\"\ntoken_public_key_file = \"app.secret\"\n"].concat();
    let errors = errors(&text);
    has(&errors, 4, "apps[0].registration", "must be \"open\", \"token\" or \"off\"");
    has(&errors, 5, "apps[0].token_public_key_file", "Ed25519 public keys in PEM");
}

#[test]
fn no_listener_is_an_error() {
    has(&errors(&[LEAST, "[device]\ntls = \"off\"\n"].concat()), 5, "device.tls", "no device could connect");
}

#[test]
fn quic_is_on_or_off_and_has_a_heartbeat_of_its_own() {
    let (_dir, file) = place();
    let device = |text: &str| [LEAST, "[device]\n", text].concat();
    let config = parse(LEAST).expect("valid");
    assert!(config.device.quic && config.device.quic_steering);
    assert!(config.device.quic_heartbeat_max_s < config.device.heartbeat_default_s);
    assert!(!parse(&device("quic = false\n")).expect("valid").device.quic);
    let overrides = Overrides::from_env([("MOORING_DEVICE_QUIC".into(), "false".into())]);
    assert!(!Config::parse(LEAST, &file, &overrides).expect("valid").device.quic);
    let errors = errors(&device("quic = \"yes\"\nquic_heartbeat_min_s = 30\nquic_heartbeat_max_s = 20\n"));
    let text = format!("{errors:?}");
    assert!(text.contains("must be true or false, is text"), "{text}");
    assert!(text.contains("must be at most quic_heartbeat_default_s (25)"), "{text}");
    assert!(text.contains("must be at least quic_heartbeat_default_s (25)"), "{text}");
}

/// Else it would be refused for ever, and its router told each time to come again.
#[test]
fn the_largest_batch_has_room_among_the_pending_entries() {
    let config = |most: u32| [LEAST, &format!("[store]\nmax_pending = {most}\n")].concat();
    assert!(parse(&config(100_000)).is_ok());
    has(&errors(&config(99_999)), 5, "store.max_pending", "must be 100000 to");
}

#[test]
fn the_parts_of_a_batch_have_room_among_the_ids() {
    let config = |text: &str| [LEAST, text].concat();
    assert!(parse(&config("[router]\npart_targets = 4\n")).is_ok());
    has(&errors(&config("[router]\npart_targets = 2\n")), 5, "router.part_targets", "at least 13004800");
    let fewer = config("[router]\npart_targets = 1000\n[store]\nmax_batch_ids = 230399\n");
    has(&errors(&fewer), 5, "router.part_targets", "at least 230400");
}
