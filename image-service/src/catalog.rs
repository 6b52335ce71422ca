//! What is here and who needs it: images by id and name, layers by chain id, and the containers that stand on them.
//!
//! Memory only: `records.rs` reads and writes the files. A layer stays while an image lists it, a container stands on
//! it, or somebody holds a [`Lease`] on it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::reference::{Reference, Target};
use crate::{Image, ImageId, RuntimeConfig};

/// Fewest hex digits taken for the beginning of an id.
const PREFIX_MIN: usize = 4;
/// Ids that an error about such a beginning names.
const AMBIGUOUS_NAMED: usize = 8;

/// An image as its record on disk says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    /// Chain ids, base first.
    pub(crate) layers: Vec<Digest>,
    /// Manifests, indexes and the configuration, kept as blobs.
    pub(crate) documents: BTreeSet<Digest>,
    /// Their size together, in bytes.
    pub(crate) document_bytes: u64,
    /// Full references with a tag, each with the stamp of when it was given: the higher one holds the tag.
    pub(crate) tags: BTreeMap<String, u64>,
    /// Full references with the digest that the registry served.
    pub(crate) digests: BTreeSet<String>,
}

/// An unpacked layer as its record on disk says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) chain: Digest,
    /// Chain id of the layer below.
    pub(crate) parent: Option<Digest>,
    pub(crate) diff_id: Digest,
    /// Name of its directory.
    pub(crate) number: u32,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// What a container stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    pub(crate) image: Digest,
    /// Numbers of the layers, top first.
    pub(crate) layers: Vec<u32>,
}

/// An image with what its configuration says.
#[derive(Debug)]
struct Known {
    record: ImageRecord,
    runtime: RuntimeConfig,
}

#[derive(Default)]
struct State {
    images: BTreeMap<Digest, Known>,
    layers: HashMap<Digest, LayerRecord>,
    /// How many hold a layer, by chain id, be it here or on its way.
    leases: HashMap<Digest, usize>,
    /// Numbers that are taken, by finished layers and by those being written or removed.
    numbers: BTreeSet<u32>,
    pins: HashMap<String, Pin>,
    /// Records that only a newer build can read. What they stand on is not known, so while there are any nobody says of
    /// anything that it is not needed.
    newer: Vec<String>,
}

/// The catalog. Clones are one.
#[derive(Clone, Default)]
pub(crate) struct Catalog {
    state: Arc<Mutex<State>>,
}

/// Keeps a layer from the moment it is here, or as it is. The layers below are kept by whoever keeps those.
pub(crate) struct Lease {
    catalog: Catalog,
    pub(crate) chain: Digest,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.catalog.lock();
        if let Some(count) = state.leases.get_mut(&self.chain) {
            *count -= 1;
            if *count == 0 {
                state.leases.remove(&self.chain);
            }
        }
    }
}

/// A number for a layer's directory, free again when dropped unless the layer was added.
pub(crate) struct Number {
    catalog: Catalog,
    pub(crate) number: u32,
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut state = self.catalog.lock();
        if !state.layers.values().any(|layer| layer.number == self.number) {
            state.numbers.remove(&self.number);
        }
    }
}

