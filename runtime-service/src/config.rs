//! One TOML file → a tree of the rooms' own configurations. Nobody else knows that there is a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{metrics, network, sandbox, serve, streaming, task};

/// The commented default configuration, as `berthd config default` prints it.
pub const DEFAULT_TOML: &str = include_str!("default.toml");

/// Where the configuration is looked for when `--config` is not given; it need not exist.
pub const DEFAULT_PATH: &str = "/etc/berth/config.toml";

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Socket, roots and limits of the daemon.
    pub serve: serve::Config,
    /// The daemon's own log.
    pub log: LogConfig,
    /// CNI.
    pub network: network::Config,
    /// What every pod gets.
    pub sandbox: sandbox::Config,
    /// Shims.
    pub shim: task::Config,
    /// Exec, attach and port-forward.
    pub streaming: streaming::Config,
    /// Runtime handlers beside berth's own shim, by name.
    pub runtimes: BTreeMap<String, task::Runtime>,
    /// Image store and registries.
    pub images: berth_image_service::Config,
    /// Prometheus and health.
    pub metrics: metrics::Config,
}

/// How the daemon writes its own log, on standard error.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Least level that is written, in `tracing`'s filter syntax.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}")]
    Parse { path: PathBuf, message: String },
}

impl Config {
    /// Reads `path`, or the default path when there is one there, or takes the defaults.
    ///
    /// # Errors
    /// `Read` when a named file cannot be read; `Parse` with the line and, for an unknown key, the nearest known one.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let (path, must_exist) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|message| Error::Parse { path: path.to_owned(), message }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(Self::default()),
            Err(source) => Err(Error::Read { path: path.to_owned(), source }),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| {
            let message = e.to_string();
            match nearest_known(e.message()) {
                Some(key) => format!("{}\ndid you mean `{key}`?", message.trim_end()),
                None => message.trim_end().to_owned(),
            }
        })
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// Picks the known key that resembles the unknown one from serde's sentence: unknown field `X`, expected one of `A`, `B`.
fn nearest_known(message: &str) -> Option<String> {
    if !message.starts_with("unknown field") {
        return None;
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    names.map(|known| (distance(unknown, known), known)).min().map(|(_, known)| known.to_owned())
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_default_is_the_default() {
        let shown: String = DEFAULT_TOML
            .lines()
            .map(|l| match l.strip_prefix("#") {
                Some(setting) if !setting.starts_with(' ') && setting.contains('=') => format!("{setting}\n"),
                _ => format!("{l}\n"),
            })
            .collect();
        assert_eq!(Config::parse(&shown).expect("default.toml parses"), Config::default(), "{shown}");
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let message = Config::parse("[serve]\nlisten_to = \"unix:///x\"\n").expect_err("unknown key");
        assert!(message.contains("listen_to") && message.contains("did you mean `listen`?"), "{message}");
        let message = Config::parse("[netwrok]\n").expect_err("unknown table");
        assert!(message.contains("did you mean `network`?"), "{message}");
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, d) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("listen", "listen", 0)] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }
}
