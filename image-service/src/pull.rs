//! The story of a pull: resolve the name, choose the platform, read the configuration, get the layers in parallel, make
//! all of it durable, and only then say so.
//!
//! One flight per reference and credentials. A pull outlives the client that asked for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::future::try_join_all;
use tokio_util::sync::CancellationToken;

use crate::catalog::{ImageRecord, Lease};
use crate::digest::Digest;
use crate::error::Error;
use crate::flight::Ticket;
use crate::manifest::{self, ConfigFile, Descriptor, Document, Host, Manifest};
use crate::progress::{LayerProgress, Progress, Resolved, Stage};
use crate::reference::{Reference, Target};
use crate::registry::{Credentials, Session, verify};
use crate::store::Store;
use crate::unpack::{self, Job, Parent, blocking};

/// Indexes inside indexes.
const NESTING_MAX: usize = 4;
/// Manifests and indexes fetched to find the one for this machine.
const DOCUMENTS_MAX: usize = 16;

/// What a pull ended with.
#[derive(Clone, Debug)]
pub(crate) struct Pulled {
    pub(crate) id: Digest,
    /// Compressed bytes of the layers that came over the network.
    pub(crate) fetched: u64,
}

pub(crate) type PullTicket = Ticket<Pulled, Progress>;
pub(crate) type LayerTicket = Ticket<Arc<Vec<u32>>, LayerProgress>;

/// Joins the pull of `reference` or begins it.
pub(crate) fn join(store: &Arc<Store>, reference: &Reference, credentials: &Credentials) -> PullTicket {
    let key = (reference.clone(), credentials.clone());
    store.pulls.join(key, Progress::default(), |progress, token| {
        let pull = Pull {
            store: Arc::clone(store),
            session: Arc::new(store.registries.session(reference, credentials.clone())),
            reference: reference.clone(),
            hopeless: Arc::default(),
            progress,
        };
        pull.run(token)
    })
}

struct Pull {
    store: Arc<Store>,
    session: Arc<Session>,
    reference: Reference,
    progress: Arc<Progress>,
    hopeless: Arc<AtomicBool>,
}

/// What a reference turned out to be.
struct Found {
    /// Digest of what the registry served under the name.
    top: Digest,
    manifest: Manifest,
    /// From the top to the manifest, then the configuration.
    documents: Vec<(Digest, Bytes)>,
    config: ConfigFile,
}

impl Pull {
    async fn run(self, token: CancellationToken) -> Result<Pulled, Error> {
        let image = self.reference.to_string();
        let began = std::time::Instant::now();
        let outcome = tokio::select! {
            outcome = self.story() => outcome,
            () = token.cancelled() => Err(Error::Abandoned { image: image.clone() }),
        };
        match &outcome {
            Ok(pulled) => {
                let (id, bytes, ms) = (pulled.id, pulled.fetched, began.elapsed().as_millis() as u64);
                tracing::info!(image, %id, bytes, ms, "pulled");
            }
            Err(error) => tracing::info!(image, error = error.chain(), "pull failed"),
        }
        outcome.map_err(|source| Error::Pull { image, source: Box::new(source) })
    }

    async fn story(&self) -> Result<Pulled, Error> {
        let found = step!("pull_image::resolve", self.resolve().await)?;
        match self.layers(&found).await {
            Ok(leases) => {
                let fetched = self.fetched();
                let id = self.commit(found, leases).await?;
                Ok(Pulled { id, fetched })
            }
            Err(error) => {
                self.give_up(&error).await;
                Err(error)
            }
        }
    }

    /// Asks the registry what the name means; follows indexes to the manifest for this machine; reads its configuration.
    async fn resolve(&self) -> Result<Found, Error> {
        let host = Host::this();
        let (top, manifest, mut documents) = self.manifest(&host).await?;
        let (id, what) = (manifest.config.digest, format!("configuration {}", manifest.config.digest));
        let config = match self.local(id).await {
            Some(bytes) => bytes,
            None => step!("pull_image::config_fetch", self.session.document(&manifest.config).await)?,
        };
        verify(&config, id, &what)?;
        documents.push((id, config.clone()));
        let config = ConfigFile::parse(&config, manifest.layers.len(), &host, &what)?;
        Ok(Found { top, manifest, documents, config })
    }

