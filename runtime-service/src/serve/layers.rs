//! What every call passes on its way in and out: admission, a line in the log, a place in the metrics.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Semaphore;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::inflight::{Calls, Subject};
use crate::metrics::Metrics;

tokio::task_local! {
    static SUBJECT: Arc<Mutex<Subject>>;
}

/// Says what this call is about, for its line in the log.
pub(crate) fn subject(tell: impl FnOnce(&mut Subject)) {
    // Outside a call (a test of a handler) there is nobody to tell.
    let _ = SUBJECT.try_with(|subject| tell(&mut subject.lock().unwrap_or_else(PoisonError::into_inner)));
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Lets so many calls run at once; the others wait their turn. Those that only read wait for no pod, and have places of
/// their own: however many of the others hang, the node is seen to live.
#[derive(Clone)]
pub(crate) struct Admission<S> {
    inner: S,
    slots: Slots,
}

#[derive(Clone)]
struct Slots {
    acting: Arc<Semaphore>,
    reading: Arc<Semaphore>,
}

#[derive(Clone)]
pub(crate) struct AdmissionLayer(Slots);

impl Admission<()> {
    /// `limit` of each kind.
    pub(crate) fn layer(limit: usize) -> AdmissionLayer {
        let slots = || Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)));
        AdmissionLayer(Slots { acting: slots(), reading: slots() })
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;
    fn layer(&self, inner: S) -> Admission<S> {
        Admission { inner, slots: self.0.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for Admission<S>
where
    S: Service<Request<B>, Response = R> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Send,
{
    type Response = R;
    type Error = S::Error;
    type Future = BoxFuture<Result<R, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        // The one that was polled ready is the one to call.
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let slots = match is_mutating(method(request.uri().path())) {
            true => self.slots.acting.clone(),
            false => self.slots.reading.clone(),
        };
        Box::pin(async move {
            // The semaphore is never closed.
            let _slot = slots.acquire_owned().await;
            inner.call(request).await
        })
    }
}

/// One structured line per mutating call, one observation per call, and the request's number in an error's text.
#[derive(Clone)]
pub(crate) struct Trace<S> {
    inner: S,
    metrics: Metrics,
    calls: Calls,
}

#[derive(Clone)]
pub(crate) struct TraceLayer(Metrics, Calls);

impl Trace<()> {
    pub(crate) fn layer(metrics: Metrics, calls: Calls) -> TraceLayer {
        TraceLayer(metrics, calls)
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;
    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner, metrics: self.0.clone(), calls: self.1.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Default + Send,
{
    type Response = Response<Answer<R>>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let (metrics, calls) = (self.metrics.clone(), self.calls.clone());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let method = method(request.uri().path()).to_owned();
        let began = Instant::now();
        let deadline = deadline(request.headers());
        let subject = Arc::<Mutex<Subject>>::default();
        Box::pin(SUBJECT.scope(subject.clone(), async move {
            let _in_progress = calls.begin(number, &method, subject.clone());
            let call = inner.call(request);
            let answer = match deadline {
                None => call.await,
                Some(limit) => match tokio::time::timeout_at((began + limit).into(), call).await {
                    Ok(answer) => answer,
                    Err(_) => Ok(late(&method, limit).into_http()),
                },
            };
            let subject = subject.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let account = Account { metrics, method, number, subject, took: began.elapsed() };
            answer.map(|response| {
                let (mut head, body) = response.into_parts();
                let account = match mark_error(&mut head.headers, number) {
                    Some(code) => {
                        account.close(Some(code));
                        None
                    }
                    None => Some(account),
                };
                Response::from_parts(head, Answer { body, account })
            })
        }))
    }
}

/// What is written down of a call once it is known how it ended.
struct Account {
    metrics: Metrics,
    method: String,
    number: u64,
    subject: Subject,
    /// Until its answer began.
    took: Duration,
}

impl Account {
    fn close(self, failed: Option<Code>) {
        // Any path can be called; only what is known becomes a label.
        if !matches!(failed, Some(Code::Unimplemented)) {
            self.metrics.rpc(&self.method, self.took, failed);
        }
        report(&self.method, self.number, &self.subject, self.took.as_secs_f64() * 1000.0, failed);
    }
}

/// The body of an answer, behind which comes how the call ended: a message that cannot be encoded is an error though the
/// answer has begun.
pub(crate) struct Answer<R> {
    body: R,
    /// Until that is known.
    account: Option<Account>,
}

impl<R: Body + Unpin> Body for Answer<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
            && let Some(account) = self.account.take()
        {
            let failed = mark_error(trailers, account.number);
            account.close(failed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client that did not hear it to its end.
impl<R> Drop for Answer<R> {
    fn drop(&mut self) {
        if let Some(account) = self.account.take() {
            account.close(None);
        }
    }
}

/// The client's deadline, a millisecond early: tonic answers at the same moment, and says CANCELLED, which no client that
/// set a deadline expects. Source: the header `grpc-timeout` of the gRPC protocol over HTTP/2, at most eight digits and a
/// unit.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = number.parse().ok()?;
    let limit = match unit {
        "H" => Duration::from_secs(3600) * number,
        "M" => Duration::from_secs(60) * number,
        "S" => Duration::from_secs(1) * number,
        "m" => Duration::from_millis(number.into()),
        "u" => Duration::from_micros(number.into()),
        "n" => Duration::from_nanos(number.into()),
        _ => return None,
    };
    (number <= 99_999_999).then(|| limit.saturating_sub(Duration::from_millis(1)))
}

fn late(method: &str, limit: Duration) -> Status {
    let ms = limit.as_millis() + 1;
    Status::deadline_exceeded(format!(
        "{method} took longer than the {ms} ms that its client gave it; repeat it unchanged"
    ))
}

/// How a call ended is in the headers, if it is an error from the start, or in the trailers. Its text gets the request's
/// number, by which the log is found.
fn mark_error(headers: &mut HeaderMap, number: u64) -> Option<Code> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse::<i32>().ok().map(Code::from_i32)?;
    if code == Code::Ok {
        return None;
    }
    let text = headers.get("grpc-message").and_then(|m| m.to_str().ok()).unwrap_or_default();
    // The header is percent-encoded.
    if let Ok(value) = HeaderValue::from_str(&format!("{text}%20(request%20{number})")) {
        headers.insert("grpc-message", value);
    }
    Some(code)
}

fn report(method: &str, request: u64, subject: &Subject, ms: f64, failed: Option<Code>) {
    let (pod, container) = (&subject.pod, &subject.container);
    if let Some(code) = failed {
        tracing::warn!(request, pod, container, ms, code = ?code, "{method} failed");
    } else if is_mutating(method) {
        tracing::info!(request, pod, container, ms, "{method}");
    } else {
        tracing::debug!(request, pod, container, ms, "{method}");
    }
}

/// `/PACKAGE.SERVICE/METHOD`'s last part.
pub(super) fn method(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn is_mutating(method: &str) -> bool {
    const VERBS: &[&str] = &["RunPod", "Stop", "Remove", "Create", "Start", "Exec", "Reopen", "Pull", "Update"];
    VERBS.iter().any(|verb| method.starts_with(verb))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_str(text).expect("a value"));
        deadline(&headers)
    }

    #[test]
    fn a_deadline_is_read_in_every_unit_and_a_malformed_one_is_none() {
        assert_eq!(deadline(&HeaderMap::new()), None);
        assert_eq!(of("2S"), Some(Duration::from_millis(1999)));
        assert_eq!(of("1H"), Some(Duration::from_millis(3_599_999)));
        assert_eq!(of("1M"), Some(Duration::from_millis(59_999)));
        assert_eq!(of("250m"), Some(Duration::from_millis(249)));
        assert_eq!(of("5000u"), Some(Duration::from_millis(4)));
        assert_eq!(of("10n"), Some(Duration::ZERO));
        for bad in ["", "S", "5", "5x", "-1S", "123456789S", "5é"] {
            let mut headers = HeaderMap::new();
            let Ok(value) = HeaderValue::from_bytes(bad.as_bytes()) else { continue };
            headers.insert("grpc-timeout", value);
            assert_eq!(deadline(&headers), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn calls_that_hang_keep_others_of_their_kind_waiting_and_no_one_who_reads() {
        let answers = tower::service_fn(async |request: Request<()>| match request.uri().path() {
            "/runtime.v1.RuntimeService/RunPodSandbox" => std::future::pending().await,
            _ => Ok::<_, std::io::Error>(()),
        });
        let mut service = Admission::layer(2).layer(answers);
        let mut call = |method: &str| {
            let request = Request::builder().uri(format!("/runtime.v1.RuntimeService/{method}"));
            tokio::spawn(service.call(request.body(()).expect("a request")))
        };
        let hanging: Vec<_> = (0..3).map(|_| call("RunPodSandbox")).collect();
        for method in ["Version", "Status", "RuntimeConfig", "ListContainers", "StreamContainers", "ContainerStatus"] {
            call(method).await.expect("no panic").expect("an answer");
        }
        let waiting = call("StopPodSandbox");
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "every place of its kind is taken");
        hanging.iter().for_each(|call| call.abort());
        waiting.await.expect("no panic").expect("an answer, once there is a place");
    }

    /// A message that cannot be encoded.
    #[derive(Default)]
    struct Late(bool);

    impl Body for Late {
        type Data = bytes::Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
            let said = std::mem::replace(&mut self.0, true);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("11"));
            trailers.insert("grpc-message", HeaderValue::from_static("too%20large"));
            Poll::Ready((!said).then(|| Ok(Frame::trailers(trailers))))
        }
    }

    #[tokio::test]
    async fn an_error_behind_an_answer_is_counted_as_one_and_has_its_number() {
        let fails = tower::service_fn(async |_: Request<()>| Ok::<_, std::io::Error>(Response::new(Late(false))));
        let metrics = Metrics::new().expect("metrics");
        let mut traced = Trace::layer(metrics.clone(), Calls::default()).layer(fails);
        let request = Request::builder().uri("/runtime.v1.RuntimeService/ExecSync").body(()).expect("a request");
        let mut answer = traced.call(request).await.expect("an answer").into_body();
        let frame = std::future::poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx)).await.expect("a frame");
        let trailers = frame.expect("no error").into_trailers().expect("trailers");
        let message = trailers["grpc-message"].to_str().expect("text");
        assert!(message.starts_with("too%20large%20(request%20"), "{message}");
        drop(answer);
        let counted = String::from_utf8(metrics.text().expect("text")).expect("UTF-8");
        let errors = "berth_rpc_errors_total{code=\"OutOfRange\",method=\"ExecSync\"} 1";
        assert!(counted.contains(errors), "{counted}");
        assert!(counted.contains("berth_rpc_duration_seconds_count{method=\"ExecSync\"} 1"), "{counted}");
    }

    #[tokio::test]
    async fn a_call_that_is_late_is_told_so_and_not_that_it_was_cancelled() {
        let hangs = tower::service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, std::io::Error>>());
        let mut traced = Trace::layer(Metrics::new().expect("metrics"), Calls::default()).layer(hangs);
        let request = Request::builder().uri("/runtime.v1.ImageService/PullImage").header("grpc-timeout", "20m");
        let answer = traced.call(request.body(()).expect("a request")).await.expect("an answer");
        let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(header("grpc-status"), "4");
        assert!(header("grpc-message").contains("PullImage"), "{}", header("grpc-message"));
    }
}
