//! What happens to a container, told to containerd: `Forward` on the ttrpc socket that `TTRPC_ADDRESS` names. berthd does
//! not listen: Wait tells it all.
//!
//! Events are sent one after another, in the order in which they are told (`order`); whoever tells one does not wait for
//! it. A containerd that is away is waited for a while; then what waits is dropped, and said so. (It asks for the state of
//! its tasks when it comes back.)

mod order;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::Message;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

use crate::io::log::wall_clock;
use crate::say;
use crate::service::timestamp;

use self::order::Order;
pub(crate) use self::order::Starting;
pub(crate) use containerd_shim_protos::events::task;

/// Where to send, by containerd's contract.
const ADDRESS: &str = "TTRPC_ADDRESS";
/// Events that wait to be sent; more are dropped.
const QUEUE: usize = 256;
/// How often one is tried, and the pause between. Source: containerd's own publisher tries five times.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a shim that is shut down stays for what it has not told yet.
const LAST: Duration = Duration::from_secs(5);

/// An event and the topic it belongs to.
pub(crate) trait Event: Message {
    const TOPIC: &'static str;
}

macro_rules! topics {
    ($($event:ident: $topic:ident),* $(,)?) => {
        $(impl Event for task::$event {
            const TOPIC: &'static str = topics::$topic;
        })*
    };
}

topics! {
    TaskCreate: TASK_CREATE_EVENT_TOPIC,
    TaskStart: TASK_START_EVENT_TOPIC,
    TaskOOM: TASK_OOM_EVENT_TOPIC,
    TaskExit: TASK_EXIT_EVENT_TOPIC,
    TaskDelete: TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded: TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted: TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused: TASK_PAUSED_EVENT_TOPIC,
    TaskResumed: TASK_RESUMED_EVENT_TOPIC,
}

/// Where events are told; clones tell the same. Where nobody listens none is made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events(Option<Arc<Telling>>);

#[derive(Debug)]
struct Telling {
    namespace: String,
    /// Until it is closed: the sender, and who sends on what it is given.
    open: Mutex<Option<(mpsc::Sender<Envelope>, JoinHandle<()>)>>,
    /// Events told and neither sent nor dropped yet.
    waiting: Arc<AtomicUsize>,
    order: Order,
}

impl Events {
    /// To containerd, in its namespace, when the environment says where it listens; else to nobody.
    pub(crate) fn begin(namespace: &str) -> Events {
        let Some(address) = std::env::var_os(ADDRESS).filter(|address| !address.is_empty()) else {
            return Events::default();
        };
        let (queue, told) = mpsc::channel(QUEUE);
        let waiting = Arc::<AtomicUsize>::default();
        let forwarder = tokio::spawn(forward(address.into(), told, waiting.clone()));
        let open = Mutex::new(Some((queue, forwarder)));
        Events(Some(Arc::new(Telling { namespace: namespace.to_owned(), open, waiting, order: Order::default() })))
    }

    /// Somebody listens.
    pub(crate) fn wanted(&self) -> bool {
        self.0.is_some()
    }

    /// `event` is only made when somebody listens.
    pub(crate) fn tell<E: Event>(&self, event: impl FnOnce() -> E) {
        let Some(telling) = &self.0 else { return };
        let value = event().write_to_bytes().unwrap_or_default();
        let type_url = format!("containerd.events.{}", E::NAME);
        let event = Any { type_url, value, ..Default::default() };
        let envelope = Envelope {
            timestamp: timestamp(wall_clock()),
            namespace: telling.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: MessageField::some(event),
            ..Default::default()
        };
        let open = telling.open.lock().unwrap_or_else(PoisonError::into_inner);
        telling.waiting.fetch_add(1, Ordering::Relaxed);
        if open.as_ref().is_none_or(|(queue, _)| queue.try_send(envelope).is_err()) {
            telling.waiting.fetch_sub(1, Ordering::Relaxed);
            say!("drop the event {}: containerd takes none", E::TOPIC);
        }
    }

    /// The start of a process is under way for as long as this lives: its end is told later.
    pub(crate) fn starting(&self, exec_id: &str) -> Option<Starting> {
        self.0.as_ref().map(|telling| telling.order.starting(exec_id))
    }

    /// Does `tell` at the end of a process, when no start of it is under way.
    pub(crate) fn at_the_end<T: Send + 'static>(
        &self,
        exec_id: &str,
        end: impl Future<Output = T> + Send + 'static,
        tell: impl FnOnce(T) + Send + 'static,
    ) {
        if let Some(telling) = &self.0 {
            telling.order.at_the_end(exec_id, end, tell);
        }
    }

    /// Waits until the start and the end of a process that has ended are told, or of all processes with the init's (which
    /// has no `exec_id`).
    pub(crate) async fn settled(&self, exec_id: &str) {
        if let Some(telling) = &self.0 {
            telling.order.settled(exec_id).await;
        }
    }

    /// Sends what waits, for a bounded time; nothing can be told later.
    pub(crate) async fn close(&self) {
        let Some(telling) = &self.0 else { return };
        let sent = async {
            telling.order.settled("").await;
            let open = telling.open.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some((queue, forwarder)) = open {
                drop(queue);
                let _ = forwarder.await;
            }
        };
        if timeout(LAST, sent).await.is_err() {
            let waiting = telling.waiting.load(Ordering::Relaxed);
            say!("drop the last events, {waiting}: containerd did not take them within {} s", LAST.as_secs());
        }
    }
}

async fn forward(address: PathBuf, mut told: mpsc::Receiver<Envelope>, waiting: Arc<AtomicUsize>) {
    let mut client = None;
    while let Some(envelope) = told.recv().await {
        let topic = envelope.topic.clone();
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        let mut sent = Err(String::new());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            sent = send(&address, &mut client, &request).await;
            match sent {
                Ok(()) => break,
                // Another connection: containerd may be another one by now.
                Err(_) => client = None,
            }
        }
        if let Err(problem) = sent {
            say!("drop the event {topic}: {problem}");
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn send(address: &Path, client: &mut Option<EventsClient>, request: &ForwardRequest) -> Result<(), String> {
    let connected = match client.take() {
        Some(client) => client,
        None => {
            let stream = UnixStream::connect(address).await.map_err(|e| format!("{}: {e}", address.display()))?;
            EventsClient::new(Client::new(Socket::new(stream)))
        }
    };
    let context = context::with_duration(ANSWER);
    let answered = connected.forward(context, request).await;
    *client = Some(connected);
    answered.map(drop).map_err(|e| e.to_string())
}