    async fn manifest(&self, host: &Host) -> Result<(Digest, Manifest, Vec<(Digest, Bytes)>), Error> {
        let name = self.reference.manifest_name();
        let fetched = step!("pull_image::manifest_fetch", self.session.manifest(&name).await)?;
        let top = Digest::of(&fetched.bytes);
        if let Target::Digest(asked, _) = &self.reference.target {
            verify(&fetched.bytes, *asked, &format!("manifest {asked}"))?;
        }
        let mut todo: Vec<(Descriptor, Vec<(Digest, Bytes)>)> = Vec::new();
        let mut at = (top, fetched.bytes, fetched.content_type, Vec::new());
        let mut mismatch = None;
        for _ in 0..DOCUMENTS_MAX {
            let (digest, bytes, content_type, mut trail) = at;
            let what = format!("manifest {digest}");
            let document = manifest::parse(&bytes, content_type.as_deref(), &what)?;
            trail.push((digest, bytes));
            match document {
                Document::Manifest(manifest) => return Ok((top, manifest, trail)),
                Document::Index(_) if trail.len() > NESTING_MAX => {
                    return Err(Error::document(what, format!("indexes nested deeper than {NESTING_MAX}")));
                }
                Document::Index(entries) => match manifest::choose(&entries, host, &what) {
                    Ok(chosen) => todo.extend(chosen.into_iter().rev().map(|entry| (entry, trail.clone()))),
                    Err(error) => mismatch = mismatch.or(Some(error)),
                },
            }
            let Some((entry, trail)) = todo.pop() else {
                break;
            };
            let (bytes, content_type) = match self.local(entry.digest).await {
                Some(bytes) => (bytes, None),
                None => {
                    let fetched = self.session.manifest(&entry.digest.to_string()).await?;
                    (fetched.bytes, fetched.content_type)
                }
            };
            verify(&bytes, entry.digest, &format!("manifest {}", entry.digest))?;
            at = (entry.digest, bytes, content_type, trail);
        }
        let too_many = || Error::document(format!("manifest {top}"), "indexes lead to no manifest for this machine");
        Err(mismatch.unwrap_or_else(too_many))
    }

    /// A document that is here already.
    async fn local(&self, digest: Digest) -> Option<Bytes> {
        let records = self.store.records.clone();
        blocking("reading", move || records.read_blob(digest)).await.ok()?.ok().map(Bytes::from)
    }

    /// Gets all layers, as many at once as are allowed.
    async fn layers(&self, found: &Found) -> Result<Vec<Lease>, Error> {
        let diff_ids = found.config.diff_ids();
        let chains = manifest::chain_ids(diff_ids);
        // Held by the pull, not by the flights: they go before it answers, so a removal right after it takes all.
        let leases: Vec<Lease> = chains.iter().map(|chain| self.store.catalog.lease(*chain)).collect();
        let mut places: Vec<Place> = Vec::new();
        for (at, (descriptor, diff_id)) in found.manifest.layers.iter().zip(diff_ids).enumerate() {
            let below = places.last().map_or(Parent::None, Place::as_parent);
            places.push(self.layer(descriptor, *diff_id, &chains[..=at], below));
        }
        let shown = places.iter().map(|place| match place {
            Place::Here(_, shown) => Arc::clone(shown),
            Place::Flying(ticket) => Arc::clone(&ticket.progress),
        });
        let _ = self.progress.resolved.set(Resolved { digest: found.top, layers: shown.collect() });
        try_join_all(places.into_iter().map(|place| async move {
            match place {
                Place::Here(numbers, _) => Ok(numbers),
                Place::Flying(mut ticket) => ticket.wait().await.inspect_err(|error| {
                    // Before the other layers' flights are left: they look at this when they wind up.
                    self.hopeless.fetch_or(!error.is_worth_resuming(), Ordering::Relaxed);
                }),
            }
        }))
        .await?;
        Ok(leases)
    }

