//! AppArmor as the kernel has it: whether it is on, which profiles are loaded, and loading the default one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;

/// The profile of containers that name none.
pub(crate) const DEFAULT_PROFILE: &str = "berth-default";

/// Its text.
const DEFAULT_TEXT: &str = include_str!("apparmor.profile");

/// `Y` or `N`. Source: the kernel's Documentation/admin-guide/LSM/apparmor.rst.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";

/// A line per profile that is loaded: `NAME (MODE)`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Compiles and loads profiles; of Debian's package apparmor. The kernel's binary form of a policy is its own affair.
const PARSER: &str = "apparmor_parser";

/// Where it is, when PATH does not say.
const PLACES: &[&str] = &["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Longest run of the parser. It takes about 50 ms.
const DEADLINE: Duration = Duration::from_secs(30);

/// Loads the default profile, once for all who ask at the same time.
pub(crate) struct AppArmor {
    run: PathBuf,
    loading: Mutex<Loading>,
}

#[derive(Default)]
struct Loading {
    /// By this daemon: a profile of the same name may be that of another version.
    done: bool,
}

/// Whether the kernel has AppArmor and it is on.
pub(crate) fn is_on() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
}

/// Whether a profile of this name is loaded.
///
/// # Errors
/// The kernel's list cannot be read; the message says what to do.
pub(crate) fn is_loaded(name: &str) -> Result<bool, String> {
    let text = fs::read_to_string(LOADED)
        .map_err(|e| format!("read {LOADED}: {e}; is securityfs mounted at /sys/kernel/security?"))?;
    Ok(text.lines().any(|line| loaded_name(line) == name))
}

/// `NAME (MODE)`, where a name may hold spaces and parentheses.
fn loaded_name(line: &str) -> &str {
    line.rsplit_once(" (").map_or(line, |(name, _)| name)
}

/// The parser's path.
///
/// # Errors
/// It is not installed; the message says what to do.
pub(crate) fn parser() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(PLACES.iter().map(PathBuf::from));
    let mut found = places.map(|place| place.join(PARSER)).filter(|path| path.is_file());
    found.next().ok_or_else(|| format!("{PARSER} is not installed; install Debian's package apparmor, or its like"))
}

impl AppArmor {
    /// For the daemon with this run root.
    pub(crate) fn new(run: &Path) -> Self {
        Self { run: run.to_owned(), loading: Mutex::default() }
    }

    /// Sees to it that [`DEFAULT_PROFILE`] is loaded as this berthd has it. Another one may have unloaded it meanwhile.
    ///
    /// # Errors
    /// There is no parser, or it fails; in words for the operator.
    pub(crate) async fn load_default(&self) -> Result<(), String> {
        let mut loading = self.loading.lock().await;
        if loading.done && is_loaded(DEFAULT_PROFILE)? {
            return Ok(());
        }
        load(&parser()?, &self.run, DEFAULT_TEXT).await?;
        loading.done = true;
        Ok(())
    }
}

async fn load(parser: &Path, run: &Path, text: &str) -> Result<(), String> {
    let problem = |e: io::Error| format!("run {}: {e}", parser.display());
    let mut command = Command::new(parser);
    crate::errands::mark(&mut command, run);
    // The compiled form is not kept: the machine's cache directory is its owner's.
    command.args(["--replace", "--skip-cache"]).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(problem)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends before it has read all says why on its stderr.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let said = tokio::time::timeout(DEADLINE, child.wait_with_output()).await;
    let said = said.map_err(|_| format!("{} did not end within {} s", parser.display(), DEADLINE.as_secs()))?;
    let said = said.map_err(problem)?;
    if said.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&said.stderr);
    Err(format!("{} on {DEFAULT_PROFILE}: {}: {}", parser.display(), said.status, stderr.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loaded_profiles_name_may_hold_anything() {
        for (line, name) in [
            ("berth-default (enforce)", "berth-default"),
            ("/usr/bin/man (groff) (complain)", "/usr/bin/man (groff)"),
            ("with space (enforce)", "with space"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(loaded_name(line), name);
        }
    }

    #[tokio::test]
    async fn a_parser_that_fails_is_quoted() {
        let dir = tempfile::tempdir().expect("make a directory");
        let parser = dir.path().join("parser");
        std::fs::write(&parser, "#!/bin/sh\necho \"syntax error, line 3\" >&2\nexit 7\n").expect("write it");
        std::fs::set_permissions(&parser, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("let it run");
        let error = load(&parser, dir.path(), "x").await.expect_err("it fails");
        assert!(error.contains("syntax error, line 3") && error.contains("exit status: 7"), "{error}");
    }
}
