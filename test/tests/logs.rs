//! A container's log: CRI's format, every byte once.

use berth_api::cri::{ContainerConfig, ReopenContainerLogRequest};
use berth_test::cri::{parse_log, script};
use berth_test::{Node, pod, until};

#[tokio::test]
async fn each_line_has_its_time_stream_and_end() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("lines")).await;
    let c = pod.run(script("c", "echo out; echo err >&2; echo; printf 'no end'")).await;
    c.ended().await;
    until("the log is complete", 5, async || c.log().len() >= 4).await;
    let lines = c.log();
    let of = |stream: &str| -> Vec<(String, bool)> {
        lines
            .iter()
            .filter(|l| l.stream == stream)
            .map(|l| (String::from_utf8_lossy(&l.text).into_owned(), l.partial))
            .collect()
    };
    let text = |t: &str, partial: bool| (t.to_owned(), partial);
    // The end of the output ends no line: what is left is a part.
    let expected = [text("out", false), text("", false), text("no end", node.is_berth())];
    assert_eq!(of("stdout")[..2], expected[..2]);
    assert_eq!(of("stdout")[2].0, "no end");
    assert_eq!(of("stderr"), [text("err", false)]);
    for line in &lines {
        let (date, rest) = line.time.split_once('T').expect("RFC 3339");
        assert_eq!(date.len(), 10, "{}", line.time);
        let nanoseconds = rest.split_once('.').map(|(_, n)| n.trim_end_matches('Z')).unwrap_or_default();
        assert!(!nanoseconds.is_empty(), "{}", line.time);
        if node.is_berth() {
            assert!(rest.ends_with('Z'), "UTC: {}", line.time);
        }
    }
    pod.end().await;
    assert!(c.log_path().exists(), "the log is the kubelet's to remove");
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_long_line_is_split_and_loses_nothing() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("long")).await;
    let c = pod.run(script("c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo after")).await;
    c.ended().await;
    until("the log is complete", 5, async || c.log().iter().any(|l| l.text == b"after")).await;
    let lines = c.log();
    let parts: Vec<_> = lines.iter().filter(|l| l.partial).collect();
    assert!(parts.len() >= 6, "100000 bytes at 16 KiB each: {}", parts.len());
    assert!(parts.iter().all(|l| l.text.len() <= 16 << 10), "no part is longer than 16 KiB");
    assert_eq!(c.logged("stdout"), format!("{}\nafter\n", "x".repeat(100_000)));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn reopening_under_load_loses_and_doubles_no_byte() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("rotate")).await;
    let c = pod.run(script("c", "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); echo line $n; done")).await;
    let mut files = Vec::new();
    for n in 0..20 {
        let rotated = c.log_path().with_extension(format!("log.{n}"));
        std::fs::rename(c.log_path(), &rotated).expect("rotate as a kubelet does");
        files.push(rotated);
        let request = ReopenContainerLogRequest { container_id: c.id.clone() };
        match node.runtime().reopen_container_log(request).await {
            Ok(_) => assert!(c.log_path().exists(), "a new file is there when the answer is"),
            // It may be done writing before the last rotations.
            Err(e) => {
                assert!(c.ended().await.finished_at > 0, "{e}");
                break;
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    c.ended().await;
    files.push(c.log_path().clone());
    let read = || -> Vec<u8> { files.iter().flat_map(|f| std::fs::read(f).unwrap_or_default()).collect() };
    until("the log is complete", 10, async || parse_log(&read()).len() >= 20_000).await;
    let said: Vec<_> = parse_log(&read()).into_iter().map(|l| String::from_utf8_lossy(&l.text).into_owned()).collect();
    let expected: Vec<_> = (1..=20_000).map(|n| format!("line {n}")).collect();
    assert!(
        said == expected,
        "{} lines, the first wrong one: {:?}",
        said.len(),
        said.iter().zip(&expected).find(|(a, b)| a != b)
    );
    pod.end().await;
    node.assert_nothing_left();
}

/// Opening a FIFO would wait for a reader for ever, and whoever may write beside the log could lead it elsewhere by a link.
#[tokio::test]
async fn a_log_that_is_no_plain_file_is_refused() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("odd")).await;
    let fine = pod.run(script("fine", "sleep inf")).await;
    let logs = fine.log_path().parent().expect("the pod's directory");
    let made = std::process::Command::new("mkfifo").arg(logs.join("fifo.log")).status().expect("run mkfifo");
    assert!(made.success());
    std::os::unix::fs::symlink(node.dir().join("elsewhere"), logs.join("link.log")).expect("a link");
    for name in ["fifo", "link"] {
        let config = ContainerConfig { log_path: format!("{name}.log"), ..script(name, "true") };
        let Err(refused) = pod.try_create(config).await else { panic!("{name} is no plain file") };
        assert!(refused.message().contains("a log is a regular file"), "{refused}");
        assert!(refused.message().contains(&format!("{name}.log")), "{refused}");
    }
    assert!(!node.dir().join("elsewhere").exists());
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn without_a_log_path_output_is_discarded() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("silent")).await;
    let mut config = script("c", "head -c 1000000 /dev/zero; echo done");
    config.log_path = String::new();
    let c = pod.run(config).await;
    assert_eq!(c.ended().await.exit_code, 0, "it is not stopped by a full pipe");
    assert_eq!(c.status().await.log_path, "");
    pod.end().await;
    node.assert_nothing_left();
}
