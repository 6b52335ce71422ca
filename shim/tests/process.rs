//! What a container's processes are: user, capabilities, filter, limits, terminal; and execs. Needs root and
//! busybox-static.

mod support;

use std::io::{Read, Write};

use berth_shim::runtime::{Container, Error, Kind, Stdio};
use oci_spec::runtime::Process;
use serde_json::{Value, json};
use support::*;

fn status(ended: &Ended, field: &str) -> String {
    let line = ended.stdout.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("{ended:?}"));
    line.split_once(':').expect("a value").1.trim().to_owned()
}

/// Capability sets as numbers.
fn caps(ended: &Ended) -> [u64; 5] {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
        .map(|field| u64::from_str_radix(&status(ended, field), 16).expect("hexadecimal"))
}

const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const NET_RAW: u64 = 1 << 13;

#[test]
fn root_gets_its_bounding_set_and_nothing_inheritable() {
    let set = json!(["CAP_CHOWN", "CAP_KILL"]);
    let ended = Bundle::sh("cat /proc/self/status")
        .set("/process/capabilities", json!({"bounding": set, "permitted": set, "effective": set}))
        .run()
        .expect("run");
    let both = CHOWN | KILL;
    assert_eq!(caps(&ended), [0, both, both, both, 0]);
    assert_eq!(status(&ended, "NoNewPrivs"), "1");
}

#[test]
fn a_user_without_ambient_capabilities_has_none() {
    // CVE-2016-8867: what is in the bounding set alone is not in anybody's hands.
    let ended = Bundle::sh("cat /proc/self/status; id")
        .set("/process/user", json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6]}))
        .run()
        .expect("run");
    let [inheritable, permitted, effective, bounding, ambient] = caps(&ended);
    assert_eq!([inheritable, permitted, effective, ambient], [0; 4]);
    assert_ne!(bounding, 0);
    assert_eq!(status(&ended, "Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(status(&ended, "Gid"), "1001\t1001\t1001\t1001");
    assert_eq!(status(&ended, "Groups"), "5 6");
}

#[test]
fn ambient_capabilities_reach_a_user() {
    let set = json!(["CAP_NET_RAW"]);
    let ended = Bundle::sh("cat /proc/self/status")
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .set(
            "/process/capabilities",
            json!({"bounding": set, "permitted": set, "effective": set, "inheritable": set, "ambient": set}),
        )
        .run()
        .expect("run");
    assert_eq!(caps(&ended), [NET_RAW; 5]);
}

#[test]
fn a_filter_without_no_new_privs_leaves_no_capability_behind() {
    let set = json!(["CAP_CHOWN"]);
    for (uid, expected) in [(0, CHOWN), (1000, 0)] {
        let ended = Bundle::sh("cat /proc/self/status")
            .set("/process/user", json!({"uid": uid, "gid": uid}))
            .set("/process/capabilities", json!({"bounding": set, "permitted": set, "effective": set}))
            .set("/process/noNewPrivileges", json!(false))
            .set("/linux/seccomp", filter("ptrace"))
            .run()
            .expect("run");
        assert_eq!(caps(&ended), [0, expected, expected, CHOWN, 0], "user {uid}");
        assert_eq!(status(&ended, "Seccomp"), "2");
        assert_eq!(status(&ended, "NoNewPrivs"), "0");
    }
}

/// Everything but one call, which fails with EXDEV.
fn filter(call: &str) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV}]})
}

#[test]
fn a_filtered_call_fails_in_the_init_and_in_execs() {
    let bundle = Bundle::sh("mkdir /x; sleep 60").set("/linux/seccomp", filter("mkdir"));
    let (container, _output) = bundle.start();
    let ended = exec(&container, json!({"args": ["mkdir", "/y"]}));
    assert_eq!(ended.stderr, "mkdir: can't create directory '/y': Invalid cross-device link\n");
    let ended = exec(&container, json!({"args": ["test", "-e", "/x"]}));
    assert_eq!(ended.status, 1, "the init's mkdir was let through");
    end(container);
}

#[test]
fn limits_umask_and_oom_score_are_set() {
    let bundle = Bundle::sh("ulimit -n; ulimit -Hn; umask; cat /proc/self/oom_score_adj")
        .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]))
        .set("/process/user", json!({"uid": 0, "gid": 0, "umask": 0o27}))
        .set("/process/oomScoreAdj", json!(500));
    let ended = bundle.run().expect("run");
    assert_eq!(ended.stdout, "100\n200\n0027\n500\n");
}

