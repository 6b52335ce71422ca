//! What happens to a container, told to containerd: `Forward` on the ttrpc socket that `TTRPC_ADDRESS` names. berthd does
//! not listen: Wait tells it all.
//!
//! Events are sent one after another, in the order in which they are told; whoever tells one does not wait for it. A
//! containerd that is away is waited for a while; then what waits is dropped, and said so. (It asks for the state of its
//! tasks when it comes back.)

use std::path::{Path, PathBuf};
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
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

use crate::io::log::wall_clock;
use crate::say;
use crate::service::timestamp;

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

/// Where events are told; clones tell the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    queue: Option<mpsc::Sender<Envelope>>,
    namespace: String,
}

impl Events {
    /// To containerd, in its namespace, when the environment says where it listens; else to nobody.
    pub(crate) fn begin(namespace: &str) -> Events {
        let Some(address) = std::env::var_os(ADDRESS).filter(|address| !address.is_empty()) else {
            return Events::default();
        };
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(forward(address.into(), waiting));
        Events { queue: Some(queue), namespace: namespace.to_owned() }
    }

    /// Somebody listens.
    pub(crate) fn wanted(&self) -> bool {
        self.queue.is_some()
    }

    pub(crate) fn tell<E: Event>(&self, event: E) {
        let Some(queue) = &self.queue else { return };
        let value = event.write_to_bytes().unwrap_or_default();
        let type_url = format!("containerd.events.{}", E::NAME);
        let event = Any { type_url, value, ..Default::default() };
        let envelope = Envelope {
            timestamp: timestamp(wall_clock()),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: MessageField::some(event),
            ..Default::default()
        };
        if queue.try_send(envelope).is_err() {
            say!("drop the event {}: containerd takes none", E::TOPIC);
        }
    }
}

async fn forward(address: PathBuf, mut waiting: mpsc::Receiver<Envelope>) {
    let mut client = None;
    while let Some(envelope) = waiting.recv().await {
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
