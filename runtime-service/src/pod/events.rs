//! What happened to containers and pods, told to whoever listens, in the order in which pods' tasks published it.
//!
//! An event is the difference between two views that a pod published one after the other: nothing else tells, so an event
//! and a status never disagree. One queue serves all subscribers, each with its own place in it; whoever falls behind by
//! more than the queue holds is told so and cut off, never left with a gap it does not know of.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::lifecycle::Phase;
use super::view::{PodState, PodView};

/// Events that are kept for the slowest subscriber.
const QUEUE: usize = 1024;

/// One thing that happened to one container or pod.
#[derive(Clone)]
pub(crate) struct Event {
    /// Of the container, or of the pod for the pod's own.
    pub(crate) id: String,
    pub(crate) kind: Kind,
    /// Nanoseconds since the epoch.
    pub(crate) at_ns: i64,
    /// The pod just after.
    pub(crate) pod: Arc<PodView>,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Where events go; until the daemon drains.
pub(crate) struct Events {
    sender: Mutex<Option<broadcast::Sender<Event>>>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { sender: Mutex::new(Some(broadcast::Sender::new(QUEUE))) }
    }

    /// Everything that happens from now on; `None` when the daemon is ending.
    pub(crate) fn subscribe(&self) -> Option<broadcast::Receiver<Event>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(broadcast::Sender::subscribe)
    }

    /// Ends every subscription, after what it has not read yet.
    pub(crate) fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Tells what is different between two views of a pod.
    pub(super) fn published(&self, before: &PodView, after: &Arc<PodView>) {
        self.send(after, || changes(before, after));
    }

    /// Tells that a pod is gone for good.
    pub(super) fn deleted(&self, last: &Arc<PodView>) {
        self.send(last, || vec![(last.id.to_string(), Kind::Deleted)]);
    }

    fn send(&self, pod: &Arc<PodView>, changes: impl FnOnce() -> Vec<(String, Kind)>) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        // During recovery nobody listens yet, and what is found then did not just happen.
        let Some(sender) = sender.as_ref().filter(|sender| sender.receiver_count() > 0) else { return };
        for (id, kind) in changes() {
            // The last subscriber may have gone since: then nobody misses it.
            let _ = sender.send(Event { id, kind, at_ns: super::now_ns(), pod: pod.clone() });
        }
    }
}

/// First how the pod began, then its containers, then how it ended.
fn changes(before: &PodView, after: &PodView) -> Vec<(String, Kind)> {
    let mut found = Vec::new();
    let pod = || after.id.to_string();
    if before.state == PodState::Starting && after.state == PodState::Ready {
        found.extend([(pod(), Kind::Created), (pod(), Kind::Started)]);
    }
    for (id, container) in &after.containers {
        let was = before.containers.get(id).map(|c| Stage::of(&c.phase));
        found.extend(Stage::of(&container.phase).reached_from(was).iter().map(|kind| (id.to_string(), *kind)));
    }
    let gone = before.containers.keys().filter(|id| !after.containers.contains_key(id));
    found.extend(gone.map(|id| (id.to_string(), Kind::Deleted)));
    if before.state == PodState::Ready && after.state == PodState::NotReady {
        found.push((pod(), Kind::Stopped));
    }
    found
}

/// How far a container has come, as far as events go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Created,
    Running,
    /// Without its shim, wherever it was before: it is being killed, and over when that has succeeded.
    Lost,
    Over {
        ran: bool,
    },
}

impl Stage {
    fn of(phase: &Phase) -> Self {
        match phase {
            Phase::Creating | Phase::Created => Self::Created,
            Phase::Running { .. } | Phase::Stopping { .. } => Self::Running,
            Phase::Lost => Self::Lost,
            Phase::Exited(end) => Self::Over { ran: end.started.is_some() },
            Phase::Removing => Self::Over { ran: false },
        }
    }

    /// What happened since it was there, `None` when it was not. A view may skip a stage that was short.
    fn reached_from(self, was: Option<Self>) -> &'static [Kind] {
        use Kind::{Created, Started, Stopped};
        match (was, self) {
            (None, Self::Created | Self::Lost) => &[Created],
            (None, Self::Running) => &[Created, Started],
            (None, Self::Over { ran: true }) => &[Created, Started, Stopped],
            (None, Self::Over { ran: false }) => &[Created, Stopped],
            (Some(Self::Created), Self::Running) => &[Started],
            (Some(Self::Created), Self::Over { ran: true }) => &[Started, Stopped],
            (Some(Self::Created), Self::Over { ran: false }) => &[Stopped],
            (Some(Self::Running | Self::Lost), Self::Over { .. }) => &[Stopped],
            (Some(_), _) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_from_one_stage_to_a_later_one_is_told_and_none_twice() {
        use Kind::*;
        let over = |ran| Stage::Over { ran };
        for (was, is, told) in [
            (None, Stage::Created, &[Created][..]),
            (None, Stage::Running, &[Created, Started]),
            (None, over(true), &[Created, Started, Stopped]),
            (Some(Stage::Created), Stage::Created, &[]),
            (Some(Stage::Created), Stage::Running, &[Started]),
            (Some(Stage::Created), over(true), &[Started, Stopped]),
            (Some(Stage::Created), over(false), &[Stopped]),
            (Some(Stage::Running), Stage::Running, &[]),
            (Some(Stage::Running), over(true), &[Stopped]),
            // Its shim died: before it was started, and after.
            (Some(Stage::Created), Stage::Lost, &[]),
            (Some(Stage::Running), Stage::Lost, &[]),
            (Some(Stage::Lost), over(false), &[Stopped]),
            (Some(Stage::Lost), over(true), &[Stopped]),
            // Exited, then being removed.
            (Some(over(true)), over(false), &[]),
        ] {
            assert_eq!(is.reached_from(was), told);
        }
    }

    #[tokio::test]
    async fn nobody_is_told_after_the_close() {
        let events = Events::new();
        let mut listener = events.subscribe().expect("open");
        events.close();
        assert!(matches!(listener.recv().await, Err(broadcast::error::RecvError::Closed)));
        assert!(events.subscribe().is_none());
    }
}