#[test]
fn what_the_host_withholds_is_lowered_and_told() {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let held = rustix::thread::capabilities(None).expect("capabilities").permitted;
    if held.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) {
        // This host withholds nothing of it; then nothing may be told either.
        let bundle = Bundle::sh("true").set("/process/oomScoreAdj", json!(-998));
        let (stdio, output) = pipes();
        let parked = bundle.create(vec![bundle.overlay()], stdio).expect("create");
        assert_eq!(parked.container.effective, Default::default());
        drop(parked.gate);
        output.finish(&parked.container.pidfd);
        parked.container.cgroup.remove().expect("remove");
        return;
    }
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj").expect("read").trim().parse().expect("a number");
    let all = json!(["CAP_CHOWN", "CAP_SYS_RESOURCE"]);
    let bundle = Bundle::sh("ulimit -Hn; cat /proc/self/oom_score_adj; sleep 60")
        .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 1 << 30, "hard": 1 << 30}]))
        .set("/process/capabilities", json!({"bounding": all, "permitted": all, "effective": all}))
        .set("/process/oomScoreAdj", json!(-998));
    let (container, _output) = bundle.start();
    let effective = &container.effective;
    assert_eq!(effective.oom_score_adj, Some(own));
    assert_eq!(effective.withheld_capabilities, ["CAP_SYS_RESOURCE"]);
    let hard = hard.expect("a limit");
    assert_eq!(effective.lowered_rlimits, [("RLIMIT_NOFILE".to_owned(), hard, hard)]);
    end(container);
}

#[test]
fn environment_values_are_bytes() {
    let ended = Bundle::sh("env | tr '\\377' Y | sort")
        .set("/process/env", json!(["IGNORED=1"]))
        .set("/annotations", json!({"dev.berth.env": "UEFUSD0vYmluAEI9/ng9AA=="}))
        .run()
        .expect("run");
    // "PATH=/bin", "B=\xfex="
    assert!(ended.stdout.contains("PATH=/bin\n") && !ended.stdout.contains("IGNORED"), "{}", ended.stdout);
}

#[test]
fn signals_are_at_their_defaults() {
    let ended = Bundle::args(&["cat", "/proc/self/status"]).run().expect("run");
    assert_eq!(status(&ended, "SigBlk"), "0000000000000000");
    assert_eq!(status(&ended, "SigIgn"), "0000000000000000", "Rust's runtime ignores SIGPIPE");
}

/// A process as `Container::exec` takes it, with the usual capabilities where none are given.
fn process(changes: Value) -> Process {
    let mut whole = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": []});
    for (key, value) in changes.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    serde_json::from_value(whole).expect("a process")
}

fn try_exec(container: &Container, changes: Value) -> Result<Ended, Error> {
    let (stdio, output) = pipes();
    let execed = container.exec(&process(changes), stdio)?;
    let outcome = execed.report.outcome();
    let ended = output.finish(&execed.pidfd);
    outcome.map(|()| ended)
}

fn exec(container: &Container, changes: Value) -> Ended {
    try_exec(container, changes).expect("exec")
}

#[test]
fn an_exec_is_in_the_container_with_what_it_was_given() {
    let bundle = Bundle::sh("sleep 60").set("/process/env", json!(["PATH=/bin", "OF=init"]));
    let (container, _output) = bundle.start();
    let script = "echo $$ $OF; hostname; pwd; for k in mnt net pid ipc uts cgroup; do \
        test $(readlink /proc/self/ns/$k) = $(readlink /proc/1/ns/$k) && echo same; done; ls /proc/self/fd; \
        test \"$(cat /proc/self/cgroup)\" = \"$(cat /proc/1/cgroup)\" && echo cgroup; exit 7";
    // To look at the init's links one must have at least its capabilities.
    let look = json!(["CAP_SYS_PTRACE"]);
    let look = json!({"bounding": look, "permitted": look, "effective": look});
    let ended = exec(&container, json!({"args": ["sh", "-c", script], "cwd": "/tmp", "capabilities": look}));
    let mut lines = ended.stdout.lines();
    let first = lines.next().expect("a line");
    assert!(first.ends_with(" init") && first != "1 init", "{first}");
    let rest: Vec<&str> = lines.collect();
    let expected = ["berth-test", "/tmp", "same", "same", "same", "same", "same", "same", "0", "1", "2", "3", "cgroup"];
    assert_eq!(rest, expected, "{}", ended.stderr);
    assert_eq!(ended.status, 7);

    let ended = exec(&container, json!({"args": ["env"], "env": ["PATH=/bin", "ONLY=this"]}));
    assert_eq!(ended.stdout, "PATH=/bin\nONLY=this\n");
    let ended = exec(&container, json!({"args": ["id"], "user": {"uid": 12, "gid": 34, "additionalGids": [56]}}));
    assert_eq!(ended.stdout, "uid=12 gid=34 groups=56\n");
    let set = json!(["CAP_CHOWN"]);
    let capabilities = json!({"bounding": set, "permitted": set, "effective": set});
    let ended = exec(&container, json!({"args": ["cat", "/proc/self/status"], "capabilities": capabilities}));
    // CVE-2022-29162: nothing inheritable.
    assert_eq!(caps(&ended), [0, CHOWN, CHOWN, CHOWN, 0]);

    let error = try_exec(&container, json!({"args": ["nosuch"]})).expect_err("no such program");
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NotFound, "exec \"nosuch\""));
    let error = try_exec(&container, json!({"args": ["true"], "cwd": "/no/such"})).expect_err("no such directory");
    assert_eq!(error.message(), "enter the working directory \"/no/such\": No such file or directory (os error 2)");
    // What this thread clones is the host's again.
    let own = std::fs::read_link("/proc/self/ns/pid").expect("a link");
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/pid_for_children").expect("a link"), own);
    end(container);
}

