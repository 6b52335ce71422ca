//! A pod's network: which configuration, and its plugins as processes. Touches no link itself.

mod builtin;
mod conflist;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod plugin;

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::cni::call::{ARG_IGNORE_UNKNOWN, ARG_NETNS_OWNED, Args, Call, Verb};
use berth_api::cni::config::{Extras, NetworkList, Plugin};
use berth_api::cni::result::AddResult;
use berth_api::cri;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ids::PodId;
use crate::metrics::Metrics;
pub(crate) use builtin::BuiltIn;

/// CNI on the daemon's side.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the cluster's configuration is looked for, in order.
    pub conf_dirs: Vec<PathBuf>,
    /// Where plugins are looked for, before the bundled ones.
    pub plugin_dirs: Vec<PathBuf>,
    /// The built-in bridge network is used while no configuration is found.
    pub default: bool,
    /// Its IPv4 subnet, or `auto`.
    pub default_subnet: String,
    /// Its IPv6 subnet; empty for none.
    pub default_subnet6: String,
    /// Longest run of one plugin, in seconds.
    pub plugin_timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            conf_dirs: vec!["/etc/cni/net.d".into()],
            plugin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            default: false,
            default_subnet: "auto".into(),
            default_subnet6: String::new(),
            plugin_timeout_s: 30,
        }
    }
}

/// Name of a pod's interface. Source: the kubelet and every CNI runtime.
const IFNAME: &str = "eth0";

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no CNI configuration in {dirs}, and the built-in network is off: put one there or set [network] default = true"
    )]
    None { dirs: String },
    #[error("CNI configuration {0}: correct or remove the file")]
    Broken(String),
    #[error("built-in network: {0}")]
    BuiltIn(String),
    #[error(
        "config.port_mappings: host port {port} is asked for, and no plugin of network {network:?} declares the capability \
         portMappings (a portmap plugin is missing from its configuration)"
    )]
    NoPortMapping { port: i32, network: String },
    #[error(
        "plugin {plugin:?} of network {network:?} is not in {dirs}: install it there or correct [network] plugin_dirs"
    )]
    NoPlugin { plugin: String, network: String, dirs: String },
    #[error("CNI {verb} of plugin {plugin:?}, network {network:?}")]
    Plugin {
        verb: &'static str,
        plugin: String,
        network: String,
        #[source]
        problem: plugin::Failure,
    },
}

impl Error {
    /// The plugin refused the call before it did anything.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Plugin { problem, .. } if problem.is_refusal())
    }
}

/// What a pod will be attached to, decided before anything is taken and kept with its record: a configuration that
/// changes later does not change how this pod is detached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    list: NetworkList,
    /// It is the built-in network, which only the bundled plugins understand.
    builtin: bool,
    /// `CNI_ARGS`, in order.
    args: Vec<(String, String)>,
    /// Every capability argument that the runtime can give, by name; each plugin gets those that it declares.
    capabilities: Map<String, Value>,
}

/// What ADD answered, and whether DEL has succeeded since.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    result: Option<Value>,
    deleted: bool,
}

impl Attachment {
    /// The last plugin's answer.
    pub(crate) fn result(&self) -> Option<Value> {
        self.result.clone()
    }

    /// Addresses without prefix, in the plugins' order.
    pub(crate) fn ips(&self) -> Vec<String> {
        let result = self.result.clone().filter(|_| !self.deleted).and_then(|r| AddResult::from_value(r).ok());
        result.map(|(_, r)| r.addresses().map(|ip| ip.to_string()).collect()).unwrap_or_default()
    }

    /// DEL has succeeded.
    pub(crate) fn deleted(&self) -> bool {
        self.deleted
    }

    pub(crate) fn after_del(self) -> Self {
        Self { deleted: true, ..self }
    }
}

/// Finds configurations and runs plugins; clones are cheap.
#[derive(Clone)]
pub(crate) struct Networks {
    config: Config,
    /// The operator's plugin directories, then the bundled one.
    plugin_dirs: Vec<PathBuf>,
    bundled: Vec<PathBuf>,
    builtin: Option<BuiltIn>,
    /// The daemon's run root.
    run: PathBuf,
    metrics: Metrics,
}

