//! How far a pull is. Written by the pull as it goes, read by whoever wants to show it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::digest::Digest;

/// What one pull has come to.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) resolved: OnceLock<Resolved>,
}

/// What a reference turned out to be.
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    /// Base first.
    pub(crate) layers: Vec<Arc<LayerProgress>>,
}

/// One layer of a pull. Pulls that share a layer share this.
pub(crate) struct LayerProgress {
    pub(crate) digest: Digest,
    pub(crate) total: u64,
    pub(crate) received: Arc<AtomicU64>,
    stage: AtomicU8,
}

/// Where a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Waits for its turn.
    Waiting = 0,
    /// Bytes arrive and are unpacked as they do.
    Pulling = 1,
    /// Unpacked and checked.
    Ready = 2,
    /// Was here before.
    Present = 3,
}

impl LayerProgress {
    pub(crate) fn new(digest: Digest, total: u64, stage: Stage) -> Self {
        Self { digest, total, received: Arc::default(), stage: AtomicU8::new(stage as u8) }
    }

    pub(crate) fn set(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Waiting,
            1 => Stage::Pulling,
            2 => Stage::Ready,
            _ => Stage::Present,
        }
    }
}
