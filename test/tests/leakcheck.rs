//! The leak check finds a leak of each kind that it watches, and says nothing when there is none.

use std::process::Command;

use berth_test::enclosure::{Enclosure, said, tool};

/// Takes a snapshot, plants a leak by a shell script, and asks what is told.
fn told_after(plant: &str) -> String {
    let place = tempfile::tempdir().expect("make a directory");
    let dir = place.path().to_str().expect("a path in UTF-8");
    let enclosure = Enclosure::new();
    enclosure.shell(&format!("mkdir -p {dir}/root/ipam {dir}/daemon && cp /bin/sleep {dir}/daemon/berthd"));
    // The program whose descriptors are watched.
    enclosure.shell(&format!(
        "cd {dir} && touch held && (exec setsid {dir}/daemon/berthd 1000 </dev/null >/dev/null 2>&1 &)"
    ));
    let mut snapshot = enclosure.command(tool("leakcheck"));
    snapshot.args(["snapshot", "--root", &format!("{dir}/root"), "--cgroup", "leakcheck-test", "--daemon", "berthd"]);
    let before = said(&snapshot.output().expect("run nsenter"), "leakcheck snapshot");
    std::fs::write(place.path().join("before"), before).expect("write before");
    enclosure.shell(&format!("cd {dir}; {plant}"));
    let mut diff = enclosure.command(tool("leakcheck"));
    let output = diff.args(["diff", "--wait", "0", &format!("{dir}/before")]).output().expect("run nsenter");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(i32::from(!told.is_empty())), "status says whether there are leaks: {told}");
    told
}

fn is_told(plant: &str, expected: &str) {
    let told = told_after(plant);
    assert!(
        told.lines().any(|line| line.starts_with(expected)),
        "planted by `{plant}`, expected `{expected}…`, told:\n{told}"
    );
}

#[test]
fn nothing_planted_is_nothing_told() {
    assert_eq!(told_after("true"), "");
}

#[test]
fn a_mount_is_told_by_its_place() {
    is_told("mkdir m; mount -t tmpfs none $PWD/m; echo", "mount: /tmp/");
}

#[test]
fn a_mount_in_another_mount_namespace_is_told_by_its_holder() {
    is_told(
        "unshare --mount setsid sleep 4711 </dev/null >/dev/null 2>&1 & sleep 0.3",
        "mount namespace: of sleep 4711",
    );
}

#[test]
fn a_pinned_namespace_is_told_by_its_sort_and_place() {
    is_told("touch pin; unshare --net=$PWD/pin true", "pinned namespace: net at /tmp/");
}

#[test]
fn a_link_is_told_by_its_name() {
    is_told("ip link add leaked0 type veth peer name leaked1", "link: leaked0");
}

#[test]
fn an_address_is_told_with_its_link() {
    is_told("ip address add 10.77.0.1/24 dev lo", "address: lo 10.77.0.1");
}

#[test]
fn a_route_is_told_with_its_link() {
    is_told("ip route add 10.78.0.0/16 dev lo", "route: lo 10.78.0.0/16");
}

#[test]
fn firewall_tables_and_elements_are_told() {
    let plant = "nft 'add table inet leaked; add set inet leaked pods { type ipv4_addr; }; add element inet leaked pods { 10.9.9.9 }'";
    is_told(plant, "nft: table inet leaked");
    is_told(plant, "nft: element inet leaked pods \"10.9.9.9\"");
}

#[test]
fn a_lease_is_told_by_its_file() {
    let told = told_after("touch root/ipam/lock root/ipam/10.88.0.7");
    assert!(told.contains("lease: /tmp/") && told.contains("/root/ipam/10.88.0.7"), "{told}");
    assert_eq!(told.lines().count(), 1, "a lock is no lease: {told}");
}

#[test]
fn a_file_under_a_root_is_told() {
    let told = told_after("mkdir root/pod; touch root/pod/record");
    assert!(told.contains("file: ") && told.contains("/root/pod/record"), "{told}");
}

#[test]
fn a_process_is_told_by_its_command_line() {
    is_told("setsid sleep 4712 </dev/null >/dev/null 2>&1 &", "process: sleep 4712");
}

#[test]
fn a_zombie_is_told() {
    // Its parent lives and never waits: exec keeps the child and forgets the shell.
    is_told("sh -c 'true & exec setsid sleep 4713' </dev/null >/dev/null 2>&1 & sleep 0.3", "process: [sh] zombie");
}

#[test]
fn a_listening_socket_is_told_by_its_path() {
    let listen =
        "perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new(Local => q(leaked.sock), Listen => 1); sleep 1000'";
    is_told(&format!("setsid {listen} </dev/null >/dev/null 2>&1 & sleep 0.5"), "socket: leaked.sock");
}

#[test]
fn a_descriptor_of_the_daemon_is_told() {
    // Another daemon of the same name, with one descriptor more.
    is_told("exec 7<held; setsid daemon/berthd 1001 </dev/null >/dev/null 2>&1 &", "descriptor: berthd /tmp/");
}

#[test]
fn a_cgroup_is_told_by_its_path() {
    let hierarchy = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .into_iter()
        .find(|dir| std::path::Path::new(dir).join("cgroup.procs").exists())
        .expect("a cgroup hierarchy");
    let dir = format!("{hierarchy}/leakcheck-test-{}", std::process::id());
    let told = told_after(&format!("mkdir {dir}"));
    let removed = Command::new("rmdir").arg(&dir).status();
    assert!(removed.is_ok_and(|status| status.success()), "remove {dir}");
    assert_eq!(told, format!("cgroup: {dir}\n"));
}
