//! `berth-pod-ns` as the daemon runs it. Needs root.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A pod's run directory; whatever is pinned in it is let go at the end.
struct Pod {
    directory: tempfile::TempDir,
}

impl Pod {
    fn new() -> Pod {
        Pod { directory: tempfile::tempdir().expect("temporary directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn order(&self, namespaces: &[&str]) -> Value {
        json!({"dir": self.path("ns"), "namespaces": namespaces})
    }

    fn keeper(&self, order: &Value) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_berth-pod-ns"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run the keeper");
        child.stdin.take().expect("stdin").write_all(order.to_string().as_bytes()).expect("write the order");
        child.wait_with_output().expect("its answer")
    }

    fn made(&self, order: &Value) -> Value {
        let output = self.keeper(order);
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert!(output.status.success(), "{answer}");
        answer
    }

    fn failed(&self, order: &Value) -> Value {
        let output = self.keeper(order);
        assert_eq!(output.status.code(), Some(1));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Mount points below the pod's directory.
    fn mounts(&self) -> Vec<String> {
        let inside = self.directory.path().display().to_string();
        let all = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let points = all.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.starts_with(&inside)).map(str::to_owned).collect()
    }

    /// Living processes of a pinned namespace.
    fn inhabitants(&self, pin: &str) -> Vec<Pid> {
        let pinned = fs::metadata(self.path("ns").join(pin)).expect("a pin").ino();
        let all = fs::read_dir("/proc").expect("processes").filter_map(Result::ok);
        all.filter(|entry| fs::metadata(entry.path().join("ns").join(pin)).is_ok_and(|own| own.ino() == pinned))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
            .filter(|pid| alive(*pid))
            .collect()
    }

