//! Which objects a verb is about: by filter flags, newest first. The runtime filters by id, pod, state and label; names
//! and images are compared here, because CRI has no filter for them.

use std::collections::{BTreeMap, HashMap};

use berth_api::cri::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, ImageSpec, ImageStatusRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
};
use regex::Regex;

use crate::error::Error;
use crate::node::Node;

/// Label by which the kubelet tells the pod's name on its containers.
pub(super) const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label by which the kubelet tells the pod's namespace on its containers.
pub(super) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// Filters that pods and containers have in common.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct Common {
    /// Only those whose name matches this regular expression
    #[arg(long)]
    pub(super) name: Option<Regex>,
    /// Only those whose pod's namespace matches this regular expression
    #[arg(long)]
    pub(super) namespace: Option<Regex>,
    /// Only those with this label
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(super) label: Vec<(String, String)>,
    /// Only the newest
    #[arg(short, long)]
    pub(super) latest: bool,
    /// Only the newest so many; 0 for all
    #[arg(short = 'n', long, default_value_t = 0, value_name = "COUNT", hide_default_value = true)]
    pub(super) last: usize,
}

#[derive(clap::Args, Clone, Default)]
pub(crate) struct PodFilters {
    #[command(flatten)]
    pub(super) common: Common,
    /// Only those in this state
    #[arg(short, long, ignore_case = true)]
    pub(super) state: Option<PodStateName>,
}

