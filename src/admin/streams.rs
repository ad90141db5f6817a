//! The streams: what an operator sees of them, and how one ends.
//!
//! `POST /v1/streams/{name}/retire` ends a stream that no app maps to, together with what is unread of it, and with what messages of apps that had it and
//! are configured no more will tell. One that somebody reads, or that the configuration lets a router read by its name, only with `{"force": true}`. A stream of the configuration can't end: with `force`, what is unread of it is dropped, a gap takes its place, and it goes on.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::Problem;
use super::handler::{Asked, json};
use super::{Admin, StoreAccess};
use crate::push::{Millis, ReceiptGap};
use crate::store::{Command, RetireError, StreamState};
use crate::telemetry;

pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Result<Response, Problem> {
    let access = admin.store.get().ok_or(Problem::NotOpen)?;
    let store = access.store.clone();
    // It may look at files.
    let states =
        tokio::task::spawn_blocking(move || store.streams()).await.map_err(|_| Problem::Unanswered)?;
    let now = access.clock.now();
    let streams: Vec<Value> = states.iter().map(|state| stream(access, state, now)).collect();
    json(json!({ "sequence": access.store.head().borrow().0, "streams": streams }))
}

fn stream(access: &StoreAccess, state: &StreamState, now: Millis) -> Value {
    let apps: Vec<&str> = access
        .apps
        .iter()
        .filter(|(_, stream)| **stream == state.name)
        .map(|(app, _)| app.as_str())
        .collect();
    let reader = access.readers.reader(&state.name);
    json!({
        "name": &*state.name,
        "configured": state.configured,
        "apps": apps,
        "reader": reader.as_ref().map(|reader| &*reader.router),
        "epoch": reader.as_ref().map(|reader| reader.epoch),
        "cursor": state.bounds.cursor.0,
        "oldest": state.bounds.oldest.0,
        "head": state.bounds.head.0,
        "unread": state.unread,
        "unread_for_ms": state.unread_since.map(|since| now.saturating_sub(since)),
        "pinned_bytes": state.pinned_bytes,
        "full": state.full,
        "gaps": state.gaps.iter().map(gap).collect::<Vec<_>>(),
    })
}

fn gap(gap: &ReceiptGap) -> Value {
    json!({ "first": gap.first.0, "last": gap.last.0, "events": gap.events, "by_event": gap.by_event })
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retire {
    #[serde(default)]
    force: bool,
}

pub(super) async fn retire(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Asked(Retire { force }): Asked<Retire>,
) -> Result<Response, Problem> {
    let access = admin.store.get().ok_or(Problem::NotOpen)?;
    let conflict = |error: String, what_to_do| Problem::Refused(StatusCode::CONFLICT, error, what_to_do);
    if let Some(reader) = access.readers.reader(&name).filter(|_| !force) {
        let error = format!("the router {} reads this stream now", reader.router);
        return Err(conflict(error, "close that link first, or ask with force (--force)"));
    }
    if access.former_streams.iter().any(|former| **former == *name) && !force {
        return Err(conflict(
            "the configuration lets a router read this stream by its name".into(),
            "take the name out of [[router.routers]] and restart, as there is no start with a name that nothing knows; or ask with force (--force), and take it out \
             before the next start",
        ));
    }
    let (reply, answer) = tokio::sync::oneshot::channel();
    let command = Command::RetireStream { stream: Arc::from(&*name), force, reply };
    access.store.submit(command).map_err(|_| Problem::Busy)?;
    let answer = tokio::time::timeout(admin.deadlines.query, answer).await;
    match answer.map_err(|_| Problem::Unanswered)?.map_err(|_| Problem::Unanswered)? {
        Ok(retired) => {
            tracing::info!(stream = name, force, ended = retired.ended, "a stream is retired");
            if retired.ended {
                telemetry::set_stream(&name, 0, 0);
            }
            json(json!({ "name": name, "ended": retired.ended, "sequence": retired.sequence.0 }))
        }
        Err(RetireError::Unknown) => Err(Problem::Refused(
            StatusCode::NOT_FOUND,
            "no stream of this name".into(),
            "`mooring streams list` shows all",
        )),
        Err(RetireError::Configured) => Err(conflict(
            "apps map to this stream".into(),
            "map them to another one and restart, or ask with force (--force): then what is unread is dropped, and the stream goes on",
        )),
        Err(RetireError::Busy) => {
            Err(conflict("another stream is being dropped".into(), "try again in a second"))
        }
        Err(RetireError::Full) => Err(conflict(
            "the disk has no room for the record".into(),
            "make room on the disk, then try again",
        )),
    }
}
