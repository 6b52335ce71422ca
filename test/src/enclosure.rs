//! A network, mount and pid namespace in which a node lives, so that tests run side by side and whatever a test leaves
//! running ends with it, even when the test is killed. Its process 1 is the binary `enclosure`.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

/// Namespaces that last as long as this value, or the process that holds it.
pub struct Enclosure {
    unshare: Child,
    /// Its end is process 1's sign to go, which takes every other process along.
    life: Option<ChildStdin>,
    init: u32,
}

impl Enclosure {
    /// Makes the namespaces and brings the loopback interface up.
    pub fn new() -> Self {
        // Private propagation, so that no mount of a test is seen outside; and then shared inside, as on every host with
        // systemd, so that what somebody mounts for himself alone is seen when it is not.
        let mut unshare = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "--propagation", "private", "--pid", "--fork", "--mount-proc"])
            .args(["sh", "-euc", "mount --make-rshared / && exec \"$0\""])
            .arg(tool("enclosure"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("run unshare (hack/deps installs it; these tests run as root)");
        let life = unshare.stdin.take().expect("stdin is piped");
        let mut ready = String::new();
        BufReader::new(unshare.stdout.take().expect("stdout is piped"))
            .read_line(&mut ready)
            .expect("read what the enclosure says");
        assert_eq!(ready.trim(), "ready", "enclosure did not come up: is this root?");
        // The kernel shows unshare's only child; inside it is process 1.
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = std::fs::read_to_string(&children).expect("read unshare's children");
        let init = init.trim().parse().expect("unshare has one child");
        Self { unshare, life: Some(life), init }
    }

    /// Process 1, as seen from outside.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// A command that will run inside, in the current directory's counterpart.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string(), "--net", "--mount", "--uts", "--pid", "--"])
            .arg(program.as_ref())
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell script inside; panics with its output when it fails.
    pub fn shell(&self, script: &str) -> String {
        let output = self.command("sh").args(["-euc", script]).output().expect("run nsenter");
        said(&output, script)
    }

    /// A file inside, as seen from outside: also through mounts that only the enclosure has.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new("/proc")
            .join(self.init.to_string())
            .join("root")
            .join(inside.strip_prefix("/").expect("an absolute path"))
    }

    /// Processes inside, as (pid inside, command line), without process 1 and zombies.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.path("/proc")).expect("the enclosure runs").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if pid != 1 && !line.is_empty() {
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()));
            }
        }
        found
    }

    /// How many processes have exactly this command line.
    pub fn running(&self, line: &str) -> usize {
        self.processes().iter().filter(|(_, found)| found == line).count()
    }

    /// Sends a signal to every process with all of these words in its command line, and gives their number. To kill what
    /// merely entered the enclosure would not do: that waits for the program that it runs.
    pub fn kill_by_words(&self, words: &[&str], signal: &str) -> usize {
        let is_meant = |line: &str| !line.starts_with("nsenter ") && words.iter().all(|word| line.contains(word));
        let meant: Vec<_> = self.processes().into_iter().filter(|(_, line)| is_meant(line)).collect();
        meant.iter().for_each(|(pid, _)| self.kill(*pid, signal));
        meant.len()
    }

    /// Ends every process inside; the namespaces go with the last of them.
    pub fn end(&mut self) {
        // Process 1 ends with its standard input; the kernel kills and reaps the rest before `unshare` is told.
        drop(self.life.take());
        let _ = self.unshare.wait();
    }

    /// Sends a signal to a process by its pid inside.
    pub fn kill(&self, pid: u32, signal: &str) {
        self.shell(&format!("kill -{signal} {pid}"));
    }
}

impl Default for Enclosure {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        self.end();
    }
}

/// Another binary of this crate, beside the one that runs (a test runs from the folder `deps` below it).
pub fn tool(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("the path of this program");
    let beside = me.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.exists());
    beside.unwrap_or_else(|| panic!("{name} is not beside {}; build the package with its binaries", me.display()))
}

/// A script of this repository.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack").join(name)
}

/// Where cargo and the scripts put what they build.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(dir).expect("the current directory"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
    }
}

/// Standard output of a command that succeeded; panics with everything it said otherwise.
pub fn said(output: &Output, what: &str) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{out}{err}", output.status);
    out.into_owned()
}
