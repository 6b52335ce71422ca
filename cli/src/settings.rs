//! Where the daemon is and how long to wait for it: flag, then environment, then crictl's file, then default.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::error::Error;
use crate::nearest::nearest;

/// Where berthd listens unless told otherwise.
const DEFAULT_ENDPOINT: &str = "unix:///run/berth/berth.sock";
/// crictl's own configuration file; berth reads the same.
const DEFAULT_FILE: &str = "/etc/crictl.yaml";
/// Time to connect and to be told something the runtime knows. crictl waits 2 s, which a loaded node can exceed.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

const FILE_KEYS: [&str; 6] =
    ["runtime-endpoint", "image-endpoint", "timeout", "debug", "pull-image-on-create", "disable-pull-on-run"];

/// Flags before the verb.
#[derive(clap::Args)]
pub(crate) struct Global {
    /// Socket of the runtime service [default: unix:///run/berth/berth.sock]
    #[arg(short, long, env = "CONTAINER_RUNTIME_ENDPOINT", value_name = "ENDPOINT")]
    pub(crate) runtime_endpoint: Option<String>,
    /// Socket of the image service [default: that of the runtime service]
    #[arg(short, long, env = "IMAGE_SERVICE_ENDPOINT", value_name = "ENDPOINT")]
    pub(crate) image_endpoint: Option<String>,
    /// Time to connect, and for answers that need no work, such as 2s [default: 10s]
    #[arg(short, long, value_parser = crate::human::parse_duration, value_name = "DURATION")]
    pub(crate) timeout: Option<Duration>,
    /// File with these settings, in crictl's form [default: /etc/crictl.yaml if it is there]
    #[arg(short, long, env = "CRI_CONFIG_FILE", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Say on stderr what is asked and answered
    #[arg(short = 'D', long)]
    pub(crate) debug: bool,
}

/// What is in force.
#[derive(Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) runtime_endpoint: String,
    pub(crate) image_endpoint: String,
    pub(crate) timeout: Duration,
    pub(crate) debug: bool,
    /// `create` pulls an image unless told not to.
    pub(crate) pull_on_create: bool,
}

/// What crictl's file says.
#[derive(Debug, Default, PartialEq)]
struct File {
    runtime_endpoint: Option<String>,
    image_endpoint: Option<String>,
    timeout: Option<Duration>,
    debug: bool,
    pull_on_create: bool,
}

impl Settings {
    pub(crate) fn gather(global: Global) -> Result<Self, Error> {
        let file = match &global.config {
            Some(path) => File::read(path)?,
            None if Path::new(DEFAULT_FILE).exists() => File::read(Path::new(DEFAULT_FILE))?,
            None => File::default(),
        };
        Ok(Self::merge(global, file))
    }

    fn merge(global: Global, file: File) -> Self {
        let set = |flag: Option<String>, file: Option<String>| flag.or(file).filter(|endpoint| !endpoint.is_empty());
        let runtime_endpoint =
            set(global.runtime_endpoint, file.runtime_endpoint).unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        Self {
            image_endpoint: set(global.image_endpoint, file.image_endpoint).unwrap_or_else(|| runtime_endpoint.clone()),
            runtime_endpoint,
            timeout: global.timeout.or(file.timeout).filter(|time| !time.is_zero()).unwrap_or(DEFAULT_TIMEOUT),
            debug: global.debug || file.debug,
            pull_on_create: file.pull_on_create,
        }
    }
}

impl File {
    fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Self::parse(&text).map_err(|reason| Error::Config { path: path.into(), reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut file = Self::default();
        let keys = match serde_saphyr::from_str(text).map_err(|error| error.to_string())? {
            Value::Null => return Ok(file),
            Value::Object(keys) => keys,
            _ => return Err("not a list of settings".into()),
        };
        for (key, value) in keys {
            match key.as_str() {
                "runtime-endpoint" => file.runtime_endpoint = Some(text_of(&key, value)?),
                "image-endpoint" => file.image_endpoint = Some(text_of(&key, value)?),
                "timeout" => {
                    let seconds = value.as_i64().ok_or_else(|| format!("{key}: want a number of seconds"))?;
                    file.timeout = Some(Duration::from_secs(seconds.try_into().unwrap_or(0)));
                }
                "debug" => file.debug = flag_of(&key, &value)?,
                "pull-image-on-create" => file.pull_on_create = flag_of(&key, &value)?,
                // Of crictl's `run`, which berth does not have: its own pulls what is absent.
                "disable-pull-on-run" => drop(flag_of(&key, &value)?),
                _ => return Err(unknown(&key)),
            }
        }
        Ok(file)
    }
}

fn unknown(key: &str) -> String {
    match nearest(key, FILE_KEYS) {
        Some(known) => format!("unknown key {key:?}: did you mean {known:?}?"),
        None => format!("unknown key {key:?}: known are {}", FILE_KEYS.join(", ")),
    }
}

fn text_of(key: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        _ => Err(format!("{key}: want a text")),
    }
}

fn flag_of(key: &str, value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("{key}: want true or false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(runtime: Option<&str>, image: Option<&str>) -> Global {
        Global {
            runtime_endpoint: runtime.map(String::from),
            image_endpoint: image.map(String::from),
            timeout: None,
            config: None,
            debug: false,
        }
    }

    #[test]
    fn crictls_file_is_read() {
        let file = File::parse(
            "runtime-endpoint: unix:///run/a.sock\nimage-endpoint: \"\"\ntimeout: 7\ndebug: true\npull-image-on-create: true\ndisable-pull-on-run: false\n",
        )
        .unwrap();
        let settings = Settings::merge(flags(None, None), file);
        assert_eq!(
            settings,
            Settings {
                runtime_endpoint: "unix:///run/a.sock".into(),
                image_endpoint: "unix:///run/a.sock".into(),
                timeout: Duration::from_secs(7),
                debug: true,
                pull_on_create: true,
            }
        );
    }

    #[test]
    fn flag_wins_over_file_and_file_over_default() {
        let file = || File::parse("runtime-endpoint: unix:///file\n").unwrap();
        assert_eq!(Settings::merge(flags(Some("unix:///flag"), None), file()).runtime_endpoint, "unix:///flag");
        assert_eq!(Settings::merge(flags(None, None), file()).runtime_endpoint, "unix:///file");
        let default = Settings::merge(flags(None, Some("unix:///i")), File::default());
        assert_eq!(
            (default.runtime_endpoint.as_str(), default.image_endpoint.as_str()),
            (DEFAULT_ENDPOINT, "unix:///i")
        );
        assert_eq!(default.timeout, DEFAULT_TIMEOUT);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_one() {
        let error = File::parse("runtime_endpoint: unix:///x\n").unwrap_err();
        assert_eq!(error, "unknown key \"runtime_endpoint\": did you mean \"runtime-endpoint\"?");
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        assert_eq!(File::parse("").unwrap(), File::default());
        assert_eq!(File::parse("# nothing\n").unwrap(), File::default());
    }
}
