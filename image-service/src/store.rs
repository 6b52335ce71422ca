//! What all rooms of this crate share: the catalog, the files, the registries, the flights. Removes what nobody needs.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore};

use crate::catalog::Catalog;
use crate::config::Config;
use crate::digest::Digest;
use crate::error::Error;
use crate::flight::Flights;
use crate::lookup::Remembered;
use crate::progress::{LayerProgress, Progress};
use crate::pull::Pulled;
use crate::records::Records;
use crate::reference::Reference;
use crate::registry::{Credentials, Registries};
use crate::unpack::blocking;
use crate::usage::Containers;

/// The store.
pub(crate) struct Store {
    pub(crate) config: Config,
    pub(crate) records: Records,
    pub(crate) catalog: Catalog,
    pub(crate) registries: Registries,
    /// One per layer being fetched or unpacked.
    pub(crate) turns: Arc<Semaphore>,
    /// Held while records and catalog are made to agree, so that no other change comes between.
    pub(crate) commits: Mutex<()>,
    pub(crate) pulls: Flights<(Reference, Credentials), Pulled, Progress>,
    pub(crate) layers: Flights<Digest, Arc<Vec<u32>>, LayerProgress>,
    pub(crate) remembered: Remembered,
    pub(crate) containers: Containers,
}

impl Store {
    pub(crate) async fn open(config: Config) -> Result<Arc<Self>, Error> {
        let root = config.root.clone();
        let records = Records { root, rootfs: config.rootfs_dir.clone(), disk: Default::default() };
        let opened = records.clone();
        let catalog = blocking("opening", move || opened.open()).await??;
        Ok(Arc::new(Self {
            registries: Registries::new(&config),
            turns: Arc::new(Semaphore::new(config.max_concurrent_downloads.max(1))),
            commits: Mutex::default(),
            pulls: Flights::new(config.abandon_after()),
            layers: Flights::new(std::time::Duration::ZERO),
            remembered: Remembered::default(),
            containers: Containers::default(),
            records,
            catalog,
            config,
        }))
    }

    /// Removes an image with all its names, and what only it needed. Absent is fine.
    pub(crate) async fn remove_image(&self, id: Digest) -> Result<(), Error> {
        let record = {
            let _commits = self.commits.lock().await;
            let records = self.records.clone();
            blocking("removing", move || records.remove_image(id)).await??;
            let Some(record) = self.catalog.forget_image(id) else {
                return Ok(());
            };
            let records = self.records.clone();
            let documents = self.catalog.unneeded_documents(&record.documents);
            blocking("removing", move || documents.into_iter().try_for_each(|digest| records.remove_blob(digest)))
                .await??;
            record
        };
        tracing::info!(%id, "image removed");
        let numbers = self.catalog.numbers_of_chains(&record.layers);
        self.sweep(Some(numbers)).await
    }

    /// Removes layers that no image lists and no container stands on: all, or those of `among`.
    pub(crate) async fn sweep(&self, among: Option<HashSet<u32>>) -> Result<(), Error> {
        let unneeded = {
            let _commits = self.commits.lock().await;
            self.catalog.take_unneeded(among.as_ref())
        };
        let records = self.records.clone();
        // All are tried; the first failure is told.
        let sweep = move || {
            let removed: Vec<_> = unneeded.iter().map(|(record, _)| records.remove_layer(record)).collect();
            removed.into_iter().collect::<Result<(), Error>>()
        };
        blocking("removing", sweep).await?
    }
}