    /// Runs a command in a pinned namespace.
    fn within(&self, option: &str, pin: &str, command: &[&str]) -> String {
        let argument = format!("--{option}={}", self.path("ns").join(pin).display());
        let output = Command::new("nsenter").arg(argument).args(command).output().expect("nsenter");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Only where a test has failed half-way.
        let record = fs::read_to_string(self.path("ns/keeper")).unwrap_or_default();
        if let Some(pid) = record.trim().parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        for point in self.mounts().iter().rev() {
            let _ = rustix::mount::unmount(point.as_str(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn until(what: &str, mut happens: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !happens() {
        assert!(begin.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pid_of(answer: &Value) -> Pid {
    let number = answer["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
    Pid::from_raw(number).expect("a pid")
}

/// 0, 1 and 2 and the signals: that by which it said that it is ready may go a moment later.
fn only_its_own_are_open(pid: Pid) {
    until("only its four descriptors are open", || {
        fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).expect("its descriptors").count() == 4
    });
}

fn alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn namespaces_are_pinned_with_lo_up_names_sysctls_and_shm() {
    let pod = Pod::new();
    let mut order = pod.order(&["network", "ipc", "uts"]);
    order["hostname"] = json!("web-0");
    order["sysctls"] = json!({"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "12345"});
    order["shm"] = json!({"path": pod.path("shm"), "size_bytes": 1 << 20});
    assert_eq!(pod.made(&order), json!({}));

    for (pin, own) in [("net", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        let pinned = fs::metadata(pod.path("ns").join(pin)).expect("a pin").ino();
        assert_ne!(pinned, fs::metadata(Path::new("/proc/self/ns").join(own)).expect("ours").ino(), "{pin}");
    }
    assert!(pod.within("net", "net", &["ip", "-br", "link", "show", "lo"]).contains("UNKNOWN"));
    assert_eq!(pod.within("uts", "uts", &["hostname"]), "web-0\n");
    assert_eq!(pod.within("net", "net", &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]), "0\n");
    assert_eq!(pod.within("ipc", "ipc", &["cat", "/proc/sys/kernel/shmmax"]), "12345\n");
    let shm = rustix::fs::statvfs(pod.path("shm")).expect("a file system");
    assert_eq!(shm.f_blocks * shm.f_frsize, 1 << 20);
    assert_eq!(pod.mounts().len(), 4);
}

#[test]
fn a_user_namespace_owns_the_others() {
    for shared_pid in [false, true] {
        let pod = Pod::new();
        let mut order = pod.order(&["network", "ipc", "uts", "pid"][..if shared_pid { 4 } else { 3 }]);
        let ids = |host: u32| json!([{"container": 0, "host": host, "length": 1000}]);
        order["user"] = json!({"uids": ids(200_000), "gids": ids(300_000)});
        order["hostname"] = json!("web-0");
        order["sysctls"] = json!({"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "12345"});
        order["shm"] = json!({"path": pod.path("shm"), "size_bytes": 1 << 20});
        let answer = pod.made(&order);
        assert_eq!(answer.get("pid").is_some(), shared_pid);
        let map = pod.within("user", "user", &["cat", "/proc/self/uid_map", "/proc/self/gid_map"]);
        let words: Vec<_> = map.split_whitespace().collect();
        assert_eq!(words, ["0", "200000", "1000", "0", "300000", "1000"]);
        // Who is root there, and nowhere else, may enter the others and change them.
        let owns = format!(
            "nsenter -S0 -G0 --user={0}/user --net={0}/net --ipc={0}/ipc --uts={0}/uts \
             sh -c 'hostname; hostname changed; hostname; ip link set lo mtu 1000; cat /proc/sys/kernel/shmmax'",
            pod.path("ns").display()
        );
        let output = Command::new("sh").args(["-c", &owns]).output().expect("sh");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "web-0\nchanged\n12345\n");
        let shm = fs::metadata(pod.path("shm")).expect("a file system");
        assert_eq!((shm.uid(), shm.gid()), (200_000, 300_000));
        assert_eq!(pod.mounts().len(), 5 + usize::from(shared_pid));
        if shared_pid {
            kill_process(pid_of(&answer), Signal::TERM).expect("kill");
        }
        until("nobody is left in it", || pod.inhabitants("user").is_empty());
    }
}

#[test]
fn pid_1_stays_reaps_and_minds_only_the_node() {
    let pod = Pod::new();
    let answer = pod.made(&pod.order(&["network", "pid"]));
    let pid = pid_of(&answer);
    let raw = pid.as_raw_nonzero();
    assert_eq!(fs::read_to_string(format!("/proc/{raw}/comm")).expect("comm"), "berth-pod-ns\n");
    assert_eq!(fs::read_to_string(pod.path("ns/keeper")).expect("its record"), format!("{raw}\n"));
    only_its_own_are_open(pid);

    // An orphan of the pod becomes its child and is reaped; so does the shell itself.
    let pin = format!("--pid={}", pod.path("ns/pid").display());
    let shell = |script: &str| Command::new("nsenter").args([&pin, "sh", "-c", script]).output().expect("nsenter");
    let output = shell("(sleep 0.05 &) ; echo $$; kill -TERM 1; kill -INT 1; kill -9 1");
    assert!(String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().expect("a pid") > 1);
    let children = format!("/proc/{raw}/task/{raw}/children");
    until("the orphan is reaped", || fs::read_to_string(&children).expect("children").is_empty());
    assert!(alive(pid), "signals from inside the pod end it");

    kill_process(pid, Signal::TERM).expect("signal it from outside");
    until("it has ended", || !alive(pid));
}

#[test]
fn pid_1_has_nothing_to_look_through_and_no_rights() {
    for users in [false, true] {
        let pod = Pod::new();
        let mut order = pod.order(&["network", "ipc", "uts", "pid"]);
        if users {
            let ids = json!([{"container": 0, "host": 200_000, "length": 65536}]);
            order["user"] = json!({"uids": ids, "gids": ids});
        }
        let pid = pid_of(&pod.made(&order));
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let read = |name: &str| fs::read_to_string(proc.join(name)).expect("read its file");

        let mounts = read("mountinfo");
        let [mount] = mounts.lines().collect::<Vec<_>>()[..] else { panic!("the host's mounts: {mounts}") };
        let words: Vec<_> = mount.split(' ').collect();
        assert_eq!((words[4], words[5]), ("/", "ro,nosuid,nodev,noexec,relatime"), "{mount}");
        assert_eq!(fs::read_dir(proc.join("root/")).expect("its root").count(), 0);
        assert_eq!(fs::read_link(proc.join("cwd")).expect("its directory"), Path::new("/"));
        only_its_own_are_open(pid);
        for fd in fs::read_dir(proc.join("fd")).expect("its descriptors") {
            let file = fs::read_link(fd.expect("an entry").path()).expect("a link").display().to_string();
            assert!(file.starts_with("pipe:") || file == "anon_inode:[signalfd]", "{file}");
        }

        // A handle on it may be kept until nobody runs it.
        let exe = rustix::fs::statvfs(proc.join("exe")).expect("its program's file system");
        assert!(exe.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));

        let status = read("status");
        let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).expect("a line of it").trim();
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(of(set), "0000000000000000", "{set}");
        }
        assert_eq!((of("NoNewPrivs:"), of("Seccomp:")), ("1", "2"));

        kill_process(pid, Signal::TERM).expect("signal it from outside");
        until("it has ended", || !alive(pid));
    }
}

#[test]
fn an_order_that_fails_leaves_nothing() {
    let pod = Pod::new();
    let mut order = pod.order(&["network", "ipc", "uts", "pid"]);
    order["shm"] = json!({"path": pod.path("missing/shm"), "size_bytes": 4096});
    let answer = pod.failed(&order);
    let text = answer["error"].as_str().expect("text");
    assert!(text.contains("missing/shm") && text.contains("No such file"), "{text}");
    assert!(pod.mounts().is_empty());
    assert_eq!(fs::read_dir(pod.directory.path()).expect("read it").count(), 0);
}

#[test]
fn a_pin_that_exists_is_not_touched_and_pid_1_goes_again() {
    let pod = Pod::new();
    fs::create_dir(pod.path("ns")).expect("mkdir");
    fs::write(pod.path("ns/pid"), "somebody's").expect("write");
    let answer = pod.failed(&pod.order(&["network", "pid"]));
    assert_eq!(answer["step"], "ns-pin");
    assert_eq!(fs::read_to_string(pod.path("ns/pid")).expect("read"), "somebody's");
    assert_eq!(fs::read_dir(pod.path("ns")).expect("read it").count(), 1);
    assert!(pod.mounts().is_empty());
}

#[test]
fn what_would_change_the_host_is_refused() {
    let pod = Pod::new();
    for (name, namespaces) in [
        ("kernel.panic", vec!["network", "ipc"]),
        ("kernel.shmmax", vec!["network"]),
        ("net.ipv4.ip_forward", vec!["ipc"]),
    ] {
        let mut order = pod.order(&namespaces);
        order["sysctls"] = json!({name: "1"});
        assert_eq!(pod.failed(&order)["step"], "sysctl", "{name}");
    }
    let mut order = pod.order(&["network"]);
    order["hostname"] = json!("host");
    assert_eq!(pod.failed(&order)["step"], "hostname");
    let answer = pod.failed(&json!({"dir": "/nowhere", "namespaces": ["time"]}));
    assert_eq!(answer["step"], "read-order");
}

/// What has one where SELinux is on, `hack/vm selinux` shows.
#[test]
fn a_label_that_cannot_be_is_told_and_nothing_is_left() {
    assert!(!Path::new("/sys/fs/selinux/enforce").exists(), "these tests are for a kernel without it");
    let pod = Pod::new();
    let labels = json!({"process": "u:r:t:s0:c1,c2", "mount": "u:r:f:s0:c1,c2"});
    for (namespaces, shm, step) in
        [(&["uts", "pid"][..], false, "pid-1"), (&["ipc"], false, "mqueue-label"), (&["ipc"], true, "shm-mount")]
    {
        let mut order = pod.order(namespaces);
        order["labels"] = labels.clone();
        if shm {
            order["shm"] = json!({"path": pod.path("shm"), "size_bytes": 65536});
        }
        let answer = pod.failed(&order);
        assert_eq!(answer["step"], step, "{answer}");
        assert_eq!(pod.mounts(), Vec::<String>::new());
        assert!(!pod.path("ns").exists() && !pod.path("shm").exists(), "{answer}");
    }
}
