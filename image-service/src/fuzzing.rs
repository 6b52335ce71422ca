//! This crate's decoders of bytes from outside, for `test/fuzz`: one function a target, which panics when a promise is
//! broken. Those of a room are in the room.

pub use crate::layer::fuzzing::{LayerDirectory, archives, compressed_layers};
pub use crate::registry::fuzzing::registry_answers;

use crate::digest::Digest;
use crate::manifest::{self, ConfigFile, Document, Host, LAYERS_MAX};
use crate::reference::{Reference, Target};

/// References and digests: the full form means the same as what was typed, and nothing in it leads out of a path.
pub fn references(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(digest) = Digest::parse(&text) {
        assert_eq!(digest.to_string(), text);
    }
    match Reference::parse(&text) {
        Err(error) => assert!(error.to_string().len() < 1024, "{error}"),
        Ok(reference) => {
            let full = reference.to_string();
            assert_eq!(Reference::parse(&full).expect("its own full form"), reference, "{full}");
            assert!(reference.host.len() + 1 + reference.path.len() <= 255);
            assert!(reference.path.split('/').all(|part| !part.is_empty() && !part.starts_with('.')), "{full}");
            assert!(full.bytes().all(|byte| byte.is_ascii_graphic()), "{full:?}");
            match &reference.target {
                Target::Tag(tag) => assert!(reference.tagged().is_some_and(|tagged| tagged.ends_with(tag))),
                Target::Digest(digest, _) => assert!(full.ends_with(&digest.hex())),
            }
        }
    }
}

/// Manifests, indexes and configurations, after a first line with what the registry calls it.
pub fn manifests(data: &[u8]) {
    let line = data.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (kind, document) = (String::from_utf8_lossy(&data[..line]), &data[line..]);
    let host = Host::this();
    for kind in [None, Some(kind.as_ref())] {
        match manifest::parse(document, kind, "fuzz") {
            Ok(Document::Index(entries)) => {
                if let Ok(chosen) = manifest::choose(&entries, &host, "fuzz") {
                    assert!(!chosen.is_empty() && chosen.iter().all(|one| entries.contains(one)));
                }
            }
            Ok(Document::Manifest(manifest)) => {
                assert!(manifest.layers.len() <= LAYERS_MAX);
                // The sum is made without looking.
                assert!(
                    manifest.layers.iter().try_fold(manifest.config.size, |sum, l| sum.checked_add(l.size)).is_some()
                );
            }
            Err(_) => {}
        }
    }
    for layers in 0..3 {
        if let Ok(config) = ConfigFile::parse(document, layers, &host, "fuzz") {
            assert_eq!(manifest::chain_ids(config.diff_ids()).len(), layers);
            config.runtime();
        }
    }
}

#[cfg(test)]
#[path = "../../test/fuzz/kept.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn kept_inputs_of_every_target_are_borne() {
        kept::feed_each(&[
            ("references", &super::references),
            ("manifests", &super::manifests),
            ("archives", &super::archives),
            ("compressed_layers", &super::compressed_layers),
            ("registry_answers", &super::registry_answers),
        ]);
        let dir = tempfile::tempdir().expect("a directory");
        let layers = super::LayerDirectory::make(dir.path()).expect("a directory of layers");
        kept::feed_each(&[("layers", &|data| layers.feed(data))]);
    }
}
