//! The user namespace of a pod: what CRI says of it, checked, as the kernel, the keeper and the shim want it.

use berth_api::cri;
use serde::Serialize;
use serde_json::{Value, json};

use super::Invalid;

/// A run of ids: the container's first, the host's first, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Ids {
    pub(crate) container: u32,
    pub(crate) host: u32,
    pub(crate) length: u32,
}

/// How users and groups of a pod are the host's: one run each, which begins with the container's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Users {
    pub(crate) uids: [Ids; 1],
    pub(crate) gids: [Ids; 1],
}

impl Users {
    /// What namespace options ask for. `None`: the host's users.
    ///
    /// # Errors
    /// The field below `path` that is wrong.
    pub(crate) fn of(options: Option<&cri::NamespaceOption>, path: &str) -> Result<Option<Self>, Invalid> {
        let path = |name: &str| format!("{path}.userns_options.{name}");
        let Some(asked) = options.and_then(|options| options.userns_options.as_ref()) else { return Ok(None) };
        match asked.mode() {
            cri::NamespaceMode::Pod => {
                Ok(Some(Self { uids: [one(&asked.uids, path("uids"))?], gids: [one(&asked.gids, path("gids"))?] }))
            }
            cri::NamespaceMode::Node => match (asked.uids.is_empty(), asked.gids.is_empty()) {
                (true, true) => Ok(None),
                (false, _) => Err(Invalid::new(path("uids"), "with mode NODE there is nothing to map")),
                (true, false) => Err(Invalid::new(path("gids"), "with mode NODE there is nothing to map")),
            },
            other => Err(Invalid::new(path("mode"), format!("{} is neither POD nor NODE", other.as_str_name()))),
        }
    }

    /// What root of the pod is on the host.
    pub(crate) fn root(&self) -> (u32, u32) {
        (self.uids[0].host, self.gids[0].host)
    }

    /// Words for a root file system whose owners are to be mapped.
    pub(crate) fn mount_options(&self) -> [String; 2] {
        let text = |ids: &Ids| format!("{}:{}:{}", ids.container, ids.host, ids.length);
        [format!("uidmap={}", text(&self.uids[0])), format!("gidmap={}", text(&self.gids[0]))]
    }
}

impl Ids {
    /// As OCI has it.
    pub(crate) fn oci(&self) -> Value {
        json!({"containerID": self.container, "hostID": self.host, "size": self.length})
    }
}

/// CRI has lists; runtimes take one mapping, with the container's root in it. Source: critest, the kubelet.
fn one(list: &[cri::IdMapping], path: String) -> Result<Ids, Invalid> {
    let [mapping] = list else {
        return Err(Invalid::new(path, format!("{} mappings, but it takes exactly one", list.len())));
    };
    if mapping.container_id != 0 {
        let problem = format!("{}, but it has to begin with the container's 0", mapping.container_id);
        return Err(Invalid::new(format!("{path}[0].container_id"), problem));
    }
    ids(mapping, &format!("{path}[0]"))
}

/// One mapping that can be.
fn ids(mapping: &cri::IdMapping, path: &str) -> Result<Ids, Invalid> {
    let cri::IdMapping { host_id, container_id, length } = *mapping;
    let fits = |first: u32| first.checked_add(length).is_some();
    if length == 0 || !fits(host_id) || !fits(container_id) {
        let problem = format!("{length} ids from {container_id} as {host_id} on the host: not in what ids can be");
        return Err(Invalid::new(format!("{path}.length"), problem));
    }
    Ok(Ids { container: container_id, host: host_id, length })
}

/// The mappings of a mount, as OCI has them.
///
/// # Errors
/// Users without groups or the other way round; a mapping that cannot be.
pub(super) fn of_mount(mount: &cri::Mount, field: &impl Fn(&str) -> String) -> Result<Option<[Value; 2]>, Invalid> {
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    match (uids.is_empty(), gids.is_empty()) {
        (true, true) => return Ok(None),
        (false, true) => return Err(Invalid::new(field("gidMappings"), "empty, but there are uidMappings")),
        (true, false) => return Err(Invalid::new(field("uidMappings"), "empty, but there are gidMappings")),
        (false, false) => {}
    }
    let all = |list: &[cri::IdMapping], name: &str| -> Result<Value, Invalid> {
        let one = |(index, mapping)| ids(mapping, &field(&format!("{name}[{index}]"))).map(|ids| ids.oci());
        list.iter().enumerate().map(one).collect()
    };
    Ok(Some([all(uids, "uidMappings")?, all(gids, "gidMappings")?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
        cri::IdMapping { host_id, container_id, length }
    }

    fn check(mode: cri::NamespaceMode, uids: &[cri::IdMapping]) -> Result<Option<Users>, String> {
        let asked = cri::UserNamespace { mode: mode.into(), uids: uids.to_vec(), gids: uids.to_vec() };
        let options = cri::NamespaceOption { userns_options: Some(asked), ..Default::default() };
        Users::of(Some(&options), "o").map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn one_mapping_from_the_containers_root() {
        use cri::NamespaceMode::{Container, Node, Pod, Target};
        let users = check(Pod, &[mapping(0, 1000, 65_536)]).expect("good").expect("some");
        assert_eq!(users.root(), (1000, 1000));
        assert_eq!(users.mount_options(), ["uidmap=0:1000:65536", "gidmap=0:1000:65536"]);
        assert_eq!(check(Node, &[]), Ok(None));
        assert_eq!(Users::of(None, "o").expect("nothing asked for"), None);
        for (mode, uids, field) in [
            (Container, vec![], "o.userns_options.mode: "),
            (Target, vec![], "o.userns_options.mode: "),
            (Node, vec![mapping(0, 1, 1)], "o.userns_options.uids: "),
            (Pod, vec![], "o.userns_options.uids: 0 mappings"),
            (Pod, vec![mapping(0, 1000, 9), mapping(9, 2000, 9)], "o.userns_options.uids: 2 mappings"),
            (Pod, vec![mapping(1, 1000, 9)], "o.userns_options.uids[0].container_id: 1, "),
            (Pod, vec![mapping(0, 1000, 0)], "o.userns_options.uids[0].length: "),
            (Pod, vec![mapping(0, 1000, u32::MAX)], "o.userns_options.uids[0].length: "),
        ] {
            let refused = check(mode, &uids).expect_err(field);
            assert!(refused.starts_with(field), "{refused}");
        }
    }
}
