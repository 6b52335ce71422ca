//! One layer from a registry to a directory: fetched, hashed, decompressed and applied as it streams, then settled on
//! the layers below. Runs as a flight of its own, so that pulls which share a layer share this.
//!
//! The compressed bytes are also written to a file while they stream, so that a broken pull goes on where it broke, also
//! in the next daemon, and so that a layer can be applied again with the layers below in view. The file goes when the
//! layer is done.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::catalog::{LayerRecord, Number};
use crate::digest::Digest;
use crate::error::{Error, LayerFailure};
use crate::layer::apply::{self, Below, Loose, Refusal};
use crate::layer::settle::{self, Settled};
use crate::layer::stream::{self, Bomb, Count, Meter, RATIO_MAX};
use crate::layer::tar::Archive;
use crate::manifest::Descriptor;
use crate::progress::{LayerProgress, Stage};
use crate::pull::LayerTicket;
use crate::records::Records;
use crate::registry::{Sent, Session, Sink};
use crate::store::Store;

/// Chunks between network and disk. With the 64 KiB of a socket read, at most 1 MiB per layer.
const CHUNKS: usize = 16;
/// Times a layer is fetched whose bytes are not what their digest says.
const FETCHES: usize = 2;

/// What a layer flight is about.
pub(crate) struct Job {
    pub(crate) store: Arc<Store>,
    pub(crate) session: Arc<Session>,
    /// Full reference, for messages.
    pub(crate) image: String,
    pub(crate) chain: Digest,
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
    pub(crate) parent: Parent,
    /// Its chain id; none for the base.
    pub(crate) parent_chain: Option<Digest>,
    /// Set when the pull that began this has failed for good: what is half done is not worth keeping.
    pub(crate) hopeless: Arc<AtomicBool>,
}

/// The layer below.
pub(crate) enum Parent {
    None,
    Here(Arc<Vec<u32>>),
    /// On its way.
    Flying(LayerTicket),
}

/// Runs the flight.
pub(crate) async fn run(
    mut job: Job,
    progress: Arc<LayerProgress>,
    token: CancellationToken,
) -> Result<Arc<Vec<u32>>, Error> {
    if let Some(numbers) = job.store.catalog.stack(job.chain) {
        return Ok(Arc::new(numbers));
    }
    let number = Arc::new(job.store.catalog.take_number());
    let done = job.make(&number, &progress, &token).await;
    if let Err(error) = &done {
        let keep = error.is_worth_resuming() && !job.hopeless.load(Ordering::Relaxed);
        let (records, number, chain) = (job.store.records.clone(), Arc::clone(&number), job.chain);
        let remove = move || {
            let ingest = if keep { Ok(()) } else { records.remove_ingest(chain) };
            records.remove_layer_files(number.number).and(ingest)
        };
        let removed = blocking("unpacking", remove).await;
        if let Err(error) = removed.and_then(|removed| removed) {
            tracing::warn!(error = error.chain(), "files of a failed layer stay until the next start");
        }
    }
    let numbers = done?;
    progress.set(Stage::Ready);
    Ok(numbers)
}

impl Job {
    async fn make(
        &mut self,
        number: &Arc<Number>,
        progress: &Arc<LayerProgress>,
        token: &CancellationToken,
    ) -> Result<Arc<Vec<u32>>, Error> {
        let loose = self.fetch(number, progress, token).await?;
        let below = self.below(token).await?;
        let usage = match self.settle(loose, number, below.clone()).await? {
            Settled::Done(usage) => usage,
            Settled::NeedsBelow => self.again(number, below, token).await?,
        };
        let record = LayerRecord {
            chain: self.chain,
            parent: self.parent_chain,
            diff_id: self.diff_id,
            number: number.number,
            bytes: usage.bytes,
            inodes: usage.inodes,
        };
        self.commit(record).await
    }

    /// Downloads and applies. `None` if the layer cannot be applied without those below.
    async fn fetch(
        &self,
        number: &Arc<Number>,
        progress: &Arc<LayerProgress>,
        token: &CancellationToken,
    ) -> Result<Option<Loose>, Error> {
        let _turn = self.turn(token).await?;
        progress.set(Stage::Pulling);
        let mut left = FETCHES;
        loop {
            let resumed = self.have();
            left -= usize::from(resumed == 0);
            match self.fetch_once(resumed, number, progress, token).await {
                // What was kept of an earlier try is not worth its bytes; nor perhaps was a connection.
                Err(error @ Error::WrongDigest { .. }) if left > 0 => {
                    self.store.records.remove_ingest(self.chain)?;
                    tracing::info!(layer = %self.descriptor.digest, error = error.chain(), "layer fetched again");
                }
                outcome => return outcome,
            }
        }
    }

