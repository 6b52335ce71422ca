//! Manifests, indexes and image configurations: parsing and the choice of a platform. Pure.
//!
//! OCI image-spec 1.1 and Docker schema 2 are one language here; the media type is only a cross-check. What could be
//! read in two ways is refused (CVE-2021-41190).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::RuntimeConfig;
use crate::digest::Digest;
use crate::error::Error;

/// Largest manifest, index or configuration, bytes; what registries themselves accept.
pub(crate) const DOCUMENT_MAX: usize = 4 << 20;
/// Most layers of an image: overlayfs takes no more lower directories.
pub(crate) const LAYERS_MAX: usize = 500;
/// Most bytes of one layer, compressed. Far above any real one; keeps sums from overflowing.
const LAYER_MAX: u64 = 1 << 44;

/// What a manifest request asks for, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Points at content by digest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
}

/// What a manifest in an index is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// A manifest or an index, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// One image for one platform.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Base first.
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or index. `content_type` is what the registry called it; `what` names it in errors.
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>, what: &str) -> Result<Document, Error> {
    let refuse = |why: &str| Err(Error::document(what, why));
    if bytes.len() > DOCUMENT_MAX {
        return refuse("larger than 4 MiB");
    }
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| Error::document(what, error))?;
    if raw.schema_version != 2 {
        return refuse("schemaVersion is not 2: Docker schema 1 and unknown versions are not supported");
    }
    if raw.fs_layers.is_some() {
        return refuse("holds fsLayers of schema 1");
    }
    let claimed = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    for name in [raw.media_type.as_deref(), claimed].into_iter().flatten() {
        let agrees = match kind_of(name) {
            Some(Kind::Index) => raw.manifests.is_some(),
            Some(Kind::Manifest) => raw.manifests.is_none(),
            None => !name.starts_with("application/vnd."),
        };
        if !agrees {
            return refuse(&format!("media type {name:?} does not fit its content"));
        }
    }
    if let (Some(own), Some(told)) = (raw.media_type.as_deref(), claimed)
        && own != told
        && kind_of(told).is_some()
    {
        return refuse(&format!("says it is {own:?} but was served as {told:?}"));
    }
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), None, None) => Ok(Document::Index(manifests)),
        (None, Some(config), Some(layers)) => check_manifest(config, layers, what).map(Document::Manifest),
        (Some(_), _, _) => refuse("holds both manifests and layers"),
        (None, _, _) => refuse("holds neither manifests nor config and layers"),
    }
}

enum Kind {
    Index,
    Manifest,
}

fn kind_of(media_type: &str) -> Option<Kind> {
    match media_type {
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            Some(Kind::Index)
        }
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
            Some(Kind::Manifest)
        }
        _ => None,
    }
}

fn check_manifest(config: Descriptor, layers: Vec<Descriptor>, what: &str) -> Result<Manifest, Error> {
    let refuse = |why: String| Err(Error::document(what, why));
    let is_config = matches!(
        config.media_type.as_str(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    );
    if !is_config {
        return refuse(format!("is not a container image: its config is {:?}", config.media_type));
    }
    if config.size > DOCUMENT_MAX as u64 {
        return refuse("its config is larger than 4 MiB".to_owned());
    }
    if layers.len() > LAYERS_MAX {
        return refuse(format!("has {} layers, at most {LAYERS_MAX} can be stacked", layers.len()));
    }
    for layer in &layers {
        if !is_layer(&layer.media_type) {
            return refuse(format!("layer {} has unsupported media type {:?}", layer.digest, layer.media_type));
        }
        if layer.size > LAYER_MAX {
            return refuse(format!("layer {} claims {} bytes", layer.digest, layer.size));
        }
    }
    Ok(Manifest { config, layers })
}

/// A tar archive, plain or compressed. Which compression is seen from its bytes.
fn is_layer(media_type: &str) -> bool {
    let base = media_type.strip_suffix("+gzip").or_else(|| media_type.strip_suffix("+zstd")).unwrap_or(media_type);
    matches!(base, "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar")
        || matches!(
            media_type,
            "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        )
}

/// The entries of an index that can run here, best first. Those without a platform come last: only their content says.
///
/// # Errors
/// None fits; the text lists what there is.
pub(crate) fn choose(index: &[Descriptor], host: &Host, what: &str) -> Result<Vec<Descriptor>, Error> {
    let mut fitting: Vec<(u32, &Descriptor)> =
        index.iter().filter_map(|entry| Some((host.rank(entry.platform.as_ref())?, entry))).collect();
    if fitting.is_empty() {
        let have: Vec<String> = index.iter().filter_map(|entry| entry.platform.as_ref()).map(name).collect();
        return Err(no_match(host, &have, what));
    }
    fitting.sort_by_key(|(rank, _)| *rank); // stable: among equals the index's order counts
    Ok(fitting.into_iter().map(|(_, entry)| entry.clone()).collect())
}

fn no_match(host: &Host, have: &[String], what: &str) -> Error {
    Error::document(what, format!("no match for platform {host}: have [{}]", have.join(", ")))
}

fn name(platform: &Platform) -> String {
    match platform.variant.as_deref() {
        Some(variant) if !variant.is_empty() => {
            format!("{}/{}/{variant}", platform.os, platform.architecture)
        }
        _ => format!("{}/{}", platform.os, platform.architecture),
    }
}

/// What this machine runs: `linux`, an architecture in Go's spelling, and its variants best first.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    architecture: &'static str,
    /// Best first; the last is what an absent variant means.
    variants: &'static [&'static str],
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "linux/{}", self.architecture)
    }
}

