//! What is in progress, and where each operation stands: for `berth debug inflight` and, by SIGUSR1, the log.
//!
//! A call is known from its first byte to its answer. What it sets going in a pod is known by the pod itself, which says
//! what it is doing (one thing at a time) and at which step: so an operation whose client has gone is seen as well, and a
//! call that waits behind another is told behind which.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_api::debug::debug_server::Debug;
use berth_api::debug::{ListInflightRequest, ListInflightResponse, Operation};
use tonic::{Request, Response, Status};

use crate::pod::lifecycle::Phase;
use crate::pods::Pods;

tokio::task_local! {
    static DOING: Doing;
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is ever half-changed behind these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one pod is doing; clones share.
#[derive(Clone, Default)]
pub(crate) struct Doing(Arc<Mutex<Option<Deed>>>);

/// One thing that a pod does.
#[derive(Clone, Debug)]
pub(crate) struct Deed {
    method: &'static str,
    container: String,
    since: Instant,
    stage: &'static str,
    stage_since: Instant,
}

impl Doing {
    /// Does something under its name; the steps inside are told as its stages.
    pub(crate) async fn during<T>(&self, method: &'static str, container: String, deed: impl Future<Output = T>) -> T {
        let now = Instant::now();
        *locked(&self.0) = Some(Deed { method, container, since: now, stage: "", stage_since: now });
        let _over = Over(self);
        DOING.scope(self.clone(), deed).await
    }

    fn now(&self) -> Option<Deed> {
        locked(&self.0).clone()
    }

    fn stage(&self, stage: &'static str) -> Option<&'static str> {
        let mut deed = locked(&self.0);
        let deed = deed.as_mut()?;
        deed.stage_since = Instant::now();
        Some(std::mem::replace(&mut deed.stage, stage))
    }
}

struct Over<'a>(&'a Doing);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        *locked(&self.0.0) = None;
    }
}

/// A step, from here until this is dropped; then it is the one around it again.
pub(crate) struct Stage(Option<(Doing, &'static str)>);

impl Stage {
    pub(crate) fn enter(name: &'static str) -> Self {
        // What belongs to no pod has nobody to tell.
        Self(DOING.try_with(|doing| doing.stage(name).map(|before| (doing.clone(), before))).ok().flatten())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((doing, before)) = self.0.take() {
            doing.stage(before);
        }
    }
}

/// Lets blocking work on another thread tell its steps as this task's.
pub(crate) fn carried<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let doing = DOING.try_with(Doing::clone).ok();
    move || match doing {
        Some(doing) => DOING.sync_scope(doing, work),
        None => work(),
    }
}

/// What a call is about; its handler fills it in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) pod: String,
    pub(crate) container: String,
}

struct Call {
    method: String,
    since: Instant,
    subject: Arc<Mutex<Subject>>,
}

/// Every call in progress; clones share.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<BTreeMap<u64, Call>>>);

/// A call, in progress until this is dropped.
pub(crate) struct InProgress {
    calls: Calls,
    number: u64,
}

impl Calls {
    pub(crate) fn begin(&self, number: u64, method: &str, subject: Arc<Mutex<Subject>>) -> InProgress {
        locked(&self.0).insert(number, Call { method: method.to_owned(), since: Instant::now(), subject });
        InProgress { calls: self.clone(), number }
    }