impl Networks {
    pub(crate) fn new(
        config: Config,
        bundled: Vec<PathBuf>,
        builtin: Option<BuiltIn>,
        run: PathBuf,
        metrics: Metrics,
    ) -> Self {
        let plugin_dirs = config.plugin_dirs.iter().chain(&bundled).cloned().collect();
        Self { config, plugin_dirs, bundled, builtin, run, metrics }
    }

    /// The configuration that a new pod gets now: the first file by name, or the built-in network. Read when needed, so
    /// that a file that appears, changes or breaks counts at once.
    ///
    /// # Errors
    /// There is none, or the first one is broken: a pod must not slip into another network because of a typing error.
    pub(crate) fn current(&self) -> Result<Network, Error> {
        for dir in &self.config.conf_dirs {
            if let Some(list) = conflist::first_in(dir)? {
                return Ok(Network { list, builtin: false });
            }
        }
        match &self.builtin {
            Some(builtin) => Ok(Network { list: builtin.list()?, builtin: true }),
            None => Err(Error::None { dirs: join(&self.config.conf_dirs) }),
        }
    }

    /// Every plugin of this network is there.
    pub(crate) fn check_plugins(&self, network: &Network) -> Result<(), Error> {
        let list = &network.list;
        list.plugins.iter().try_for_each(|p| self.find(network.builtin, &list.name, &p.kind).map(drop))
    }

    /// The built-in network's options are ours alone: another bridge plugin of the same name must not get them.
    fn dirs(&self, builtin: bool) -> &[PathBuf] {
        if builtin { &self.bundled } else { &self.plugin_dirs }
    }

    /// Decides a pod's network; `None` with the host's.
    ///
    /// # Errors
    /// There is no usable configuration, or it cannot do what the request needs.
    pub(crate) fn plan(&self, config: &cri::PodSandboxConfig) -> Result<Option<Plan>, Error> {
        if !crate::pod::Namespaces::of(config).own_net {
            return Ok(None);
        }
        let network = self.current()?;
        let list = &network.list;
        let published: Vec<&cri::PortMapping> = config.port_mappings.iter().filter(|m| m.host_port != 0).collect();
        if let Some(mapping) = published.first()
            && !list.declares("portMappings")
        {
            return Err(Error::NoPortMapping { port: mapping.host_port, network: list.name.clone() });
        }
        self.check_plugins(&network)?;
        let metadata = config.metadata.clone().unwrap_or_default();
        let args = [
            (ARG_IGNORE_UNKNOWN, "1"),
            (ARG_NETNS_OWNED, "1"),
            ("K8S_POD_NAMESPACE", &metadata.namespace),
            ("K8S_POD_NAME", &metadata.name),
            ("K8S_POD_UID", &metadata.uid),
        ];
        // The list is joined by `;` and `=`: what holds one would become another argument.
        let args = args.into_iter().filter(|(_, value)| !value.contains([';', '=']));
        let args = args.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let capabilities = capabilities(config, &published);
        Ok(Some(Plan { list: network.list, builtin: network.builtin, args, capabilities }))
    }

    /// ADD of every plugin in order. When one fails, DEL of all of them is run before the error is returned.
    ///
    /// # Errors
    /// The plugin, the verb and its message.
    pub(crate) async fn add(&self, plan: &Plan, pod: &PodId, netns: &Path) -> Result<Attachment, Error> {
        let mut previous: Option<Value> = None;
        for plugin in &plan.list.plugins {
            let answer = self.call(Verb::Add, plan, plugin, previous.as_ref(), pod, Some(netns)).await?;
            previous = Some(answer);
        }
        Ok(Attachment { result: previous, deleted: false })
    }

