//! Fields of a container's security context, each proven from inside the container or by the kernel; see `fields.tsv`.

use std::collections::BTreeSet;

use berth_api::cri::security_profile::ProfileType;
use berth_api::cri::{
    Capability, ContainerConfig, Int64Value, LinuxContainerSecurityContext, Mount, PodSandboxConfig, SecurityProfile,
    SupplementalGroupsPolicy,
};
use berth_test::cri::script;
use berth_test::kernel::capability;
use berth_test::{Container, Node, Pod, pod};
use tonic::Code;

const SLEEP: &str = "exec sleep 1000";

/// Its user is 1000 with group 50000 by /etc/group.
const WITH_GROUPS: &str = "registry.k8s.io/k8s-staging-cri-tools/test-image-predefined-group:latest";

/// A set-uid program that tells its effective user, as a user of another number.
const NEW_PRIVILEGES: &str = "registry.k8s.io/e2e-test-images/nonewprivs:1.3";

/// `name` is in `message`; shows it all when it is not.
fn names(message: &str, name: &str) {
    assert!(message.contains(name), "{name:?} is not in: {message}");
}

fn secured(name: &str, context: LinuxContainerSecurityContext) -> ContainerConfig {
    let mut config = script(name, SLEEP);
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    *security = LinuxContainerSecurityContext { namespace_options: security.namespace_options.clone(), ..context };
    config
}

fn int(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

fn privileged(name: &str) -> PodSandboxConfig {
    let mut config = pod(name);
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    config
}

async fn refused(pod: &Pod<'_>, context: LinuxContainerSecurityContext, field: &str) {
    let refused = pod.try_create(secured("bad", context)).await.err().expect(field);
    assert_eq!(refused.code(), Code::InvalidArgument);
    names(refused.message(), field);
}

/// uid, gid and the sorted groups of the first process, by the kernel; the status must say the same.
async fn identity(c: &Container<'_>) -> (u32, u32, Vec<u32>) {
    let numbers = async |key: &str| -> Vec<u32> {
        let text = c.process_status(key).await;
        text.split(' ').filter(|n| !n.is_empty()).map(|n| n.parse().expect("a number")).collect()
    };
    let (uid, gid, mut groups) = (numbers("Uid").await, numbers("Gid").await, numbers("Groups").await);
    assert!(uid.iter().all(|u| *u == uid[0]) && gid.iter().all(|g| *g == gid[0]), "{uid:?} {gid:?}");
    groups.sort_unstable();
    let told = c.status().await.user.and_then(|u| u.linux).expect("a status has the user");
    let mut told_groups: Vec<u32> =
        told.supplemental_groups.iter().map(|g| u32::try_from(*g).expect("a gid")).collect();
    told_groups.sort_unstable();
    assert_eq!((told.uid, told.gid, &told_groups), (uid[0].into(), gid[0].into(), &groups));
    (uid[0], gid[0], groups)
}

#[tokio::test]
async fn user_and_groups_are_the_requests() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("users")).await;
    let context = LinuxContainerSecurityContext::default;
    for (name, asked, expected) in [
        // The image's /etc/group has root in wheel.
        ("root", context(), (0, 0, vec![0, 10])),
        ("number", LinuxContainerSecurityContext { run_as_user: int(1234), ..context() }, (1234, 0, vec![0])),
        ("name", LinuxContainerSecurityContext { run_as_username: "www-data".into(), ..context() }, (33, 33, vec![33])),
        (
            "group",
            LinuxContainerSecurityContext { run_as_user: int(1234), run_as_group: int(4321), ..context() },
            (1234, 4321, vec![4321]),
        ),
        (
            "more",
            LinuxContainerSecurityContext { run_as_user: int(7), supplemental_groups: vec![20, 30], ..context() },
            (7, 0, vec![0, 20, 30]),
        ),
    ] {
        let c = pod.run(secured(name, asked)).await;
        assert_eq!(identity(&c).await, expected, "{name}");
        assert_eq!(c.shell("id -u").await, format!("{}\n", expected.0), "an exec is the same user");
    }
    refused(&pod, LinuxContainerSecurityContext { run_as_group: int(5), ..context() }, "run_as_group").await;
    refused(&pod, LinuxContainerSecurityContext { run_as_user: int(-1), ..context() }, "run_as_user").await;
    let nobody = LinuxContainerSecurityContext { run_as_username: "ghost".into(), ..context() };
    refused(&pod, nobody, "config.linux.security_context.run_as_username").await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_images_groups_are_merged_or_left_out() {
    let node = Node::start().await;
    node.pull(WITH_GROUPS).await;
    node.remember();
    let pod = node.run_pod(pod("groups")).await;
    for (policy, expected) in [
        (SupplementalGroupsPolicy::Merge, vec![1000, 50_000, 60_000]),
        (SupplementalGroupsPolicy::Strict, vec![1000, 60_000]),
    ] {
        let mut config = secured(
            policy.as_str_name(),
            LinuxContainerSecurityContext {
                run_as_user: int(1000),
                supplemental_groups: vec![60_000],
                supplemental_groups_policy: policy.into(),
                ..Default::default()
            },
        );
        config.image.as_mut().expect("an image").image = WITH_GROUPS.into();
        let c = pod.run(config).await;
        assert_eq!(identity(&c).await, (1000, 1000, expected), "{policy:?}");
    }
    pod.end().await;
    node.assert_nothing_left();
}

