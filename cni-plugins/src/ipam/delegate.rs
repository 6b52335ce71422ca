//! Runs another IPAM plugin with our own call and configuration, as the contract wants it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use berth_api::cni::call::{Call, Verb, is_name};
use berth_api::cni::error as code;
use berth_api::cni::result::AddResult;
use serde_json::Value;

use crate::config::{Network, same_directory};
use crate::error::Error;

/// The type whose program may be ourselves.
const HOST_LOCAL: &str = "host-local";

/// Most that we read of an answer, in bytes.
const ANSWER_MAX: u64 = 1 << 20;

/// A program of another that hands out addresses.
pub(crate) struct Delegate<'a> {
    pub(crate) kind: &'a str,
    pub(crate) program: PathBuf,
    pub(crate) call: &'a Call,
    pub(crate) network: &'a Network,
}

/// The program of type `kind` in the first directory of `path` that has one; `None` when that is the host-local beside
/// our own program, which is called as a function: a process less.
pub(crate) fn find(kind: &str, path: &[PathBuf]) -> Result<Option<PathBuf>, Error> {
    if !is_name(kind) {
        return Err(Error::config("ipam.type", format!("{kind:?} cannot be the name of a plugin")));
    }
    let found = path.iter().find(|dir| dir.join(kind).is_file());
    if kind != HOST_LOCAL {
        let searched = || path.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":");
        let missing = || Error::config("ipam.type", format!("no plugin {kind:?} in CNI_PATH {:?}", searched()));
        return found.map(|dir| Some(dir.join(kind))).ok_or_else(missing);
    }
    let ours = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let is_ours = |dir: &Path| ours.as_deref().is_some_and(|ours| same_directory(dir, ours));
    Ok(found.filter(|dir| !is_ours(dir)).map(|dir| dir.join(kind)))
}

impl Delegate<'_> {
    /// ADD: addresses in the network's version.
    pub(crate) fn add(&self) -> Result<AddResult, Error> {
        let answer = self.run()?;
        let json: Value = serde_json::from_slice(&answer).map_err(Error::Decode)?;
        let malformed = |e| Error::config(format!("result of {}", self.kind), format!("{e}"));
        AddResult::from_value(json).map(|(_, result)| result).map_err(malformed)
    }

    /// Runs the program with the call's own verb.
    pub(crate) fn run(&self) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Delegate { kind: self.kind.into(), source };
        let mut program = Command::new(&self.program)
            .envs(self.call.env())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let config = Value::Object(self.network.config.clone()).to_string();
        if let Some(mut stdin) = program.stdin.take() {
            match stdin.write_all(config.as_bytes()) {
                // It did not care to read, and its answer says why.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
                result => result.map_err(failed)?,
            }
        }
        let mut answer = Vec::new();
        if let Some(stdout) = program.stdout.take() {
            stdout.take(ANSWER_MAX).read_to_end(&mut answer).map_err(failed)?;
        }
        let status = program.wait().map_err(failed)?;
        if status.success() {
            return Ok(answer);
        }
        match serde_json::from_slice::<code::Error>(&answer) {
            // Plugins of the time before GC and STATUS know no better than to refuse them.
            Ok(error) if matches!(self.call.verb, Verb::Gc | Verb::Status) && refuses_the_verb(&error) => {
                Ok(Vec::new())
            }
            Ok(error) => Err(Error::Delegated(error)),
            Err(_) => Err(failed(std::io::Error::other(format!("{status} without an answer")))),
        }
    }
}

fn refuses_the_verb(error: &code::Error) -> bool {
    error.code == code::INVALID_ENVIRONMENT && error.msg.contains("CNI_COMMAND")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_first_directory_that_has_the_plugin_wins() {
        let root = tempfile::tempdir().unwrap();
        let dirs: Vec<PathBuf> = ["a", "b", "c"].map(|name| root.path().join(name)).to_vec();
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        for dir in &dirs[1..] {
            fs::write(dir.join("dhcp"), "").unwrap();
        }
        assert_eq!(find("dhcp", &dirs).unwrap(), Some(dirs[1].join("dhcp")));
        assert!(find("static", &dirs).unwrap_err().to_string().contains("no plugin \"static\""));
        assert!(find("../sh", &dirs).is_err());
    }

    #[test]
    fn our_own_host_local_is_called_and_not_run() {
        let root = tempfile::tempdir().unwrap();
        let exe = std::env::current_exe().unwrap();
        let ours = root.path().join("link-to-ours");
        std::os::unix::fs::symlink(exe.parent().unwrap(), &ours).unwrap();
        let sibling = exe.with_file_name(HOST_LOCAL);
        let theirs = root.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join(HOST_LOCAL), "").unwrap();
        let made = (!sibling.exists()).then(|| fs::write(&sibling, "").unwrap());
        assert_eq!(find(HOST_LOCAL, &[]).unwrap(), None);
        assert_eq!(find(HOST_LOCAL, &[ours.clone(), theirs.clone()]).unwrap(), None);
        assert_eq!(find(HOST_LOCAL, &[theirs.clone(), ours]).unwrap(), Some(theirs.join(HOST_LOCAL)));
        if made.is_some() {
            fs::remove_file(sibling).unwrap();
        }
    }
}
