//! The client `berth` as a user runs it: its command line, what it prints and its exit code.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::Node;
use crate::cri::IMAGE;
use crate::enclosure::{said, target_dir};

/// The client's binary, as hack/build places it.
pub fn berth() -> PathBuf {
    std::env::var_os("BERTH_BIN").map_or_else(|| target_dir().join("berth"), PathBuf::from).join("berth")
}

/// Runs a command with something on its standard input, which ends then.
pub fn fed(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("run nsenter");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // It need not read to the end.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("wait for it");
    writer.join().expect("no panic");
    output
}

/// What a run of `berth` gave.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; 128 + signal when it was killed.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Node {
    /// `berth` inside, not yet run.
    pub fn berth_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.enclosure().command(berth());
        // A file of the machine it runs on must not change what a test sees.
        command.env("CRI_CONFIG_FILE", "/dev/null").args(["--runtime-endpoint", &self.endpoint()]).args(arguments);
        command
    }

    /// Runs `berth` inside; panics with its output when it fails.
    pub fn berth(&self, arguments: &[&str]) -> String {
        let output = self.berth_command(arguments).output().expect("run nsenter");
        said(&output, &format!("berth {}", arguments.join(" ")))
    }

    /// Runs `berth` inside, however it ends.
    pub fn try_berth(&self, arguments: &[&str]) -> Ran {
        self.berth_command(arguments).output().expect("run nsenter").into()
    }

    /// `berth run ARGUMENTS IMAGE COMMAND…` with its logs in the node's directory.
    pub fn berth_run(&self, arguments: &[&str], command: &[&str]) -> Command {
        let logs = self.dir().join("logs");
        let logs = logs.to_str().expect("a path in UTF-8");
        let all = [&["run", "--log-directory", logs], arguments, &[IMAGE], command].concat();
        self.berth_command(&all)
    }

    /// The JSON document that `berth` prints.
    pub fn berth_json(&self, arguments: &[&str]) -> Value {
        let text = self.berth(arguments);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("berth {}: {e}\n{text}", arguments.join(" ")))
    }

    /// The JSON document that crictl prints.
    pub fn crictl_json(&self, arguments: &[&str]) -> Value {
        let text = self.crictl(arguments);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("crictl {}: {e}\n{text}", arguments.join(" ")))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}
