//! The end of the daemon, in order: who calls from now on is told to come back, what is in progress gets its time, and who
//! waits longer is told so. Containers notice nothing of it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::layers::method;
use crate::inflight::Calls;
use crate::pods::Pods;

/// How long what is in progress may take to finish. With [`super::LAST_WORDS`] and the streams' time it is well within
/// `TimeoutStopSec` of hack/systemd/berth.service.
const FINISH: Duration = Duration::from_secs(10);

/// Time between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// No new calls.
    Finishing,
    /// Nobody waits any more.
    Over,
}

/// Where the daemon stands; clones share.
#[derive(Clone)]
pub(crate) struct Drain(watch::Sender<Stage>);

impl Drain {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Stage::Serving))
    }

    /// What every call passes.
    pub(crate) fn layer(&self) -> DrainLayer {
        DrainLayer(self.clone())
    }

    /// Refuses new calls, waits for what is in progress, tells those who still wait. `hurry` ends the waiting.
    pub(crate) async fn finish(&self, calls: &Calls, pods: &Pods, hurry: impl Future<Output = ()>) {
        self.0.send_replace(Stage::Finishing);
        let finished = async {
            while calls.busy(pods) > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        let in_time = tokio::select! {
            finished = tokio::time::timeout(FINISH, finished) => finished.is_ok(),
            () = hurry => false,
        };
        if !in_time {
            tracing::warn!("ending before everything in progress is finished");
            calls.log(pods);
        }
        self.0.send_replace(Stage::Over);
    }
}

#[derive(Clone)]
pub(crate) struct DrainLayer(Drain);

impl<S> Layer<S> for DrainLayer {
    type Service = Draining<S>;
    fn layer(&self, inner: S) -> Draining<S> {
        Draining { inner, drain: self.0.clone() }
    }
}

/// Refuses calls once the daemon ends, and cuts off those that take longer than it waits.
#[derive(Clone)]
pub(crate) struct Draining<S> {
    inner: S,
    drain: Drain,
}

impl<S, B, R> Service<Request<B>> for Draining<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Default + Send,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        // The one that was polled ready is the one to call.
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let mut stage = self.drain.0.subscribe();
        let method = method(request.uri().path()).to_owned();
        Box::pin(async move {
            if *stage.borrow_and_update() != Stage::Serving {
                return Ok(refused(&method).into_http());
            }
            let call = inner.call(request);
            tokio::select! {
                biased;
                answer = call => answer,
                _ = stage.wait_for(|stage| *stage == Stage::Over) => Ok(unfinished(&method).into_http()),
            }
        })
    }
}

fn refused(method: &str) -> Status {
    Status::unavailable(format!("berthd is ending and begins no {method}: call again when it is back"))
}

fn unfinished(method: &str) -> Status {
    Status::unavailable(format!(
        "berthd is ending before {method} was finished: repeat it unchanged when it is back, which knows what was done"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Never = std::future::Pending<Result<Response<()>, std::io::Error>>;

    fn request() -> Request<()> {
        Request::builder().uri("/runtime.v1.RuntimeService/ExecSync").body(()).expect("a request")
    }

    fn told(answer: Result<Response<()>, std::io::Error>) -> (String, String) {
        let answer = answer.expect("an answer");
        let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
        (header("grpc-status"), header("grpc-message"))
    }

    #[tokio::test]
    async fn a_call_in_progress_has_its_time_and_a_new_one_has_none() {
        let drain = Drain::new();
        let hangs = tower::service_fn(|_: Request<()>| -> Never { std::future::pending() });
        let mut service = drain.layer().layer(hangs);
        let waiting = tokio::spawn(service.call(request()));
        tokio::task::yield_now().await;
        drain.0.send_replace(Stage::Finishing);
        let (code, message) = told(service.call(request()).await);
        assert_eq!(code, "14");
        assert!(message.contains("begins%20no%20ExecSync"), "{message}");
        assert!(!waiting.is_finished());
        drain.0.send_replace(Stage::Over);
        let (code, message) = told(waiting.await.expect("no panic"));
        assert_eq!(code, "14");
        assert!(message.contains("before%20ExecSync"), "{message}");
    }
}
