//! The apps: whether they take new pushes, and how much a second. What is set here is durable, and holds at once.
//!
//! `POST /v1/apps/{app}/suspend` and `…/resume` take no body. `…/rates` takes any of `batches_per_s`, `targets_per_s`, `sessions_per_s` and
//! `max_sessions`: a number (0: no bound), or `null` for what the configuration says. What isn't named stays.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::answer::Problem;
use super::handler::{Asked, Nothing, json};
use super::{Admin, StoreAccess};
use crate::ids::AppKey;
use crate::push::{RateChange, Rates};
use crate::store::{AppChange, Command};

pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Result<Response, Problem> {
    let access = admin.store.get().ok_or(Problem::NotOpen)?;
    let apps: Vec<Value> = access.apps.keys().map(|key| app(access, key)).collect();
    json(json!({ "sequence": access.store.head().borrow().0, "apps": apps }))
}

fn app(access: &StoreAccess, key: &AppKey) -> Value {
    let control = access.store.app_control(key);
    let [batches, targets, sessions, max_sessions] = control.rates.all();
    json!({
        "app_key": key.as_str(),
        "stream": access.apps.get(key).map(|stream| &**stream),
        "suspended": control.suspended,
        "sessions": access.doors.sessions(key),
        "rates": rates(&access.doors.rates(key)),
        "set": {
            "batches_per_s": batches,
            "targets_per_s": targets,
            "sessions_per_s": sessions,
            "max_sessions": max_sessions,
        },
    })
}

fn rates(rates: &Rates) -> Value {
    json!({
        "batches_per_s": rates.batches_per_s,
        "targets_per_s": rates.targets_per_s,
        "sessions_per_s": rates.sessions_per_s,
        "max_sessions": rates.max_sessions,
    })
}

pub(super) async fn suspend(
    State(admin): State<Arc<Admin>>,
    Path(app): Path<String>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Response, Problem> {
    change(&admin, &app, AppChange::Suspend).await
}

pub(super) async fn resume(
    State(admin): State<Arc<Admin>>,
    Path(app): Path<String>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Response, Problem> {
    change(&admin, &app, AppChange::Resume).await
}

/// Absent: stays. `null`: as configured.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::option_option)] // Two questions: whether it is said, and what.
pub(super) struct NewRates {
    #[serde(default, deserialize_with = "said")]
    batches_per_s: Option<Option<u32>>,
    #[serde(default, deserialize_with = "said")]
    targets_per_s: Option<Option<u32>>,
    #[serde(default, deserialize_with = "said")]
    sessions_per_s: Option<Option<u32>>,
    #[serde(default, deserialize_with = "said")]
    max_sessions: Option<Option<u32>>,
}

// Serde's shape.
#[allow(clippy::option_option)]
fn said<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<u32>>, D::Error> {
    Option::deserialize(value).map(Some)
}

pub(super) async fn set_rates(
    State(admin): State<Arc<Admin>>,
    Path(app): Path<String>,
    Asked(new): Asked<NewRates>,
) -> Result<Response, Problem> {
    let change_of = RateChange([new.batches_per_s, new.targets_per_s, new.sessions_per_s, new.max_sessions]);
    change(&admin, &app, AppChange::Rates(change_of)).await
}

async fn change(admin: &Admin, name: &str, change: AppChange) -> Result<Response, Problem> {
    let key = AppKey::parse(name).ok_or(Problem::NoAppKey)?;
    let access = admin.store.get().ok_or(Problem::NotOpen)?;
    if !access.apps.contains_key(&key) {
        let error = "no app of this key in the configuration".to_owned();
        return Err(Problem::Refused(StatusCode::NOT_FOUND, error, "`mooring apps list` shows all"));
    }
    let (reply, answer) = tokio::sync::oneshot::channel();
    let command = Command::ControlApp { app: key.clone(), change, reply };
    access.store.submit(command).map_err(|_| Problem::Busy)?;
    let answer = tokio::time::timeout(admin.deadlines.query, answer).await;
    let answer = answer.map_err(|_| Problem::Unanswered)?.map_err(|_| Problem::Unanswered)?;
    let Some((sequence, _)) = answer else {
        let error = "the disk has no room for the record".to_owned();
        let what_to_do = "make room on the disk, then try again";
        return Err(Problem::Refused(StatusCode::CONFLICT, error, what_to_do));
    };
    tracing::info!(app = %key, ?change, "an app is changed");
    let mut said = app(access, &key);
    if let Some(fields) = said.as_object_mut() {
        fields.insert("sequence".into(), json!(sequence.0));
    }
    json(said)
}
