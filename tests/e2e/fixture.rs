//! The data directory of format 5 that is kept in `tests/fixtures/`: today's program says of it what was said when it was made, and an edge goes on
//! with it. `src/store/tests/fixture.rs` made it, and says how; `check.json` is what `mooring store check --json` said of it.

use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use mooring::store::disk::format::VERSION;
use mooring::wire::pb::router::{OpenStream, ReceiptEvent};
use serde_json::Value;

use super::device::hello_with;
use super::edge::{Edge, Way};

/// The app whose devices are in it.
const APP: &str = "app";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-5")
}

fn unpack(to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(fixture()).expect("there").map(|entry| entry.expect("readable")) {
        let name = entry.file_name().into_string().expect("text");
        let Some(name) = name.strip_suffix(".gz") else { continue };
        let packed = std::fs::File::open(entry.path()).expect("readable");
        let mut file = std::fs::File::create(to.join(name)).expect("made");
        std::io::copy(&mut GzDecoder::new(packed), &mut file).expect("unpacked");
    }
}

/// Everything that was said then is said now; there may be more.
fn says(now: &Value, then: &Value, path: &str) {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            for (name, then) in then {
                says(now.get(name).unwrap_or(&Value::Null), then, &format!("{path}.{name}"));
            }
        }
        (now, then) => assert_eq!(now, then, "{path}"),
    }
}

async fn check(edge: &Edge) -> Value {
    let out = edge.cli("store check DIR/data --json").await;
    serde_json::from_str(out.lines().last().expect("a line")).expect("JSON")
}

#[tokio::test]
async fn the_data_directory_of_format_5_is_whole_and_an_edge_goes_on_with_it() {
    assert_eq!(
        VERSION, 5,
        "a newer format: keep a data directory of it too, and say here what becomes of this one"
    );
    let mut edge = Edge::prepare(&[]);
    unpack(&edge.data_dir());
    edge.configure(|text| {
        let of_demo = text.split("[[apps]]").nth(1).expect("an app");
        format!("{text}[[apps]]{}", of_demo.replace("\"demo\"", &format!("\"{APP}\"")))
    });
    let then = std::fs::read_to_string(fixture().join("check.json")).expect("there");
    let then: Value = serde_json::from_str(&then).expect("JSON");
    says(&check(&edge).await, &then, "check");

    edge.run().await;
    let totals = edge.totals().await;
    for count in ["accepted", "arrived", "failed", "pending"] {
        says(&totals[count], &then["stats"][count], count);
    }
    // A router gets what it had not acknowledged, a device what is pending, and its end is told.
    let main = OpenStream { stream: "main".into(), ..OpenStream::default() };
    let mut router = edge.router_reading(vec![main]).await;
    router.receipt(10, "device-2", ReceiptEvent::Arrive).await;
    let hello = |id: &str| hello_with(APP, id, edge.credential(APP, id, 1));
    let mut device = edge.device_saying(Way::Tls, hello("device-0")).await;
    for message in [11, 1, 2, 10, 13, 14, 16] {
        let push = device.takes(message).await;
        assert_eq!(push.body, "kept since format 5");
        router.receipt(message, "device-0", ReceiptEvent::Arrive).await;
    }
    device.has_nothing().await;
    edge.kill().await;
    let now = check(&edge).await;
    assert_eq!(now["whole"], true, "{now}");
    assert_eq!(
        now["stats"]["arrived"].as_u64(),
        then["stats"]["arrived"].as_u64().map(|count| count + 7),
        "{now}"
    );
}
