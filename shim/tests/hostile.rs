//! Images and specs that want out, each after the advisory it is known by. Needs root and busybox-static.

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;
use support::*;

/// A directory of the host that nothing may change, and what is in it.
struct Canary(tempfile::TempDir);

impl Canary {
    fn new() -> Canary {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::write(directory.path().join("file"), "canary").expect("write");
        Canary(directory)
    }

    fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.0.path()).expect("read it").flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(fs::read_to_string(self.0.path().join("file")).expect("read"), "canary");
    }
}

#[test]
fn cve_2019_19921_proc_and_sys_may_not_be_links() {
    for name in ["proc", "sys"] {
        for target in ["/etc", "etc", "/nowhere", "../../../tmp"] {
            let bundle = Bundle::sh("true");
            symlink(target, bundle.image().join(name)).expect("link");
            let error = bundle.run().expect_err("a link");
            assert!(
                error.message().contains("must be an ordinary directory"),
                "{name} -> {target}: {}",
                error.message()
            );
        }
        let bundle = Bundle::sh("true");
        fs::write(bundle.image().join(name), "a file").expect("write");
        let error = bundle.run().expect_err("a file");
        assert!(error.message().contains("must be an ordinary directory"), "{name}: {}", error.message());
    }
}

#[test]
fn cve_2019_18837_links_of_the_image_lead_nowhere() {
    let canary = Canary::new();
    let bundle = Bundle::sh("test -d /dev/shm && echo there");
    symlink(canary.0.path(), bundle.image().join("dev")).expect("link");
    symlink(canary.0.path().join("file"), bundle.image().join("etc/hosts")).expect("link");
    let source = bundle.path("hosts");
    fs::write(&source, "hosts").expect("write");
    let ended = bundle
        .mount(json!({"destination": "/etc/hosts", "type": "bind", "source": source, "options": ["bind"]}))
        .mount(json!({"destination": "/dev/../up/deep", "type": "tmpfs", "source": "tmpfs"}))
        .run()
        .expect("run");
    assert_eq!(ended.stdout, "there\n", "{}", ended.stderr);
    canary.assert_untouched();
}

#[test]
fn cve_2015_3630_nothing_is_mounted_over_or_into_proc() {
    let bundle = |destination: &str| {
        let bundle = Bundle::sh("true");
        symlink("/proc", bundle.image().join("linked")).expect("link");
        symlink("proc/self", bundle.image().join("self")).expect("link");
        let source = bundle.path("lower");
        bundle.mount(json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind"]}))
    };
    for destination in ["/proc", "/proc/self", "/proc/../proc/sys", "/linked", "/linked/sys", "/self/attr"] {
        let error = bundle(destination).run().expect_err(destination);
        let text = error.message();
        assert!(text.contains("procfs may be there") || text.contains("inside /proc"), "{destination}: {text}");
    }
    let error = Bundle::sh("true")
        .mount(json!({"destination": "/proc/bus", "type": "tmpfs", "source": "tmpfs"}))
        .run()
        .expect_err("tmpfs");
    assert!(error.message().contains("inside /proc"), "{}", error.message());
    // What LXCFS does stays possible.
    let bundle = Bundle::sh("cat /proc/uptime");
    let source = bundle.path("uptime");
    fs::write(&source, "1 2\n").expect("write");
    let bundle =
        bundle.mount(json!({"destination": "/proc/uptime", "type": "bind", "source": source, "options": ["bind"]}));
    assert_eq!(bundle.run().expect("run").stdout, "1 2\n");
}

#[test]
fn cve_2024_21626_no_working_directory_is_a_descriptor() {
    for number in (3..40).chain([1023]) {
        let bundle = Bundle::sh("pwd").set("/process/cwd", json!(format!("/proc/self/fd/{number}")));
        let error = bundle.run().expect_err("a descriptor");
        assert!(error.message().contains("working directory"), "{}", error.message());
    }
    let bundle = Bundle::sh("sleep 60");
    symlink("/proc/self/fd/8", bundle.image().join("fd")).expect("link");
    let (container, _output) = bundle.start();
    for cwd in (3..40).map(|number| format!("/proc/self/fd/{number}")).chain(["/fd".into(), "/fd/../..".into()]) {
        let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": cwd, "args": ["pwd"]});
        let (stdio, output) = pipes();
        let process = serde_json::from_value(process).expect("a process");
        let execed = container.exec(&process, stdio).expect("clone");
        let error = execed.report.outcome().expect_err("a descriptor");
        assert!(error.message().contains("working directory"), "{}", error.message());
        assert_eq!(output.finish(&execed.pidfd).status, 128);
    }
    end(container);
}

#[test]
fn cve_2026_55686_a_linked_working_directory_is_made_inside() {
    let canary = Canary::new();
    let bundle = Bundle::sh("pwd -P").set("/process/cwd", json!("/w/x"));
    symlink(canary.0.path(), bundle.image().join("w")).expect("link");
    let ended = bundle.run().expect("run");
    assert_eq!(ended.stdout, format!("{}/x\n", canary.0.path().display()));
    canary.assert_untouched();
}

#[test]
fn cve_2025_31133_a_device_of_the_image_is_not_trusted() {
    // Without a tmpfs at /dev the image's own files are there.
    let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    let bundle = Bundle::sh("true").set("/mounts", mounts.clone());
    fs::create_dir(bundle.image().join("dev")).expect("mkdir");
    symlink("/proc/sysrq-trigger", bundle.image().join("dev/null")).expect("link");
    let error = bundle.run().expect_err("a link");
    assert!(error.message().contains("/dev/null"), "{}", error.message());
    // Masks are the host's null device whatever the image has.
    let ended = Bundle::sh("stat -c %t:%T /proc/keys").run().expect("run");
    assert_eq!(ended.stdout, "1:3\n");
}

#[test]
fn cve_2019_5736_the_runtimes_binary_cannot_be_written() {
    use std::os::unix::fs::MetadataExt;
    let own = fs::metadata("/proc/self/exe").expect("this test's binary");
    // Of a script whose interpreter is its own program the kernel executes the cloning process's binary.
    let bundle = Bundle::args(&["/script"]);
    fs::write(bundle.image().join("script"), "#!/proc/self/exe\n").expect("write");
    chmod(&bundle.image().join("script"), 0o755);
    let _ = bundle.run();
    // While any process runs it, writing is refused to everybody.
    let error = fs::OpenOptions::new().write(true).open("/proc/self/exe").expect_err("busy");
    assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY));
    let after = fs::metadata("/proc/self/exe").expect("this test's binary");
    assert_eq!((own.ino(), own.mtime_nsec(), own.size()), (after.ino(), after.mtime_nsec(), after.size()));
}

