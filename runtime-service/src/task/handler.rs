//! Runtime handlers: `[runtimes.NAME]`, each any containerd shim v2 binary. The one without a name is berth's own shim.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use prost::Message;
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::Error;

/// Where shims and runtimes of packages are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Type of runtimes that are driven by runc's command line, as runc, crun and youki are.
const RUNC: &str = "io.containerd.runc.v2";

/// Where runc keeps its records, below the run root: like all there they do not outlive a boot.
const RUNC_STATE: &str = "runc";

/// How long a runtime may take to say what it can do.
const ANSWER: Duration = Duration::from_secs(5);

/// How long one that did not is left alone.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// One handler of the configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// `io.containerd.NAME.VERSION`, whose binary is `containerd-shim-NAME-VERSION`, or the absolute path of a shim.
    pub runtime_type: String,
    /// For `io.containerd.runc.v2` containerd's options by their names (`BinaryName`, `Root`, `SystemdCgroup`, …); for
    /// other types `ConfigPath` and `ConfigBody`, and `TypeUrl` if the shim wants one.
    #[serde(default)]
    pub options: toml::Table,
    /// The shim has one process for all containers of a pod, and wants to be told of the pod first, by a container of its
    /// own that does nothing.
    #[serde(default)]
    pub sandbox_container: bool,
}

/// Source: containerd's `runtime/v2/runc/options/oci.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    #[prost(bool, tag = "1")]
    no_pivot_root: bool,
    #[prost(bool, tag = "2")]
    no_new_keyring: bool,
    #[prost(string, tag = "3")]
    shim_cgroup: String,
    #[prost(uint32, tag = "4")]
    io_uid: u32,
    #[prost(uint32, tag = "5")]
    io_gid: u32,
    #[prost(string, tag = "6")]
    binary_name: String,
    #[prost(string, tag = "7")]
    root: String,
    #[prost(bool, tag = "9")]
    systemd_cgroup: bool,
}

/// Source: containerd's `pkg/runtimeoptions/v1/api.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeOptions {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes, tag = "3")]
    config_body: Vec<u8>,
}

/// What a handler promises in Status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HandlerFeatures {
    mount_options: BTreeSet<String>,
}

impl HandlerFeatures {
    /// From a runtime's `features`; what is no JSON promises nothing. Source: the OCI runtime spec's features.md.
    pub(super) fn said(answer: &[u8]) -> Self {
        let said: Value = serde_json::from_slice(answer).unwrap_or_default();
        let options = said["mountOptions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        Self { mount_options: options.map(str::to_owned).collect() }
    }

    /// It applies this option of a mount, by the OCI runtime spec's name.
    pub(crate) fn knows(&self, option: &str) -> bool {
        self.mount_options.contains(option)
    }
}

/// A shim of another runtime.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) name: String,
    shim: PathBuf,
    /// Of Create, encoded.
    options: Any,
    /// The runtime's own binary, where its type tells.
    runtime: Option<String>,
    /// A pod's containers are one process's, which a sandbox container is the first of.
    pub(crate) sandbox_container: bool,
    features: Mutex<Asked>,
}

/// What is known of a runtime's features.
#[derive(Debug, Default)]
struct Asked {
    known: Option<Arc<HandlerFeatures>>,
    /// When it last gave no answer.
    failed: Option<Instant>,
}

/// Every handler that is not berth's own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handlers(Arc<BTreeMap<String, Arc<Foreign>>>);

impl Handlers {
    /// Checks the configuration. `run` is the daemon's run root, where runc keeps its state unless it is told otherwise.
    ///
    /// # Errors
    /// What is wrong, with its key.
    pub(crate) fn new(runtimes: &BTreeMap<String, Runtime>, run: &Path) -> Result<Self, String> {
        let all = Self::read(runtimes, run)?;
        if !runtimes.is_empty() {
            // Of all its containers, and so not any one's to remove.
            let state = run.join(RUNC_STATE).join(super::spawn::NAMESPACE);
            std::fs::create_dir_all(&state).map_err(|e| format!("make {}: {e}", state.display()))?;
        }
        Ok(all)
    }

