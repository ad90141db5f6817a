//! What handlers share: the body that was asked with, the device that is meant, a question to the store, the answer.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::Admin;
use super::answer::Problem;
use crate::ids::{AppKey, DeviceKey};
use crate::limits;
use crate::store::{Command, Query, QueryAnswer};

/// A body as what it should be; an empty one stands for `{}`.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> FromRequest<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, state: &S) -> Result<Self, Problem> {
        let body =
            Bytes::from_request(request, state).await.map_err(|error| Problem::Body(error.body_text()))?;
        let body = if body.is_empty() { b"{}" } else { &body[..] };
        serde_json::from_slice(body).map(Self).map_err(|error| Problem::Body(error.to_string()))
    }
}

/// No fields.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

pub(super) fn device_key(admin: &Admin, app: &AppKey, device_id: &str) -> Result<DeviceKey, Problem> {
    if device_id.is_empty() || device_id.len() > limits::DEVICE_ID_BYTES {
        return Err(Problem::NoDeviceId);
    }
    let access = admin.store.get().ok_or(Problem::NotOpen)?;
    Ok(DeviceKey::of(&access.digest_key, app, device_id))
}

pub(super) async fn ask(admin: &Admin, query: Query) -> Result<(u64, QueryAnswer), Problem> {
    let access = admin.store.get().ok_or(Problem::NotOpen)?;
    let (reply, answer) = tokio::sync::oneshot::channel();
    access.store.submit(Command::Query { query, reply }).map_err(|_| Problem::Busy)?;
    match tokio::time::timeout(admin.deadlines.query, answer).await {
        Ok(Ok((sequence, answer))) => Ok((sequence.0, answer)),
        Ok(Err(_)) | Err(_) => Err(Problem::Unanswered),
    }
}

// The handlers end in `?`-style results: one shape for all.
#[allow(clippy::unnecessary_wraps)]
pub(super) fn json(value: Value) -> Result<Response, Problem> {
    Ok(axum::Json(value).into_response())
}
