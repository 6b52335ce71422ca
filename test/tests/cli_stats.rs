//! `berth stats`, `statsp`, `metricsp`, `metricdescs` and `events` show what crictl shows.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use berth_test::cri::script;
use berth_test::{Node, pod, until};

#[tokio::test(flavor = "multi_thread")]
async fn stats_are_shown_as_crictl_shows_them() {
    let node = Node::start().await;
    let mut config = pod("shown");
    config.labels.insert("app".into(), "x".into());
    let pod = node.run_pod(config).await;
    let mut config = script("spinner", "while :; do :; done");
    config.labels.insert("app".into(), "x".into());
    let c = pod.run(config).await;
    pod.run(script("quiet", "exec sleep 1000")).await;

    let header = |text: &str| text.lines().next().expect("a header").split_whitespace().collect::<Vec<_>>().join(" ");
    for (verb, columns) in [("stats", "CONTAINER NAME CPU % MEM DISK INODES SWAP"), ("statsp", "POD POD ID CPU % MEM")]
    {
        let (ours, theirs) = (node.berth(&[verb]), node.crictl(&[verb]));
        assert_eq!(header(&ours), columns);
        assert!(header(&theirs).ends_with(columns), "{theirs}");
    }
    let table = node.berth(&["stats", "--label", "app=x"]);
    let [_, line] = table.lines().collect::<Vec<_>>()[..] else { panic!("one container: {table}") };
    let cells: Vec<_> = line.split_whitespace().collect();
    assert_eq!(cells[..2], [&c.id[..13], "spinner"]);
    assert!(cells[2].parse::<f64>().expect("a percentage") > 0.0, "{line}");
    assert_eq!(node.berth(&["stats", "--label", "app=none"]).lines().count(), 1);
    assert_eq!(node.berth(&["stats", "--pod", &pod.id[..13]]).lines().count(), 3);
    assert_eq!(node.berth(&["stats", &c.id]).lines().count(), 2);
    // One that does not run has what it wrote.
    let over = pod.run(script("over", "head -c 3000000 /dev/zero > /file")).await;
    over.ended().await;
    let shown = |arguments: &[&str]| node.berth(&[&["stats", "--pod", &pod.id], arguments].concat()).contains(" over ");
    assert!(!shown(&[]) && shown(&["-a"]) && shown(&["--all", &over.id]));
    assert!(!shown(&["-a", &c.id]) && !shown(&["-a", "--label", "app=x"]));
    let all = node.berth_json(&["stats", "-a", "-o", "json", &over.id]);
    assert!(
        all["stats"][0]["writableLayer"]["usedBytes"]["value"].as_str().is_some_and(|bytes| bytes.len() > 6),
        "{all}"
    );
    over.remove().await.expect("RemoveContainer");

    // The same fields, whatever was measured; the numbers go on between the two.
    let (ours, theirs) = (node.berth_json(&["stats", "-o", "json"]), node.crictl_json(&["stats", "-o", "json"]));
    let keys = |value: &serde_json::Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&ours["stats"][0]), keys(&theirs["stats"][0]));
    assert_eq!(keys(&ours["stats"][0]["memory"]), keys(&theirs["stats"][0]["memory"]));
    assert_eq!(ours["stats"][0]["attributes"], theirs["stats"][0]["attributes"]);
    assert!(node.berth(&["statsp", "-o", "yaml"]).contains("defaultInterface"));
    assert_eq!(node.berth_json(&["metricdescs"]), node.crictl_json(&["metricdescs"]));
    let (ours, theirs) = (node.berth_json(&["metricsp"]), node.crictl_json(&["metricsp"]));
    assert_eq!(ours["podMetrics"][0]["podSandboxId"], theirs["podMetrics"][0]["podSandboxId"]);
    let wrong = node.try_berth(&["stats", "--seconds", "0"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_shown_as_they_happen() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("watched")).await;
    let mut listener = node.berth_command(&["events", "-o", "yaml"]).stdout(Stdio::piped()).spawn().expect("run berth");
    let shown = BufReader::new(listener.stdout.take().expect("a pipe"));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let lines = shown.lines().map_while(Result::ok);
        let kinds = lines.filter_map(|line| line.strip_prefix("containerEventType: ").map(str::to_owned));
        kinds.for_each(|kind| tell.send(kind).expect("the test listens"));
    });
    let live = async |n: usize| {
        let c = pod.run(script(&format!("c{n}"), "true")).await;
        c.ended().await;
        c.remove().await.expect("RemoveContainer");
    };
    // It listens when there is a first event, for which it may take more than one.
    let mut lives = 0;
    let mut kinds = Vec::new();
    until("berth listens", 30, async || {
        live(lives).await;
        lives += 1;
        kinds.extend(told.try_iter());
        !kinds.is_empty()
    })
    .await;
    live(lives).await;
    // The stream ends with the daemon, and berth with the stream.
    node.stop_daemon().await;
    assert!(listener.wait().expect("wait for berth").success());
    kinds.extend(told.iter());
    let life =
        ["CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT"];
    assert!(kinds.ends_with(&life.map(str::to_owned)), "{kinds:?}");
    node.restart().await;
    pod.end().await;
    node.assert_nothing_left();
}