    /// The layer that ends `chains`, the chain ids from the base up.
    fn layer(&self, descriptor: &Descriptor, diff_id: Digest, chains: &[Digest], parent: Parent) -> Place {
        let chain = chains[chains.len() - 1];
        if let Some(numbers) = self.store.catalog.stack(chain) {
            let shown = LayerProgress::new(descriptor.digest, descriptor.size, Stage::Present);
            return Place::Here(Arc::new(numbers), Arc::new(shown));
        }
        let shown = LayerProgress::new(descriptor.digest, descriptor.size, Stage::Waiting);
        Place::Flying(self.store.layers.join(chain, shown, |shown, token| {
            let job = Job {
                store: Arc::clone(&self.store),
                session: Arc::clone(&self.session),
                image: self.reference.to_string(),
                chain,
                descriptor: descriptor.clone(),
                diff_id,
                parent,
                parent_chain: chains.iter().rev().nth(1).copied(),
                hopeless: Arc::clone(&self.hopeless),
            };
            unpack::run(job, shown, token)
        }))
    }

    fn fetched(&self) -> u64 {
        let layers = self.progress.resolved.get().map(|resolved| resolved.layers.as_slice()).unwrap_or_default();
        layers.iter().map(|layer| layer.received.load(Ordering::Relaxed)).sum()
    }

    /// After a failure that trying again will not mend, what came of this pull goes.
    async fn give_up(&self, error: &Error) {
        if error.is_worth_resuming() {
            return;
        }
        if let Err(error) = self.store.sweep(None).await {
            tracing::warn!(error = error.chain(), "layers of a failed pull stay until the next start");
        }
    }

    /// Makes the image durable: layers and documents on the disk, then the record, then the name.
    async fn commit(&self, found: Found, leases: Vec<Lease>) -> Result<Digest, Error> {
        let store = Arc::clone(&self.store);
        let _commits = store.commits.lock().await;
        let id = found.manifest.config.digest;
        let before = store.catalog.image(id);
        let mut record = match &before {
            Some((record, _)) => record.clone(),
            None => ImageRecord {
                id,
                layers: leases.iter().map(|lease| lease.chain).collect(),
                documents: BTreeSet::new(),
                document_bytes: 0,
                tags: BTreeMap::new(),
                digests: BTreeSet::new(),
            },
        };
        for (digest, bytes) in &found.documents {
            if record.documents.insert(*digest) {
                record.document_bytes += bytes.len() as u64;
            }
        }
        if let Some(tag) = self.reference.tagged()
            && !record.tags.contains_key(&tag)
        {
            record.tags.insert(tag, store.catalog.next_stamp());
        }
        record.digests.insert(self.reference.with_digest(found.top));
        if before.as_ref().is_some_and(|(before, _)| *before == record) {
            return Ok(id);
        }
        let (records, written, is_new) = (store.records.clone(), record.clone(), before.is_none());
        blocking("committing", move || {
            for (digest, bytes) in &found.documents {
                records.write_blob(*digest, bytes)?;
            }
            if is_new {
                records.sync_layers()?;
            }
            records.write_image(&written)
        })
        .await??;
        let runtime = match before {
            Some((_, runtime)) => runtime,
            None => found.config.runtime(),
        };
        let losers = store.catalog.put_image(record, runtime);
        let records = store.records.clone();
        blocking("committing", move || {
            losers.iter().try_for_each(|loser| records.write_image(loser))?;
            records.answered();
            Ok::<(), Error>(())
        })
        .await??;
        drop(leases);
        Ok(id)
    }
}

/// A layer of this pull.
enum Place {
    Here(Arc<Vec<u32>>, Arc<LayerProgress>),
    Flying(LayerTicket),
}

impl Place {
    fn as_parent(&self) -> Parent {
        match self {
            Self::Here(numbers, _) => Parent::Here(Arc::clone(numbers)),
            Self::Flying(ticket) => Parent::Flying(ticket.again()),
        }
    }
}
