//! Connections, routes, deadlines.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query as UrlQuery, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

#[cfg(doc)]
use super::Deadlines;
use super::answer::{self, Problem};
use super::handler::{ask, device_key, json};
use super::{Admin, CONNECTIONS, Phase, apps, streams, writes};
use crate::account::Account;
use crate::ids::{AppKey, MessageId, Seq};
use crate::store::{DayStats, History, HistoryOf, Query, QueryAnswer};

/// How long accepting pauses when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a request's head, at most.
const HEAD_BYTES: usize = 16 * 1024;

/// Serves until `shutdown` is done; then requests in progress have until their deadline.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, shutdown: impl Future<Output = ()>) {
    let deadline = admin.deadlines.connection;
    let service = TowerToHyperService::new(routes(admin));
    let permits = Arc::new(Semaphore::new(CONNECTIONS as usize));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            // The semaphore is never closed, so this is a permit.
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin port can't accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(deadline, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "admin connection"),
                Err(_) => tracing::debug!("admin connection closed at its deadline"),
            }
            drop(permit);
        });
    }
    // All permits back: nobody is being answered any more. Each has its deadline, so this ends.
    permits.acquire_many(CONNECTIONS).await.map(drop).ok();
}

/// Seconds that a request may wait for the journal to go on; less than [`Deadlines::connection`] by what the answer may take.
const WAIT_SECONDS: u64 = 5;
/// Days of statistics, unless asked for more or fewer.
const DEFAULT_DAYS: u32 = 7;
/// As many as are kept.
const MAX_DAYS: u32 = 30;

fn routes(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/v1/totals", get(totals))
        .route("/v1/message/{app}/{id}", get(message))
        .route("/v1/device/{app}/{device_id}", get(device))
        .route("/v1/stats/{app}", get(stats))
        .route("/v1/shards", get(shards))
        .route("/v1/memory", get(memory))
        .route("/v1/streams", get(streams::list))
        .route("/v1/apps", get(apps::list))
        .merge(writes::routes(admin.clone()))
        .fallback(async || Problem::NoSuchPath)
        .method_not_allowed_fallback(async || Problem::NoSuchMethod)
        .layer(from_fn(close_after))
        .with_state(admin)
}

/// One request a connection, said aloud.
async fn close_after(request: Request<Body>, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, kind)], admin.metrics()).into_response()
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let phase = admin.readiness.phase();
    let status = if phase == Phase::Serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}\n", phase.text())).into_response()
}

async fn shards(State(admin): State<Arc<Admin>>) -> Response {
    axum::Json((admin.shards)()).into_response()
}

async fn memory(State(admin): State<Arc<Admin>>) -> Response {
    axum::Json(answer::memory(&admin.budget)).into_response()
}

#[derive(serde::Deserialize)]
struct Beyond {
    after: Option<String>,
    wait_s: Option<String>,
}

async fn totals(
    State(admin): State<Arc<Admin>>,
    UrlQuery(asked): UrlQuery<Beyond>,
) -> Result<Response, Problem> {
    let number = |text: Option<&str>| text.map(str::parse::<u64>).transpose();
    let seconds = number(asked.wait_s.as_deref()).ok().map(|seconds| seconds.unwrap_or(WAIT_SECONDS));
    let seconds = seconds.filter(|seconds| (1..=WAIT_SECONDS).contains(seconds)).ok_or(Problem::NoWait)?;
    if let Some(after) = number(asked.after.as_deref()).map_err(|_| Problem::NoSequence)? {
        head_beyond(&admin, Seq(after), Duration::from_secs(seconds)).await?;
    }
    let (sequence, answer) = ask(&admin, Query::Totals).await?;
    let QueryAnswer::Totals(counts) = answer else { return Err(Problem::Unanswered) };
    json(answer::totals(sequence, &counts))
}

/// Waits until something beyond this sequence is durable, or for so long.
async fn head_beyond(admin: &Admin, after: Seq, wait: Duration) -> Result<(), Problem> {
    let mut head = admin.store.get().ok_or(Problem::NotOpen)?.store.head();
    if *head.borrow() > after {
        return Ok(());
    }
    let _place = admin.waiting.try_acquire().map_err(|_| Problem::ManyWait)?;
    // Nothing came, or the store has closed: the answer says how things are all the same.
    tokio::time::timeout(wait, head.wait_for(|head| *head > after)).await.ok();
    Ok(())
}

#[derive(serde::Deserialize)]
struct Days {
    days: Option<String>,
}

