//! What a container's end means: exit code, reason and message for each way to end.

use berth_api::cri::{ContainerConfig, ContainerState, ContainerStatus, LinuxContainerResources};
use berth_test::cri::{container, script};
use berth_test::kernel::cgroup_v2;
use berth_test::{Node, Pod, pod, until};

async fn ended(pod: &Pod<'_>, name: &str, text: &str) -> ContainerStatus {
    pod.run(script(name, text)).await.ended().await
}

#[tokio::test]
async fn exit_zero_is_completed_and_another_is_an_error() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("exit")).await;
    for (code, reason) in [(0, "Completed"), (1, "Error"), (42, "Error"), (255, "Error")] {
        let status = ended(&pod, &format!("exit-{code}"), &format!("exit {code}")).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_end_by_a_signal_is_128_and_its_number() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("signal")).await;
    for (signal, number) in [("TERM", 15), ("KILL", 9), ("SEGV", 11)] {
        // Process 1 of a namespace ignores what it has no handler for, so a child ends and its status is passed on.
        let text = format!("sh -c 'kill -{signal} $$'; exit $?");
        let status = ended(&pod, signal, &text).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (128 + number, "Error"), "{signal}");
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_program_that_cannot_start_says_why() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("start")).await;
    for (name, program, cause) in [
        ("missing", "/no/such/program", "no such file"),
        ("directory", "/etc", "permission denied"),
        ("not-executable", "/etc/passwd", "permission denied"),
    ] {
        let created = pod.try_create(container(name, [program])).await;
        // containerd's runtime looks for the program when the container is created.
        let (error, started) = match created {
            Ok(c) => (c.start().await.expect_err(program), Some(c)),
            Err(error) => (error, None),
        };
        let message = error.message().to_lowercase();
        assert!(message.contains(program) && message.contains(cause), "{name}: {message}");
        let Some(c) = started.filter(|_| node.is_berth()) else {
            continue;
        };
        let status = c.status().await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 128), "{name}");
        assert_eq!(status.reason, "StartError", "{name}");
        let message = status.message.to_lowercase();
        assert!(message.contains(program) && message.contains(cause), "{name}: {message}");
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_program_of_another_architecture_says_so() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("foreign")).await;
    // An ELF header of a machine that nobody has (e_machine 0xffff).
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0xff, 0xff, 1, 0, 0, 0];
    file.resize(64, 0);
    let path = node.dir().join("foreign");
    std::fs::write(&path, file).expect("write foreign");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let mut config = container("c", ["/foreign"]);
    config.mounts = vec![berth_api::cri::Mount {
        container_path: "/foreign".into(),
        host_path: path.to_str().expect("UTF-8").into(),
        ..Default::default()
    }];
    let c = pod.create(config).await;
    let error = c.start().await.expect_err("not for this machine");
    assert!(error.message().to_lowercase().contains("exec format"), "{}", error.message());
    assert_eq!(c.status().await.exit_code, 128);
    pod.end().await;
    node.assert_nothing_left();
}

/// As the kubelet limits a pod: the cgroup above its containers has the limit.
#[tokio::test]
async fn the_limit_of_a_cgroup_above_is_told_by_its_name() {
    let node = Node::start().await;
    let mut config = pod("shared");
    let parent = format!("/{}/limited", node.name());
    config.linux.get_or_insert_default().cgroup_parent = parent.clone();
    let pod = node.run_pod(config).await;
    let quiet = pod.run(script("quiet", "exec sleep 1000")).await;
    let greedy = pod.create(script("greedy", "x=a; while :; do x=$x$x; done")).await;
    let (file, root) = match cgroup_v2() {
        true => ("memory.max", "/sys/fs/cgroup"),
        false => ("memory.limit_in_bytes", "/sys/fs/cgroup/memory"),
    };
    std::fs::write(format!("{root}{parent}/{file}"), "33554432").expect("limit the parent");
    greedy.start().await.expect("start");
    let status = greedy.ended().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    if node.is_berth() {
        let limit = format!("the memory limit of 33554432 bytes of {parent}, which the container shares with others");
        assert!(status.message.contains(&limit), "{}", status.message);
    }
    assert_eq!(quiet.status().await.state(), ContainerState::ContainerRunning);
    pod.end().await;
    node.assert_nothing_left();
}

/// Takes memory until one process that is not the init is killed for it.
const CHILD_KILLED: &str = "(x=a; while :; do x=$x$x; done) & wait $!; [ $? = 137 ] || exit 99";

fn small(name: &str, command: &str) -> ContainerConfig {
    let mut config = script(name, command);
    config.linux.as_mut().expect("linux").resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        memory_swap_limit_in_bytes: 32 << 20,
        ..Default::default()
    });
    config
}

#[tokio::test]
async fn who_fails_after_the_kernel_killed_a_process_of_it_is_oomkilled_and_who_survives_is_not() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("oom")).await;
    let failed = pod.run(small("failed", &format!("{CHILD_KILLED}; exit 3"))).await.ended().await;
    assert_eq!((failed.exit_code, failed.reason.as_str()), (3, "OOMKilled"));
    let message = "the container's memory limit of 33554432 bytes was reached and one of its processes was killed; it \
                   ended with exit code 3 by itself";
    assert_eq!(failed.message, message);
    let well = pod.run(small("well", &format!("{CHILD_KILLED}; exit 0"))).await.ended().await;
    assert_eq!((well.exit_code, well.reason.as_str(), well.message.as_str()), (0, "Completed", ""));

    // Stopped long after: by a signal that it obeys, and by one that nobody can disobey.
    for (name, on_term, code) in [("obeys", "trap 'exit 4' TERM", 4), ("ignores", "trap '' TERM", 137)] {
        let command = format!("{on_term}; {CHILD_KILLED}; echo survived; while :; do sleep 0.05; done");
        let c = pod.run(small(name, &command)).await;
        until("it survives", 30, async || c.logged("stdout") == "survived\n").await;
        c.stop(if code == 137 { 0 } else { 30 }).await.expect("stop");
        let status = c.status().await;
        assert_eq!((status.exit_code, status.reason.as_str(), status.message.as_str()), (code, "Error", ""), "{name}");
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn too_much_memory_is_oomkilled() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("oom")).await;
    let status = pod.run(small("c", "x=a; while :; do x=$x$x; done")).await.ended().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    if node.is_berth() {
        assert_eq!(status.message, "the container's memory limit of 33554432 bytes was reached");
    }
    pod.end().await;
    node.assert_nothing_left();
}
