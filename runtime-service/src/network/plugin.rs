//! One call of one plugin: environment, standard input, deadline, answer. Source: CNI SPEC, "Execution protocol".

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use berth_api::cni::call::{Call, Verb};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// The most that is read of a plugin's answer and of what it says on standard error, in bytes.
const ANSWER_MAX: u64 = 1 << 20;
const STDERR_MAX: u64 = 64 << 10;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    /// The plugin's own code, if it answered with an error object.
    code: Option<u32>,
    text: String,
}

impl Failure {
    fn new(text: String) -> Self {
        Self { code: None, text }
    }

    /// A port of the host is somebody else's.
    pub(crate) fn is_port_taken(&self) -> bool {
        self.code == Some(berth_api::cni::error::PORT_TAKEN)
    }

    /// The configuration of the network, or what the request adds to it, is wrong.
    pub(crate) fn is_invalid(&self) -> bool {
        self.code == Some(berth_api::cni::error::INVALID_CONFIG)
    }

    /// The call or its configuration was refused, which a plugin does before it does anything else.
    pub(super) fn is_refusal(&self) -> bool {
        use berth_api::cni::error as codes;
        let refusals = [
            codes::INCOMPATIBLE_VERSION,
            codes::UNSUPPORTED_FIELD,
            codes::INVALID_ENVIRONMENT,
            codes::DECODING_FAILURE,
            codes::INVALID_CONFIG,
        ];
        self.code.is_some_and(|code| refusals.contains(&code))
    }
}

/// Makes the call, for the daemon whose run root is `run`; the answer is null for DEL.
///
/// # Errors
/// The plugin's own message, or why there is none.
pub(super) async fn run(
    binary: &Path,
    run: &Path,
    call: &Call,
    config: &[u8],
    deadline: Duration,
) -> Result<Value, Failure> {
    let mut command = Command::new(binary);
    command
        .env_clear()
        .envs(call.env())
        // Reference plugins look for iptables.
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    crate::errands::mark(&mut command, run);
    #[cfg(feature = "failpoints")]
    if let Some(armed) = std::env::var_os("BERTH_FAILPOINT") {
        command.env("BERTH_FAILPOINT", armed);
    }
    let mut child = command.spawn().map_err(|e| Failure::new(format!("run {}: {e}", binary.display())))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // A plugin that ends without reading says why in its answer.
                let _ = stdin.write_all(config).await;
            }
        };
        let (mut out, mut err) = (String::new(), Vec::new());
        let read = async {
            match stdout {
                Some(stdout) => stdout.take(ANSWER_MAX).read_to_string(&mut out).await.map(drop),
                None => Ok(()),
            }
        };
        let listen = async {
            if let Some(stderr) = stderr {
                let _ = stderr.take(STDERR_MAX).read_to_end(&mut err).await;
            }
        };
        let ((), read, ()) = tokio::join!(write, read, listen);
        let status = child.wait().await;
        (read, status, out, String::from_utf8_lossy(&err).into_owned())
    };
    let Ok((read, status, out, err)) = tokio::time::timeout(deadline, talk).await else {
        return Err(Failure::new(format!("did not end within {} s and was killed", deadline.as_secs())));
    };
    read.map_err(|e| Failure::new(format!("read its answer: {e}")))?;
    let status = status.map_err(|e| Failure::new(format!("wait for it: {e}")))?;
    if !status.success() {
        return Err(failure(&out, &err, &status.to_string()));
    }
    match call.verb {
        Verb::Add => {
            serde_json::from_str(&out).map_err(|e| Failure::new(format!("its answer is no result: {e}: {out:.200}")))
        }
        _ => Ok(Value::Null),
    }
}

/// A plugin's error object in words; a plugin that died without one is told by its status and standard error.
pub(super) fn failure(out: &str, err: &str, status: &str) -> Failure {
    match serde_json::from_str::<berth_api::cni::error::Error>(out) {
        Ok(error) => Failure { code: Some(error.code), text: error.to_string() },
        Err(_) => {
            let last = err.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
            Failure::new(format!("{status} {last}").trim().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::failure;

    #[test]
    fn a_plugins_error_is_told_in_its_words() {
        let object = r#"{"cniVersion":"1.0.0","code":11,"msg":"no address left","details":"10.0.0.0/30"}"#;
        assert_eq!(failure(object, "", "exit status: 1").text, "no address left: 10.0.0.0/30 (CNI code 11)");
        assert_eq!(failure("", "boom\n\n", "exit status: 2").text, "exit status: 2 boom");
        assert_eq!(failure("", "", "signal: 9 (SIGKILL)").text, "signal: 9 (SIGKILL)");
    }

    #[test]
    fn a_refusal_is_told_from_a_failure() {
        let refused = |code: u32| failure(&format!(r#"{{"code":{code},"msg":"m"}}"#), "", "").is_refusal();
        assert!(refused(1) && refused(7));
        assert!(!refused(5) && !refused(11) && !refused(999));
        assert!(!failure("", "", "signal: 9 (SIGKILL)").is_refusal());
    }
}