impl Host {
    /// The machine we run on.
    pub(crate) fn this() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self { architecture: "amd64", variants: amd64_levels() },
            "aarch64" => Self { architecture: "arm64", variants: &["v8"] },
            "arm" => Self { architecture: "arm", variants: &["v7", "v6", "v5"] },
            "powerpc64" => Self { architecture: "ppc64le", variants: &[] },
            "loongarch64" => Self { architecture: "loong64", variants: &[] },
            other => Self { architecture: other, variants: &[] },
        }
    }

    /// How well it fits, 0 best; `None` if it does not run here.
    fn rank(&self, platform: Option<&Platform>) -> Option<u32> {
        let Some(platform) = platform else {
            return Some(u32::MAX);
        };
        if platform.os != "linux" || platform.architecture != self.architecture {
            return None;
        }
        match platform.variant.as_deref() {
            None | Some("") => Some(self.variants.len().saturating_sub(1) as u32),
            Some(variant) => self.variants.iter().position(|have| *have == variant).map(|at| at as u32),
        }
    }

    fn runs(&self, config: &ConfigFile) -> bool {
        let fits = |wanted: &str, have: &str| wanted.is_empty() || wanted == have;
        fits(&config.os, "linux") && fits(&config.architecture, self.architecture)
    }
}

/// The x86-64 levels this processor has (x86-64 psABI), best first.
#[cfg(target_arch = "x86_64")]
fn amd64_levels() -> &'static [&'static str] {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse4.2") && has!("popcnt") && has!("ssse3") && has!("cmpxchg16b");
    let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("lzcnt") && has!("movbe");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => &["v4", "v3", "v2", "v1"],
        (_, true, _) => &["v3", "v2", "v1"],
        (true, _, _) => &["v2", "v1"],
        _ => &["v1"],
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_levels() -> &'static [&'static str] {
    &["v1"]
}

/// An image's configuration as far as we read it.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<RawConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

impl ConfigFile {
    /// Reads a configuration and checks that it is of an image for this machine with `layers` layers.
    pub(crate) fn parse(bytes: &[u8], layers: usize, host: &Host, what: &str) -> Result<Self, Error> {
        let refuse = |why: String| Err(Error::document(what, why));
        if bytes.len() > DOCUMENT_MAX {
            return refuse("larger than 4 MiB".to_owned());
        }
        let file: Self = serde_json::from_slice(bytes).map_err(|error| Error::document(what, error))?;
        if !host.runs(&file) {
            return refuse(format!("is for {}/{}, this machine is {host}", file.os, file.architecture));
        }
        if file.rootfs.kind != "layers" {
            return refuse(format!("rootfs.type is {:?}, not \"layers\"", file.rootfs.kind));
        }
        if file.diff_ids().len() != layers {
            return refuse(format!("names {} layers, the manifest {layers}", file.diff_ids().len()));
        }
        Ok(file)
    }

    /// Digests of the uncompressed layers, base first.
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        self.rootfs.diff_ids.as_deref().unwrap_or_default()
    }

    /// What it says about running.
    pub(crate) fn runtime(self) -> RuntimeConfig {
        let raw = self.config.unwrap_or_default();
        RuntimeConfig {
            entrypoint: raw.entrypoint.unwrap_or_default(),
            cmd: raw.cmd.unwrap_or_default(),
            env: raw.env.unwrap_or_default(),
            working_dir: raw.working_dir.unwrap_or_default(),
            user: raw.user.unwrap_or_default(),
            stop_signal: raw.stop_signal.unwrap_or_default(),
            labels: raw.labels.unwrap_or_default(),
            exposed_ports: raw.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: raw.volumes.unwrap_or_default().into_keys().collect(),
        }
    }
}

