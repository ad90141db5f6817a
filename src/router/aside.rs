//! Where a link's long work is done: large frames are examined there, and streams read, which takes files.

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Aside {
    /// On threads beside the runtime, so that links wait for each other only for what is short.
    #[default]
    Threads,
    /// At once: a simulation has no threads.
    #[cfg(feature = "sim")]
    Here,
}

impl Aside {
    /// Does the work. An error: it panicked.
    pub(super) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await,
            #[cfg(feature = "sim")]
            Self::Here => Ok(work()),
        }
    }
}
