//! What a load pushes.

use std::sync::Arc;
use std::time::Duration;

use mooring::cli::output::Failure;
use mooring::client::Backoff;
use mooring::client::router::{OnEvents, Options, Progress, Router};
use mooring::clock::Clock;
use mooring::ids::DigestKey;
use mooring::wire::pb::device::{Kind, Push};
use mooring::wire::pb::router::{DeliverBatch, PushSource, Target as BatchTarget};

use crate::fleet::{STALLED_SECONDS, device_id};
use crate::target::{EdgeSide, Target};

/// Milliseconds without a link after which the router gives up: longer than an edge is waited for that starts again.
const PATIENCE_MS: u64 = 90_000;

/// Makes batches; ids differ between runs against the same edge.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    app: String,
    run: String,
    pub(crate) first: u64,
    body: String,
}

impl Messages {
    pub(crate) fn new(target: &Target, clock: &Clock, payload_bytes: u32) -> Self {
        let now = clock.now();
        Self {
            // A broker knows no apps.
            app: target.edge.as_ref().map(|edge| edge.app.as_str().to_owned()).unwrap_or_default(),
            run: format!("load-{now:x}-{:08x}", rand::random::<u32>()),
            first: now * 1_000,
            body: "x".repeat(payload_bytes as usize),
        }
    }

    /// The `n`th message, to these devices, as batch `n`.
    pub(crate) fn batch(
        &self,
        n: u64,
        message: u64,
        devices: impl Iterator<Item = u32>,
        now: u64,
    ) -> DeliverBatch {
        let target = |n| BatchTarget { device_id: device_id(n), account: String::new() };
        DeliverBatch {
            batch_id: format!("{}-{n}", self.run),
            app_key: self.app.clone(),
            message_id: self.first + message,
            body: Some(Push { kind: Kind::Message.into(), body: self.body.clone(), ..Push::default() }),
            targets: devices.map(target).collect(),
            created_at: now,
            source: PushSource::Api.into(),
            target_type: "device".into(),
            ..DeliverBatch::default()
        }
    }
}

/// A router of the edge.
pub(crate) fn router(edge: &EdgeSide, clock: &Arc<Clock>, seed: u64) -> Router {
    router_telling(edge, clock, seed, Box::new(|_| {}))
}

/// A router of the edge, that tells what its stream says.
pub(crate) fn router_telling(edge: &EdgeSide, clock: &Arc<Clock>, seed: u64, on_events: OnEvents) -> Router {
    let options = Options {
        endpoint: edge.router.clone(),
        name: "loadtest".into(),
        streams: vec!["main".into()],
        backoff: Backoff::fast(),
        patience: PATIENCE_MS,
        only: None,
        seed,
    };
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&seed.to_le_bytes());
    Router::start(options, Arc::clone(clock), DigestKey(digest), on_events)
}

/// Waits until every batch is answered and every accepted message has its outcome.
pub(crate) async fn settled(router: &Router, batches: u64) -> Result<(), Failure> {
    until(router, "all is told", |p| p.tally.batches >= batches && p.tally.is_settled()).await
}

/// Waits until something is so, and no batch was rejected; gives up when nothing is told for a while.
pub(crate) async fn until(
    router: &Router,
    what: &str,
    so: impl Fn(&Progress) -> bool,
) -> Result<(), Failure> {
    let mut progress = router.progress();
    loop {
        {
            let state = progress.borrow_and_update();
            if let Some(rejection) = &state.first_rejection {
                return Err(Failure::failed(format!("a batch was rejected: {rejection:?}")));
            }
            if so(&state) {
                return Ok(());
            }
        }
        match tokio::time::timeout(Duration::from_secs(STALLED_SECONDS), progress.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Failure::failed("the router has ended")),
            Err(_) => {
                let why = format!("gave up waiting until {what}: {:?}", progress.borrow().tally);
                return Err(Failure::failed(why));
            }
        }
    }
}
