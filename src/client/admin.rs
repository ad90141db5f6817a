//! Talks to the admin port of an edge: one request a connection, each under a deadline and a bound on what comes back.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::request::Builder;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Seconds for a whole request.
const SECONDS: u64 = 15;
/// Bytes of an answer.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody answers there.
    #[error(
        "the admin port {address} can't be reached: {source}; does the edge run, and is that its admin port (--admin, or --data-dir)?"
    )]
    Connect {
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("the admin port didn't answer within {SECONDS} s")]
    Deadline,
    /// The exchange broke off, or the answer is no HTTP.
    #[error("the admin port's answer broke off: {0}")]
    Http(String),
    /// The answer is no JSON.
    #[error("the admin port's answer is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It can't, and says why.
    #[error("{error} ({what_to_do})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What is wrong.
        error: String,
        /// What to do about it.
        what_to_do: String,
    },
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The text.
    pub body: String,
}

/// GETs a path ("/readyz") from "host:port".
pub async fn get(address: &str, path: &str) -> Result<Answer, AdminError> {
    ask(address, hyper::Request::get(path), Bytes::new()).await
}

/// POSTs a JSON body with the token that the edge keeps in `admin.token`.
pub async fn post(
    address: &str,
    path: &str,
    token: &str,
    body: &serde_json::Value,
) -> Result<Answer, AdminError> {
    let request = hyper::Request::post(path)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json");
    ask(address, request, body.to_string().into()).await
}

async fn ask(address: &str, request: Builder, body: Bytes) -> Result<Answer, AdminError> {
    let request = request.header("host", address).body(Full::new(body));
    let request = request.map_err(|error| AdminError::Http(error.to_string()))?;
    let work = async {
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|source| AdminError::Connect { address: address.to_owned(), source })?;
        exchange(stream, request).await.map_err(|e| AdminError::Http(e.to_string()))
    };
    tokio::time::timeout(Duration::from_secs(SECONDS), work).await.map_err(|_| AdminError::Deadline)?
}

/// GETs JSON; anything but 200 is an error with what the edge says.
pub async fn get_json(address: &str, path: &str) -> Result<serde_json::Value, AdminError> {
    parsed(&get(address, path).await?)
}

/// [`post`]s; anything but 200 is an error with what the edge says.
pub async fn post_json(
    address: &str,
    path: &str,
    token: &str,
    body: &serde_json::Value,
) -> Result<serde_json::Value, AdminError> {
    parsed(&post(address, path, token, body).await?)
}

fn parsed(answer: &Answer) -> Result<serde_json::Value, AdminError> {
    if answer.status == 200 {
        return Ok(serde_json::from_str(&answer.body)?);
    }
    let said: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let word = |name: &str, otherwise: &str| said[name].as_str().unwrap_or(otherwise).to_owned();
    Err(AdminError::Refused {
        status: answer.status,
        error: word("error", "the admin port refused"),
        what_to_do: word("what_to_do", "look at the edge's log"),
    })
}

async fn exchange(
    stream: TcpStream,
    request: hyper::Request<Full<Bytes>>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await?.to_bytes();
        Ok(Answer { status, body: String::from_utf8(body.to_vec())? })
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end before the answer has been taken out of it.
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn answered(answer: &'static str) -> Result<serde_json::Value, AdminError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 1_024];
            let n = stream.read(&mut request).await.expect("a request");
            assert!(request[..n].starts_with(b"GET /v1/totals HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.expect("written");
        });
        let result = get_json(&address, "/v1/totals").await;
        server.await.expect("served");
        result
    }

    #[tokio::test]
    async fn json_comes_back_and_refusals_say_what_to_do() {
        let good =
            answered("HTTP/1.1 200 OK\r\ncontent-length: 14\r\nconnection: close\r\n\r\n{\"accepted\":7}");
        assert_eq!(good.await.expect("an answer")["accepted"], 7);
        let bad = answered(
            "HTTP/1.1 503 Busy\r\nconnection: close\r\n\r\n{\"error\":\"full\",\"what_to_do\":\"wait\"}",
        );
        let Err(AdminError::Refused { status, what_to_do, .. }) = bad.await else { panic!("a refusal") };
        assert_eq!((status, what_to_do.as_str()), (503, "wait"));
        assert!(matches!(answered("no http\r\n\r\n").await, Err(AdminError::Http(_))));
    }
}
