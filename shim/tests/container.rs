//! Containers on this machine's kernel: what a process finds in them. Needs root and busybox-static.

mod support;

use berth_shim::runtime::Kind;
use serde_json::json;
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
        let known = ["/", "/proc", "/dev", "/sys"];
        assert!(known.iter().any(|top| at == *top || at.starts_with(&format!("{top}/"))), "{line}");
    }
    let roots = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count();
    assert_eq!(roots, 1, "{mounts}");
}

#[test]
fn a_program_that_cannot_run_is_reported_by_start() {
    let bundle = |args: &[&str]| {
        let bundle = Bundle::args(args);
        std::fs::write(bundle.image().join("plain"), "text").expect("write");
        std::fs::write(bundle.image().join("script"), "#!/no/interpreter\n").expect("write");
        std::fs::write(bundle.image().join("garbage"), "\x7fELFgarbage").expect("write");
        for name in ["script", "garbage"] {
            chmod(&bundle.image().join(name), 0o755);
        }
        bundle
    };
    for (program, kind, cause) in [
        ("/no/such/program", Kind::NotFound, "No such file or directory (os error 2)"),
        ("nosuch", Kind::NotFound, "No such file or directory (os error 2)"),
        ("/plain", Kind::PermissionDenied, "Permission denied (os error 13)"),
        ("/etc", Kind::PermissionDenied, "Permission denied (os error 13)"),
        ("/script", Kind::NotFound, "the program exists, the interpreter it names does not"),
        ("/garbage", Kind::Internal, "Exec format error (os error 8)"),
    ] {
        let error = bundle(&[program]).run().expect_err(program);
        assert_eq!(error.message(), format!("exec {program:?}: {cause}"));
        assert_eq!(error.kind(), kind, "{program}");
    }
}

#[test]
fn the_init_waits_for_its_gate_and_goes_when_nobody_opens_it() {
    let bundle = Bundle::sh("echo ran");
    let (stdio, output) = pipes();
    let parked = bundle.create(vec![bundle.overlay()], stdio).expect("create");
    let container = parked.container;
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", container.pid)).expect("it is there");
    assert_ne!(comm, "sh\n");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", container.pid)).expect("descriptors").count();
    assert_eq!(fds, 5, "0, 1, 2, the report and the gate");
    drop(parked.gate);
    let ended = output.finish(&container.pidfd);
    assert_eq!((ended.stdout.as_str(), ended.status), ("", 128));
    container.cgroup.remove().expect("remove");
}

#[test]
fn devices_and_links_are_there_and_others_are_not_allowed() {
    let script = "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done; \
        for l in fd stdin ptmx; do readlink /dev/$l; done; echo x > /dev/null && echo null; \
        mknod /dev/kmsg2 c 1 11 && head -c1 /dev/kmsg2 2>&1; echo x 2>/dev/null > /dev/full || echo full";
    let ended = Bundle::sh(script).run().expect("run");
    let expected = "/dev/null 1:3 666\n/dev/zero 1:5 666\n/dev/full 1:7 666\n/dev/random 1:8 666\n\
        /dev/urandom 1:9 666\n/dev/tty 5:0 666\n/proc/self/fd\n/proc/self/fd/0\npts/ptmx\nnull\n\
        head: /dev/kmsg2: Operation not permitted\nfull\n";
    assert_eq!(ended.stdout, expected);
}

