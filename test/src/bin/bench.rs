//! The benchmark's program; hack/bench builds what it needs and calls it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use berth_test::Node;
use berth_test::bench::memory::{self, Group, Memory};
use berth_test::bench::report::{self, Goal, number};
use berth_test::bench::samples::Samples;
use berth_test::bench::{LARGE_IMAGE, Target};
use berth_test::node::Options;
use tonic::Status;

const USAGE: &str = "\
usage: bench [--alone] [--endpoint NAME=unix:///PATH] [--lives N] [--pods N] [--pulls N] [--containers N]
             [--only times|rates|memory|lists|pulls]…

Measures berth, on a private node, or instead the runtime behind --endpoint, and Debian's containerd on a private node,
interleaved, and prints the comparison as Markdown. --lives: pods' lives per series (60). --pods: pods that are there at
once when memory is measured (100). --pulls: pulls of the large image (3). --containers: those that are listed (1000).
--only: not everything.
--alone: without containerd, to look at a change.";

/// The column of what is compared with.
const PEER: &str = "containerd";

/// What can be measured alone.
const PARTS: [&str; 5] = ["times", "rates", "memory", "lists", "pulls"];

/// What a list of a thousand containers may take, in milliseconds, at p50.
const LIST_MAX: f64 = 10.0;

struct Plan {
    alone: bool,
    endpoint: Option<(String, PathBuf)>,
    lives: usize,
    pods: usize,
    pulls: usize,
    containers: usize,
    only: Vec<String>,
}

impl Plan {
    fn read() -> Option<Self> {
        let mut plan =
            Self { alone: false, endpoint: None, lives: 60, pods: 100, pulls: 3, containers: 1000, only: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == "--alone" {
                plan.alone = true;
                continue;
            }
            let value = arguments.next()?;
            match argument.as_str() {
                "--endpoint" => {
                    let (name, path) = value.split_once("=unix://")?;
                    plan.endpoint = Some((name.into(), path.into()));
                }
                "--lives" => plan.lives = value.parse().ok()?,
                "--pods" => plan.pods = value.parse().ok()?,
                "--pulls" => plan.pulls = value.parse().ok()?,
                "--containers" => plan.containers = value.parse().ok()?,
                "--only" if PARTS.contains(&value.as_str()) => plan.only.push(value),
                _ => return None,
            }
        }
        Some(plan)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|p| p == part)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(plan) = Plan::read() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&plan).await {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(status) => {
            eprintln!("bench: {status}");
            ExitCode::FAILURE
        }
    }
}

/// Private nodes live as long as this value.
async fn private(name: &str, peer: bool) -> Result<(Target, Node), Status> {
    let node = Node::start_with(Options { peer, no_image: true, ..Default::default() }).await;
    let socket = node.enclosure().path(node.endpoint().trim_start_matches("unix://"));
    let target = Target::connect(name, socket, node.dir().join("logs")).await?;
    Ok((target, node))
}