fn capabilities(add: &[&str], drop: &[&str], ambient: &[&str]) -> LinuxContainerSecurityContext {
    let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            add_ambient_capabilities: list(ambient),
        }),
        ..Default::default()
    }
}

/// What the daemon has to give.
fn held(node: &Node) -> u64 {
    let text = node.enclosure().shell("sed -n 's/^CapBnd:\t//p' /proc/1/status");
    u64::from_str_radix(text.trim(), 16).expect("a mask")
}

#[tokio::test]
async fn capabilities_are_added_and_dropped() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("capable")).await;
    let default = pod.run(secured("default", capabilities(&[], &[], &[]))).await.capabilities("CapEff").await;
    assert_eq!(default, 0xa804_25fb, "the fourteen of Docker's default");
    for (name, add, drop, expected) in [
        ("added", &["NET_ADMIN"][..], &[][..], default | capability("NET_ADMIN")),
        ("prefixed", &["CAP_SYS_TIME"], &["CAP_CHOWN"], (default | capability("SYS_TIME")) & !capability("CHOWN")),
        ("none", &[], &["ALL"], 0),
        ("one", &["NET_RAW"], &["ALL"], capability("NET_RAW")),
        ("all", &["ALL"], &[], held(&node)),
        ("all-but-one", &["ALL"], &["KILL"], held(&node) & !capability("KILL")),
    ] {
        let c = pod.run(secured(name, capabilities(add, drop, &[]))).await;
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(c.capabilities(set).await, expected, "{name} {set}");
        }
        assert_eq!((c.capabilities("CapInh").await, c.capabilities("CapAmb").await), (0, 0), "{name}");
        // An exec has no more than the container.
        let mask = c.shell("sed -n 's/^CapEff:\t//p' /proc/self/status").await;
        assert_eq!(u64::from_str_radix(mask.trim(), 16).expect("a mask"), expected, "{name}, exec");
    }
    let field = "config.linux.security_context.capabilities.add_capabilities";
    refused(&pod, capabilities(&["FLY"], &[], &[]), field).await;
    refused(&pod, capabilities(&[], &["FLY"], &[]), "capabilities.drop_capabilities").await;
    if held(&node) & capability("SYS_RESOURCE") == 0 {
        refused(&pod, capabilities(&["SYS_RESOURCE"], &[], &[]), field).await;
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn ambient_capabilities_outlive_a_change_of_user() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("ambient")).await;
    let bits = capability("NET_ADMIN") | capability("NET_BIND_SERVICE");
    let mut context = capabilities(&[], &[], &["NET_ADMIN", "NET_BIND_SERVICE"]);
    context.run_as_user = int(1000);
    let c = pod.run(secured("ambient", context)).await;
    for set in ["CapAmb", "CapEff", "CapInh"] {
        assert_eq!(c.capabilities(set).await, bits, "{set}");
    }
    c.shell("ip link set lo mtu 1400").await;
    let mut context = capabilities(&["NET_ADMIN"], &[], &[]);
    context.run_as_user = int(1000);
    let c = pod.run(secured("plain", context)).await;
    assert_eq!(c.capabilities("CapEff").await, 0, "without ambient a user has none");
    let refused = pod.try_create(secured("bad", capabilities(&[], &[], &["FLY"]))).await.err().expect("no capability");
    names(refused.message(), "config.linux.security_context.capabilities.add_ambient_capabilities");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_privileged_container_sees_the_host_as_it_is() {
    let node = Node::start().await;
    let pod = node.run_pod(privileged("privileged")).await;
    let context = LinuxContainerSecurityContext {
        privileged: true,
        seccomp: Some(SecurityProfile::default()),
        masked_paths: vec!["/proc/keys".into()],
        readonly_paths: vec!["/proc/sys".into()],
        ..Default::default()
    };
    let c = pod.run(secured("c", context)).await;
    assert_eq!(c.capabilities("CapEff").await, held(&node));
    assert_eq!(c.process_status("Seccomp").await, "0", "no filter");
    let mounts = c.shell("cat /proc/mounts").await;
    let line = |at: &str| mounts.lines().find(|l| l.split(' ').nth(1) == Some(at)).map(str::to_owned);
    names(&line("/sys").expect("sysfs"), " sysfs rw,");
    for at in ["/proc/keys", "/proc/kcore", "/proc/sys", "/sys/firmware"] {
        assert_eq!(line(at), None, "nothing is over {at}");
    }
    let find = "find /dev \\( -path /dev/pts -o -path /dev/shm -o -path /dev/mqueue -o -path /dev/console -o -name ptmx \\) -prune -o \\( -type c -o -type b \\) -print";
    let set = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (host, inside) = (set(node.enclosure().shell(find)), set(c.shell(find).await));
    let missing: Vec<_> = host.difference(&inside).collect();
    assert!(missing.is_empty(), "devices of the host that are not there: {missing:?}");
    let answer = c.shell("mknod /d c 240 7 && (cat /d || true) 2>&1").await;
    names(&answer, "No such device or address");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_privileged_container_needs_a_privileged_pod() {
    let node = Node::start().await;
    let context = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    let mut plain = node.run_pod(pod("plain")).await;
    let refused = plain.try_create(secured("c", context.clone())).await.err().expect("the pod is not privileged");
    assert_eq!(refused.code(), Code::InvalidArgument);
    names(refused.message(), "config.linux.security_context.privileged");
    // The kubelet adds a privileged debugging container to a pod that had none, and says so of the sandbox.
    plain.config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let c = plain.run(secured("debugger", context)).await;
    assert_eq!(c.capabilities("CapEff").await, held(&node));
    plain.end().await;
    // A privileged pod gives nothing to a container that does not ask.
    let pod = node.run_pod(privileged("privileged")).await;
    let c = pod.run(secured("c", LinuxContainerSecurityContext::default())).await;
    assert_eq!(c.capabilities("CapEff").await & capability("SYS_ADMIN"), 0);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_read_only_root_is_read_only_and_volumes_are_not() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("sealed")).await;
    let volume = node.dir().join("volume");
    std::fs::create_dir_all(&volume).expect("make a directory");
    let mut config = secured("c", LinuxContainerSecurityContext { readonly_rootfs: true, ..Default::default() });
    let host_path = volume.to_str().expect("UTF-8").to_owned();
    config.mounts = vec![Mount { container_path: "/volume/new".into(), host_path, ..Default::default() }];
    config.working_dir = "/made".into();
    let c = pod.run(config).await;
    for path in ["/x", "/etc/x", "/etc/hosts", "/etc/resolv.conf"] {
        let answer = c.shell(&format!("(echo x >>{path}) 2>&1 || true")).await;
        names(&answer, "Read-only file system");
    }
    c.shell("echo x >/volume/new/x && echo x >/dev/shm/x && pwd").await;
    let c = pod.run(secured("writable", LinuxContainerSecurityContext::default())).await;
    c.shell("echo x >/x && echo x >>/etc/hosts").await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn no_new_privileges_are_gained_through_a_set_uid_program() {
    let node = Node::start().await;
    node.pull(NEW_PRIVILEGES).await;
    node.remember();
    let pod = node.run_pod(pod("nnp")).await;
    for (no_new_privs, expected) in [(true, "1000"), (false, "0")] {
        let context = LinuxContainerSecurityContext { run_as_user: int(1000), no_new_privs, ..Default::default() };
        let mut config = secured(&format!("nnp-{no_new_privs}"), context);
        config.image.as_mut().expect("an image").image = NEW_PRIVILEGES.into();
        let c = pod.run(config).await;
        assert_eq!(c.process_status("NoNewPrivs").await, if no_new_privs { "1" } else { "0" });
        assert_eq!(c.shell("/nnp").await, format!("Effective uid: {expected}\n"));
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn paths_are_masked_and_read_only_as_asked_else_by_custom() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("masks")).await;
    let c = pod.run(secured("custom", LinuxContainerSecurityContext::default())).await;
    assert_eq!(c.shell("cat /proc/keys /proc/timer_list; ls /sys/firmware").await, "", "hidden");
    names(&c.shell("(echo 1 >/proc/sys/kernel/domainname) 2>&1 || true").await, "Read-only file system");

    let context = LinuxContainerSecurityContext {
        masked_paths: vec!["/etc/passwd".into(), "/var".into(), "/no/such".into()],
        readonly_paths: vec!["/etc".into(), "/no/such".into()],
        ..Default::default()
    };
    let c = pod.run(secured("asked", context)).await;
    assert_eq!(c.shell("cat /etc/passwd; ls /var").await, "");
    names(&c.shell("(echo x >/etc/x) 2>&1 || true").await, "Read-only file system");
    names(&c.shell("(echo x >/var/x) 2>&1 || true").await, "Read-only file system");
    // A list replaces the custom one.
    assert_ne!(c.shell("cat /proc/timer_list | head -c 10").await, "");
    c.shell("echo elsewhere >/proc/sys/kernel/domainname").await;
    pod.end().await;
    node.assert_nothing_left();
}

fn filtered(profile_type: ProfileType, localhost_ref: &str) -> LinuxContainerSecurityContext {
    let profile = SecurityProfile { profile_type: profile_type.into(), localhost_ref: localhost_ref.into() };
    LinuxContainerSecurityContext { seccomp: Some(profile), ..Default::default() }
}

#[tokio::test]
async fn the_default_seccomp_profile_blocks_what_unconfined_may() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("filtered")).await;
    // A user namespace needs no capability, so that nothing but the filter can say no.
    let attempt = "unshare -U true 2>&1 && echo made || true";
    for (name, context, mode) in [
        ("default", filtered(ProfileType::RuntimeDefault, ""), "2"),
        ("unconfined", filtered(ProfileType::Unconfined, ""), "0"),
        ("unsaid", LinuxContainerSecurityContext::default(), "0"),
    ] {
        let c = pod.run(secured(name, context)).await;
        assert_eq!(c.process_status("Seccomp").await, mode, "{name}");
        let answer = c.shell(attempt).await;
        let expected = if mode == "2" { "Operation not permitted" } else { "made\n" };
        assert!(answer.contains(expected), "{name}: {answer}");
    }
    // What the profile allows to those with the capability, it allows.
    let mut context = filtered(ProfileType::RuntimeDefault, "");
    context.capabilities = capabilities(&["SYS_ADMIN"], &[], &[]).capabilities;
    let c = pod.run(secured("admin", context)).await;
    assert_eq!(c.shell(attempt).await, "made\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_localhost_seccomp_profile_is_the_files() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("filtered")).await;
    let file = node.dir().join("profile.json");
    let path = file.to_str().expect("UTF-8");
    // ENOSPC: an errno that nothing else gives here.
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    std::fs::write(&file, profile).expect("write a profile");
    let c = pod.run(secured("plain", filtered(ProfileType::Localhost, path))).await;
    names(&c.shell("mkdir /x 2>&1 || true").await, "No space left on device");
    c.shell("touch /y").await;
    let old = filtered(ProfileType::Localhost, &format!("localhost/{path}"));
    let c = pod.run(secured("prefixed", old)).await;
    names(&c.shell("mkdir /x 2>&1 || true").await, "No space left on device");

    let field = "config.linux.security_context.seccomp.localhost_ref";
    refused(&pod, filtered(ProfileType::Localhost, "/no/such/profile"), field).await;
    refused(&pod, filtered(ProfileType::Localhost, ""), field).await;
    std::fs::write(&file, "{\"surprise\": 1}").expect("write a profile");
    refused(&pod, filtered(ProfileType::Localhost, path), "surprise").await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_deprecated_path_of_a_seccomp_profile_is_heeded() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("filtered")).await;
    let file = node.dir().join("profile.json");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "mkdir", "action": "SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&file, profile).expect("write a profile");
    let old = |path: &str| {
        #[allow(deprecated)]
        let context = LinuxContainerSecurityContext { seccomp_profile_path: path.into(), ..Default::default() };
        context
    };
    let named = format!("localhost/{}", file.display());
    for (name, path, mode) in
        [("default", "runtime/default", "2"), ("file", named.as_str(), "2"), ("unconfined", "unconfined", "0")]
    {
        let c = pod.run(secured(name, old(path))).await;
        assert_eq!(c.process_status("Seccomp").await, mode, "{name}");
    }
    const FIELD: &str = "config.linux.security_context.seccomp_profile_path: ";
    refused(&pod, old("nonsense"), FIELD).await;
    refused(&pod, old("localhost//no/such/profile"), FIELD).await;
    pod.end().await;
    node.assert_nothing_left();
}