    /// Bytes kept of an earlier try.
    fn have(&self) -> u64 {
        let kept = std::fs::metadata(self.store.records.ingest(self.chain)).map_or(0, |metadata| metadata.len());
        if kept > self.descriptor.size { 0 } else { kept }
    }

    async fn turn(&self, token: &CancellationToken) -> Result<tokio::sync::OwnedSemaphorePermit, Error> {
        let turns = Arc::clone(&self.store.turns);
        tokio::select! {
            turn = turns.acquire_owned() => {
                turn.map_err(|error| Error::Task { task: "download queue", why: error.to_string() })
            }
            () = token.cancelled() => Err(self.abandoned()),
        }
    }

    fn abandoned(&self) -> Error {
        Error::Abandoned { image: self.image.clone() }
    }

    async fn fetch_once(
        &self,
        resumed: u64,
        number: &Arc<Number>,
        progress: &Arc<LayerProgress>,
        token: &CancellationToken,
    ) -> Result<Option<Loose>, Error> {
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let bench = self.bench(number, Below::unless(matches!(self.parent, Parent::None)));
        let unpacking = tokio::task::spawn_blocking(move || bench.unpack(Feed { resumed, chunks: Some(receiver) }));
        let sink = Sink { bytes: sender, received: Arc::clone(&progress.received) };
        let sent = tokio::select! {
            sent = self.session.blob(&self.descriptor, resumed, &sink) => sent,
            () = token.cancelled() => Err(self.abandoned()),
        };
        drop(sink); // the reader sees the end, or that it came too early
        let unpacked = unpacking.await.map_err(|error| task("unpacking", &error))?;
        match sent {
            Err(error) => Err(error),
            Ok(Sent::All | Sent::Unwanted) => unpacked,
        }
    }

    fn bench(&self, number: &Arc<Number>, below: Below) -> Bench {
        Bench {
            records: self.store.records.clone(),
            number: Arc::clone(number),
            chain: self.chain,
            descriptor: self.descriptor.clone(),
            diff_id: self.diff_id,
            below,
        }
    }

    /// Numbers of the layers below, top first, once they are done.
    async fn below(&mut self, token: &CancellationToken) -> Result<Vec<u32>, Error> {
        match &mut self.parent {
            Parent::None => Ok(Vec::new()),
            Parent::Here(numbers) => Ok(numbers.to_vec()),
            Parent::Flying(ticket) => tokio::select! {
                numbers = ticket.wait() => Ok(numbers?.to_vec()),
                () = token.cancelled() => Err(Error::Abandoned { image: self.image.clone() }),
            },
        }
    }

    async fn settle(&self, loose: Option<Loose>, number: &Arc<Number>, below: Vec<u32>) -> Result<Settled, Error> {
        let Some(loose) = loose else {
            return Ok(Settled::NeedsBelow);
        };
        let records = self.store.records.clone();
        let (number, layer) = (Arc::clone(number), self.descriptor.digest);
        let settle = move || {
            let layers = records.open_layers()?;
            let settled = settle::settle(loose, &layers, number.number, below);
            settled.map_err(|error| Error::Layer {
                layer: layer.to_string(),
                source: disk("fit onto the layers below", error),
            })
        };
        // In a build without failpoints a step is its expression.
        #[allow(clippy::redundant_closure)]
        let settled = blocking("unpacking", move || step!("pull_image::layer_settle", settle())).await;
        settled?
    }

    /// Applies the layer again from the file, with the layers below in view.
    async fn again(
        &self,
        number: &Arc<Number>,
        below: Vec<u32>,
        token: &CancellationToken,
    ) -> Result<apply::Usage, Error> {
        let _turn = self.turn(token).await?;
        tracing::debug!(layer = %self.descriptor.digest, "layer reaches into those below, unpacked again on them");
        let bench = self.bench(number, Below::Known(below.clone()));
        let feed = Feed { resumed: self.descriptor.size, chunks: None };
        let loose = blocking("unpacking", move || bench.unpack(feed)).await??;
        match self.settle(loose, number, below).await? {
            Settled::Done(usage) => Ok(usage),
            Settled::NeedsBelow => {
                let why = "reaches into the layers below in a way that cannot be followed".to_owned();
                let source = LayerFailure::Archive(why);
                Err(Error::Layer { layer: self.descriptor.digest.to_string(), source })
            }
        }
    }