#[derive(clap::Args, Clone, Default)]
pub(crate) struct ContainerFilters {
    #[command(flatten)]
    pub(super) common: Common,
    /// Only those of the pod with this id or prefix
    #[arg(short, long)]
    pub(super) pod: Option<String>,
    /// Only those of this image
    #[arg(long)]
    pub(super) image: Option<String>,
    /// Only those in this state
    #[arg(short, long, ignore_case = true)]
    pub(super) state: Option<ContainerStateName>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum PodStateName {
    Ready,
    #[value(name = "notready")]
    NotReady,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum ContainerStateName {
    Created,
    Running,
    Exited,
    Unknown,
}

impl Common {
    /// A filter was given that chooses objects, rather than naming none.
    fn is_set(&self) -> bool {
        self.name.is_some() || self.namespace.is_some() || !self.label.is_empty() || self.latest || self.last > 0
    }

    fn matches(&self, name: &str, namespace: &str) -> bool {
        let fits = |pattern: &Option<Regex>, text| pattern.as_ref().is_none_or(|pattern| pattern.is_match(text));
        fits(&self.name, name) && fits(&self.namespace, namespace)
    }

    /// Newest first, no more than asked for.
    fn order<T>(&self, mut items: Vec<T>, created_at: impl Fn(&T) -> i64) -> Vec<T> {
        items.sort_by_key(|item| std::cmp::Reverse(created_at(item)));
        if self.latest && self.last == 0 {
            items.truncate(1);
        } else if self.last > 0 {
            items.truncate(self.last);
        }
        items
    }

    fn labels(&self) -> HashMap<String, String> {
        self.label.iter().cloned().collect()
    }
}

impl PodFilters {
    pub(super) async fn list(&self, node: &Node, id: Option<String>) -> Result<Vec<PodSandbox>, Error> {
        let state = self.state.map(|state| PodSandboxStateValue {
            state: match state {
                PodStateName::Ready => PodSandboxState::SandboxReady.into(),
                PodStateName::NotReady => PodSandboxState::SandboxNotready.into(),
            },
        });
        let filter = PodSandboxFilter { id: id.unwrap_or_default(), state, label_selector: self.common.labels() };
        let mut runtime = node.runtime().await?;
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let pods = node.quick("list pods", runtime.list_pod_sandbox(request)).await?.items;
        let fits = |pod: &PodSandbox| {
            pod.metadata.as_ref().is_some_and(|metadata| self.common.matches(&metadata.name, &metadata.namespace))
        };
        Ok(self.common.order(pods.into_iter().filter(fits).collect(), |pod| pod.created_at))
    }
}

impl ContainerFilters {
    pub(super) fn is_set(&self) -> bool {
        self.common.is_set() || self.pod.is_some() || self.image.is_some() || self.state.is_some()
    }

    /// Running ones, unless a state, `all` or the newest are asked for.
    pub(super) async fn list(&self, node: &Node, id: Option<String>, all: bool) -> Result<Vec<Container>, Error> {
        let filter = ContainerFilter {
            id: id.unwrap_or_default(),
            state: self.state_wanted(all).map(|state| ContainerStateValue { state: state.into() }),
            pod_sandbox_id: self.pod.clone().unwrap_or_default(),
            label_selector: self.common.labels(),
        };
        let mut runtime = node.runtime().await?;
        let request = ListContainersRequest { filter: Some(filter) };
        let containers = node.quick("list containers", runtime.list_containers(request)).await?.containers;
        let fits = |container: &Container| {
            let namespace = label_or_unknown(&container.labels, POD_NAMESPACE);
            container.metadata.as_ref().is_some_and(|metadata| self.common.matches(&metadata.name, namespace))
        };
        let containers: Vec<_> = containers.into_iter().filter(fits).collect();
        let containers = self.of_image(node, containers).await?;
        Ok(self.common.order(containers, |container| container.created_at))
    }

    fn state_wanted(&self, all: bool) -> Option<ContainerState> {
        if self.common.latest || self.common.last > 0 {
            return None;
        }
        match self.state {
            Some(ContainerStateName::Created) => Some(ContainerState::ContainerCreated),
            Some(ContainerStateName::Running) => Some(ContainerState::ContainerRunning),
            Some(ContainerStateName::Exited) => Some(ContainerState::ContainerExited),
            Some(ContainerStateName::Unknown) => Some(ContainerState::ContainerUnknown),
            None if all => None,
            None => Some(ContainerState::ContainerRunning),
        }
    }

    /// Those whose image is, by whatever name, the one asked for.
    async fn of_image(&self, node: &Node, containers: Vec<Container>) -> Result<Vec<Container>, Error> {
        let Some(wanted) = &self.image else {
            return Ok(containers);
        };
        let Some(wanted) = image_id(node, wanted).await? else {
            return Ok(Vec::new());
        };
        let mut ids: BTreeMap<String, Option<String>> = BTreeMap::new();
        let mut chosen = Vec::new();
        for container in containers {
            let name = container.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
            let id = match ids.get(&name) {
                Some(id) => id.clone(),
                None => ids.entry(name.clone()).or_insert(image_id(node, &name).await?).clone(),
            };
            if id.as_ref() == Some(&wanted) {
                chosen.push(container);
            }
        }
        Ok(chosen)
    }
}

async fn image_id(node: &Node, name: &str) -> Result<Option<String>, Error> {
    let image = Some(ImageSpec { image: name.into(), ..Default::default() });
    let request = ImageStatusRequest { image, verbose: false };
    let mut images = node.images().await?;
    let answer = node.quick(format!("look for image {name}"), images.image_status(request)).await?;
    Ok(answer.image.map(|image| image.id))
}

/// What the kubelet wrote on a container, or "unknown" when another made it.
pub(super) fn label_or_unknown<'a>(labels: &'a HashMap<String, String>, key: &str) -> &'a str {
    labels.get(key).map_or("unknown", String::as_str)
}

/// `KEY=VALUE`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    match key.is_empty() {
        true => Err(format!("{text:?} has no key")),
        false => Ok((key.into(), value.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_come_first_and_can_be_counted() {
        let order = |latest, last| Common { latest, last, ..Default::default() }.order(vec![2, 3, 1], |item| *item);
        assert_eq!(order(false, 0), [3, 2, 1]);
        assert_eq!(order(true, 0), [3]);
        assert_eq!(order(true, 2), [3, 2]);
    }

    #[test]
    fn running_ones_unless_asked_otherwise() {
        let check = |choice: ContainerFilters, all, want| assert_eq!(choice.state_wanted(all), want);
        check(ContainerFilters::default(), false, Some(ContainerState::ContainerRunning));
        check(ContainerFilters::default(), true, None);
        let exited = ContainerFilters { state: Some(ContainerStateName::Exited), ..Default::default() };
        check(exited, true, Some(ContainerState::ContainerExited));
        let latest = Common { latest: true, ..Default::default() };
        check(ContainerFilters { common: latest, ..Default::default() }, false, None);
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(label("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert!(label("a").is_err() && label("=b").is_err());
    }
}