/// Disk space, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Catalog {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a layer, be it here or on its way.
    pub(crate) fn lease(&self, chain: Digest) -> Lease {
        *self.lock().leases.entry(chain).or_default() += 1;
        Lease { catalog: self.clone(), chain }
    }

    /// Numbers of a layer and all that it stands on, top first, if they are here.
    pub(crate) fn stack(&self, chain: Digest) -> Option<Vec<u32>> {
        let state = self.lock();
        let mut numbers = Vec::new();
        let mut at = Some(chain);
        while let Some(chain) = at {
            let layer = state.layers.get(&chain)?;
            numbers.push(layer.number);
            at = layer.parent;
        }
        Some(numbers)
    }

    /// The smallest free number: short names keep mount options short.
    pub(crate) fn take_number(&self) -> Number {
        let mut state = self.lock();
        let number = (1..).find(|number| !state.numbers.contains(number)).unwrap_or(u32::MAX);
        state.numbers.insert(number);
        Number { catalog: self.clone(), number }
    }

    pub(crate) fn add_layer(&self, record: LayerRecord) {
        let mut state = self.lock();
        state.numbers.insert(record.number);
        state.layers.insert(record.chain, record);
    }

    /// There are records that cannot be read: nothing is unneeded from now on, and these directories are taken.
    pub(crate) fn freeze(&self, newer: Vec<String>, numbers: BTreeSet<u32>) {
        let mut state = self.lock();
        state.newer = newer;
        state.numbers.extend(numbers);
    }

    /// See [`Catalog::freeze`].
    pub(crate) fn newer(&self) -> Vec<String> {
        self.lock().newer.clone()
    }

    pub(crate) fn has_layer(&self, chain: Digest) -> bool {
        self.lock().layers.contains_key(&chain)
    }

    pub(crate) fn has_number(&self, number: u32) -> bool {
        self.lock().numbers.contains(&number)
    }

    /// Adds an image or replaces its record. Returns the records of images that lost a tag to it.
    pub(crate) fn put_image(&self, mut record: ImageRecord, runtime: RuntimeConfig) -> Vec<ImageRecord> {
        let mut state = self.lock();
        let mut changed = Vec::new();
        let others = || state.images.values().filter(|known| known.record.id != record.id);
        let newer = |tag: &String, stamp: u64| {
            others().any(|known| known.record.tags.get(tag).is_some_and(|other| *other > stamp))
        };
        let kept = record.tags.iter().filter(|(tag, stamp)| !newer(tag, **stamp));
        record.tags = kept.map(|(tag, stamp)| (tag.clone(), *stamp)).collect();
        for (id, other) in &mut state.images {
            let before = other.record.tags.len();
            if *id != record.id {
                other.record.tags.retain(|tag, stamp| record.tags.get(tag).is_none_or(|own| *own < *stamp));
            }
            if other.record.tags.len() != before {
                changed.push(other.record.clone());
            }
        }
        state.images.insert(record.id, Known { record, runtime });
        changed
    }

    /// The record of an image and what its configuration says.
    pub(crate) fn image(&self, id: Digest) -> Option<(ImageRecord, RuntimeConfig)> {
        self.lock().images.get(&id).map(|known| (known.record.clone(), known.runtime.clone()))
    }

    pub(crate) fn forget_image(&self, id: Digest) -> Option<ImageRecord> {
        self.lock().images.remove(&id).map(|known| known.record)
    }

    /// A stamp above all others.
    pub(crate) fn next_stamp(&self) -> u64 {
        let state = self.lock();
        state.images.values().flat_map(|known| known.record.tags.values()).max().map_or(1, |stamp| stamp + 1)
    }

    pub(crate) fn images(&self) -> Vec<Image> {
        let state = self.lock();
        state.images.values().map(|known| state.describe(known)).collect()
    }

    /// The image that a name means: see [`crate::Images::find`].
    pub(crate) fn find(&self, name: &str) -> Result<Option<Image>, Error> {
        let state = self.lock();
        if let Some(digest) = Digest::parse(name).or_else(|| Digest::from_hex(name)) {
            let by_document = || state.images.values().find(|known| known.record.documents.contains(&digest));
            return Ok(state.images.get(&digest).or_else(by_document).map(|known| state.describe(known)));
        }
        let parsed = Reference::parse(name);
        if let Ok(reference) = &parsed
            && let Some(known) = state.named(reference)
        {
            return Ok(Some(state.describe(known)));
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.len() >= PREFIX_MIN && prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            let matching = || state.images.values().filter(|known| known.record.id.hex().starts_with(prefix));
            let mut found = matching();
            return match (found.next(), found.next()) {
                (Some(known), None) => Ok(Some(state.describe(known))),
                (Some(_), Some(_)) => {
                    let ids = matching().take(AMBIGUOUS_NAMED).map(|known| known.record.id.to_string()).collect();
                    Err(Error::Ambiguous { prefix: prefix.to_owned(), ids })
                }
                (None, _) => Ok(None),
            };
        }
        parsed.map(|_| None)
    }

    /// The layers of an image, top first.
    pub(crate) fn numbers(&self, id: Digest) -> Option<Vec<u32>> {
        let state = self.lock();
        state.numbers_of(&state.images.get(&id)?.record)
    }

    /// Numbers of those of these layers that are here.
    pub(crate) fn numbers_of_chains(&self, chains: &[Digest]) -> HashSet<u32> {
        let state = self.lock();
        chains.iter().filter_map(|chain| state.layers.get(chain)).map(|layer| layer.number).collect()
    }

    /// Keeps all layers of an image for as long as the leases live.
    pub(crate) fn lease_image(&self, id: Digest) -> Option<(Vec<Lease>, Vec<u32>)> {
        let record = self.image(id)?.0;
        let leases = record.layers.iter().map(|chain| self.lease(*chain)).collect();
        Some((leases, self.numbers(id)?))
    }

    /// Makes a container stand on an image, unless it stands on something already. Also says whether it is new.
    pub(crate) fn pin(&self, container: &str, image: Digest) -> Option<(Pin, bool)> {
        let mut state = self.lock();
        if let Some(pin) = state.pins.get(container) {
            return Some((pin.clone(), false));
        }
        let layers = state.numbers_of(&state.images.get(&image)?.record)?;
        let pin = Pin { image, layers };
        state.pins.insert(container.to_owned(), pin.clone());
        Some((pin, true))
    }

    /// Takes up a pin found on disk.
    pub(crate) fn restore_pin(&self, container: String, pin: Pin) {
        let mut state = self.lock();
        state.numbers.extend(&pin.layers); // also of a layer whose record was lost
        state.pins.insert(container, pin);
    }

    pub(crate) fn unpin(&self, container: &str) -> Option<Pin> {
        self.lock().pins.remove(container)
    }

    pub(crate) fn containers(&self) -> Vec<String> {
        self.lock().pins.keys().cloned().collect()
    }

    /// Takes layers that nobody needs out of the catalog: all of them, or those of `among`. Their numbers stay taken
    /// until the returned guards are dropped, after their directories.
    pub(crate) fn take_unneeded(&self, among: Option<&HashSet<u32>>) -> Vec<(LayerRecord, Number)> {
        let mut state = self.lock();
        if !state.newer.is_empty() {
            return Vec::new();
        }
        let listed: HashSet<Digest> =
            state.images.values().flat_map(|known| known.record.layers.iter().copied()).collect();
        let pinned: HashSet<u32> = state.pins.values().flat_map(|pin| pin.layers.iter().copied()).collect();
        let State { layers, leases, .. } = &mut *state;
        let mut records = Vec::new();
        loop {
            // A layer whose parent went can stand under no image any more: the next pull makes it anew.
            let unneeded = |layer: &LayerRecord| {
                let chosen = among.is_none_or(|among| among.contains(&layer.number));
                let orphan = layer.parent.is_some_and(|parent| !layers.contains_key(&parent));
                let needed = leases.contains_key(&layer.chain)
                    || listed.contains(&layer.chain)
                    || pinned.contains(&layer.number);
                !needed && (chosen || orphan)
            };
            let chains: Vec<Digest> =
                layers.values().filter(|layer| unneeded(layer)).map(|layer| layer.chain).collect();
            if chains.is_empty() {
                break;
            }
            records.extend(chains.iter().filter_map(|chain| layers.remove(chain)));
        }
        drop(state);
        records
            .into_iter()
            .map(|record| (record.clone(), Number { catalog: self.clone(), number: record.number }))
            .collect()
    }

    /// Those of `documents` that no image lists.
    pub(crate) fn unneeded_documents(&self, documents: &BTreeSet<Digest>) -> Vec<Digest> {
        let state = self.lock();
        let needed = |digest: &Digest| state.images.values().any(|known| known.record.documents.contains(digest));
        let frozen = !state.newer.is_empty();
        documents.iter().copied().filter(|digest| !frozen && !needed(digest)).collect()
    }

    /// Space that all images take together.
    pub(crate) fn space(&self) -> Space {
        let state = self.lock();
        let mut space = Space::default();
        for layer in state.layers.values() {
            space.bytes += layer.bytes;
            space.inodes += layer.inodes;
        }
        for known in state.images.values() {
            space.bytes += known.record.document_bytes;
            space.inodes += known.record.documents.len() as u64;
        }
        space
    }
}