#[test]
fn cve_2016_9962_a_process_on_its_way_in_is_not_open_to_the_container() {
    let bundle = Bundle::sh("sleep 60");
    let (stdio, _output) = pipes();
    let parked = bundle.create(vec![bundle.overlay()], stdio).expect("create");
    // Not dumpable: its files in procfs are root's alone, and ptrace needs a capability containers do not have.
    let process = format!("/proc/{}", parked.container.pid);
    let links: Vec<_> = fs::read_dir(format!("{process}/fd")).expect("descriptors").flatten().collect();
    for link in links {
        let target = fs::read_link(link.path()).expect("a link").display().to_string();
        assert!(target.starts_with("pipe:") || target == "/dev/null", "{target}");
    }
    let root = fs::read_link(format!("{process}/root")).expect("a link");
    let cwd = fs::read_link(format!("{process}/cwd")).expect("a link");
    assert_eq!((root.as_os_str(), cwd.as_os_str()), ("/".as_ref(), "/".as_ref()));
    assert!(!std::path::Path::new(&format!("{process}/root/work")).exists(), "its root is the container's");
    drop(parked.gate);
    wait(&parked.container.pidfd);
    parked.container.cgroup.remove().expect("remove");
}

#[test]
fn cve_2018_20699_a_huge_set_of_cpus_costs_nothing() {
    let begin = std::time::Instant::now();
    for cpus in ["0-4294967295".to_owned(), "0,".repeat(500_000)] {
        let error = Bundle::sh("true").set("/linux/resources", json!({"cpu": {"cpus": cpus}})).run();
        assert!(error.is_err());
    }
    // A list of four thousand million would take minutes; an unoptimised build in an emulated kernel takes two seconds.
    assert!(begin.elapsed().as_secs() < 10);
}

#[test]
fn strings_with_a_nul_are_refused() {
    for (pointer, value) in [
        ("/process/args", json!(["sh", "a\0b"])),
        ("/process/env", json!(["A=\0"])),
        ("/process/cwd", json!("/a\0b")),
        ("/linux/maskedPaths", json!(["/proc\0"])),
    ] {
        let error = Bundle::sh("true").set(pointer, value).run().expect_err(pointer);
        assert!(error.message().contains("NUL"), "{}", error.message());
    }
}
