//! What the admin port changes: POST only, with the bearer token of the data directory, small JSON bodies, JSON answers.
//!
//! Add a route in [`routes`]: everything there is behind the guard, which answers before a body is read. A handler takes its body as
//! [`Asked`], any type that serde reads from JSON; unknown fields should be errors (`deny_unknown_fields`).

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};

use super::answer::{self, Problem};
use super::handler::{Asked, Nothing, ask, device_key};
use super::{Admin, apps, streams};
use crate::ids::AppKey;
use crate::limits;
use crate::push::Rejection;
use crate::store::{Command, Query, QueryAnswer};

/// All writes.
pub(super) fn routes(admin: Arc<Admin>) -> Router<Arc<Admin>> {
    Router::new()
        .route("/v1/ping", post(ping))
        .route("/v1/streams/{name}/retire", post(streams::retire))
        .route("/v1/apps/{app}/suspend", post(apps::suspend))
        .route("/v1/apps/{app}/resume", post(apps::resume))
        .route("/v1/apps/{app}/rates", post(apps::set_rates))
        .route("/v1/device/{app}/{device_id}/revoke", post(revoke))
        .route_layer(from_fn_with_state(admin, guarded))
        .layer(DefaultBodyLimit::max(limits::ADMIN_BODY_BYTES))
}

/// Nobody without the token gets further.
async fn guarded(State(admin): State<Arc<Admin>>, request: Request<Body>, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    match (&admin.token, shown) {
        (Some(token), Some(shown)) if token.is_shown_by(shown) => next.run(request).await,
        (_, None) => Problem::NoToken.into_response(),
        _ => Problem::WrongToken.into_response(),
    }
}

/// Changes nothing: whether a token is right.
async fn ping(Asked(Nothing {}): Asked<Nothing>) -> axum::Json<Value> {
    axum::Json(json!({ "ok": true }))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    /// Whether the device may register again; else it is locked out.
    #[serde(default)]
    allow_registration: bool,
}

/// Revokes every credential of a device. Its session, if it has one, is told to end before this answers.
async fn revoke(
    State(admin): State<Arc<Admin>>,
    Path((app, device_id)): Path<(String, String)>,
    Asked(Revoke { allow_registration }): Asked<Revoke>,
) -> Result<axum::Json<Value>, Problem> {
    let app = AppKey::parse(&app).ok_or(Problem::NoAppKey)?;
    let device = device_key(&admin, &app, &device_id)?;
    let access = admin.store.get().ok_or(Problem::NotOpen)?;
    let epoch = *access.epochs.get(&app).ok_or(Problem::ForeignApp)?;
    let (reply, answer) = tokio::sync::oneshot::channel();
    let command = Command::RevokeCredentials { device, epoch, allow_registration, reply };
    access.store.submit(command).map_err(|_| Problem::Busy)?;
    let answer = tokio::time::timeout(admin.deadlines.query, answer).await;
    let revocation = match answer.map_err(|_| Problem::Unanswered)?.map_err(|_| Problem::Unanswered)? {
        Ok(revocation) => revocation,
        Err(Rejection::Exhausted) => return Err(Problem::TooManyRevoked),
        Err(_) => return Err(Problem::NoRoom),
    };
    let (_, known) = ask(&admin, Query::Devices(vec![device])).await?;
    let known = matches!(known, QueryAnswer::Devices(states) if states.iter().any(Option::is_some));
    tracing::info!(%app, %device_id, min_epoch = revocation.min_epoch, locked = revocation.locked, known, "credentials of a device are revoked");
    let mut answer = json!({ "app_key": app.as_str(), "device_id": device_id, "known": known });
    answer::add_revocation(&mut answer, revocation);
    Ok(axum::Json(answer))
}
