//! Containers on this machine's kernel: what a process finds in them. Needs root and busybox-static.

mod support;

use support::*;

#[test]
fn a_command_says_hi() {
    let ended = Bundle::sh("echo hi; echo there >&2; exit 3").run().expect("run");
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str(), ended.status), ("hi\n", "there\n", 3));
}

#[test]
fn it_is_pid_1_with_names_and_network_of_its_own() {
    let ended = Bundle::sh("echo $$; hostname; ls /sys/class/net; cat /proc/1/comm; true").run().expect("run");
    assert_eq!(ended.stdout, "1\nberth-test\nlo\nsh\n");
}

#[test]
fn nothing_of_the_hosts_is_open_or_mounted() {
    let ended = Bundle::sh("ls /proc/self/fd; cat /proc/self/mountinfo").run().expect("run");
    let (fds, mounts) = ended.stdout.split_at(ended.stdout.find("\n3\n").expect("ls has its own") + 3);
    assert_eq!(fds, "0\n1\n2\n3\n");
    for line in mounts.lines() {
        let at = line.split(' ').nth(4).expect("a mount point");
        assert!(
            ["/", "/proc", "/dev", "/sys"].iter().any(|top| at == *top || at.starts_with(&format!("{top}/"))),
            "{line}"
        );
    }
    let roots = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count();
    assert_eq!(roots, 1, "{mounts}");
}

#[test]
fn a_missing_program_is_reported_by_start() {
    let error = Bundle::args(&["/no/such/program"]).run().expect_err("no such program");
    assert_eq!(error.message(), "exec \"/no/such/program\": No such file or directory (os error 2)");
    assert_eq!(error.kind(), berth_shim::runtime::Kind::NotFound);
    let error = Bundle::args(&["nosuch"]).run().expect_err("not in PATH");
    assert_eq!(error.kind(), berth_shim::runtime::Kind::NotFound);
}
