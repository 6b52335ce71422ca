//! SELinux as the kernel has it: whether it is on, which labels its policy has for containers, and who has which level.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_api::cri;
use rustix::io::Errno;

use crate::ids::PodId;
use crate::spec::{self, CATEGORIES, Defaults, Invalid, Labels, PodLabels};

/// `0` or `1`; there only while SELinux is on. Source: the kernel's security/selinux/selinuxfs.c.
const ENFORCE: &str = "/sys/fs/selinux/enforce";

/// Takes a context that is written to it if the policy knows it. Same source, `sel_write_context`.
const CONTEXT: &str = "/sys/fs/selinux/context";

/// Names the policy: `SELINUXTYPE=`. Source: selinux_config(5).
const CONFIG: &str = "/etc/selinux/config";

/// Where policies are, and in each what it has for containers. Source: lxc_contexts(5).
const POLICIES: &str = "/etc/selinux";
const CONTEXTS: &str = "contexts/lxc_contexts";

/// The extended attribute that is a file's label.
pub(crate) const ATTRIBUTE: &str = "security.selinux";

const OFF: &str = "SELinux is not on in this host's kernel";

/// What this host has for containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Off,
    /// It is on, and its policy has nothing for containers: why.
    NoTypes(String),
    On(Defaults),
}

/// The labels of this host's pods.
pub(crate) struct SeLinux {
    state: State,
    /// Of every pod there is: two that were not told to share one share none.
    levels: Mutex<HashMap<PodId, String>>,
}

/// Looks at the kernel and its policy.
pub(crate) fn state() -> State {
    if !is_on() {
        return State::Off;
    }
    match defaults() {
        Ok(defaults) => State::On(defaults),
        Err(problem) => State::NoTypes(problem),
    }
}

fn is_on() -> bool {
    Path::new(ENFORCE).exists()
}

/// Whether what the policy does not allow is denied, or only told.
pub(crate) fn is_enforcing() -> bool {
    fs::read_to_string(ENFORCE).is_ok_and(|text| text.trim() == "1")
}

fn defaults() -> Result<Defaults, String> {
    let config = fs::read_to_string(CONFIG).map_err(|e| format!("read {CONFIG}: {e}"))?;
    let named = config.lines().filter_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).next_back();
    let named = named.ok_or_else(|| format!("{CONFIG} has no SELINUXTYPE"))?;
    let path = Path::new(POLICIES).join(named.trim()).join(CONTEXTS);
    let text = fs::read_to_string(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let defaults = Defaults::parse(&text).map_err(|problem| format!("{}: {problem}", path.display()))?;
    for context in [defaults.process(), defaults.file()] {
        known(&context).map_err(|problem| format!("{problem}, which {} names", path.display()))?;
    }
    Ok(defaults)
}

/// # Errors
/// The policy has no such context, in words.
fn known(context: &str) -> Result<(), String> {
    let written =
        fs::File::options().read(true).write(true).open(CONTEXT).and_then(|mut f| f.write_all(context.as_bytes()));
    match written {
        Ok(()) => Ok(()),
        Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => Err(format!("the policy has no {context:?}")),
        Err(e) => Err(format!("ask {CONTEXT} for {context:?}: {e}")),
    }
}

impl SeLinux {
    pub(crate) fn new(state: State) -> Self {
        Self { state, levels: Mutex::default() }
    }

    /// What there is for containers.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The label of files that are every container's to read, if there are labels.
    pub(crate) fn files(&self) -> Option<String> {
        match &self.state {
            State::On(defaults) => Some(defaults.file()),
            State::Off | State::NoTypes(_) => None,
        }
    }

