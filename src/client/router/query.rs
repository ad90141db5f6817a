//! A link for questions. It reads no stream, so that it takes none from its reader.

use super::{Receiver, Sender, link};
use crate::client::{ClientError, Endpoint};
use crate::ids::AppKey;
use crate::wire::pb::router::{
    DeviceIds, DeviceStates, LinkErrorCode, MessageState, Open, Query, answer, from_router, query, to_router,
};

/// Seconds for an answer.
const ANSWER_SECONDS: u64 = 15;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The link failed.
    #[error(transparent)]
    Link(#[from] ClientError),
    /// The edge doesn't answer that.
    #[error("the edge does not answer: {code:?}: {text}")]
    Refused {
        /// Why.
        code: LinkErrorCode,
        /// For an operator.
        text: String,
    },
}

/// Asks an edge, over one link that is opened when it is needed.
#[derive(Debug)]
pub struct Asker {
    endpoint: Endpoint,
    name: String,
    link: Option<(Sender, Receiver)>,
    next: u64,
}

impl Asker {
    /// Of this edge; `name` is for its log.
    pub fn new(endpoint: Endpoint, name: &str) -> Self {
        Self { endpoint, name: name.to_owned(), link: None, next: 1 }
    }

    /// What became of a message, and on one device if given; and the journal sequence as of which that holds.
    pub async fn message(
        &mut self,
        app: &AppKey,
        message_id: u64,
        device_id: Option<&str>,
    ) -> Result<(u64, MessageState), AskError> {
        let of = query::Of::MessageId(message_id);
        match self.ask(app, of, device_id.unwrap_or_default()).await? {
            (sequence, answer::Of::Message(state)) => Ok((sequence, state)),
            _ => Err(unexpected()),
        }
    }

    /// What is known of devices, in their order; and the journal sequence as of which that holds.
    pub async fn devices(&mut self, app: &AppKey, ids: &[String]) -> Result<(u64, DeviceStates), AskError> {
        let of = query::Of::Devices(DeviceIds { ids: ids.to_vec() });
        match self.ask(app, of, "").await? {
            (sequence, answer::Of::Devices(states)) => Ok((sequence, states)),
            _ => Err(unexpected()),
        }
    }

    async fn ask(
        &mut self,
        app: &AppKey,
        of: query::Of,
        device_id: &str,
    ) -> Result<(u64, answer::Of), AskError> {
        let query = Query {
            request_id: self.next,
            app_key: app.to_string(),
            of: Some(of),
            device_id: device_id.to_owned(),
        };
        self.next += 1;
        let was_open = self.link.is_some();
        let answer = match self.try_ask(query.clone()).await {
            // An idle link may have been closed since: the question changes nothing, so it is asked again on a new one.
            Err(_) if was_open => self.try_ask(query).await?,
            answer => answer?,
        };
        match answer {
            (_, answer::Of::Error(e)) => Err(AskError::Refused { code: e.code(), text: e.text }),
            answer => Ok(answer),
        }
    }

    async fn try_ask(&mut self, query: Query) -> Result<(u64, answer::Of), ClientError> {
        // Taken out: a link that failed isn't used again.
        let (mut sender, mut receiver) = if let Some(link) = self.link.take() {
            link
        } else {
            let open = Open { version: 1, name: self.name.clone(), ..Open::default() };
            let (sender, receiver, _) = link::open(&self.endpoint, open).await?;
            (sender, receiver)
        };
        let request_id = query.request_id;
        sender.send(from_router::Frame::Query(query)).await?;
        loop {
            match receiver.recv(ANSWER_SECONDS).await? {
                to_router::Frame::Answer(answer) if answer.request_id == request_id => {
                    let Some(of) = answer.of else {
                        return Err(ClientError::Unexpected { got: "an empty Answer", wanted: "Answer" });
                    };
                    self.link = Some((sender, receiver));
                    return Ok((answer.sequence, of));
                }
                to_router::Frame::Error(e) => {
                    return Err(ClientError::Link { code: e.code(), text: e.text });
                }
                // GoAway, for instance: this link still answers.
                _ => {}
            }
        }
    }
}

fn unexpected() -> AskError {
    AskError::Link(ClientError::Unexpected { got: "an answer to another question", wanted: "Answer" })
}
