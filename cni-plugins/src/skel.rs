//! From environment and stdin to a call, to one plugin's verb, to a result or an error on stdout. The only place that
//! maps our errors to CNI codes.

use std::error::Error as _;
use std::io::{Read, Write};
use std::process::ExitCode;

use berth_api::cni::call::{Call, Verb};
use berth_api::cni::error as code;
use berth_api::cni::result::AddResult;
use berth_api::cni::version::{Version, VersionAnswer};
use serde_json::{Map, Value};

pub use crate::config::Network;
pub use crate::error::Error;

/// Most that a configuration may be, in bytes: room for the result of a long chain, and a bound on what we read.
const CONFIG_MAX: usize = 1 << 20;

/// The kernel refused something. Our own code, since the contract has none for it.
const KERNEL_REFUSED: u32 = code::FIRST_OWN;
/// CHECK found a change.
const CHANGED: u32 = code::FIRST_OWN + 1;

/// One plugin. Each verb but ADD answers nothing when it succeeds; each may be killed at any instant and repeated.
pub trait Plugin {
    /// Operations whose steps can be killed in a test build.
    fn operations(&self) -> &'static [&'static str];
    /// Attach the pod. A repetition gives the same answer.
    ///
    /// # Errors
    /// What could not be done; what this call took is given back.
    fn add(&self, call: &Call, network: &Network) -> Result<AddResult, Error>;
    /// Undo ADD; what is not there is no error.
    ///
    /// # Errors
    /// What could not be undone.
    fn del(&self, call: &Call, network: &Network) -> Result<(), Error>;
    /// Is everything as ADD left it?
    ///
    /// # Errors
    /// The first thing that is not.
    fn check(&self, call: &Call, network: &Network) -> Result<(), Error>;
    /// Free what no valid attachment holds.
    ///
    /// # Errors
    /// What could not be freed.
    fn gc(&self, call: &Call, network: &Network) -> Result<(), Error>;
    /// Could ADD be served?
    ///
    /// # Errors
    /// `Error::NotAvailable` and what is missing.
    fn status(&self, call: &Call, network: &Network) -> Result<(), Error>;
}

/// The whole life of a plugin's process.
pub fn main(plugin: &dyn Plugin) -> ExitCode {
    #[cfg(feature = "failpoints")]
    if std::env::args().nth(1).as_deref() == Some("failpoints") {
        for name in crate::failpoint::names(plugin.operations()) {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    }
    let mut version = Version::LATEST.as_str().to_string();
    let (answer, status) = match serve(plugin, &mut version) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (to_json(&to_cni(&error, version)), ExitCode::FAILURE),
    };
    match std::io::stdout().lock().write_all(answer.as_bytes()) {
        Ok(()) => status,
        // Nobody reads us: there is no one left to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Serves the call; `said` becomes the version that the configuration said, for the error's sake.
fn serve(plugin: &dyn Plugin, said: &mut String) -> Result<String, Error> {
    let call = Call::from_env(|name| std::env::var_os(name))?;
    let config = read_config(std::io::stdin().lock(), call.verb == Verb::Version)?;
    if let Some(Value::String(version)) = config.get("cniVersion") {
        said.clone_from(version);
    }
    if call.verb == Verb::Version {
        return Ok(to_json(&VersionAnswer::ours(said)));
    }
    let network = Network::new(config)?;
    match call.verb {
        Verb::Add => return Ok(plugin.add(&call, &network)?.to_value(network.version).to_string()),
        Verb::Del => plugin.del(&call, &network)?,
        Verb::Check => plugin.check(&call, &network)?,
        Verb::Gc => plugin.gc(&call, &network)?,
        Verb::Status => plugin.status(&call, &network)?,
        Verb::Version => {}
    }
    Ok(String::new())
}

fn read_config(from: impl Read, may_be_empty: bool) -> Result<Map<String, Value>, Error> {
    let mut text = Vec::with_capacity(4096);
    from.take(CONFIG_MAX as u64 + 1).read_to_end(&mut text).map_err(Error::Stdin)?;
    if text.len() > CONFIG_MAX {
        return Err(Error::TooLarge(CONFIG_MAX));
    }
    if may_be_empty && text.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&text).map_err(Error::Decode)
}

fn to_json(answer: &impl serde::Serialize) -> String {
    // Strings and numbers only: no `Serialize` here can fail.
    serde_json::to_string(answer).unwrap_or_default()
}

fn to_cni(error: &Error, version: String) -> code::Error {
    let mut details = Vec::new();
    let mut cause = error.source();
    while let Some(source) = cause {
        details.push(source.to_string());
        cause = source.source();
    }
    let number = match error {
        Error::Call(_) => code::INVALID_ENVIRONMENT,
        Error::Stdin(_) | Error::File { .. } => code::IO_FAILURE,
        Error::TooLarge(_) | Error::Decode(_) => code::DECODING_FAILURE,
        Error::Version(_) => code::INCOMPATIBLE_VERSION,
        Error::UnknownOption { .. } | Error::Config { .. } => code::INVALID_CONFIG,
        Error::Exhausted { .. } => code::TRY_AGAIN_LATER,
        Error::NotAvailable(_) => code::NOT_AVAILABLE,
        Error::Kernel { .. } | Error::Delegate { .. } => KERNEL_REFUSED,
        Error::Changed(_) => CHANGED,
        Error::PortTaken { .. } => code::PORT_TAKEN,
        Error::Delegated(error) => return error.clone(),
    };
    code::Error { cni_version: version, code: number, msg: error.to_string(), details: details.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_over_the_bound_is_refused() {
        let whole = format!("{{\"a\":\"{}\"}}", "x".repeat(CONFIG_MAX - 8));
        assert_eq!(whole.len(), CONFIG_MAX);
        assert!(read_config(whole.as_bytes(), false).is_ok());
        let over = format!("{whole} ");
        assert!(matches!(read_config(over.as_bytes(), false), Err(Error::TooLarge(_))));
    }

    #[test]
    fn only_version_may_come_without_a_configuration() {
        assert!(read_config(&b" \n"[..], true).unwrap().is_empty());
        assert!(matches!(read_config(&b""[..], false), Err(Error::Decode(_))));
    }

    #[test]
    fn an_error_tells_its_code_and_its_cause() {
        let unknown = Error::UnknownOption { key: "mut".into(), nearest: Some("mtu") };
        let error = to_cni(&unknown, "1.0.0".into());
        assert_eq!((error.code, error.cni_version.as_str()), (code::INVALID_CONFIG, "1.0.0"));
        assert_eq!(error.msg, "unknown option \"mut\"; did you mean \"mtu\"?");
        let denied = std::io::Error::from_raw_os_error(1);
        let refused = to_cni(&Error::kernel("create bridge", "b0")(denied), "1.0.0".into());
        assert_eq!((refused.code, refused.msg.as_str()), (KERNEL_REFUSED, "create bridge b0"));
        assert!(refused.details.contains("Operation not permitted"), "{}", refused.details);
    }
}