    /// The labels of a new pod, whose level is its own from here on until `forget`. `None` where there are none.
    ///
    /// # Errors
    /// It asks for labels that it cannot have.
    pub(crate) fn of_pod(&self, id: &PodId, config: &cri::PodSandboxConfig) -> Result<Option<PodLabels>, Invalid> {
        const FIELD: &str = "config.linux.security_context.selinux_options";
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = spec::asked_labels(security.and_then(|s| s.selinux_options.as_ref()));
        let Some(defaults) = self.defaults(options.is_some(), FIELD)? else { return Ok(None) };
        let mut levels = self.levels();
        let level = match options.is_some_and(|options| !options.level.is_empty()) {
            true => None,
            false => own_level(defaults, &levels).map_err(|problem| Invalid::new(FIELD, problem))?,
        };
        let labels = defaults.with(options, level, FIELD)?;
        let both = [&labels.process, &labels.mount].into_iter().try_for_each(|context| known(context));
        both.map_err(|problem| Invalid::new(FIELD, problem))?;
        levels.extend(labels.level().map(|level| (id.clone(), level)));
        Ok(Some(labels))
    }

    /// A container's labels. `None` where there are none, or when its pod was made without any.
    ///
    /// # Errors
    /// It asks for labels that it cannot have.
    pub(crate) fn of_container(
        &self,
        pod: Option<&PodLabels>,
        security: &cri::LinuxContainerSecurityContext,
    ) -> Result<Option<Labels>, Invalid> {
        const FIELD: &str = "config.linux.security_context.selinux_options";
        let asks = spec::asked_labels(security.selinux_options.as_ref()).is_some();
        if let (Some(pod), Some(problem)) = (pod, self.problem()) {
            let problem =
                format!("it has the SELinux label {:?}, but {problem}: mend that and restart berthd", pod.process);
            return Err(Invalid::new("pod_sandbox_id", problem));
        }
        let Some(defaults) = self.defaults(asks, FIELD)? else { return Ok(None) };
        let Some(pod) = pod else {
            return match asks {
                true => Err(Invalid::new(FIELD, "its pod was made without labels; they come with a new one")),
                false => Ok(None),
            };
        };
        let labels = pod.of_container(defaults, security, FIELD)?;
        let both = labels.process.iter().chain([&labels.mount]).try_for_each(|context| known(context));
        both.map_err(|problem| Invalid::new(FIELD, problem))?;
        Ok(Some(labels))
    }

    fn defaults(&self, asked: bool, field: &str) -> Result<Option<&Defaults>, Invalid> {
        match &self.state {
            State::On(defaults) => Ok(Some(defaults)),
            State::Off if asked => Err(Invalid::new(field, OFF)),
            State::NoTypes(problem) if asked => Err(Invalid::new(field, no_types(problem))),
            State::Off | State::NoTypes(_) => Ok(None),
        }
    }

    /// Why there are no labels.
    fn problem(&self) -> Option<String> {
        match &self.state {
            State::On(_) => None,
            State::Off => Some(OFF.into()),
            State::NoTypes(problem) => Some(no_types(problem)),
        }
    }

    /// A pod of an earlier daemon.
    pub(crate) fn adopt(&self, id: &PodId, labels: Option<&PodLabels>) {
        self.levels().extend(labels.and_then(PodLabels::level).map(|level| (id.clone(), level)));
    }

    /// The pod is gone, or was never made.
    pub(crate) fn forget(&self, id: &PodId) {
        self.levels().remove(id);
    }

    fn levels(&self) -> MutexGuard<'_, HashMap<PodId, String>> {
        // An insert or a removal is whole or not there.
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_types(problem: &str) -> String {
    format!("SELinux is on, but has no labels for containers: {problem}")
}

/// A level that no pod has; `None` on a policy without levels.
fn own_level(defaults: &Defaults, taken: &HashMap<PodId, String>) -> Result<Option<String>, String> {
    loop {
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| format!("the kernel gives no random bytes: {e}"))?;
        let [a, b, c, d] = bytes;
        // Half a million pairs, of which a node's few hundred pods leave nearly all.
        let (one, other) = (u16::from_ne_bytes([a, b]) % CATEGORIES, u16::from_ne_bytes([c, d]) % CATEGORIES);
        if one == other {
            continue;
        }
        match defaults.level(one.min(other), one.max(other)) {
            Some(level) if taken.values().any(|other| *other == level) => {}
            level => return Ok(level),
        }
    }
}