/// Where the kernel has AppArmor; elsewhere every profile is refused by its field.
#[tokio::test]
async fn a_container_is_confined_by_apparmor() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("armour")).await;
    let context = |kind: ProfileType, name: &str| LinuxContainerSecurityContext {
        apparmor: Some(SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() }),
        ..Default::default()
    };
    let old = |text: &str| {
        #[allow(deprecated)]
        let context = LinuxContainerSecurityContext { apparmor_profile: text.into(), ..Default::default() };
        context
    };
    const FIELD: &str = "config.linux.security_context.apparmor";
    refused(&pod, context(ProfileType::Localhost, "no-such-profile"), &format!("{FIELD}.localhost_ref: ")).await;
    refused(&pod, old("localhost/no-such-profile"), &format!("{FIELD}_profile: ")).await;
    refused(&pod, old("nonsense"), &format!("{FIELD}_profile: \"nonsense\" is none of")).await;
    let is_on = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with('Y'));
    if !is_on {
        refused(&pod, context(ProfileType::RuntimeDefault, ""), "AppArmor is not on in this host's kernel").await;
    }
    // Without AppArmor in the kernel there is no such file, or reading it fails.
    const LABEL: &str = "cat /proc/self/attr/apparmor/current 2>/dev/null || echo unconfined";
    let default = if is_on { "berth-default (enforce)" } else { "unconfined" };
    for (name, context, label) in [
        ("unconfined", context(ProfileType::Unconfined, ""), "unconfined"),
        ("unsaid", LinuxContainerSecurityContext::default(), default),
        ("old-default", old("runtime/default"), default),
        ("old-unconfined", old("unconfined"), "unconfined"),
    ] {
        let c = pod.run(secured(name, context)).await;
        let own =
            std::fs::read_to_string(c.proc("attr/apparmor/current").await).unwrap_or_else(|_| "unconfined".into());
        assert_eq!(own.trim(), label, "{name}");
        assert_eq!(c.shell(LABEL).await.trim(), label, "an exec in {name}");
    }
    if berth_test::has("apparmor", "a_container_is_confined_by_apparmor") {
        confines(&node, &pod, context).await;
    }
    pod.end().await;
    let pod = node.run_pod(privileged("mighty")).await;
    let c = pod.run(secured("c", LinuxContainerSecurityContext { privileged: true, ..Default::default() })).await;
    assert_eq!(c.shell(LABEL).await.trim(), "unconfined");
    pod.end().await;
    node.assert_nothing_left();
}

