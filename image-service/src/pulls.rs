//! berth.v1's Pulls: a pull told layer by layer. Looks at the pull's progress ten times a second and tells what changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use berth_api::pull::pull_progress::layer::State;
use berth_api::pull::pull_progress::{Done, Event, Layer, Resolved};
use berth_api::pull::pulls_server::Pulls;
use berth_api::pull::{PullProgress, PullRequest};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::cri::status;
use crate::error::Error;
use crate::progress::{LayerProgress, Progress, Stage};
use crate::pull::{self, Pulled};
use crate::reference::Reference;
use crate::registry::Credentials;
use crate::store::Store;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Events that wait for a slow client; then we wait for it.
const WAITING: usize = 64;

/// The service.
pub(crate) struct Service(pub(crate) Arc<Store>);

type Events = mpsc::Sender<Result<PullProgress, Status>>;

#[tonic::async_trait]
impl Pulls for Service {
    type PullStream = BoxStream<'static, Result<PullProgress, Status>>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let reference = Reference::parse(&request.image).map_err(|error| status(&error))?;
        let credentials = Credentials::basic(&request.username, &request.password);
        let (events, answers) = mpsc::channel(WAITING);
        // Ends when the pull does, or when the client has gone and a send fails.
        tokio::spawn(tell(Arc::clone(&self.0), reference, credentials, events));
        let answers = stream::unfold(answers, |mut answers| async move { Some((answers.recv().await?, answers)) });
        Ok(Response::new(answers.boxed()))
    }
}

async fn tell(store: Arc<Store>, reference: Reference, credentials: Credentials, events: Events) {
    let began = Instant::now();
    loop {
        let mut ticket = pull::join(&store, &reference, &credentials);
        let mut teller = Teller { reference: reference.to_string(), told: Vec::new(), resolved: false };
        let progress = Arc::clone(&ticket.progress);
        let outcome = loop {
            match tokio::time::timeout(LOOK, ticket.wait()).await {
                Ok(outcome) => break outcome,
                Err(_) if teller.look(&progress, &events).await.is_err() => return, // the client is gone
                Err(_) => {}
            }
        };
        match outcome {
            Err(Error::Pull { source, .. }) if matches!(*source, Error::Abandoned { .. }) => {
                continue;
            }
            Err(error) => {
                let _ = events.send(Err(status(&error))).await; // gone or not, this was the last
            }
            Ok(pulled) => {
                if teller.look(&progress, &events).await.is_ok() {
                    let _ = events.send(Ok(done(&pulled, began.elapsed()))).await;
                }
            }
        }
        return;
    }
}

fn done(pulled: &Pulled, elapsed: Duration) -> PullProgress {
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    event(Event::Done(Done { image_id: pulled.id.to_string(), fetched_bytes: pulled.fetched, elapsed_ms }))
}

fn event(event: Event) -> PullProgress {
    PullProgress { event: Some(event) }
}

/// What one client was told.
struct Teller {
    reference: String,
    told: Vec<(Stage, u64)>,
    resolved: bool,
}

/// The client does not listen any more.
struct Gone;

impl Teller {
    async fn look(&mut self, progress: &Progress, events: &Events) -> Result<(), Gone> {
        if events.is_closed() {
            return Err(Gone);
        }
        let Some(found) = progress.resolved.get() else {
            return Ok(());
        };
        if !self.resolved {
            self.resolved = true;
            let layers = found.layers.iter().map(|layer| layer.digest.to_string()).collect();
            let resolved = Resolved { reference: self.reference.clone(), digest: found.digest.to_string(), layers };
            send(events, Event::Resolved(resolved)).await?;
        }
        for (at, layer) in found.layers.iter().enumerate() {
            let now = (layer.stage(), layer.received.load(Ordering::Relaxed));
            if self.told.get(at) != Some(&now) {
                self.told.resize(self.told.len().max(at + 1), (Stage::Waiting, u64::MAX));
                self.told[at] = now;
                send(events, Event::Layer(describe(layer, now))).await?;
            }
        }
        Ok(())
    }
}

fn describe(layer: &LayerProgress, (stage, received_bytes): (Stage, u64)) -> Layer {
    let state = match stage {
        Stage::Waiting => State::Waiting,
        Stage::Pulling => State::Pulling,
        Stage::Ready => State::Ready,
        Stage::Present => State::Present,
    };
    Layer { digest: layer.digest.to_string(), state: state.into(), received_bytes, total_bytes: layer.total }
}

async fn send(events: &Events, what: Event) -> Result<(), Gone> {
    events.send(Ok(event(what))).await.map_err(|_| Gone)
}