    /// The same, and nothing is made.
    ///
    /// # Errors
    /// What is wrong, with its key.
    pub(crate) fn read(runtimes: &BTreeMap<String, Runtime>, run: &Path) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for (name, runtime) in runtimes {
            let wrong = |problem: String| format!("[runtimes.{name}] {problem}");
            all.insert(name.clone(), Arc::new(Foreign::new(name, runtime, run).map_err(wrong)?));
        }
        Ok(Self(Arc::new(all)))
    }

    /// The handler of a name; `None` for berth's own, whose name is empty.
    ///
    /// # Errors
    /// The names there are.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Arc<Foreign>>, String> {
        if name.is_empty() {
            return Ok(None);
        }
        self.0.get(name).cloned().map(Some).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            match known.is_empty() {
                true => {
                    format!("{name:?} is no configured handler: there is only the default, \"\"; see [runtimes.NAME]")
                }
                false => {
                    format!("{name:?} is no configured handler: there are {} and the default, \"\"", known.join(", "))
                }
            }
        })
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Foreign>> {
        self.0.values()
    }
}

impl Foreign {
    fn new(name: &str, runtime: &Runtime, run: &Path) -> Result<Self, String> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
            return Err("has a name that is none: letters, digits, dots and dashes".into());
        }
        let kind = runtime.runtime_type.as_str();
        let shim = match kind.split('.').collect::<Vec<_>>()[..] {
            _ if kind.starts_with('/') => PathBuf::from(kind),
            [.., name, version] if kind.starts_with("io.containerd.") => {
                format!("containerd-shim-{name}-{version}").into()
            }
            _ => {
                return Err(format!(
                    "runtime_type {kind:?} is neither io.containerd.NAME.VERSION nor an absolute path"
                ));
            }
        };
        let is_runc = kind == RUNC || shim.file_name() == Some(OsStr::new(super::foreign::RUNC_SHIM));
        let text = |key: &str| match runtime.options.get(key) {
            None => Ok(String::new()),
            Some(toml::Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("options.{key} = {other} is no string")),
        };
        let flag = |key: &str| match runtime.options.get(key) {
            None => Ok(false),
            Some(toml::Value::Boolean(flag)) => Ok(*flag),
            Some(other) => Err(format!("options.{key} = {other} is neither true nor false")),
        };
        let id = |key: &str| match runtime.options.get(key).map(|v| v.as_integer().and_then(|n| u32::try_from(n).ok()))
        {
            None => Ok(0),
            Some(Some(id)) => Ok(id),
            Some(None) => Err(format!("options.{key} is no user or group id")),
        };
        let known: &[&str] = match is_runc {
            true => {
                &["BinaryName", "Root", "SystemdCgroup", "NoPivotRoot", "NoNewKeyring", "ShimCgroup", "IoUid", "IoGid"]
            }
            false => &["ConfigPath", "ConfigBody", "TypeUrl"],
        };
        if let Some(key) = runtime.options.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(format!("options.{key} is unknown; there are {}", known.join(", ")));
        }
        let sandbox_container = runtime.sandbox_container;
        if !is_runc {
            let options = RuntimeOptions {
                type_url: text("TypeUrl")?,
                config_path: text("ConfigPath")?,
                config_body: text("ConfigBody")?.into_bytes(),
            };
            let options = any("runtimeoptions.v1.Options", &options);
            let features = Mutex::default();
            return Ok(Self { name: name.into(), shim, options, runtime: None, sandbox_container, features });
        }
        if flag("SystemdCgroup")? {
            return Err("options.SystemdCgroup: berth's cgroup paths are cgroupfs paths".into());
        }
        let root = Some(text("Root")?).filter(|root| !root.is_empty());
        let options = RuncOptions {
            no_pivot_root: flag("NoPivotRoot")?,
            no_new_keyring: flag("NoNewKeyring")?,
            shim_cgroup: text("ShimCgroup")?,
            io_uid: id("IoUid")?,
            io_gid: id("IoGid")?,
            binary_name: text("BinaryName")?,
            root: root.unwrap_or_else(|| run.join(RUNC_STATE).to_string_lossy().into_owned()),
            systemd_cgroup: false,
        };
        let runtime = Some(options.binary_name.clone()).filter(|b| !b.is_empty()).unwrap_or_else(|| "runc".into());
        let options = any("containerd.runc.v1.Options", &options);
        let features = Mutex::default();
        Ok(Self { name: name.into(), shim, options, runtime: Some(runtime), sandbox_container, features })
    }

    /// Path of the shim's binary.
    ///
    /// # Errors
    /// Where it is not.
    pub(crate) fn binary(&self) -> Result<PathBuf, Error> {
        if self.shim.is_absolute() {
            return match self.shim.is_file() {
                true => Ok(self.shim.clone()),
                false => Err(Error::NoBinary(format!("handler {}: {} is not there", self.name, self.shim.display()))),
            };
        }
        let found = PATH.split(':').map(|dir| Path::new(dir).join(&self.shim)).find(|path| path.is_file());
        found.ok_or_else(|| {
            Error::NoBinary(format!("handler {}: {} is not in {PATH}: install it", self.name, self.shim.display()))
        })
    }

    /// What its Create is given.
    pub(crate) fn options(&self) -> Any {
        self.options.clone()
    }

    /// What the runtime says it can do. One that does not answer can do nothing special, and is asked again later: it may
    /// not be installed yet.
    pub(crate) async fn features(&self) -> Arc<HandlerFeatures> {
        let mut asked = self.features.lock().await;
        if asked.known.is_none() && asked.failed.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            asked.known = self.ask().await.map(Arc::new);
            asked.failed = asked.known.is_none().then(Instant::now);
        }
        asked.known.clone().unwrap_or_default()
    }

    async fn ask(&self) -> Option<HandlerFeatures> {
        let Some(runtime) = &self.runtime else { return Some(HandlerFeatures::default()) };
        let mut command = Command::new(runtime);
        command.arg("features").env("PATH", PATH).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(ANSWER, command.output()).await {
            Ok(Ok(output)) if output.status.success() => output.stdout,
            _ => {
                tracing::warn!(
                    handler = self.name,
                    runtime,
                    "the runtime does not say what it can do; nothing special is promised"
                );
                return None;
            }
        };
        Some(HandlerFeatures::said(&output))
    }
}