#[test]
fn a_device_of_the_spec_is_made_and_allowed() {
    let ended = Bundle::sh("stat -c '%t:%T %a %u:%g' /dev/sub/loopy; head -c1 /dev/sub/loopy | wc -c")
        .set(
            "/linux/devices",
            json!([{"path": "/dev/sub/loopy", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8}]),
        )
        .run()
        .expect("run");
    assert_eq!(ended.stdout, "1:5 640 7:8\n1\n");
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_cannot_be_written() {
    let script = "cat /proc/keys /proc/timer_list | wc -c; ls /proc/scsi /sys/firmware 2>/dev/null | grep -v : | grep -c .; \
        echo 1 > /proc/sysrq-trigger || echo ro; echo 1 > /proc/sys/vm/overcommit_memory || echo ro; \
        touch /sys/x || echo ro";
    let ended = Bundle::sh(script).run().expect("run");
    assert_eq!(ended.stdout, "0\n0\nro\nro\nro\n", "{}", ended.stderr);
}

#[test]
fn a_read_only_root_is_read_only_and_its_mounts_are_not() {
    let ended = Bundle::sh("touch /x || echo ro; touch /dev/shm/x && echo rw; grep -c ' / ro' /proc/self/mountinfo")
        .set("/root/readonly", json!(true))
        .run()
        .expect("run");
    assert_eq!(ended.stdout, "ro\nrw\n1\n", "{}", ended.stderr);
}

#[test]
fn bind_mounts_have_their_options_and_make_their_targets() {
    let bundle = Bundle::sh(
        "cat /etc/given/file; cat /new/deep/one; touch /etc/given/x || echo ro; touch /rw/x && echo rw; \
         grep ' /rw ' /proc/self/mountinfo | grep -o 'nosuid,nodev,noexec'",
    );
    let source = bundle.path("source");
    std::fs::create_dir(&source).expect("mkdir");
    std::fs::write(source.join("file"), "data\n").expect("write");
    let writable = bundle.path("writable");
    std::fs::create_dir(&writable).expect("mkdir");
    let bundle = bundle
        .mount(json!({"destination": "/etc/given", "type": "bind", "source": source, "options": ["rbind", "ro"]}))
        .mount(json!({"destination": "/new/deep/one", "source": source.join("file"), "options": ["bind"]}))
        .mount(json!({"destination": "/rw", "type": "bind", "source": writable,
            "options": ["rbind", "rw", "nosuid", "nodev", "noexec"]}));
    let ended = bundle.run().expect("run");
    assert_eq!(ended.stdout, "data\ndata\nro\nrw\nnosuid,nodev,noexec\n", "{}", ended.stderr);
    assert!(writable.join("x").exists());
}

#[test]
fn a_missing_mount_source_is_named() {
    let error = Bundle::sh("true")
        .mount(json!({"destination": "/mnt/x", "type": "bind", "source": "/no/such/data", "options": ["rbind"]}))
        .run()
        .expect_err("no source");
    assert_eq!(error.message(), r#"mount "/no/such/data" at "/mnt/x": no such file or directory"#);
}

/// A tmpfs that is shared, with a directory in it to mount on later.
struct Shared(tempfile::TempDir);

impl Shared {
    fn new() -> Shared {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        let directory = tempfile::tempdir().expect("temporary directory");
        mount(c"shared", directory.path(), c"tmpfs", MountFlags::empty(), c"").expect("mount");
        mount_change(directory.path(), MountPropagationFlags::SHARED).expect("make it shared");
        std::fs::create_dir(directory.path().join("later")).expect("mkdir");
        Shared(directory)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn what_the_host_mounts_later_follows_as_the_propagation_says() {
    for (propagation, follows) in [("rslave", true), ("rprivate", false), ("rshared", true)] {
        let shared = Shared::new();
        let source = shared.0.path();
        // Waits for a file that is in the mount, or for the word to give up.
        let script = "until test -e /m/later/file || test -e /m/stop; do :; done; test -e /m/later/file && echo yes";
        let bundle = Bundle::sh(script)
            .mount(json!({"destination": "/m", "type": "bind", "source": source, "options": ["rbind", propagation]}));
        let (container, output) = bundle.start();
        let later = source.join("later");
        rustix::mount::mount(c"later", &later, c"tmpfs", rustix::mount::MountFlags::empty(), c"").expect("mount");
        std::fs::write(later.join("file"), "").expect("write");
        if !follows {
            std::fs::write(source.join("stop"), "").expect("write");
        }
        let ended = output.finish(&container.pidfd);
        container.cgroup.remove().expect("remove");
        assert_eq!(ended.stdout, if follows { "yes\n" } else { "" }, "{propagation}");
    }
}

#[test]
fn a_mount_made_by_a_container_reaches_the_host_only_if_shared() {
    for (propagation, reaches) in [("rshared", true), ("rslave", false)] {
        let shared = Shared::new();
        let source = shared.0.path();
        let capabilities = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
        let ended = Bundle::sh("mount -t tmpfs inner /m/later && touch /m/later/file && echo done")
            .mount(json!({"destination": "/m", "type": "bind", "source": source, "options": ["rbind", propagation]}))
            .set(
                "/process/capabilities",
                json!({"bounding": capabilities, "permitted": capabilities,
                "effective": capabilities}),
            )
            .run()
            .expect("run");
        assert_eq!(ended.stdout, "done\n", "{}", ended.stderr);
        assert_eq!(source.join("later/file").exists(), reaches, "{propagation}");
    }
}

#[test]
fn the_working_directory_is_made_and_entered() {
    let ended = Bundle::sh("pwd").set("/process/cwd", json!("/made/for/it/../us")).run().expect("run");
    assert_eq!(ended.stdout, "/made/for/us\n");
    // A directory that only its user may enter, and one that only root may.
    for (mode, uid, fails) in [(0o700, 1000, false), (0o700, 0, true)] {
        let bundle = Bundle::sh("pwd")
            .set("/process/user", json!({"uid": 1000, "gid": 1000}))
            .set("/process/cwd", json!("/private"))
            .set("/process/capabilities", json!({}));
        let private = bundle.image().join("private");
        std::fs::create_dir(&private).expect("mkdir");
        chmod(&private, mode);
        std::os::unix::fs::chown(&private, Some(uid), Some(uid)).expect("chown");
        let ended = bundle.run().expect("run");
        assert_eq!(ended.stdout == "/private\n", !fails || ended.status == 0, "{}", ended.stderr);
    }
}

#[test]
fn sysctls_of_its_namespaces_are_set() {
    let ended = Bundle::sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max")
        .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1", "kernel.shmmax": "4096", "fs.mqueue.msg_max": "20"}))
        .run()
        .expect("run");
    assert_eq!(ended.stdout, "1\n4096\n20\n");
    let error = Bundle::sh("true")
        .set("/linux/sysctl", json!({"net.ipv4.no_such_thing": "1"}))
        .run()
        .expect_err("no such sysctl");
    assert!(error.message().contains("no_such_thing"), "{}", error.message());
    Bundle::sh("true").set("/linux/sysctl", json!({"kernel.panic": "1"})).run().expect_err("the host's");
}

#[test]
fn namespaces_with_a_path_are_entered() {
    let first = Bundle::sh("sleep 60");
    let (keeper, _output) = first.start();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", keeper.pid);
    let script = "for k in net ipc uts; do readlink /proc/self/ns/$k; done; hostname; cat /proc/1/comm; echo $$";
    let ended = Bundle::sh(script)
        .set(
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "pid", "path": path("pid")}, {"type": "network", "path": path("net")},
                {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")}]),
        )
        .set("/hostname", json!("entered"))
        .run()
        .expect("run");
    let link = |kind: &str| std::fs::read_link(path(kind)).expect("a link").display().to_string();
    let mut lines = ended.stdout.lines();
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(lines.next(), Some(link(kind).as_str()));
    }
    assert_eq!(lines.next(), Some("entered"));
    assert_eq!(lines.next(), Some("sleep"));
    assert_ne!(lines.next(), Some("1"));
    end(keeper);
    // Left again: what this thread clones is the host's.
    let own = std::fs::read_link("/proc/self/ns/pid").expect("a link");
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/pid_for_children").expect("a link"), own);
}

#[test]
fn the_hosts_namespaces_are_kept_when_none_is_asked_for() {
    let ended = Bundle::sh("for k in net pid; do readlink /proc/self/ns/$k; done")
        .set("/linux/namespaces", json!([{"type": "mount"}]))
        .set("/hostname", json!(""))
        .set("/mounts", json!([{"destination": "/proc", "type": "proc", "source": "proc"}]))
        .run()
        .expect("run");
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a link").display().to_string();
    assert_eq!(ended.stdout, format!("{}\n{}\n", own("net"), own("pid")));
    let error = Bundle::sh("true").set("/linux/namespaces", json!([{"type": "mount"}])).run().expect_err("hostname");
    assert!(error.message().contains("hostname"), "{}", error.message());
}

#[test]
fn an_overlay_of_120_layers_is_mounted_either_way() {
    for long in [false, true] {
        let bundle = Bundle::sh("cat /layer-* | wc -c; cat /top");
        // Longer than fsconfig takes: the layers then go by number.
        let name = |number: usize| match long {
            false => format!("l{number}"),
            true => format!("{}/{number:064}", "d".repeat(200)),
        };
        let mut lower = Vec::new();
        for number in 0..119 {
            let layer = bundle.path(&name(number));
            std::fs::create_dir_all(&layer).expect("mkdir");
            std::fs::write(layer.join(format!("layer-{number}")), "x").expect("write");
            std::fs::write(layer.join("top"), format!("{number}\n")).expect("write");
            lower.push(layer.display().to_string());
        }
        let mut overlay = bundle.overlay();
        overlay.options[0] = format!("lowerdir={}:{}", lower.join(":"), bundle.image().display());
        let ended = bundle.run_on(overlay).expect("run");
        assert_eq!(ended.stdout, "119\n0\n", "long: {long}");
    }
}

#[test]
fn a_missing_layer_is_named() {
    let bundle = Bundle::sh("true");
    let mut overlay = bundle.overlay();
    overlay.options[0] = format!("lowerdir=/no/such/layer:{}", bundle.image().display());
    let error = bundle.run_on(overlay).expect_err("no layer");
    assert!(error.message().contains("/no/such/layer"), "{}", error.message());
}

#[test]
fn a_plain_directory_is_a_root_too() {
    let bundle = Bundle::sh("cat /plain; touch /written");
    std::fs::write(bundle.image().join("plain"), "plain\n").expect("write");
    let source = bundle.image().display().to_string();
    let bind = berth_shim::runtime::MountSpec { kind: "bind".into(), source, options: vec!["rbind".into()] };
    assert_eq!(bundle.run_on(bind).expect("run").stdout, "plain\n");
    assert!(bundle.image().join("written").exists());
    // And without any mount: root.path of the bundle.
    let bundle = bundle.set("/root/path", json!("lower"));
    let (stdio, output) = pipes();
    let parked = bundle.create(Vec::new(), stdio).expect("create");
    parked.gate.open().expect("open").outcome().expect("exec");
    assert_eq!(output.finish(&parked.container.pidfd).stdout, "plain\n");
    parked.container.cgroup.remove().expect("remove");
}

#[test]
fn an_apparmor_profile_that_cannot_be_taken_is_named() {
    let bundle = Bundle::sh("true").set("/process/apparmorProfile", json!("no-such-profile"));
    let error = bundle.run().expect_err("it is not loaded, or there is no AppArmor");
    assert!(error.message().contains("take the AppArmor profile \"no-such-profile\""), "{}", error.message());
    assert_eq!(cgroup_directories(&bundle.cgroup()), Vec::<std::path::PathBuf>::new());
}

/// What has one where SELinux is on, `hack/vm selinux` shows.
#[test]
fn a_label_is_refused_where_selinux_is_off() {
    assert!(!std::path::Path::new("/sys/fs/selinux/enforce").exists(), "these tests are for a kernel without it");
    for (pointer, field) in
        [("/process/selinuxLabel", "process.selinuxLabel"), ("/linux/mountLabel", "linux.mountLabel")]
    {
        let bundle = Bundle::sh("true").set(pointer, json!("u:r:t:s0"));
        let error = bundle.run().expect_err(field);
        let text = format!("{field}: \"u:r:t:s0\", but SELinux is not on in this host's kernel");
        assert_eq!((error.message(), error.kind()), (text, Kind::InvalidArgument));
        assert_eq!(cgroup_directories(&bundle.cgroup()), Vec::<std::path::PathBuf>::new(), "{field}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_its_path() {
    for (pointer, value, field) in [
        ("/hooks", json!({"prestart": [{"path": "/bin/true"}]}), "hooks"),
        ("/linux/personality", json!({"domain": "LINUX32"}), "linux.personality"),
        ("/linux/namespaces", json!([{"type": "mount"}, {"type": "time"}]), "linux.namespaces.time"),
        ("/linux/namespaces", json!([{"type": "mount"}, {"type": "user"}]), "linux.uidMappings"),
        ("/linux/namespaces", json!([{"type": "pid"}]), "linux.namespaces"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/args", json!([]), "process.args"),
        ("/linux/rootfsPropagation", json!("sideways"), "linux.rootfsPropagation"),
    ] {
        let bundle = Bundle::sh("true").set(pointer, value);
        let error = bundle.run().expect_err(field);
        assert!(error.message().starts_with(field), "{}", error.message());
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert_eq!(cgroup_directories(&bundle.cgroup()), Vec::<std::path::PathBuf>::new(), "{field}");
    }
}

#[test]
fn an_option_that_a_mount_cannot_have_is_refused_by_its_index() {
    let ids = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let at = |kind: &str, destination: &str, option: &str| json!({"destination": destination, "type": kind, "source": "/tmp", "options": [option]});
    let users = "uidmap=0:1000:10";
    let mut bind = at("bind", "/x", users);
    (bind["uidMappings"], bind["gidMappings"]) = (ids.clone(), ids);
    for (mount, why) in [
        (at("tmpfs", "/x", users), "uidmap and gidmap are not for \"tmpfs\""),
        (at("proc", "/x", users), "uidmap and gidmap are not for \"proc\""),
        (at("sysfs", "/x", users), "uidmap and gidmap are not for \"sysfs\""),
        (at("cgroup", "/x", "gidmap=0:1000:10"), "uidmap and gidmap are not for \"cgroup\""),
        (at("mqueue", "/x", users), "uidmap and gidmap are not for \"mqueue\""),
        (at("devpts", "/dev/pts", users), "uidmap and gidmap are not for \"devpts\""),
        (at("devpts", "/dev/pts", "rslave"), "propagation is not for \"devpts\""),
        (at("cgroup", "/x", "shared"), "propagation is not for \"cgroup\""),
        (bind, "uidmap and gidmap are there beside uidMappings"),
        (at("bind", "/x", "size=1m"), "option \"size\" is not for a bind mount"),
    ] {
        let index = Bundle::sh("true").spec["mounts"].as_array().expect("mounts").len();
        let error = Bundle::sh("true").mount(mount).run().expect_err(why);
        assert_eq!((error.message(), error.kind()), (format!("mounts[{index}].options: {why}"), Kind::InvalidArgument));
    }
}
