//! Events on the wire.

use berth_api::cri::*;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::{container, sandbox};
use crate::pod::{Event, EventKind};
use crate::pods::Pods;

/// What happens from now on, until the client goes, falls too far behind, or the daemon ends.
pub(super) fn subscribe(pods: &Pods) -> Result<BoxStream<'static, Result<ContainerEventResponse, Status>>, Status> {
    let listener = pods.shared().events.subscribe();
    let listener = listener.ok_or_else(|| Status::unavailable("the daemon is ending"))?;
    let next = |listener: Option<tokio::sync::broadcast::Receiver<Event>>| async move {
        let mut listener = listener?;
        match listener.recv().await {
            Ok(event) => Some((Ok(encode(&event)), Some(listener))),
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(missed)) => Some((Err(fell_behind(missed)), None)),
        }
    };
    Ok(stream::unfold(Some(listener), next).boxed())
}

fn fell_behind(missed: u64) -> Status {
    tracing::warn!(missed, "a subscriber of events did not read them; it is cut off");
    Status::resource_exhausted(format!(
        "{missed} events were dropped because this subscriber did not read: subscribe again, then list"
    ))
}

fn encode(event: &Event) -> ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at_ns,
        pod_sandbox_status: Some(sandbox::encode(&event.pod)),
        containers_statuses: event.pod.containers.values().map(|c| container::encode(c)).collect(),
    }
}