#[test]
fn an_exec_into_an_ended_container_is_not_running() {
    let bundle = Bundle::sh("true");
    let (container, output) = bundle.start();
    until("it has ended", || {
        std::fs::read_to_string(format!("/proc/{}/stat", container.pid)).is_ok_and(|s| s.contains(") Z "))
    });
    let error = try_exec(&container, json!({"args": ["true"]})).expect_err("ended");
    assert_eq!(error.kind(), Kind::NotRunning);
    output.finish(&container.pidfd);
    let error = try_exec(&container, json!({"args": ["true"]})).expect_err("reaped");
    assert_eq!(error.kind(), Kind::NotRunning);
    container.cgroup.remove().expect("remove");
}

#[test]
fn execs_end_with_the_container() {
    let bundle = Bundle::sh("sleep 60");
    let (container, _output) = bundle.start();
    let (stdio, output) = pipes();
    let execed = container.exec(&process(json!({"args": ["sleep", "60"]})), stdio).expect("exec");
    execed.report.outcome().expect("exec");
    assert_eq!(container.cgroup.pids().expect("pids").len(), 2);
    container.cgroup.kill().expect("kill");
    assert_eq!(output.finish(&execed.pidfd).status, 128 + 9);
    assert_eq!(wait(&container.pidfd), 128 + 9);
    container.cgroup.remove().expect("remove");
}

/// Reads from a pty's master until its text appears.
fn read_until(master: &mut std::fs::File, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains(wanted) {
        let read = master.read(&mut buffer).expect("read the terminal");
        assert_ne!(read, 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    text
}

#[test]
fn a_terminal_is_the_containers_own() {
    let script = "tty; stty size; ls -l /dev/console | grep -c 136; test -c /dev/console && echo console; \
        stat -c %u /dev/pts/0; ps -o pid,tty | grep -c 136; read line; echo \"<$line>\"; sleep 60";
    let bundle = Bundle::sh(script)
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({"height": 33, "width": 99}))
        .set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let parked = bundle.create(vec![bundle.overlay()], Stdio::Terminal).expect("create");
    let mut master = std::fs::File::from(parked.console.expect("a master"));
    parked.gate.open().expect("open").outcome().expect("exec");
    let container = parked.container;
    let text = read_until(&mut master, "1000\r\n");
    assert!(text.starts_with("/dev/console\r\n33 99\r\n") || text.starts_with("/dev/pts/0\r\n33 99\r\n"), "{text}");
    assert!(text.contains("console\r\n"), "{text}");
    master.write_all(b"typed\n").expect("type");
    read_until(&mut master, "<typed>");

    let second =
        container.exec(&process(json!({"args": ["sh", "-c", "tty; echo $-"], "terminal": true})), Stdio::Terminal);
    let second = second.expect("exec");
    let mut other = std::fs::File::from(second.console.expect("a master"));
    second.report.outcome().expect("exec");
    read_until(&mut other, "/dev/pts/1\r\n");
    assert_eq!(wait(&second.pidfd), 0);
    end(container);
}

#[test]
fn a_terminal_without_devpts_is_refused() {
    let bundle = Bundle::sh("true").set("/mounts", json!([]));
    let error = bundle.create(vec![bundle.overlay()], Stdio::Terminal).expect_err("no devpts");
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert_eq!(cgroup_directories(&bundle.cgroup()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_pipe_belongs_to_the_user() {
    let ended = Bundle::sh("echo again > /dev/stdout; echo error > /proc/self/fd/2")
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .run()
        .expect("run");
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("again\n", "error\n"));
}

/// systemd's CPUAffinity= for the daemon is not its containers'.
#[test]
fn a_container_may_run_on_every_processor_whatever_the_shim_may() {
    let list = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list");
        line.trim().to_owned()
    };
    let all = list(&std::fs::read_to_string("/proc/self/status").expect("read"));
    // Of this test's thread, and of what it starts.
    let mut one = rustix::thread::CpuSet::new();
    one.set(0);
    rustix::thread::sched_setaffinity(None, &one).expect("stay on the first processor");
    assert_eq!(list(&std::fs::read_to_string("/proc/thread-self/status").expect("read")), "0");
    let ended = Bundle::sh("cat /proc/self/status").run().expect("run");
    assert_eq!(list(&ended.stdout), all);
}
