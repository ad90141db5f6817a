//! Devices whose rows are in the tables only: what is known of them, and their receipts, are as if they were in memory.

use futures_util::future::join_all;
use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{Attributes, Hello, bind};
use mooring::wire::pb::router::ReceiptEvent;
use serde_json::{Value, json};

use super::device::hello_of;
use super::edge::{Edge, Way};

const DEVICES: usize = 40;

fn id(n: usize) -> String {
    format!("d-{n}")
}

/// With attributes of its own.
fn hello(edge: &Edge, n: usize) -> Hello {
    let attributes =
        Attributes { brand: "vivo".into(), utdid: format!("utdid-{n}"), ..Attributes::default() };
    Hello { attributes: Some(attributes), ..hello_of(edge, &id(n)) }
}

/// What an operator is told of all of them, but for what changes with every session.
async fn known(edge: &Edge) -> Vec<Value> {
    let one = async |n: usize| {
        let known = edge.ask(&format!("/v1/device/{DEV_APP}/{}", id(n))).await;
        json!([known["known"], known["push_on"], known["attributes"], known["bindings"]])
    };
    join_all((0..DEVICES).map(one)).await
}

#[tokio::test]
async fn devices_that_left_memory_are_known_as_before_also_after_a_kill() {
    // A few rows fit.
    let mut edge = Edge::start_with(&[("store.device_cache_bytes", "4096")]).await;
    for n in 0..DEVICES {
        let mut device = edge.device_saying(Way::BOTH[n % 2], hello(&edge, n)).await;
        if n % 2 == 0 {
            device.bind(bind::Binding::Account(format!("user-{n}"))).await;
            device.bind(bind::Binding::Tag("even".into())).await;
        }
        device.leave(&edge, &id(n)).await;
    }
    let few = |rows: f64| rows < DEVICES as f64 / 2.0;
    // Both figures are of one moment: who isn't counted yet isn't missing from memory either.
    edge.counted("mooring_devices", DEVICES as f64).await;
    edge.metric_comes_to("mooring_device_rows", few).await;
    let before = known(&edge).await;
    for (n, known) in before.iter().enumerate() {
        let bindings = (n % 2 == 0).then(|| json!({ "account": format!("user-{n}"), "tags": ["even"] }));
        let attributes = json!({ "brand": "vivo", "utdid": format!("utdid-{n}") });
        assert_eq!(*known, json!([true, true, attributes, bindings]), "{n}");
    }
    let all: Vec<String> = (0..DEVICES).map(id).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut router = edge.router().await;
    router.push(1, &all).await;
    edge.kill().await;
    edge.run().await;
    assert_eq!(known(&edge).await, before);
    edge.counted("mooring_device_row_reads_total", DEVICES as f64 / 2.0).await;
    let mut router = edge.router_from_the_oldest().await;
    for n in 0..DEVICES {
        let mut device = edge.device_saying(Way::BOTH[n % 2], hello(&edge, n)).await;
        device.takes(1).await;
        let receipt = router.receipt(1, &id(n), ReceiptEvent::Arrive).await;
        assert_eq!(receipt.attributes.map(|one| one.utdid), Some(format!("utdid-{n}")));
        assert_eq!(receipt.client_ip, "127.0.0.1");
        device.leave(&edge, &id(n)).await;
    }
    edge.metric_comes_to("mooring_device_rows", few).await;
    assert_eq!(known(&edge).await, before);
    assert_eq!(edge.totals().await["arrived"], DEVICES);
}
