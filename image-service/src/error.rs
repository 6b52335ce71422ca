//! What can go wrong with images. Each variant says the deed and the thing; the cause is its `source`. Only `cri.rs`
//! turns them into gRPC.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;

/// Every failure of the image service. Cloneable, since all that wait for one pull get its error.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reference cannot be one.
    #[error("malformed image reference {reference:?}: {why}")]
    Reference {
        /// What was given, shortened and without credentials.
        reference: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than one image has an id that begins so.
    #[error("image id prefix {prefix:?} is ambiguous: {}", .ids.join(", "))]
    Ambiguous {
        /// The prefix.
        prefix: String,
        /// The first of those ids.
        ids: Vec<String>,
    },
    /// No such image here.
    #[error("image {image} not found")]
    NotFound {
        /// The name or id asked for.
        image: String,
    },
    /// A request field has no usable value.
    #[error("{field}: {why}")]
    Request {
        /// Path of the field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A pull failed; the cause is the source.
    #[error("pull {image}")]
    Pull {
        /// Full reference.
        image: String,
        /// Why.
        source: Box<Error>,
    },
    /// A registry did not give what was asked.
    #[error("registry {host}: {step}")]
    Registry {
        /// Host and port that was asked.
        host: String,
        /// What it was asked for.
        step: String,
        /// How it failed.
        source: RegistryFailure,
    },
    /// A registry or a disk gave other bytes than their name says.
    #[error("{what}: wrong digest: expected {expected}, got {actual}")]
    WrongDigest {
        /// The thing whose bytes they are.
        what: String,
        /// What its name says.
        expected: String,
        /// What its bytes say.
        actual: String,
    },
    /// A manifest or configuration that cannot be used.
    #[error("{what}: {why}")]
    Document {
        /// The document.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A layer that cannot be unpacked.
    #[error("unpack layer {layer}")]
    Layer {
        /// Compressed digest.
        layer: String,
        /// Which entry, and why.
        source: LayerFailure,
    },
    /// A file of an image cannot be read.
    #[error("read {path:?} of image {image}: {why}")]
    File {
        /// The image's id.
        image: String,
        /// Path inside the image.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The host's file system refused.
    #[error("{step} {}", path.display())]
    Io {
        /// The deed.
        step: &'static str,
        /// The file it was done to.
        path: PathBuf,
        /// The kernel's answer.
        source: Arc<io::Error>,
    },
    /// The pull was given up because nobody waited for it any more.
    #[error("pull of {image} abandoned: nobody waits for it")]
    Abandoned {
        /// Full reference.
        image: String,
    },
    /// A task of ours ended without an answer.
    #[error("{task} ended without an answer: {why}")]
    Task {
        /// Which.
        task: &'static str,
        /// What tokio says.
        why: String,
    },
}

/// How a registry failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryFailure {
    /// No connection, or it broke and could not be had again.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No byte for as long as the operator allows.
    #[error("no progress for {0} seconds")]
    Stalled(u64),
    /// 401: it wants credentials, or others.
    #[error("401 unauthorized: {0}")]
    Unauthorized(String),
    /// 403.
    #[error("403 forbidden{0}")]
    Forbidden(String),
    /// 404.
    #[error("404 not found{0}")]
    NotFound(String),
    /// 429, still after waiting as told.
    #[error("429 too many requests{0}")]
    TooManyRequests(String),
    /// Another refusal.
    #[error("answered {0}{1}")]
    Status(u16, String),
    /// An answer that makes no sense or that we refuse to follow.
    #[error("{0}")]
    Protocol(String),
    /// Fewer or more bytes than promised.
    #[error("wrong size: expected {expected} bytes, got {actual}")]
    Size {
        /// Bytes promised by the descriptor.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
}

/// Why a layer cannot be unpacked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LayerFailure {
    /// The archive is refused; says which entry.
    #[error("{0}")]
    Archive(String),
    /// The stream cannot be decompressed.
    #[error("decompress: {0}")]
    Compression(String),
    /// It would grow beyond what its compressed size can honestly hold.
    #[error("unpacks to more than {0} times its compressed size")]
    Bomb(u64),
    /// The disk refused.
    #[error("{entry}")]
    Io {
        /// The entry and the deed.
        entry: String,
        /// The kernel's answer.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// For `map_err`: the deed and the file around an IO error.
    pub(crate) fn io<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { step, path: path.to_owned(), source: Arc::new(source.into()) }
    }

    pub(crate) fn document(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Document { what: what.to_string(), why: why.to_string() }
    }

    pub(crate) fn wrong_digest(what: impl fmt::Display, expected: Digest, actual: Digest) -> Self {
        Self::WrongDigest { what: what.to_string(), expected: expected.to_string(), actual: actual.to_string() }
    }

    /// The error and all its causes, joined by colons: what a person is shown.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// A pull that failed so may go on later where it stopped: what was fetched was right.
    pub(crate) fn is_worth_resuming(&self) -> bool {
        match self {
            Self::Abandoned { .. } => true,
            Self::Pull { source, .. } => source.is_worth_resuming(),
            Self::Registry { source, .. } => matches!(
                source,
                RegistryFailure::Unreachable(_)
                    | RegistryFailure::Stalled(_)
                    | RegistryFailure::TooManyRequests(_)
                    | RegistryFailure::Status(500.., _)
            ),
            _ => false,
        }
    }

    /// The file system had no room.
    pub(crate) fn is_disk_full(&self) -> bool {
        let full =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match self {
            Self::Pull { source, .. } => source.is_disk_full(),
            Self::Io { source, .. } | Self::Layer { source: LayerFailure::Io { source, .. }, .. } => full(source),
            _ => false,
        }
    }
}
