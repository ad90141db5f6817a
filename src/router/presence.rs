//! Presence on one link: within the router's rights, and at its own pace.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::outbox::Outbox;
use super::{Phase, Rights, RouterContext, reached};
use crate::ids::AppKey;
use crate::presence::{Follower, Scope};
use crate::wire::router::{self as wire, LinkError, OpenPresence};

/// The apps that a router asks for: all of them must be its own. None named: all of its own.
pub(super) fn scope(
    asked: &OpenPresence,
    rights: &Rights,
    context: &RouterContext,
) -> Result<Scope, LinkError> {
    let own = |app: &AppKey| context.rules.apps.contains(app) && rights.apps.allows(app);
    if asked.app_keys.is_empty() {
        return Ok(Arc::new(context.rules.apps.iter().filter(|app| own(app)).cloned().collect()));
    }
    let parsed = asked.app_keys.iter().map(|key| AppKey::parse(key).filter(own));
    let named: Option<HashSet<AppKey>> = parsed.collect();
    named.map(Arc::new).ok_or_else(|| {
        let text = "presence is asked of an app that is not of this edge, or not of this router";
        LinkError::Unauthorized(text.into())
    })
}

/// Sends presence until the edge closes. What the router doesn't take waits nowhere: it is read when there is room for it.
pub(super) async fn run(follower: Option<Follower>, outbox: &Outbox, phase: &watch::Receiver<Phase>) {
    let Some(mut follower) = follower else { return };
    let follow = async {
        loop {
            let update = follower.next().await;
            outbox.send(wire::presence(&update)).await;
        }
    };
    tokio::select! {
        biased;
        () = reached(phase, Phase::Closing) => {}
        () = follow => {}
    }
}
