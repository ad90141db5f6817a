//! The threads that serve. One that ends before its time is noticed at once: an edge that has lost a shard would go on saying that it is
//! ready, while the sessions of that shard hang and its mailbox fills.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;

use tokio::sync::oneshot;

use super::ServeError;

/// A running thread. (Rejected: a `JoinHandle`, which blocks whoever waits for it, and a thread that is stuck then keeps the process.)
#[derive(Debug)]
pub(super) struct Thread {
    what: &'static str,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Thread {
    /// Starts a thread; `what` it is stands in errors.
    pub(super) fn start(
        what: &'static str,
        name: String,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, ServeError> {
        let (tell, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                // Whoever waits for it may have given up.
                drop(tell.send(work()));
            })
            .map_err(|error| ServeError::Thread { what, error })?;
        Ok(Self { what, ended })
    }

    /// Waits for its end.
    pub(super) async fn join(mut self) -> Result<(), ServeError> {
        poll_fn(|cx| self.poll_end(cx)).await
    }

    fn poll_end(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), ServeError>> {
        let ended = std::task::ready!(Pin::new(&mut self.ended).poll(cx));
        let result = ended.unwrap_or_else(|_| Err(io::Error::other("panicked")));
        Poll::Ready(result.map_err(|error| ServeError::Thread { what: self.what, error }))
    }
}

/// Waits until one of them ends, which none should.
pub(super) async fn any_ends(threads: &mut [Thread]) -> ServeError {
    poll_fn(|cx| {
        for thread in &mut *threads {
            if let Poll::Ready(ended) = thread.poll_end(cx) {
                let error = io::Error::other("ended before its time");
                return Poll::Ready(ended.err().unwrap_or(ServeError::Thread { what: thread.what, error }));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_ends_before_its_time_is_noticed_however_it_ends() {
        let endings: [(fn() -> io::Result<()>, &str); 3] = [
            (|| Ok(()), "a shard: ended before its time"),
            (|| Err(io::Error::other("no descriptors")), "a shard: no descriptors"),
            (|| panic!("on purpose"), "a shard: panicked"),
        ];
        for (ending, said) in endings {
            let (hold, held) = std::sync::mpsc::channel::<()>();
            let lasting = move || {
                // Ends when the other side goes.
                held.recv().ok();
                Ok(())
            };
            let lasting = Thread::start("the router thread", "router".into(), lasting).expect("started");
            let ends = Thread::start("a shard", "shard-0".into(), ending).expect("started");
            let mut threads = [lasting, ends];
            assert_eq!(any_ends(&mut threads).await.to_string(), said);
            drop(hold);
            let [lasting, _] = threads;
            assert!(lasting.join().await.is_ok());
        }
    }
}