    /// DEL of every plugin in reverse, each with the cached answer of ADD. Goes on past errors.
    ///
    /// # Errors
    /// The first one that failed.
    pub(crate) async fn del(
        &self,
        plan: &Plan,
        attachment: &Attachment,
        pod: &PodId,
        netns: &Path,
    ) -> Result<(), Error> {
        // A namespace that is gone is told as such: plugins must then do without it (CNI SPEC, "DEL").
        let netns = netns.exists().then_some(netns);
        let mut first = None;
        for plugin in plan.list.plugins.iter().rev() {
            let done = self.call(Verb::Del, plan, plugin, attachment.result.as_ref(), pod, netns).await;
            match done {
                Ok(_) => {}
                // It refused this configuration at ADD as well, so there is nothing of it to undo.
                Err(error) if attachment.result.is_none() && error.is_refusal() => {}
                Err(error) => {
                    tracing::warn!(%pod, error = crate::pod::chain(&error), "a plugin's DEL");
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    async fn call(
        &self,
        verb: Verb,
        plan: &Plan,
        plugin: &Plugin,
        previous: Option<&Value>,
        pod: &PodId,
        netns: Option<&Path>,
    ) -> Result<Value, Error> {
        let binary = self.find(plan.builtin, &plan.list.name, &plugin.kind)?;
        let call = Call {
            container_id: pod.to_string(),
            netns: netns.map(Path::to_owned),
            ifname: IFNAME.to_owned(),
            args: Args(plan.args.clone()),
            path: self.dirs(plan.builtin).to_vec(),
            ..Call::new(verb)
        };
        let extras = Extras { prev_result: previous, capability_args: Some(&plan.capabilities), ..Extras::default() };
        let stdin = plan.list.stdin(plugin, &extras);
        let deadline = Duration::from_secs(self.config.plugin_timeout_s.max(1));
        plugin::run(&binary, &self.run, &call, &stdin, deadline).await.map_err(|problem| {
            self.metrics.cni_failed(verb.as_str());
            let (plugin, network) = (plugin.kind.clone(), plan.list.name.clone());
            Error::Plugin { verb: verb.as_str(), plugin, network, problem }
        })
    }

    fn find(&self, builtin: bool, network: &str, kind: &str) -> Result<PathBuf, Error> {
        let dirs = self.dirs(builtin);
        let found = dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file());
        found.ok_or_else(|| Error::NoPlugin { plugin: kind.to_owned(), network: network.to_owned(), dirs: join(dirs) })
    }
}

/// A configuration in use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Network {
    pub(crate) list: NetworkList,
    builtin: bool,
}

impl Network {
    /// Names of the bridges that its plugins keep.
    pub(crate) fn bridges(&self) -> Vec<&str> {
        let bridges = self.list.plugins.iter().filter(|plugin| plugin.kind == "bridge");
        // Source of the name: the reference plugin.
        bridges.map(|plugin| plugin.config.get("bridge").and_then(Value::as_str).unwrap_or("cni0")).collect()
    }
}

/// Source: CNI CONVENTIONS.md, "Dynamic Plugin specific fields (Capabilities / Runtime Configuration)".
fn capabilities(config: &cri::PodSandboxConfig, published: &[&cri::PortMapping]) -> Map<String, Value> {
    let mut all = Map::new();
    if !published.is_empty() {
        let mapping = |m: &&cri::PortMapping| {
            let mut out = json!({
                "hostPort": m.host_port, "containerPort": m.container_port,
                "protocol": m.protocol().as_str_name().to_ascii_lowercase(),
            });
            if !m.host_ip.is_empty() {
                out["hostIP"] = m.host_ip.as_str().into();
            }
            out
        };
        all.insert("portMappings".into(), published.iter().map(mapping).collect());
    }
    if let Some(dns) = &config.dns_config {
        all.insert("dns".into(), json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}));
    }
    if let Some(parent) = config.linux.as_ref().map(|l| &l.cgroup_parent).filter(|p| !p.is_empty()) {
        all.insert("cgroupPath".into(), parent.as_str().into());
    }
    all.insert("io.kubernetes.cri.pod-annotations".into(), json!(config.annotations));
    all
}

fn join(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ")
}
