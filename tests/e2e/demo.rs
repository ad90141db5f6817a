//! The demo, small: some of each feature, and what edge, routers and devices counted agrees.

use std::process::Stdio;

use serde_json::Value;

#[tokio::test]
async fn it_loses_nothing_repeats_nothing_and_plays_some_of_each_feature() {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mooring"));
    command.args(["demo", "--devices", "320", "--shards", "2", "--seed", "7", "--deadline", "240", "--json"]);
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("it ran");
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{told}");
    let text = String::from_utf8(run.stdout).expect("text");
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    let said: Value = serde_json::from_str(&text).expect("JSON");
    for none in ["lost", "duplicates", "out_of_order", "pending"] {
        assert_eq!(said[none], 0, "{none}: {said}");
    }
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    for (of, reasons) in [
        (
            "failed",
            &[
                "expired",
                "offline",
                "over_quota",
                "revoked",
                "replaced",
                "push_disabled",
                "unbound",
                "reinstalled",
            ][..],
        ),
        ("refused", &["device_unknown", "duplicate", "offline", "over_quota", "push_disabled"]),
        ("receipts", &["sent", "arrive", "click", "clean"]),
    ] {
        for reason in reasons {
            assert!(count(&said[of][reason]) > 0, "{of}: {reason}: {said}");
        }
    }
    let failed: u64 = said["failed"].as_object().expect("by reason").values().map(count).sum();
    assert_eq!(count(&said["accepted"]), count(&said["arrived"]) + failed);
    assert_eq!((&said["transports"]["tls"], &said["transports"]["quic"]), (&160.into(), &160.into()));
    assert_eq!((&said["presence"], &said["registered"]), (&320.into(), &160.into()));
    assert_eq!(
        (&said["suspended"], &said["bound"], &said["switched_off"]),
        (&1.into(), &48.into(), &8.into())
    );
    assert!(count(&said["revokes_told"]) > 0 && count(&said["answers_compared"]) > 320, "{said}");
}
