//! Lists as streams: messages bounded by their bytes, each item once.

use std::pin::Pin;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use prost::Message;
use tonic::Status;

/// A message ends before it would be larger, in bytes. Source: gRPC's clients take 16 MiB; a sixteenth keeps what both
/// sides hold small, and an item that is larger alone still fits.
const BATCH_MAX: usize = 1 << 20;

/// How a streamed list is answered.
pub(super) type Streamed<R> = BoxStream<'static, Result<R, Status>>;

/// What has not been sent yet.
struct Rest<T> {
    items: Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>,
    /// Began the next message, or ends the stream.
    next: Option<Result<T, Status>>,
}

/// Messages of at least one item each, in order. An error ends the stream, after what came before it.
pub(super) fn batches<T, R>(
    items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    wrap: fn(Vec<T>) -> R,
) -> Streamed<R>
where
    T: Message + 'static,
    R: Send + 'static,
{
    let rest = Rest { items: Box::pin(items), next: None };
    let batch = move |rest: Option<Rest<T>>| async move {
        let mut rest = rest?;
        let mut batch = match rest.next.take() {
            Some(item) => item,
            None => rest.items.next().await?,
        };
        let (mut found, mut bytes) = (Vec::new(), 0);
        loop {
            match batch {
                Err(status) if found.is_empty() => return Some((Err(status), None)),
                Ok(item) if found.is_empty() || bytes + item.encoded_len() <= BATCH_MAX => {
                    bytes += item.encoded_len();
                    found.push(item);
                }
                other => {
                    rest.next = Some(other);
                    break;
                }
            }
            match rest.items.next().await {
                Some(item) => batch = item,
                None => break,
            }
        }
        Some((Ok(wrap(found)), Some(rest)))
    };
    stream::unfold(Some(rest), batch).boxed()
}

/// The same of what is at hand; each item is made when its message is.
pub(super) fn of_list<V, T, R>(
    views: Vec<V>,
    encode: impl Fn(V) -> T + Send + 'static,
    wrap: fn(Vec<T>) -> R,
) -> Streamed<R>
where
    V: Send + 'static,
    T: Message + 'static,
    R: Send + 'static,
{
    batches(stream::iter(views).map(move |view| Ok(encode(view))), wrap)
}

/// The same of what has to be measured, so many at a time: what was chosen first is sent while the others wait.
pub(super) fn of_measured<V, T, R, F>(
    views: Vec<V>,
    at_once: usize,
    measure: impl Fn(Vec<V>) -> F + Send + 'static,
    wrap: fn(Vec<T>) -> R,
) -> Streamed<R>
where
    V: Send + 'static,
    T: Message + 'static,
    R: Send + 'static,
    F: Future<Output = Result<Vec<T>, Status>> + Send + 'static,
{
    let chunks = stream::iter(views).chunks(at_once).then(measure);
    let items = chunks.flat_map(|measured| match measured {
        Ok(items) => stream::iter(items.into_iter().map(Ok)).boxed(),
        Err(status) => stream::iter([Err(status)]).boxed(),
    });
    batches(items, wrap)
}

#[cfg(test)]
mod tests {
    use berth_api::cri::{Container, StreamContainersResponse};

    use super::*;

    fn container(bytes: usize) -> Container {
        Container { id: "x".repeat(bytes), ..Default::default() }
    }

    async fn sizes(items: Vec<Result<Container, Status>>) -> Vec<Result<Vec<usize>, tonic::Code>> {
        let sent = batches(stream::iter(items), |containers| StreamContainersResponse { containers });
        let size = |sent: Result<StreamContainersResponse, Status>| match sent {
            Ok(message) => Ok(message.containers.iter().map(|c| c.id.len()).collect()),
            Err(status) => Err(status.code()),
        };
        sent.map(size).collect().await
    }

    #[tokio::test]
    async fn a_message_ends_before_it_would_be_too_large() {
        const HALF: usize = BATCH_MAX / 2 - 100;
        let ok = |sizes: &[usize]| sizes.iter().map(|s| Ok(container(*s))).collect();
        assert_eq!(sizes(ok(&[])).await, []);
        assert_eq!(sizes(ok(&[1, 2, 3])).await, [Ok(vec![1, 2, 3])]);
        assert_eq!(sizes(ok(&[HALF, HALF, 500, 1])).await, [Ok(vec![HALF, HALF]), Ok(vec![500, 1])]);
        let large = BATCH_MAX * 3;
        assert_eq!(sizes(ok(&[1, large, 2])).await, [Ok(vec![1]), Ok(vec![large]), Ok(vec![2])]);
    }

    #[tokio::test]
    async fn an_error_ends_the_stream_after_what_came_before_it() {
        let items = vec![Ok(container(1)), Err(Status::internal("x")), Ok(container(2))];
        assert_eq!(sizes(items).await, [Ok(vec![1]), Err(tonic::Code::Internal)]);
        assert_eq!(sizes(vec![Err(Status::internal("x"))]).await, [Err(tonic::Code::Internal)]);
    }
}