async fn stats(
    State(admin): State<Arc<Admin>>,
    Path(app): Path<String>,
    UrlQuery(asked): UrlQuery<Days>,
) -> Result<Response, Problem> {
    let app = AppKey::parse(&app).ok_or(Problem::NoAppKey)?;
    let days = match asked.days {
        None => DEFAULT_DAYS,
        Some(text) => {
            text.parse().ok().filter(|days| (1..=MAX_DAYS).contains(days)).ok_or(Problem::NoDays)?
        }
    };
    let (sequence, answer) = ask(&admin, Query::Stats { app: app.clone(), days }).await?;
    let QueryAnswer::Stats(days) = answer else { return Err(Problem::Unanswered) };
    // One that was removed still has its days.
    if days.iter().all(DayStats::is_empty) && !is_configured(&admin, &app) {
        return Err(Problem::ForeignApp);
    }
    json(answer::stats(sequence, &app, &days))
}

#[derive(serde::Deserialize)]
struct OnDevice {
    device: Option<String>,
}

async fn message(
    State(admin): State<Arc<Admin>>,
    Path((app, id)): Path<(String, String)>,
    UrlQuery(on): UrlQuery<OnDevice>,
) -> Result<Response, Problem> {
    let app = AppKey::parse(&app).ok_or(Problem::NoAppKey)?;
    let number = id.parse().ok().filter(|id| *id != 0).ok_or(Problem::NoMessageId)?;
    let message = MessageId(number);
    let device = match &on.device {
        Some(id) => Some(device_key(&admin, &app, id)?),
        None => None,
    };
    let query = Query::Message { app: app.clone(), message, device };
    let (sequence, answer) = ask(&admin, query).await?;
    match answer {
        QueryAnswer::Message(Some(state)) => {
            let mut answer = answer::message(sequence, &app, message, &state);
            if let (Some(device), Some(id), Some(on)) = (device, on.device.as_deref(), state.on_device) {
                let of = HistoryOf {
                    app: app.clone(),
                    device,
                    number: on.number,
                    message: Some((message, state.first)),
                };
                let history = history(&admin, of).await?;
                let account = Account::new(on, &history, (state.accepted_at, state.expires_at));
                let connected = (admin.connection)(&device).is_some();
                answer::add_on_device(&mut answer, id, connected, &account);
            }
            json(answer)
        }
        QueryAnswer::Message(None) => Err(Problem::UnknownMessage),
        _ => Err(Problem::Unanswered),
    }
}

async fn device(
    State(admin): State<Arc<Admin>>,
    Path((app, device_id)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let app = AppKey::parse(&app).ok_or(Problem::NoAppKey)?;
    let key = device_key(&admin, &app, &device_id)?;
    let connection = (admin.connection)(&key);
    let (sequence, answer) = ask(&admin, Query::Devices(vec![key])).await?;
    let QueryAnswer::Devices(states) = answer else { return Err(Problem::Unanswered) };
    let state = states.into_iter().next().flatten();
    if state.is_none() && !is_configured(&admin, &app) {
        return Err(Problem::ForeignApp);
    }
    let number = state.as_ref().map(|state| state.number);
    let past = history(&admin, HistoryOf { app: app.clone(), device: key, number, message: None }).await?;
    let mut answer = answer::device(sequence, &app, &device_id, state.as_ref(), connection);
    answer::add_events(&mut answer, &past);
    if let Some(access) = admin.store.get() {
        answer::add_revocation(&mut answer, access.store.revocation(&key));
    }
    json(answer)
}

fn is_configured(admin: &Admin, app: &AppKey) -> bool {
    admin.store.get().is_none_or(|access| access.apps.contains_key(app))
}

/// What the journal tells, read by a thread that may wait for the disk.
async fn history(admin: &Admin, of: HistoryOf) -> Result<History, Problem> {
    let store = admin.store.get().ok_or(Problem::NotOpen)?.store.clone();
    let reading = async {
        // The semaphore is never closed, so this is a permit.
        let permit = admin.reading.clone().acquire_owned().await;
        let read = tokio::task::spawn_blocking(move || {
            let read = store.history(&of);
            drop(permit);
            read
        });
        read.await
    };
    match tokio::time::timeout(admin.deadlines.query, reading).await {
        Ok(Ok(Ok(history))) => Ok(history),
        Ok(Ok(Err(error))) => {
            tracing::warn!(%error, "the journal can't be read for a question");
            Err(Problem::Unanswered)
        }
        Ok(Err(_)) | Err(_) => Err(Problem::Unanswered),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