async fn run(plan: &Plan) -> Result<String, Status> {
    let logs = tempfile::tempdir()?;
    let (first, _berth) = match &plan.endpoint {
        Some((name, socket)) => (Target::connect(name, socket.clone(), logs.path().into()).await?, None),
        None => {
            let (target, node) = private("berth", false).await?;
            (target, Some(node))
        }
    };
    let mut targets = vec![first];
    let _peer = match plan.alone {
        true => None,
        false => {
            let (target, node) = private(PEER, true).await?;
            targets.push(target);
            Some(node)
        }
    };
    let names: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
    let mut text = machine(&targets);
    let mut goals = Vec::new();
    if plan.wants("memory") {
        text += &memory_table(plan, &targets, &mut goals).await?;
    }
    if plan.wants("times") {
        for (title, pause) in [("back to back", false), ("200 ms apart", true)] {
            eprintln!("bench: times, {title}");
            let samples = times(plan, &targets, pause).await?;
            text += &report::table(&format!("Times in ms, one call at a time, {title}"), &samples, &names);
            for figure in ["pod up", "pod down", "ExecSync of true"] {
                let what = format!("{figure}, {title}: at most a tenth of {PEER}'s");
                goals.push(ratio_goal(what, &samples, figure, [PEER, names[0]], 10.0));
            }
        }
    }
    if plan.wants("rates") {
        eprintln!("bench: rates");
        let samples = rates(&targets).await?;
        text += &report::table("Pods per second", &samples, &names);
        for figure in ["up, 8 at once", "down, 8 at once"] {
            let what = format!("pods per second, {figure}: at least 8 times {PEER}'s");
            goals.push(ratio_goal(what, &samples, figure, [names[0], PEER], 8.0));
        }
    }
    if plan.wants("lists") {
        let samples = lists(plan, &targets).await?;
        let title = format!("Times in ms of lists, {} containers of which a tenth runs", plan.containers);
        text += &report::table(&title, &samples, &names);
        goals.extend(samples.figures().map(|figure| list_goal(plan, &samples, figure, names[0])));
    }
    if plan.wants("pulls") {
        eprintln!("bench: pulls");
        let mut samples = Samples::default();
        for _ in 0..plan.pulls {
            for target in &targets {
                let (pull, remove) = target.pull_and_remove().await?;
                samples.add("PullImage", &target.name, pull.as_secs_f64());
                samples.add("RemoveImage", &target.name, remove.as_secs_f64());
            }
        }
        text += &report::table(&format!("Seconds for {LARGE_IMAGE}, 200 MB in seven gzip layers"), &samples, &names);
    }
    text += &report::goals(&goals);
    let _ = write!(text, "\nLoad average at the end: {}.", load());
    Ok(text)
}

/// `over ÷ under` of the p50s is to be at least `wanted`.
fn ratio_goal(what: String, samples: &Samples, figure: &str, [over, under]: [&str; 2], wanted: f64) -> Goal {
    let p50 = |target: &str| samples.percentile(figure, target, 50.0);
    let ratio = p50(over).zip(p50(under)).map(|(over, under)| over / under);
    let measured = ratio.map_or("–".into(), |r| format!("{over} ÷ {under} = {}", number(r)));
    Goal { what, measured, reached: ratio.map(|r| r >= wanted) }
}

/// Lives in blocks of ten, so that what one runtime leaves to the kernel does not disturb the other; or one by one with a
/// pause before each.
async fn times(plan: &Plan, targets: &[Target], pause: bool) -> Result<Samples, Status> {
    for target in targets {
        target.life(&mut Samples::default()).await?;
    }
    let mut samples = Samples::default();
    let block = if pause { 1 } else { 10 };
    for _ in 0..plan.lives.div_ceil(block) {
        for target in targets {
            tokio::time::sleep(Duration::from_millis(if pause { 200 } else { 500 })).await;
            for _ in 0..block {
                target.life(&mut samples).await?;
            }
        }
    }
    Ok(samples)
}

async fn rates(targets: &[Target]) -> Result<Samples, Status> {
    let mut samples = Samples::default();
    for _ in 0..3 {
        for (workers, count, label) in [(1, 24, "one after the other"), (8, 80, "8 at once")] {
            for target in targets {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let (up, down) = target.rate(workers, count).await?;
                samples.add(&format!("up, {label}"), &target.name, up);
                samples.add(&format!("down, {label}"), &target.name, down);
            }
        }
    }
    Ok(samples)
}

async fn lists(plan: &Plan, targets: &[Target]) -> Result<Samples, Status> {
    let mut samples = Samples::default();
    for target in targets {
        eprintln!("bench: lists of {}", target.name);
        let pods = target.fill(plan.containers).await?;
        let mut streamed = true;
        target.lists(&mut Samples::default(), &mut streamed).await?;
        for _ in 0..plan.lives {
            target.lists(&mut samples, &mut streamed).await?;
        }
        target.empty(pods).await?;
    }
    Ok(samples)
}

fn list_goal(plan: &Plan, samples: &Samples, figure: &str, target: &str) -> Goal {
    let p50 = samples.percentile(figure, target, 50.0);
    Goal {
        what: format!("{figure} of {} containers: less than {LIST_MAX} ms at p50", plan.containers),
        measured: p50.map_or("–".into(), |ms| format!("{} ms", number(ms))),
        reached: p50.map(|ms| ms < LIST_MAX),
    }
}