    async fn commit(&self, record: LayerRecord) -> Result<Arc<Vec<u32>>, Error> {
        let store = Arc::clone(&self.store);
        let _commits = store.commits.lock().await;
        let records = store.records.clone();
        let (written, chain) = (record.clone(), self.chain);
        blocking("committing", move || {
            records.write_layer(&written)?;
            records.remove_ingest(chain)
        })
        .await??;
        store.catalog.add_layer(record);
        let numbers = store.catalog.stack(self.chain);
        numbers.map(Arc::new).ok_or_else(|| Error::NotFound { image: format!("layer {}", self.chain) })
    }
}

/// Runs blocking work on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| task(name, &error))
}

fn task(task: &'static str, error: &tokio::task::JoinError) -> Error {
    Error::Task { task, why: error.to_string() }
}

fn disk(entry: &str, error: io::Error) -> LayerFailure {
    LayerFailure::Io { entry: entry.to_owned(), source: Arc::new(error) }
}

impl Below {
    /// The base has nothing below; for the others that is still to come.
    fn unless(base: bool) -> Self {
        if base { Self::Known(Vec::new()) } else { Self::Unknown }
    }
}

/// What the unpacking thread needs.
struct Bench {
    records: Records,
    number: Arc<Number>,
    chain: Digest,
    descriptor: Descriptor,
    diff_id: Digest,
    below: Below,
}

/// Where the compressed bytes come from.
struct Feed {
    /// Bytes that are in the file already.
    resumed: u64,
    /// The rest, from the network.
    chunks: Option<mpsc::Receiver<Bytes>>,
}

impl Bench {
    /// Unpacks into an empty directory and checks both digests. `None` if the layers below are needed for it.
    fn unpack(self, feed: Feed) -> Result<Option<Loose>, Error> {
        let layers = self.records.open_layers()?;
        let directory = self.records.layers().join(self.number.number.to_string());
        self.records.remove_layer_files(self.number.number)?;
        step!("pull_image::layer_prepare", std::fs::create_dir(&directory)).map_err(Error::io("make", &directory))?;
        let source = Source::open(self.records.ingest(self.chain), feed, self.descriptor.size)?;
        let failure = Rc::clone(&source.failure);
        let (meter, compressed) = Meter::new(source);
        let applied = step!("pull_image::layer_unpack", self.apply(meter, &compressed, &layers));
        if let Some(error) = failure.borrow_mut().take() {
            return Err(error);
        }
        let blob = compressed.borrow().digest();
        step!("pull_image::blob_verify", self.verify(applied, blob))
    }

    /// First what the registry answers for, then what the image does.
    fn verify(&self, applied: Result<Applied, LayerFailure>, blob: Digest) -> Result<Option<Loose>, Error> {
        let layer = || self.descriptor.digest.to_string();
        let applied = applied.map_err(|source| Error::Layer { layer: layer(), source })?;
        if blob != self.descriptor.digest {
            return Err(Error::wrong_digest("layer", self.descriptor.digest, blob));
        }
        let loose = applied.outcome.map_err(|source| Error::Layer { layer: layer(), source })?;
        match applied.diff_id {
            Some(actual) if actual == self.diff_id => Ok(loose),
            Some(actual) => Err(Error::wrong_digest(format!("layer {} unpacked", layer()), self.diff_id, actual)),
            None => Err(Error::Task { task: "unpacking", why: "it hashed nothing".to_owned() }),
        }
    }