/// The default profile keeps a container with every capability from the host's switches; a named one does what it says.
async fn confines(node: &Node, pod: &Pod<'_>, context: impl Fn(ProfileType, &str) -> LinuxContainerSecurityContext) {
    let mut mighty = context(ProfileType::RuntimeDefault, "");
    mighty.capabilities = capabilities(&["ALL"], &[], &[]).capabilities;
    let c = pod.run(secured("mighty", mighty)).await;
    names(&c.shell("mkdir -p /m && mount -t tmpfs x /m 2>&1 || true").await, "denied");
    names(&c.shell("mkdir -p /p && mount -t proc p /p 2>&1 || true").await, "denied");

    let profile = format!("berth-test-{}", std::process::id());
    let text = format!("profile {profile} {{ network, capability, file, deny /forbidden* w, }}");
    let file = node.dir().join("profile");
    std::fs::write(&file, text).expect("write a profile");
    let _loaded = Loaded::new(file);
    let c = pod.run(secured("named", context(ProfileType::Localhost, &profile))).await;
    names(&c.shell("touch /forbidden 2>&1 || true").await, "denied");
    c.shell("touch /allowed").await;
}

/// A profile of the machine's AppArmor; it is unloaded when dropped, also when the test fails.
struct Loaded(std::path::PathBuf);

impl Loaded {
    fn new(file: std::path::PathBuf) -> Self {
        let loaded = Self(file);
        assert!(loaded.parse("--replace"), "apparmor_parser does not load {}", loaded.0.display());
        loaded
    }

    fn parse(&self, how: &str) -> bool {
        let status = std::process::Command::new("apparmor_parser").arg(how).arg(&self.0).status();
        status.expect("run apparmor_parser").success()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let unloaded = self.parse("--remove");
        // A second panic would hide the first.
        assert!(unloaded || std::thread::panicking(), "apparmor_parser does not unload {}", self.0.display());
    }
}
