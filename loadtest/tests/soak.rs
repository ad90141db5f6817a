//! A soak of seconds: too short to judge whether anything grows, long enough to see that all of it runs and nothing is lost.

use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_loadtest");

fn soak(args: &[&str]) -> Output {
    let common = ["soak", "--warm-up", "0", "--devices", "6", "--guests", "3"];
    Command::new(PROGRAM).args(common).args(args).output().expect("a program that starts")
}

#[test]
fn everything_sent_ends_once_and_all_series_are_there() {
    let output = soak(&["--minutes", "0.05", "--rate", "40", "--to-all-every", "1", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let line = String::from_utf8(output.stdout).expect("text");
    let report: Value = serde_json::from_str(line.trim()).expect("one JSON object");
    let count = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"));
    for name in ["lost", "duplicates", "refused", "conflicts", "failed_otherwise"] {
        assert_eq!(count(name), 0, "{name} in {report}");
    }
    assert!(count("arrived") > 0 && count("guest_sessions") >= 3, "{report}");
    assert_eq!(count("sent"), count("arrived") + count("expired"), "{report}");
    assert_eq!(report["transports"], serde_json::json!(["tcp", "tls", "quic"]));
    let series = report["series"].as_object().expect("series");
    for name in
        ["rss_bytes", "descriptors", "threads", "disk_journal_bytes", "disk_tables_bytes", "push_records"]
    {
        let figure = &series[name];
        assert!(figure["median"].as_f64().expect("a number") > 0.0, "{name}: {figure}");
        assert_eq!(figure["verdict"], "too short", "{name}: {figure}");
    }
}

#[test]
fn what_can_not_be_is_said_with_what_to_do() {
    let output = soak(&["--dev", "somewhere", "--server-pid", "1", "--set", "store.max_messages=1000"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--set is for an edge of our own"), "{said}");
    let output = soak(&["--minutes", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("more than 0 is needed"));
}