    /// Applies the stream. Whatever the archive is, the stream is read to its end, since only then its digest is known:
    /// bytes that are not what was promised are the registry's fault, not the image's. Only the disk ends it early.
    fn apply(
        &self,
        mut source: Meter<Source>,
        compressed: &Rc<RefCell<Count>>,
        layers: &std::os::fd::OwnedFd,
    ) -> Result<Applied, LayerFailure> {
        let (outcome, diff_id) = match stream::unpack(&mut source, Rc::clone(compressed)) {
            Err(error) => (Err(compression(&error)), None),
            Ok((unpacked, count)) => {
                let mut archive = Archive::new(unpacked);
                let outcome = apply::apply(&mut archive, layers, self.number.number, self.below.again());
                let outcome = match outcome {
                    Ok(loose) => Ok(Some(loose)),
                    Err(Refusal::NeedsBelow) => Ok(None),
                    Err(Refusal::Failed(failure @ LayerFailure::Io { .. })) => return Err(failure),
                    Err(Refusal::Failed(failure)) => Err(failure),
                };
                // What follows the archive's end belongs to the digest too.
                let rest = match &outcome {
                    Ok(_) => io::copy(&mut archive.into_stream(), &mut io::sink()).map_err(|error| compression(&error)),
                    Err(_) => Ok(0),
                };
                let digest = count.borrow().digest();
                (outcome.and_then(|loose| rest.map(|_| loose)), Some(digest))
            }
        };
        if let Err(error) = io::copy(&mut source, &mut io::sink()) {
            return Err(LayerFailure::Compression(error.to_string()));
        }
        Ok(Applied { outcome, diff_id })
    }
}

struct Applied {
    outcome: Result<Option<Loose>, LayerFailure>,
    diff_id: Option<Digest>,
}

fn compression(error: &io::Error) -> LayerFailure {
    match error.get_ref() {
        Some(inner) if inner.is::<Bomb>() => LayerFailure::Bomb(RATIO_MAX),
        _ => LayerFailure::Compression(error.to_string()),
    }
}

/// The compressed bytes: first those in the file, then the network's, which are appended to the file as they pass.
struct Source {
    file: File,
    path: PathBuf,
    /// Bytes still to be read from the file.
    kept: u64,
    chunks: Option<mpsc::Receiver<Bytes>>,
    chunk: Bytes,
    /// Bytes that must still come.
    left: u64,
    /// What went wrong here, for whoever sees only that reading failed.
    failure: Rc<RefCell<Option<Error>>>,
}

impl Source {
    fn open(path: PathBuf, feed: Feed, size: u64) -> Result<Self, Error> {
        let fresh = feed.resumed == 0 && feed.chunks.is_some();
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(fresh).mode(0o600);
        let file = step!("pull_image::blob_open", options.open(&path)).map_err(Error::io("open", &path))?;
        Ok(Self {
            file,
            path,
            kept: feed.resumed,
            chunks: feed.chunks,
            chunk: Bytes::new(),
            left: size,
            failure: Rc::default(),
        })
    }

    fn fail(&self, error: Error) -> io::Error {
        let text = error.to_string();
        self.failure.borrow_mut().get_or_insert(error);
        io::Error::other(text)
    }

    /// The next bytes from the network, written to the file first.
    fn receive(&mut self) -> io::Result<bool> {
        let Some(chunk) = self.chunks.as_mut().and_then(mpsc::Receiver::blocking_recv) else {
            // The sender knows why: this is only how the reader stops.
            return Err(self.fail(Error::Task { task: "download", why: "it stopped".to_owned() }));
        };
        let written = step!("pull_image::blob_append", self.file.write_all(&chunk));
        written.map_err(|error| self.fail(Error::io("write", &self.path)(error)))?;
        self.chunk = chunk;
        Ok(true)
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let got = if self.kept > 0 {
            let most = buffer.len().min(usize::try_from(self.kept).unwrap_or(usize::MAX));
            let got = self.file.read(&mut buffer[..most]);
            let got = got.map_err(|error| self.fail(Error::io("read", &self.path)(error)))?;
            if got == 0 {
                return Err(self.fail(Error::Document {
                    what: self.path.display().to_string(),
                    why: "shrank while it was read".to_owned(),
                }));
            }
            self.kept -= got as u64;
            got
        } else {
            while self.chunk.is_empty() {
                self.receive()?;
            }
            let got = buffer.len().min(self.chunk.len());
            self.chunk.copy_to_slice(&mut buffer[..got]);
            got
        };
        self.left -= got as u64;
        Ok(got)
    }
}

impl Below {
    fn again(&self) -> Self {
        match self {
            Self::Known(numbers) => Self::Known(numbers.clone()),
            Self::Unknown => Self::Unknown,
        }
    }
}