    /// Everything in progress, the oldest first; `except` is the call that asks.
    fn list(&self, pods: &Pods, except: &str) -> Vec<Operation> {
        let mut deeds: HashMap<String, (Deed, bool)> = HashMap::new();
        let mut stopping = HashMap::new();
        for pod in pods.all() {
            if let Some(deed) = pod.doing.now() {
                deeds.insert(pod.id.to_string(), (deed, false));
            }
            for (id, container) in &pod.view().containers {
                if let Phase::Stopping { kill_at, .. } = container.phase {
                    stopping.insert(id.to_string(), kill_at);
                }
            }
        }
        let mut operations = Vec::new();
        for (number, call) in locked(&self.0).iter().filter(|(_, call)| call.method != except) {
            let subject = locked(&call.subject).clone();
            let mut operation = Operation {
                request: *number,
                method: call.method.clone(),
                age_ns: nanos(call.since.elapsed()),
                container_id: subject.container.clone(),
                ..Default::default()
            };
            match deeds.get_mut(&subject.pod) {
                Some((deed, claimed)) if is_for(deed, call, &subject) => {
                    *claimed = true;
                    (operation.stage, operation.stage_age_ns) =
                        (deed.stage.to_owned(), nanos(deed.stage_since.elapsed()));
                }
                _ if stopping.contains_key(&subject.container) && call.method == "StopContainer" => {
                    let left = stopping[&subject.container].saturating_duration_since(Instant::now());
                    operation.stage = format!("waits for its end, SIGKILL in {} s", left.as_secs());
                }
                // Reading what was published waits for nobody.
                Some((deed, _)) if is_asked_of_pods(&call.method) => {
                    operation.stage = format!("behind {} of the pod", deed.method);
                    operation.stage_age_ns = nanos(deed.since.elapsed());
                }
                _ => {}
            }
            operation.pod_sandbox_id = subject.pod;
            operations.push(operation);
        }
        let left = deeds.into_iter().filter(|(_, (_, claimed))| !claimed);
        operations.extend(left.map(|(pod, (deed, _))| Operation {
            request: 0,
            method: deed.method.to_owned(),
            pod_sandbox_id: pod,
            container_id: deed.container.clone(),
            age_ns: nanos(deed.since.elapsed()),
            stage: deed.stage.to_owned(),
            stage_age_ns: nanos(deed.stage_since.elapsed()),
        }));
        operations.sort_by_key(|operation| std::cmp::Reverse(operation.age_ns));
        operations
    }

    /// How many operations are in progress.
    pub(crate) fn busy(&self, pods: &Pods) -> usize {
        self.list(pods, "").len()
    }

    /// The list, a line each, into the log.
    pub(crate) fn log(&self, pods: &Pods) {
        let operations = self.list(pods, "");
        tracing::info!(count = operations.len(), "operations in progress");
        for o in operations {
            let seconds = |ns: i64| Duration::from_nanos(u64::try_from(ns).unwrap_or(0)).as_secs_f64();
            tracing::info!(
                request = o.request,
                pod = o.pod_sandbox_id,
                container = o.container_id,
                stage = o.stage,
                stage_s = seconds(o.stage_age_ns),
                age_s = seconds(o.age_ns),
                "in progress: {}",
                o.method
            );
        }
    }
}

/// The pod does what this call asks.
fn is_for(deed: &Deed, call: &Call, subject: &Subject) -> bool {
    deed.method == call.method
        && (deed.container.is_empty() || subject.container.is_empty() || deed.container == subject.container)
}

fn is_asked_of_pods(method: &str) -> bool {
    const ASKED: &[&str] = &["Run", "Stop", "Remove", "Create", "Start", "Update"];
    ASKED.iter().any(|verb| method.starts_with(verb)) && !method.ends_with("Image")
}

impl Drop for InProgress {
    fn drop(&mut self) {
        locked(&self.calls.0).remove(&self.number);
    }
}

/// The service on the socket.
pub(crate) struct Service {
    pub(crate) calls: Calls,
    pub(crate) pods: Pods,
}

#[tonic::async_trait]
impl Debug for Service {
    async fn list_inflight(&self, _: Request<ListInflightRequest>) -> Result<Response<ListInflightResponse>, Status> {
        Ok(Response::new(ListInflightResponse { operations: self.calls.list(&self.pods, "ListInflight") }))
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deed_is_told_with_its_innermost_step() {
        let doing = Doing::default();
        let stage = || doing.now().map(|deed| deed.stage);
        assert!(doing.now().is_none());
        doing
            .during("StopContainer", "c".into(), async {
                assert_eq!(stage(), Some(""));
                let outer = Stage::enter("outer");
                let blocking = carried(|| {
                    let _inner = Stage::enter("inner");
                    stage()
                });
                assert_eq!(blocking(), Some("inner"));
                assert_eq!(stage(), Some("outer"));
                drop(outer);
                assert_eq!(stage(), Some(""));
            })
            .await;
        assert!(doing.now().is_none());
        drop(Stage::enter("of nobody"));
    }

    #[test]
    fn a_call_is_in_progress_until_it_is_dropped() {
        let calls = Calls::default();
        let one = calls.begin(7, "Version", Arc::default());
        assert_eq!(locked(&calls.0).keys().copied().collect::<Vec<_>>(), [7]);
        drop(one);
        assert!(locked(&calls.0).is_empty());
    }
}
