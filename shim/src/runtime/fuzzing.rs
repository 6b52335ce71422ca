//! A bundle's `config.json`, for `test/fuzz`: everything that is planned without asking the kernel.

use oci_spec::runtime::Spec;

use super::idmap::Mapping;
use super::options::Options;
use super::rootfs::Layers;
use super::{mounts, process, seccomp, spec};
use crate::cgroup;

/// What is refused is refused by its path; what is planned holds what the kernel asks of it.
pub fn oci_specs(data: &[u8]) {
    let words: Vec<String> = String::from_utf8_lossy(data).split(',').map(str::to_owned).collect();
    if let Ok(layers) = Layers::parse(&words) {
        assert!(layers.all().all(|path| !path.is_empty()) || words.iter().any(|word| word.ends_with('=')));
    }
    let Ok(spec) = serde_json::from_slice::<Spec>(data) else { return };
    if let Err(error) = spec::refuse(&spec) {
        assert!(error.to_string().contains("not supported"), "{error}");
    }
    if let Some(asked) = spec.process() {
        let _ = process::refuse(asked);
        if let Ok(environment) = spec::environment(&spec, asked)
            && let Some(name) = asked.args().as_ref().and_then(|args| args.first())
        {
            let _ = process::candidates(name, &environment);
        }
    }
    for mount in spec.mounts().iter().flatten() {
        let clean = mounts::clean(mount.destination());
        assert!(clean.is_absolute() && !clean.components().any(|c| c == std::path::Component::ParentDir));
        if let Ok(options) = Options::parse("mounts", mount.options().as_deref().unwrap_or_default()) {
            let _ = Mapping::of_options("mounts", options.uidmap.as_deref(), options.gidmap.as_deref());
        }
    }
    let Some(linux) = spec.linux() else { return };
    if let Some(Ok(Some(filter))) = linux.seccomp().as_ref().map(seccomp::compile) {
        assert!((1..=4096).contains(&filter.program.len()));
    }
    for name in linux.sysctl().iter().flat_map(|all| all.keys()) {
        if let Some((path, _)) = super::sysctl_path(name) {
            assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".." || part.is_empty()), "{path}");
        }
    }
    if let Ok(Some(mapping)) = Mapping::of("linux", linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref()) {
        for id in [0, 1, u32::MAX] {
            let _ = (mapping.user(id), mapping.group(id));
        }
    }
    if let Some(resources) = linux.resources() {
        cgroup::fuzzing::resources(resources);
    }
}
