//! One flight per key: whoever asks for what is already under way waits for that.
//!
//! The work runs on a task of its own and does not end when one that waits goes away. When the last has been gone for a
//! while its token is cancelled; it then winds up, and only after that may the same key begin anew.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// The flights of one kind. `P` is what can be seen of one while it lasts.
pub(crate) struct Flights<K, T, P> {
    flying: Arc<Mutex<HashMap<K, Flight<T, P>>>>,
    grace: Duration,
}

struct Flight<T, P> {
    outcome: watch::Receiver<Option<Result<T, Error>>>,
    waiters: watch::Sender<Waiting>,
    progress: Arc<P>,
}

/// Who waits for a flight.
#[derive(Clone, Copy)]
struct Waiting {
    now: usize,
    /// Those who left included.
    ever: u64,
}

impl Waiting {
    fn one_more(&mut self) {
        self.now += 1;
        self.ever += 1;
    }
}

/// A place among those who wait. Dropped, it counts no more.
pub(crate) struct Ticket<T, P> {
    outcome: watch::Receiver<Option<Result<T, Error>>>,
    waiters: watch::Sender<Waiting>,
    pub(crate) progress: Arc<P>,
}

impl<T, P> Drop for Ticket<T, P> {
    fn drop(&mut self) {
        self.waiters.send_modify(|waiting| waiting.now -= 1);
    }
}

impl<T: Clone, P> Ticket<T, P> {
    /// Another place in the same flight.
    pub(crate) fn again(&self) -> Self {
        self.waiters.send_modify(Waiting::one_more);
        Self { outcome: self.outcome.clone(), waiters: self.waiters.clone(), progress: Arc::clone(&self.progress) }
    }

    /// Waits for the flight's end.
    pub(crate) async fn wait(&mut self) -> Result<T, Error> {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => match outcome.as_ref() {
                Some(outcome) => outcome.clone(),
                None => Err(gone()),
            },
            Err(_) => Err(gone()),
        }
    }
}

fn gone() -> Error {
    Error::Task { task: "pull", why: "it was dropped".to_owned() }
}

impl<K, T, P> Flights<K, T, P>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
    P: Send + Sync + 'static,
{
    /// `grace` is the time a flight goes on when nobody waits for it.
    pub(crate) fn new(grace: Duration) -> Self {
        Self { flying: Arc::default(), grace }
    }

    /// Joins the flight of `key`, or begins it with `work`, which must end soon once its token is cancelled.
    pub(crate) fn join<F>(&self, key: K, progress: P, work: impl FnOnce(Arc<P>, CancellationToken) -> F) -> Ticket<T, P>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flying.get(&key) {
            flight.waiters.send_modify(Waiting::one_more);
            let Flight { outcome, waiters, progress } = flight;
            return Ticket { outcome: outcome.clone(), waiters: waiters.clone(), progress: Arc::clone(progress) };
        }
        let (done, outcome) = watch::channel(None);
        let (waiters, waiting) = watch::channel(Waiting { now: 1, ever: 1 });
        let progress = Arc::new(progress);
        let token = CancellationToken::new();
        let work = work(Arc::clone(&progress), token.clone());
        let (flights, grace, own) = (Arc::clone(&self.flying), self.grace, key.clone());
        tokio::spawn(async move {
            let watchdog = deserted(waiting, grace);
            tokio::pin!(work, watchdog);
            let result = tokio::select! {
                result = &mut work => result,
                () = &mut watchdog => {
                    token.cancel();
                    work.await
                }
            };
            // Out of the map first: who comes after the outcome begins anew.
            flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&own);
            done.send_replace(Some(result));
        });
        let ticket = Ticket { outcome: outcome.clone(), waiters: waiters.clone(), progress: Arc::clone(&progress) };
        flying.insert(key, Flight { outcome, waiters, progress });
        ticket
    }

    /// Whether a flight of this key is under way.
    #[cfg(test)]
    pub(crate) fn is_flying(&self, key: &K) -> bool {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }
}

/// Ends when nobody has waited for `grace`.
async fn deserted(mut waiting: watch::Receiver<Waiting>, grace: Duration) {
    loop {
        let deserted = waiting.wait_for(|waiting| waiting.now == 0).await.map(|waiting| waiting.ever);
        let Ok(ever) = deserted else {
            return std::future::pending().await; // the senders live as long as the flight
        };
        // Who came and went meanwhile counts too: the time begins anew.
        let back = waiting.wait_for(|waiting| waiting.ever > ever);
        if tokio::time::timeout(grace, back).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn work(started: Arc<AtomicUsize>, millis: u64, token: CancellationToken) -> Result<usize, Error> {
        let number = started.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(millis)) => Ok(number),
            () = token.cancelled() => Err(Error::Abandoned { image: "x".to_owned() }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_come_during_a_flight_get_its_outcome() {
        let flights: Flights<&str, usize, ()> = Flights::new(Duration::ZERO);
        let started = Arc::new(AtomicUsize::new(0));
        let join = || flights.join("k", (), |_, token| work(Arc::clone(&started), 50, token));
        let mut tickets: Vec<_> = (0..100).map(|_| join()).collect();
        for ticket in &mut tickets {
            assert_eq!(ticket.wait().await.unwrap(), 1);
        }
        assert!(!flights.is_flying(&"k"));
        assert_eq!(join().wait().await.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deserted_flight_is_cancelled_after_its_grace() {
        let flights: Flights<&str, usize, ()> = Flights::new(Duration::from_secs(300));
        let started = Arc::new(AtomicUsize::new(0));
        let join = || flights.join("k", (), |_, token| work(Arc::clone(&started), 3_600_000, token));
        drop(join());
        tokio::time::sleep(Duration::from_secs(299)).await;
        drop(join()); // somebody came back: the time begins anew
        tokio::time::sleep(Duration::from_secs(299)).await;
        assert!(flights.is_flying(&"k"));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!flights.is_flying(&"k"));
        assert_eq!(started.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_goes_leaves_the_flight_to_the_others() {
        let flights: Flights<&str, usize, ()> = Flights::new(Duration::ZERO);
        let started = Arc::new(AtomicUsize::new(0));
        let join = || flights.join("k", (), |_, token| work(Arc::clone(&started), 100, token));
        let first = join();
        let mut second = join();
        drop(first);
        assert_eq!(second.wait().await.unwrap(), 1);
    }
}
