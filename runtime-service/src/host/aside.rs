//! Work that a file system or another process may hold up without end, each on a thread of its own: the pool's are for what
//! comes back, and one that does not would be missing there for good.

use std::io;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

/// Enough for what such work does, which is a system call or two.
const STACK: usize = 256 << 10;

/// A kind of such work, with the threads that it may have at once.
pub(crate) struct Aside {
    threads: Semaphore,
}

/// Work that was not done in time. It may still be under way.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Late;

impl Aside {
    pub(crate) const fn new(threads: usize) -> Self {
        Self { threads: Semaphore::const_new(threads) }
    }

    /// Does it, waiting for a thread and for the work for no longer than `limit`. A panic of the work is lateness too.
    ///
    /// # Errors
    /// It was not done by then.
    pub(crate) async fn run<T: Send + 'static>(
        &'static self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Late> {
        let work = crate::inflight::carried(work);
        let done = async {
            let thread = self.threads.acquire().await.map_err(io::Error::other)?;
            let (tell, told) = oneshot::channel();
            std::thread::Builder::new().name("aside".into()).stack_size(STACK).spawn(move || {
                let _ = tell.send(work());
                drop(thread);
            })?;
            told.await.map_err(io::Error::other)
        };
        match tokio::time::timeout(limit, done).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                tracing::error!(%error, "work on a thread of its own");
                Err(Late)
            }
            Err(_) => Err(Late),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_hangs_holds_up_its_own_kind_alone_and_only_while_it_hangs() {
        static ONE: Aside = Aside::new(1);
        static OTHER: Aside = Aside::new(1);
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let hung = ONE.run(Duration::from_millis(10), move || held.recv().is_err()).await;
        assert_eq!(hung, Err(Late));
        assert_eq!(ONE.run(Duration::from_millis(10), || 1).await, Err(Late), "there is no thread left");
        assert_eq!(OTHER.run(Duration::from_secs(60), || 2).await, Ok(2));
        drop(let_go);
        assert_eq!(ONE.run(Duration::from_secs(60), || 3).await, Ok(3));
    }
}