impl State {
    fn named(&self, reference: &Reference) -> Option<&Known> {
        let holds = |known: &&Known| match (&reference.target, reference.tagged()) {
            (Target::Digest(digest, _), _) => known.record.digests.contains(&reference.with_digest(*digest)),
            (Target::Tag(_), Some(tag)) => known.record.tags.contains_key(&tag),
            (Target::Tag(_), None) => false,
        };
        self.images.values().find(holds)
    }

    fn numbers_of(&self, record: &ImageRecord) -> Option<Vec<u32>> {
        record.layers.iter().rev().map(|chain| Some(self.layers.get(chain)?.number)).collect()
    }

    fn describe(&self, known: &Known) -> Image {
        let layers = known.record.layers.iter().filter_map(|chain| self.layers.get(chain));
        Image {
            id: ImageId(known.record.id),
            repo_tags: known.record.tags.keys().cloned().collect(),
            repo_digests: known.record.digests.iter().cloned().collect(),
            size: layers.map(|layer| layer.bytes).sum::<u64>() + known.record.document_bytes,
            config: known.runtime.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn layer(name: &str, parent: Option<&str>, number: u32) -> LayerRecord {
        let (chain, parent) = (digest(name), parent.map(digest));
        LayerRecord { chain, parent, diff_id: chain, number, bytes: 100, inodes: 1 }
    }

    fn image(name: &str, layers: &[&str], tags: &[(&str, u64)]) -> ImageRecord {
        ImageRecord {
            id: digest(name),
            layers: layers.iter().map(|name| digest(name)).collect(),
            documents: BTreeSet::from([digest(name), digest("shared")]),
            document_bytes: 7,
            tags: tags.iter().map(|(tag, stamp)| (format!("docker.io/library/{tag}"), *stamp)).collect(),
            digests: BTreeSet::from([format!("docker.io/library/{name}@{}", digest("shared"))]),
        }
    }

    fn catalog() -> Catalog {
        let catalog = Catalog::default();
        catalog.add_layer(layer("base", None, 1));
        catalog.add_layer(layer("top", Some("base"), 2));
        catalog.add_layer(layer("other", Some("base"), 3));
        catalog.put_image(image("a", &["base", "top"], &[("a:1", 1), ("a:2", 2)]), RuntimeConfig::default());
        catalog.put_image(image("b", &["base", "other"], &[("b:1", 3)]), RuntimeConfig::default());
        catalog
    }

    fn unneeded(catalog: &Catalog) -> Vec<u32> {
        let mut numbers: Vec<u32> = catalog.take_unneeded(None).iter().map(|(record, _)| record.number).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn every_kind_of_name_finds_the_image() {
        let catalog = catalog();
        let a = digest("a");
        let names = [
            a.to_string(),
            a.hex(),
            a.hex()[..12].to_owned(),
            format!("sha256:{}", &a.hex()[..6]),
            "a:1".to_owned(),
            "docker.io/library/a:2".to_owned(),
            format!("a@{}", digest("shared")),
            format!("a:any@{}", digest("shared")),
        ];
        for name in names {
            assert_eq!(catalog.find(&name).unwrap().expect(&name).id, ImageId(a), "{name}");
        }
        for name in ["a", "c:1", "0000", &digest("c").to_string()] {
            assert!(catalog.find(name).unwrap().is_none(), "{name}");
        }
        assert!(catalog.find("A:b:c").is_err());
        assert_eq!(catalog.find("a:1").unwrap().unwrap().size, 207);
    }

    #[test]
    fn a_tag_moves_to_the_image_that_got_it_last() {
        let catalog = catalog();
        let stamp = catalog.next_stamp();
        let changed =
            catalog.put_image(image("b", &["base", "other"], &[("a:1", stamp), ("b:1", 3)]), RuntimeConfig::default());
        assert_eq!(changed.len(), 1);
        assert_eq!(changed[0].tags.len(), 1);
        assert_eq!(catalog.find("a:1").unwrap().unwrap().id, ImageId(digest("b")));
        assert_eq!(catalog.find("a:2").unwrap().unwrap().id, ImageId(digest("a")));
        // As after a crash between the two records: the older stamp loses, in whatever order they are read.
        catalog.put_image(image("a", &["base", "top"], &[("a:1", 1), ("a:2", 2)]), RuntimeConfig::default());
        assert_eq!(catalog.find("a:1").unwrap().unwrap().id, ImageId(digest("b")));
    }

    #[test]
    fn a_layer_goes_when_the_last_that_needs_it_goes() {
        let catalog = catalog();
        assert!(unneeded(&catalog).is_empty());
        let (pin, new) = catalog.pin("c", digest("a")).unwrap();
        assert_eq!((pin.layers.as_slice(), new), (&[2, 1][..], true));
        catalog.forget_image(digest("a"));
        assert!(!catalog.pin("c", digest("a")).unwrap().1);
        assert!(unneeded(&catalog).is_empty());
        catalog.unpin("c");
        let lease = catalog.lease(digest("top"));
        assert_eq!(catalog.stack(digest("top")).unwrap(), [2, 1]);
        assert!(unneeded(&catalog).is_empty());
        drop(lease);
        assert_eq!(unneeded(&catalog), [2]);
        assert!(catalog.stack(digest("top")).is_none());
        catalog.forget_image(digest("b"));
        assert_eq!(unneeded(&catalog), [1, 3]);
        assert_eq!(catalog.space(), Space::default());
    }

    #[test]
    fn a_layer_goes_with_the_one_it_stands_on() {
        let catalog = catalog();
        catalog.add_layer(layer("kept for later", Some("other"), 4));
        catalog.forget_image(digest("b"));
        let taken = catalog.take_unneeded(Some(&HashSet::from([3])));
        assert_eq!(taken.iter().map(|(record, _)| record.number).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn a_number_is_free_again_only_when_its_directory_is_gone() {
        let catalog = catalog();
        catalog.forget_image(digest("a"));
        let taken = catalog.take_unneeded(None);
        assert_eq!(catalog.take_number().number, 4);
        drop(taken);
        let two = catalog.take_number();
        assert_eq!((two.number, catalog.take_number().number), (2, 4));
        catalog.add_layer(layer("new", None, 2));
        drop(two);
        assert_eq!(catalog.take_number().number, 4);
    }

    #[test]
    fn a_shared_document_outlives_one_image() {
        let catalog = catalog();
        let gone = catalog.forget_image(digest("a")).unwrap();
        assert_eq!(catalog.unneeded_documents(&gone.documents), [digest("a")]);
    }
}
