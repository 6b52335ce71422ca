//! The shim killed before and after each of its steps: `delete` ends what it left, and nothing stays.

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Plan, alive, cgroups, process, shim};
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::context::{Context, with_duration};

fn names() -> Vec<String> {
    let output = Command::new(shim()).arg("failpoints").output().unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    // The others are the namespace keeper's.
    names.lines().filter(|name| !name.starts_with("ns-")).map(str::to_owned).collect()
}

fn run(verb: &str, bundle: &Path, id: &str, failpoint: &str) -> Output {
    // As on a host that withholds something, so that there is something to tell of it.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_resource"]).arg(shim());
    command.args(["-namespace", "berth", "-id", id, "-in-bundle", "-bundle"]).arg(bundle).arg(verb);
    command.env("BERTH_FAILPOINT", failpoint).current_dir(bundle).stdin(Stdio::null()).output().unwrap()
}

fn soon() -> Context {
    with_duration(Duration::from_secs(10))
}

/// A container's whole life, as far as its shim goes along; says with which pid the shim ran.
async fn live(
    client: &TaskClient,
    private: &berth_api::shim::service::ShimClient,
    create: &api::CreateTaskRequest,
    failpoint: &str,
) {
    let id = &create.id;
    let exec_id = "e";
    let spec = Any { value: process(&["true"]).to_string().into_bytes(), ..Default::default() };
    let resources = Any { value: br#"{"cpu":{"shares":512}}"#.to_vec(), ..Default::default() };
    let id_of = |exec_id: &str| (id.clone(), exec_id.to_owned());
    let start = |(id, exec_id)| api::StartRequest { id, exec_id, ..Default::default() };
    let wait = |(id, exec_id)| api::WaitRequest { id, exec_id, ..Default::default() };
    let life = async {
        client.create(soon(), create).await?;
        client.start(soon(), &start(id_of(""))).await?;
        let exec = api::ExecProcessRequest {
            id: id.clone(),
            exec_id: exec_id.into(),
            spec: protobuf::MessageField::some(spec),
            ..Default::default()
        };
        client.exec(soon(), &exec).await?;
        client.start(soon(), &start(id_of(exec_id))).await?;
        client.wait(soon(), &wait(id_of(exec_id))).await?;
        let update = api::UpdateTaskRequest {
            id: id.clone(),
            resources: protobuf::MessageField::some(resources),
            ..Default::default()
        };
        client.update(soon(), &update).await?;
        let reopen = berth_api::shim::messages::ReopenLogRequest { id: id.clone(), ..Default::default() };
        private.reopen_log(soon(), &reopen).await?;
        let kill = api::KillRequest { id: id.clone(), signal: 9, all: true, ..Default::default() };
        client.kill(soon(), &kill).await?;
        client.wait(soon(), &wait(id_of(""))).await?;
        client.delete(soon(), &api::DeleteRequest { id: id.clone(), ..Default::default() }).await?;
        Ok::<(), ttrpc::Error>(())
    };
    let result = life.await;
    assert!(result.is_err(), "{failpoint}: the step was never passed");
}

async fn killed_at(failpoint: &str) {
    let mut plan = Plan::new(&["sleep", "1000"]);
    plan.spec["process"]["oomScoreAdj"] = (-500).into();
    let (bundle, id) = (plan.bundle(), plan.id.clone());
    std::fs::write(bundle.join("config.json"), plan.spec.to_string()).unwrap();
    let started = run("start", &bundle, &id, failpoint);
    if failpoint.starts_with("shim_start::") {
        assert!(!started.status.success(), "{failpoint}: start was not killed");
    } else {
        let address = format!("unix://{}", bundle.join("task.sock").display());
        let connection = Client::connect(&address).await.unwrap();
        let private = berth_api::shim::service::ShimClient::new(connection.clone());
        live(&TaskClient::new(connection), &private, &plan.create, failpoint).await;
    }
    let deleted = run("delete", &bundle, &id, "");
    assert!(deleted.status.success(), "{failpoint}: {}", String::from_utf8_lossy(&deleted.stderr));
    let response = api::DeleteResponse::parse_from_bytes(&deleted.stdout).unwrap();
    assert_eq!(response.exit_status, 137, "{failpoint}");
    assert_eq!(cgroups(&id), Vec::<std::path::PathBuf>::new(), "{failpoint}");
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Some(left) = processes_of(&id) {
        assert!(Instant::now() < deadline, "{failpoint}: process {left} is left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(plan.dir.path().to_str().unwrap()), "{failpoint}: a mount is left");
    // The same bundle serves again.
    let again = run("start", &bundle, &id, "");
    assert!(again.status.success(), "{failpoint}: {}", String::from_utf8_lossy(&again.stderr));
    let address = format!("unix://{}", bundle.join("task.sock").display());
    let client = Client::connect(&address).await;
    let client = TaskClient::new(client.unwrap_or_else(|error| panic!("{failpoint}: {error}")));
    let created = client.create(soon(), &plan.create).await;
    assert!(created.is_ok(), "{failpoint}: {created:?}");
    client.delete(soon(), &api::DeleteRequest { id: id.clone(), ..Default::default() }).await.unwrap();
    client.shutdown(soon(), &api::ShutdownRequest { id, ..Default::default() }).await.unwrap();
}

/// A living process that names the container on its command line: its shim, also one that only forked.
fn processes_of(id: &str) -> Option<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.contains(&format!("\0{id}\0")) && alive(*pid)
    })
}

#[tokio::test]
async fn nothing_is_left_when_the_shim_is_killed_at_any_step() {
    let names = names();
    assert!(names.len() >= 16, "{names:?}");
    for name in names {
        for moment in ["before", "after"] {
            killed_at(&format!("{name}:{moment}")).await;
        }
    }
}
