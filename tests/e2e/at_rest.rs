//! `mooring store` on the data directory of an edge that was killed: what it says is what happened, nothing is changed, and a flipped bit is found.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use mooring::store::disk::format::VERSION;
use serde_json::Value;

use super::edge::{Edge, Way};

fn store(arguments: &[&str]) -> (Option<i32>, String, String) {
    let out =
        Command::new(env!("CARGO_BIN_EXE_mooring")).arg("store").args(arguments).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

/// Bytes and time of change of every file.
fn files(dir: &Path) -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
    let entries = std::fs::read_dir(dir).expect("there").map(|entry| entry.expect("readable"));
    let files = entries.filter(|entry| entry.file_type().expect("known").is_file());
    files
        .map(|entry| {
            let changed = entry.metadata().expect("there").modified().expect("known");
            let name = entry.file_name().into_string().expect("text");
            (name, (std::fs::read(entry.path()).expect("readable"), changed))
        })
        .collect()
}

fn json(out: &str) -> Value {
    serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// An edge with three messages for two devices, four of the six arrived, that was killed; and its data directory.
async fn killed() -> (Edge, String) {
    let mut edge = Edge::start().await;
    edge.register(&["d-1", "away"]).await;
    let mut router = edge.router().await;
    for message in 1..=3 {
        router.push(message, &["d-1", "away"]).await;
    }
    let mut device = edge.device(Way::Tls, "d-1").await;
    for message in 1..=3 {
        device.takes(message).await;
    }
    edge.totals_when(|totals| totals["arrived"] == 3).await;
    let (code, _, error) = store(&["check", edge.data_dir().to_str().expect("text")]);
    assert_eq!(code, Some(2), "an edge uses it");
    assert!(error.contains("in use by another process") && error.contains("stop the edge first"), "{error}");
    edge.kill().await;
    let dir = edge.data_dir().to_str().expect("text").to_owned();
    (edge, dir)
}

#[tokio::test]
async fn what_a_killed_edge_left_is_whole_and_is_only_looked_at() {
    let (mut edge, dir) = killed().await;
    let before = files(Path::new(&dir));
    let (code, out, error) = store(&["check", &dir, "--json"]);
    assert_eq!(code, Some(0), "{out}{error}");
    let check = json(&out);
    assert_eq!(check["whole"], true, "{out}");
    let stats = &check["stats"];
    let counted =
        ["accepted", "arrived", "pending", "waiting_devices", "devices"].map(|name| stats[name].as_u64());
    assert_eq!(counted, [6, 3, 3, 1, 2].map(Some), "{out}");
    assert_eq!(stats["records"]["batch"]["count"], 3);
    assert_eq!(stats["pending_by_app"]["demo"], 3);
    let (code, out, _) = store(&["check", &dir]);
    assert!(code == Some(0) && out.contains("whole: "), "{out}");
    let (code, out, _) = store(&["stats", &dir]);
    assert!(code == Some(0) && out.contains("pending_by_app.demo"), "{out}");
    assert!(files(Path::new(&dir)) == before, "something was changed");
    // And the edge goes on with it.
    edge.run().await;
    let mut away = edge.device(Way::Tls, "away").await;
    for message in 1..=3 {
        away.takes(message).await;
    }
}

#[tokio::test]
async fn records_are_shown_one_by_one_and_what_is_personal_only_if_asked_for() {
    let (_edge, dir) = killed().await;
    let dump = |more: &[&str]| {
        let (code, out, error) = store(&[&["dump", &dir], more].concat());
        assert_eq!(code, Some(0), "{error}");
        out.lines().map(json).collect::<Vec<_>>()
    };
    let all = dump(&[]);
    let sequences: Vec<u64> = all.iter().filter_map(|record| record["sequence"].as_u64()).collect();
    assert!(sequences.is_sorted() && sequences.len() == all.len(), "{sequences:?}");
    let batches = dump(&["--kind", "batch", "--app", "demo"]);
    assert_eq!(batches.iter().map(|batch| batch["message"].clone()).collect::<Vec<_>>(), ["1", "2", "3"]);
    assert!(batches.iter().all(|batch| batch["body"].is_null()), "{batches:?}");
    assert!(dump(&["--kind", "batch", "--personal"]).iter().all(|batch| batch["body"].is_string()));
    let of_device = dump(&["--app", "demo", "--device", "d-1", "--kind", "receipt"]);
    assert_eq!(
        of_device.iter().filter(|receipt| receipt["outcome"] == "arrived").count(),
        3,
        "{of_device:?}"
    );
    assert!(dump(&["--app", "demo", "--device", "nobody"]).is_empty());
    assert_eq!(dump(&["--from", "2", "--to", "2"])[0]["sequence"], 2);
    let (code, _, error) = store(&["dump", &dir, "--kind", "butch"]);
    assert!(code == Some(2) && error.contains("batch"), "{error}");
}

#[tokio::test]
async fn a_flipped_bit_in_a_batch_is_named_with_what_follows_and_that_follows() {
    let (mut edge, dir) = killed().await;
    let (_, out, _) = store(&["dump", &dir, "--kind", "batch"]);
    let second = json(out.lines().nth(1).expect("three"));
    let name = format!("journal-{:010}.seg", second["segment"].as_u64().expect("a number"));
    let path = Path::new(&dir).join(&name);
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[second["offset"].as_u64().expect("a number") as usize + 60] ^= 1;
    std::fs::write(&path, bytes).expect("writable");
    let (code, out, _) = store(&["check", &dir, "--json"]);
    assert_eq!(code, Some(1), "{out}");
    let check = json(&out);
    assert_eq!(check["whole"], false);
    let finding = &check["findings"][0];
    assert_eq!((&finding["weight"], &finding["file"]), (&"damage".into(), &name.as_str().into()), "{out}");
    assert_eq!(finding["offset"], second["offset"], "{out}");
    edge.run().await;
    let mut away = edge.device(Way::Tls, "away").await;
    for message in [1, 3] {
        away.takes(message).await;
    }
}

#[tokio::test]
async fn directories_of_other_formats_and_of_none_are_refused_with_what_to_do() {
    let (_edge, dir) = killed().await;
    for (found, word) in [(VERSION - 1, "older program"), (VERSION + 1, "this program reads")] {
        let path = Path::new(&dir).join("format");
        let mut bytes = std::fs::read(&path).expect("readable");
        bytes[8..12].copy_from_slice(&found.to_le_bytes());
        std::fs::write(&path, &bytes).expect("writable");
        let (code, _, error) = store(&["stats", &dir]);
        assert!(code == Some(2) && error.contains(word), "format {found}: {error}");
    }
    let empty = tempfile::tempdir().expect("temporary directory");
    let (code, _, error) = store(&["check", empty.path().to_str().expect("text")]);
    assert!(code == Some(2) && error.contains("holds no data of an edge"), "{error}");
    let (code, _, error) = store(&["check", "/nowhere/at/all"]);
    assert!(code == Some(2) && error.contains("/nowhere/at/all"), "{error}");
}