/// Gives a file this label; no matter if its file system has none.
///
/// # Errors
/// What the kernel answers.
pub(crate) fn label_file(path: &Path, label: &str) -> std::io::Result<()> {
    let set = rustix::fs::lsetxattr(path, ATTRIBUTE, label.as_bytes(), rustix::fs::XattrFlags::empty());
    match set {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on() -> State {
        let text = "process = \"u:r:container_t:s0\"\nfile = \"u:r:container_file_t:s0\"\n";
        State::On(Defaults::parse(text).expect("contexts"))
    }

    #[test]
    fn every_pods_level_is_a_pair_of_its_own() {
        let State::On(defaults) = on() else { panic!("on") };
        let mut taken = HashMap::new();
        for _ in 0..500 {
            let level = own_level(&defaults, &taken).expect("random bytes").expect("a level");
            let pair = level.strip_prefix("s0:c").and_then(|pair| pair.split_once(",c")).expect("s0:cA,cB");
            let (low, high): (u16, u16) = (pair.0.parse().expect("a number"), pair.1.parse().expect("a number"));
            assert!(low < high && high < CATEGORIES, "{level}");
            assert!(!taken.values().any(|other| *other == level), "{level} twice");
            taken.insert(PodId::random().expect("an id"), level);
        }
    }

    #[test]
    fn a_level_is_free_again_when_its_pod_is_gone() {
        let selinux = SeLinux::new(on());
        let id = PodId::random().expect("an id");
        let labels = PodLabels { process: "u:r:t:s0:c1,c2".into(), mount: "u:r:f:s0:c1,c2".into() };
        selinux.adopt(&id, Some(&labels));
        assert_eq!(selinux.levels().get(&id).map(String::as_str), Some("s0:c1,c2"));
        selinux.forget(&id);
        assert!(selinux.levels().is_empty());
    }

    #[test]
    fn labels_are_refused_by_field_where_there_are_none_and_nothing_is_not() {
        let options = cri::SeLinuxOption { level: "s0".into(), ..Default::default() };
        let security =
            cri::LinuxSandboxSecurityContext { selinux_options: Some(options.clone()), ..Default::default() };
        let linux = cri::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
        let asks = cri::PodSandboxConfig { linux: Some(linux), ..Default::default() };
        let container = cri::LinuxContainerSecurityContext { selinux_options: Some(options), ..Default::default() };
        let id = PodId::random().expect("an id");
        for (state, told) in
            [(State::Off, "not on in this host's kernel"), (State::NoTypes("why".into()), "for containers: why")]
        {
            let selinux = SeLinux::new(state);
            let refused = selinux.of_pod(&id, &asks).expect_err("refused").to_string();
            assert!(
                refused.starts_with("config.linux.security_context.selinux_options: ") && refused.contains(told),
                "{refused}"
            );
            let refused = selinux.of_container(None, &container).expect_err("refused").to_string();
            assert!(refused.contains(told), "{refused}");
            assert_eq!(selinux.of_pod(&id, &Default::default()).expect("nothing is asked"), None);
            assert_eq!(selinux.of_container(None, &Default::default()).expect("nothing is asked"), None);
            let labels = PodLabels { process: "u:r:t:s0:c1,c2".into(), mount: "u:r:f:s0:c1,c2".into() };
            let refused = selinux.of_container(Some(&labels), &Default::default()).expect_err("its pod is confined");
            assert!(refused.problem.contains(told) && refused.problem.contains("u:r:t:s0:c1,c2"), "{refused}");
        }
        let refused = SeLinux::new(on()).of_container(None, &container).expect_err("its pod has none").to_string();
        assert!(refused.contains("made without labels"), "{refused}");
    }
}