async fn memory_table(plan: &Plan, targets: &[Target], goals: &mut Vec<Goal>) -> Result<String, Status> {
    let mib = |kib: u64| number(kib as f64 / 1024.0);
    let count = plan.pods;
    let mut text = format!(
        "\n### Memory\n\n{count} pods, each of which has logged 1 MiB and been exec'd ten times.\n\n\
         | runtime | daemon idle: PSS MiB | with {count} pods | beside the containers: processes, PSS KiB each (private) |\n\
         |---|---|---|---|\n"
    );
    for (at, target) in targets.iter().enumerate() {
        eprintln!("bench: memory of {}", target.name);
        let daemon = target.daemon().await?;
        let idle = memory::of(daemon)?;
        let before = memory::processes();
        let pods = target.used_pods(count).await?;
        let used = memory::of(daemon)?;
        let groups = target.monitors(&before).await?;
        for pod in pods {
            target.down(pod).await?;
        }
        let beside: Vec<String> = groups.iter().map(|(name, group)| beside(name, group)).collect();
        let _ = writeln!(text, "| {} | {} | {} | {} |", target.name, mib(idle.pss), mib(used.pss), beside.join("; "));
        if at == 0 {
            memory_goals(goals, [idle, used], count, &groups);
        }
    }
    Ok(text)
}

fn beside(name: &str, group: &Group) -> String {
    let each = |kib: u64| kib / group.count.max(1);
    format!("{} {name}, {} ({})", group.count, each(group.memory.pss), each(group.memory.private))
}

fn memory_goals(goals: &mut Vec<Goal>, [idle, used]: [Memory; 2], count: usize, groups: &BTreeMap<String, Group>) {
    let daemon = |what: String, memory: Memory, most: u64| Goal {
        what: format!("the daemon {what}: at most {most} MiB"),
        measured: format!("{} MiB", number(memory.pss as f64 / 1024.0)),
        reached: Some(memory.pss <= most << 10),
    };
    goals.push(daemon("idle".into(), idle, 25));
    if count == 100 {
        goals.push(daemon("with 100 pods".into(), used, 40));
    }
    let shims = groups.iter().find(|(name, _)| name.contains("shim"));
    let each = shims.map(|(_, group)| group.memory.pss / group.count.max(1));
    goals.push(Goal {
        what: "a running container's shim: at most 512 KiB PSS".into(),
        measured: each.map_or("–".into(), |kib| format!("{kib} KiB")),
        reached: each.map(|kib| kib <= 512),
    });
}

/// What the figures were measured on.
fn machine(targets: &[Target]) -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).trim().replace('\n', ", "))
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo").lines().next().and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    let mounts = read("/proc/self/mountinfo");
    let cgroups: Vec<&str> = mounts.lines().filter(|l| l.contains(" - cgroup")).collect();
    let layout =
        match (cgroups.iter().any(|l| l.contains(" - cgroup2 ")), cgroups.iter().any(|l| l.contains(" - cgroup "))) {
            (true, true) => "hybrid",
            (true, false) => "v2",
            _ => "v1",
        };
    let dirty =
        if said("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { ", changed" };
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "| {name} | {value} |");
    };
    row("measured", &said("date", &["--utc", "+%Y-%m-%d %H:%M UTC"]));
    row("commit", &format!("{}{dirty}", said("git", &["rev-parse", "--short=12", "HEAD"])));
    row("kernel", &said("uname", &["-srm"]));
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    row("machine", &format!("{cpus} CPUs, {} GiB, load average {}", memory.unwrap_or(0) >> 20, load()));
    let fast = cgroups.iter().any(|l| l.contains("favordynmods"));
    row("cgroups", &format!("{layout}, favordynmods {}", if fast { "on" } else { "off" }));
    for target in targets {
        row(&target.name, &target.version);
    }
    let packages = ["containerd", "runc", "containernetworking-plugins"];
    row(
        "Debian's packages",
        &said("dpkg-query", &[&["--show", "-f", "${Package} ${Version}\n"], &packages[..]].concat()),
    );
    format!("| | |\n|---|---|\n{text}")
}

fn load() -> String {
    let load = std::fs::read_to_string(Path::new("/proc/loadavg")).unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
