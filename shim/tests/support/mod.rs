//! A container to try things in: a busybox root, a spec to change, stdio as pipes, and cleaning up afterwards.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_shim::runtime::{self, Container, CreateRequest, Error, MountSpec, Stdio};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{WaitId, WaitIdOptions};
use serde_json::{Value, json};

/// From Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";

/// One bundle with its root, as directories of its own; all removed at the end.
pub struct Bundle {
    pub directory: tempfile::TempDir,
    pub spec: Value,
    pub id: String,
}

/// What a container said and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    /// Exit code, or 128 + signal.
    pub status: i32,
}

impl Bundle {
    /// `sh -c SCRIPT` with the mounts, namespaces and capabilities a usual container has.
    pub fn sh(script: &str) -> Bundle {
        Bundle::args(&["sh", "-c", script])
    }

    pub fn args(args: &[&str]) -> Bundle {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::tempdir().expect("temporary directory");
        let id = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let spec = usual_spec(args, &id);
        let bundle = Bundle { directory, spec, id };
        bundle.lay_out_root();
        bundle
    }

    fn lay_out_root(&self) {
        let lower = self.path("lower");
        for directory in ["bin", "etc", "tmp", "root"] {
            fs::create_dir_all(lower.join(directory)).expect("make the root");
        }
        fs::copy(BUSYBOX, lower.join("bin/busybox")).expect("apt-get install busybox-static");
        for applet in ["sh", "cat", "ls", "id", "sleep", "mount", "grep", "stat", "true", "readlink", "wc", "env", "tr"]
            .iter()
            .chain(&[
                "hostname", "touch", "dd", "mknod", "mkdir", "ip", "pwd", "test", "tty", "stty", "head", "ps", "chmod",
            ])
            .chain(&[
                "nc", "kill", "date", "ln", "umount", "find", "basename", "seq", "od", "sort", "unshare", "hexdump",
            ])
        {
            std::os::unix::fs::symlink("busybox", lower.join("bin").join(applet)).expect("link");
        }
        for directory in ["upper", "work"] {
            fs::create_dir(self.path(directory)).expect("make the layers");
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The lower layer: what the image holds.
    pub fn image(&self) -> PathBuf {
        self.path("lower")
    }

    pub fn cgroup(&self) -> String {
        self.spec["linux"]["cgroupsPath"].as_str().expect("a path").to_owned()
    }

    pub fn overlay(&self) -> MountSpec {
        let at = |name: &str| self.path(name).display().to_string();
        MountSpec {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", at("lower")),
                format!("upperdir={}", at("upper")),
                format!("workdir={}", at("work")),
            ],
        }
    }

    pub fn mount(mut self, mount: Value) -> Bundle {
        self.spec["mounts"].as_array_mut().expect("mounts").push(mount);
        self
    }

    pub fn set(mut self, pointer: &str, value: Value) -> Bundle {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        self.spec.pointer_mut(parent).unwrap_or_else(|| panic!("{parent} is there"))[key] = value;
        self
    }

    pub fn create(&self, rootfs: Vec<MountSpec>, stdio: Stdio) -> Result<runtime::Parked, Error> {
        fs::write(self.path("config.json"), self.spec.to_string()).expect("write the spec");
        runtime::create(CreateRequest { id: &self.id, bundle: self.directory.path(), rootfs, stdio })
    }

    /// Creates it, lets it go, and waits for its end.
    pub fn run(&self) -> Result<Ended, Error> {
        self.run_on(self.overlay())
    }

    pub fn run_on(&self, rootfs: MountSpec) -> Result<Ended, Error> {
        let (stdio, output) = pipes();
        let parked = self.create(vec![rootfs], stdio)?;
        let container = parked.container;
        let started = parked.gate.open().and_then(|report| report.outcome());
        let ended = output.finish(&container.pidfd);
        container.cgroup.kill().expect("kill what is left");
        container.cgroup.remove().expect("remove the cgroup");
        started.map(|()| ended)
    }

    /// Creates it and lets it go; the caller ends it with `end`.
    pub fn start(&self) -> (Container, Output) {
        let (stdio, output) = pipes();
        let parked = self.create(vec![self.overlay()], stdio).expect("create");
        parked.gate.open().expect("open the gate").outcome().expect("exec");
        (parked.container, output)
    }
}

/// Kills a container and takes everything away.
pub fn end(container: Container) {
    container.cgroup.kill().expect("kill");
    wait(&container.pidfd);
    container.cgroup.remove().expect("remove the cgroup");
}

/// The reading ends of a process's stdout and stderr.
pub struct Output {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Output {
    /// Reads to the end, and reaps.
    pub fn finish(self, pidfd: &OwnedFd) -> Ended {
        let read = |fd: OwnedFd| {
            let mut text = Vec::new();
            fs::File::from(fd).read_to_end(&mut text).expect("read its output");
            String::from_utf8_lossy(&text).into_owned()
        };
        let (stdout, stderr) = (read(self.stdout), read(self.stderr));
        Ended { stdout, stderr, status: wait(pidfd) }
    }
}

pub fn pipes() -> (Stdio, Output) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
    let null = fs::File::open("/dev/null").expect("open /dev/null");
    let ((out, stdout), (err, stderr)) = (pipe(), pipe());
    (Stdio::Pipes { stdin: null.into(), stdout, stderr }, Output { stdout: out, stderr: err })
}

/// Waits for a child's end: exit code, or 128 + signal.
pub fn wait(pidfd: &OwnedFd) -> i32 {
    use std::os::fd::AsFd;
    let mut readable = [PollFd::new(pidfd, PollFlags::IN)];
    let deadline = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_ne!(rustix::event::poll(&mut readable, Some(&deadline)), Ok(0), "it did not end within 20 s");
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).expect("wait");
    let status = status.expect("an end");
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0))
}

pub fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Asks again and again for ten seconds.
pub fn until(what: &str, mut happens: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !happens() {
        assert!(begin.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The container's path below every cgroup root that has it.
pub fn cgroup_directories(path: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    // A hierarchy with several controllers has a link for each.
    let entries = fs::read_dir(root).expect("cgroups").flatten();
    let below = entries.filter(|entry| !entry.path().is_symlink()).map(|entry| entry.path());
    let relative = path.trim_start_matches('/');
    below.chain([root.to_owned()]).map(|root| root.join(relative)).filter(|path| path.is_dir()).collect()
}

fn usual_spec(args: &[&str], id: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "ociVersion": "1.3.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
        },
        "root": {"path": "rootfs"},
        "hostname": "berth-test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "cgroupsPath": format!("/berth-test-{id}"),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
                {"type": "cgroup"}
            ],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
