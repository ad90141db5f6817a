//! Scenarios, run as a user runs them, with few devices: the figures that they promise are there, and nothing is lost.

use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_loadtest");

fn loadtest(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().expect("a program that starts")
}

/// Runs it and reads the one line that it says.
fn figures(args: &[&str]) -> Value {
    let output = loadtest(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    let line = String::from_utf8(output.stdout).expect("text");
    serde_json::from_str(line.trim()).unwrap_or_else(|e| panic!("{args:?}: {e}: {line}"))
}

/// These are numbers above 0.
fn measured(figures: &Value, names: &[&str]) {
    for name in names {
        assert!(figures[name].as_f64().is_some_and(|n| n > 0.0), "{name} in {figures}");
    }
}

#[test]
fn offline_every_device_gets_every_message_after_a_kill() {
    let run = ["offline", "--devices", "30", "--messages", "4", "--batch", "7", "--json"];
    let figures = figures(&run);
    measured(&figures, &["pointers_per_s", "disk_bytes_per_pointer", "ready_seconds", "deliveries_per_s"]);
    assert_eq!((&figures["pointers"], &figures["deliveries"]), (&120.into(), &120.into()), "{figures}");
    assert_eq!(figures["lost"], 0);
    // Its body once a batch of at most 7, and something for each.
    let bytes = figures["disk_bytes_per_pointer"].as_f64().expect("a number");
    assert!((8.0..400.0).contains(&bytes), "{figures}");
}

#[test]
fn a_report_is_a_page_and_the_same_as_json() {
    let dir = std::env::temp_dir().join(format!("loadtest-report-{}", std::process::id()));
    let said = figures(&[
        "broadcast",
        "--devices",
        "6",
        "--rounds",
        "3",
        "--json",
        "--report",
        &dir.to_string_lossy(),
    ]);
    let file = |name: &str| std::fs::read_to_string(dir.join(name)).expect(name);
    let page = file("broadcast-mooring-tcp.html");
    let data: Value = serde_json::from_str(&file("broadcast-mooring-tcp.json")).expect("JSON");
    std::fs::remove_dir_all(&dir).expect("removed");
    assert!(page.contains("<svg") && page.contains("messages delivered"), "{page}");
    let fields = said.as_object().expect("an object");
    assert!(fields.iter().all(|(name, value)| data[name] == *value), "{said} and {data}");
    let titles: Vec<_> = data["plots"].as_array().expect("plots").iter().map(|p| &p["title"]).collect();
    assert!(titles.contains(&&Value::from("Latency")) && titles.len() > 2, "{titles:?}");
}

#[test]
fn storm_all_come_back_after_a_kill() {
    for transport in ["tcp", "tls", "quic"] {
        let figures = figures(&["storm", "--devices", "20", "--transport", transport, "--json"]);
        measured(&figures, &["seconds", "ready_seconds", "connects_per_s"]);
        assert_eq!((&figures["lost"], &figures["transport"]), (&0.into(), &transport.into()), "{figures}");
    }
}

#[test]
fn unicast_broadcast_and_hold_say_what_they_measured() {
    let figures_of = |scenario: &str, more: &[&str]| {
        let run = [&[scenario, "--devices", "6", "--json"], more].concat();
        let figures = figures(&run);
        assert_eq!((&figures["lost"], &figures["target"]), (&0.into(), &"mooring".into()), "{figures}");
        figures
    };
    let unicast = figures_of("unicast", &["--rate", "200", "--seconds", "1", "--floor"]);
    measured(&unicast, &["deliveries", "deliveries_per_s", "p50_ms", "p999_ms", "max_ms", "seconds"]);
    assert!(unicast["floor_cpu_us_per_delivery"].is_number(), "{unicast}");
    assert!(unicast["quiet_p99_ms"].is_null() && unicast["beside_targets"].is_null(), "{unicast}");
    let broadcast = figures_of("broadcast", &["--rounds", "3"]);
    assert_eq!(broadcast["deliveries"], 18, "{broadcast}");
    measured(&broadcast, &["last_device_ms", "p50_ms"]);
    assert!(broadcast["floor_cpu_us_per_delivery"].is_null(), "{broadcast}");
    let hold = figures_of("hold", &["--seconds", "0"]);
    assert_eq!(hold["deliveries"], 18, "{hold}");
    assert!(hold["rss_bytes_per_session"].is_number() && hold["connects_per_s"].is_number(), "{hold}");
}

#[test]
fn unicast_beside_a_broadcast_says_both_and_loses_nothing() {
    let run = ["unicast", "--devices", "6", "--rate", "200", "--seconds", "1", "--beside", "30", "--json"];
    let figures = figures(&run);
    // Of the second part; nothing may be lost in either.
    assert_eq!((&figures["deliveries"], &figures["lost"]), (&200.into(), &0.into()), "{figures}");
    measured(&figures, &["p50_ms", "p99_ms", "p999_ms", "max_ms", "beside_targets_per_s"]);
    measured(&figures, &["quiet_p50_ms", "quiet_p99_ms", "quiet_p999_ms", "quiet_max_ms"]);
    // Each message to all of them.
    let messages = figures["beside_messages"].as_u64().expect("a number");
    assert!(messages > 0, "{figures}");
    assert_eq!(
        (&figures["beside_devices"], &figures["beside_targets"]),
        (&30.into(), &(30 * messages).into())
    );
}

#[test]
fn a_broker_has_no_broadcast_beside() {
    let output = loadtest(&["unicast", "--beside", "30", "--target", "mqtt", "--start", "mosquitto"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--beside is for an edge"), "{said}");
}

#[test]
fn devices_in_several_processes_are_counted_together() {
    let shared = ["--devices", "20", "--per-process", "6", "--json"];
    let broadcast = figures(&[&["broadcast", "--rounds", "3"], &shared[..]].concat());
    assert_eq!((&broadcast["deliveries"], &broadcast["lost"]), (&60.into(), &0.into()), "{broadcast}");
    measured(&broadcast, &["last_device_ms", "p50_ms"]);
    // Steps of 6, 13 and 20 sessions: a worker's devices come in several of them.
    let hold = figures(&[&["hold", "--seconds", "0", "--transport", "tls"], &shared[..]].concat());
    assert_eq!((&hold["deliveries"], &hold["lost"]), (&60.into(), &0.into()), "{hold}");
}

#[test]
fn a_server_without_descriptors_enough_is_said_at_once() {
    let limited = "ulimit -n 2000 && exec \"$0\" broadcast --devices 3000 --json";
    let output = Command::new("sh").args(["-c", limited, PROGRAM]).output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("may open 2000 files") && said.contains("ulimit -Hn"), "{said}");
}

#[test]
fn over_quic_descriptors_bound_nothing() {
    let limited = "ulimit -n 400 && exec \"$0\" hold --devices 600 --transport quic --seconds 0 --json";
    let output = Command::new("sh").args(["-c", limited, PROGRAM]).output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"deliveries\":1800"), "{said}");
}
