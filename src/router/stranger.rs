//! Somebody whose certificate is good and names no router of this edge: told so in one word, and turned away.
//!
//! That word is all it gets. It holds a place among those that wait at the [door](super::door), never one of a link: for as long as it takes to
//! hear the word, at most [`super::Pace::settle`], and a newcomer may take the place at once.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::door::Place;
use super::{LinkEnd, Phase, RouterContext, link, reached};
use crate::wire::router::LinkError;

/// The one word.
pub(super) fn refusal(name: &str) -> LinkError {
    LinkError::Unauthorized(format!("router {name:?} is not in the configuration of this edge"))
}

/// Says it as a link's last frame.
pub(super) async fn turn_away<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    (read, write): (R, W),
    name: &str,
    place: &mut Place,
    context: &RouterContext,
    phase: &watch::Receiver<Phase>,
) -> LinkEnd {
    let end = LinkEnd::Refused(refusal(name));
    tokio::select! {
        () = link::say_last(&end, read, write, context) => {}
        () = place.evicted() => {}
        () = reached(phase, Phase::Closing) => {}
    }
    end
}