/// Chain ids of layers with these diff ids (OCI image-spec, "Layer ChainID"): each names a layer and all below it.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => *diff_id,
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(id);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const AMD64: Host = Host { architecture: "amd64", variants: &["v3", "v2", "v1"] };

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    fn manifest(extra: &str, layers: &str) -> String {
        let config = format!(
            r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":2}}"#,
            digest("c")
        );
        format!(r#"{{"schemaVersion":2,{extra}"config":{config},"layers":[{layers}]}}"#)
    }

    fn layer(media_type: &str, size: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{size}}}"#, digest("l"))
    }

    fn entry(platform: &str, name: &str) -> String {
        format!(r#"{{"mediaType":"{OCI}","digest":"{}","size":3{platform}}}"#, digest(name))
    }

    fn platform(os: &str, architecture: &str, variant: &str) -> String {
        format!(r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#)
    }

    #[test]
    fn both_dialects_are_read() {
        let oci = manifest("", &layer("application/vnd.oci.image.layer.v1.tar+zstd", "9"));
        let Document::Manifest(read) = parse(oci.as_bytes(), Some(OCI), "m").unwrap() else { panic!() };
        assert_eq!(read.layers.len(), 1);
        let docker = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",
               "config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{}","size":1}},
               "layers":[{}]}}"#,
            digest("c"),
            layer("application/vnd.docker.image.rootfs.diff.tar.gzip", "1")
        );
        assert!(matches!(parse(docker.as_bytes(), None, "m").unwrap(), Document::Manifest(_)));
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#);
        assert_eq!(parse(index.as_bytes(), Some(INDEX), "m").unwrap(), Document::Index(vec![]));
    }

    #[test]
    fn ambiguous_and_foreign_documents_are_refused() {
        let good = layer("application/vnd.oci.image.layer.v1.tar", "1");
        let many = vec![good.clone(); 501].join(",");
        let cases = [
            (manifest(r#""manifests":[],"#, &good), OCI),
            (manifest("", &good), INDEX),
            (manifest(&format!(r#""mediaType":"{INDEX}","#), &good), OCI),
            (manifest(r#""mediaType":"application/vnd.docker.distribution.manifest.v2+json","#, &good), OCI),
            (manifest(r#""schemaVersion":2,"#, &good), OCI),
            (manifest(r#""fsLayers":[],"#, &good), OCI),
            (manifest("", &good).replace("\"schemaVersion\":2", "\"schemaVersion\":1"), OCI),
            (manifest("", &good).replace("\"schemaVersion\":2", "\"schemaVersion\":\"2\""), OCI),
            (manifest("", &layer("application/vnd.oci.image.layer.v1.tar", "-1")), OCI),
            (manifest("", &layer("application/vnd.oci.image.layer.v1.tar", "9223372036854775808")), OCI),
            (manifest("", &layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "1")), OCI),
            (manifest("", &layer("application/json", "1")), OCI),
            (manifest("", &many), OCI),
            (manifest("", &good).replace("image.config", "unknown.config"), OCI),
            ("{\"schemaVersion\":2}".to_owned(), OCI),
            ("[".repeat(100_000), OCI),
            (format!("{}{}", manifest("", &good), " ".repeat(DOCUMENT_MAX)), OCI),
            ("\u{feff}{}".to_owned(), OCI),
            ("{\"schemaVersion\":NaN}".to_owned(), OCI),
        ];
        for (text, content_type) in cases {
            parse(text.as_bytes(), Some(content_type), "m").expect_err(&text[..text.len().min(300)]);
        }
    }

    #[test]
    fn the_best_platform_wins_not_the_first() {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{},{},{},{},{}]}}"#,
            entry("", "unsaid"),
            entry(&platform("linux", "amd64", ""), "plain"),
            entry(&platform("linux", "amd64", "v4"), "too new"),
            entry(&platform("linux", "amd64", "v2"), "level 2"),
            entry(&platform("linux", "arm64", "v8"), "arm"),
            entry(&platform("windows", "amd64", ""), "windows"),
        );
        let Document::Index(entries) = parse(index.as_bytes(), None, "m").unwrap() else { panic!() };
        let chosen: Vec<Digest> = choose(&entries, &AMD64, "m").unwrap().iter().map(|entry| entry.digest).collect();
        assert_eq!(chosen, [digest("level 2"), digest("plain"), digest("unsaid")]);
        let riscv = Host { architecture: "riscv64", variants: &[] };
        let error = choose(&entries[1..], &riscv, "m").unwrap_err().to_string();
        assert!(error.contains("linux/riscv64: have [linux/amd64, linux/amd64/v4"), "{error}");
    }

    #[test]
    fn a_configuration_must_fit_machine_and_manifest() {
        let config = |os: &str, diff_ids: &str| {
            format!(
                r#"{{"os":"{os}","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}},
                   "config":{{"Cmd":null,"Env":["A=b"],"User":"1003:1004","ExposedPorts":{{"80/tcp":{{}}}},"Labels":null}}}}"#
            )
        };
        let id = format!("\"{}\"", digest("l"));
        let file = ConfigFile::parse(config("linux", &id).as_bytes(), 1, &AMD64, "c").unwrap();
        let runtime = file.runtime();
        assert_eq!(
            (runtime.user.as_str(), runtime.exposed_ports.as_slice()),
            ("1003:1004", &["80/tcp".to_owned()][..])
        );
        for (text, layers) in [(config("linux", &id), 2), (config("windows", &id), 1), (config("../../", &id), 1)] {
            ConfigFile::parse(text.as_bytes(), layers, &AMD64, "c").expect_err(&text);
        }
    }

    #[test]
    fn a_chain_id_names_all_layers_below() {
        let ids = [digest("a"), digest("b"), digest("c")];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], ids[0]);
        assert_eq!(chain[1], Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes()));
        assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], ids[2]).as_bytes()));
        assert_eq!(chain_ids(&[]), []);
    }
}