fn any(name: &str, options: &impl Message) -> Any {
    // The bare name, as containerd has it for messages of protobuf.
    Any { type_url: name.to_owned(), value: options.encode_to_vec(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handlers(toml: &str) -> Result<Handlers, String> {
        let runtimes: BTreeMap<String, Runtime> = toml::from_str(toml).expect("TOML of the right shape");
        let run = tempfile::tempdir().expect("a directory");
        Handlers::new(&runtimes, run.path())
    }

    #[test]
    fn a_type_names_its_binary_and_options_are_checked() {
        let all = handlers(
            "[runc]\nruntime_type = \"io.containerd.runc.v2\"\n[crun]\nruntime_type = \"/opt/containerd-shim-runc-v2\"\n\
             options = { BinaryName = \"crun\" }\n[kata]\nruntime_type = \"io.containerd.kata.v2\"\n\
             sandbox_container = true\n",
        )
        .expect("good");
        let shim = |name: &str| all.get(name).expect("known").expect("not berth's").shim.display().to_string();
        assert_eq!(shim("runc"), "containerd-shim-runc-v2");
        assert_eq!(shim("crun"), "/opt/containerd-shim-runc-v2");
        assert_eq!(shim("kata"), "containerd-shim-kata-v2");
        let options = &all.get("crun").expect("known").expect("not berth's").options;
        let read = RuncOptions::decode(&options.value[..]).expect("encoded");
        assert!(read.binary_name == "crun" && read.root.ends_with("/runc"), "{read:?}");
        let grouped = |name: &str| all.get(name).expect("known").expect("not berth's").sandbox_container;
        assert!(grouped("kata") && !grouped("runc"), "only where it is asked for");
        assert!(all.get("").expect("berth's own").is_none());
        let unknown = all.get("runsc").expect_err("not configured");
        assert!(unknown.contains("there are crun, kata, runc"), "{unknown}");
        for (bad, problem) in [
            ("[a]\nruntime_type = \"runc\"\n", "runtime_type \"runc\""),
            (
                "[a]\nruntime_type = \"io.containerd.runc.v2\"\noptions = { Binary = \"x\" }\n",
                "options.Binary is unknown",
            ),
            ("[a]\nruntime_type = \"io.containerd.runc.v2\"\noptions = { Root = 1 }\n", "options.Root"),
            ("[\"a/b\"]\nruntime_type = \"io.containerd.runc.v2\"\n", "has a name"),
        ] {
            let error = handlers(bad).expect_err(bad);
            assert!(error.contains(problem), "{problem} is not in: {error}");
        }
    }
}
