//! The measured calls: a pod's life as a kubelet drives it, one at a time and many at once.

use std::time::{Duration, Instant};

use berth_api::cri::{
    ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest, LinuxContainerResources, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxConfig, PodSandboxStatusRequest, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use futures::future::try_join_all;
use tonic::Status;

use super::samples::Samples;
use super::{POD_IMAGE, Target, WORKLOAD};

/// A pod with one running container.
pub struct Up {
    /// The sandbox's id.
    pub pod: String,
    /// The container's id.
    pub container: String,
}

/// How long each call that brings a pod up took.
pub struct UpTimes {
    run: Duration,
    create: Duration,
    start: Duration,
}

/// How long each call that takes a pod down took.
pub struct DownTimes {
    stop_container: Duration,
    stop: Duration,
    remove_container: Duration,
    remove: Duration,
}

async fn timed<T>(call: impl Future<Output = Result<T, Status>>) -> Result<(T, Duration), Status> {
    let begun = Instant::now();
    let answer = call.await?;
    Ok((answer, begun.elapsed()))
}

impl Target {
    pub(super) fn pod_config(&self) -> PodSandboxConfig {
        let mut config = crate::pod(&format!("bench-{}", self.next()));
        let uid = config.metadata.as_ref().map(|m| m.uid.clone()).unwrap_or_default();
        config.log_directory = self.logs.join(uid).to_string_lossy().into_owned();
        config
    }

    /// A pod of one container that runs `command`, on the network that the runtime gives it, within 64 MiB.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn up(&self, command: &[&str]) -> Result<(Up, UpTimes), Status> {
        let config = self.pod_config();
        // The kubelet makes it before it calls.
        std::fs::create_dir_all(&config.log_directory)?;
        let mut runtime = self.runtime();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let (answer, run) = timed(runtime.run_pod_sandbox(request)).await?;
        let pod = answer.into_inner().pod_sandbox_id;
        let mut container = crate::container("c", command.iter().copied());
        container.image.get_or_insert_default().image = POD_IMAGE.into();
        container.linux.get_or_insert_default().resources =
            Some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, cpu_shares: 102, ..Default::default() });
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let (answer, create) = timed(runtime.create_container(request)).await?;
        let container = answer.into_inner().container_id;
        let request = StartContainerRequest { container_id: container.clone() };
        let (_, start) = timed(runtime.start_container(request)).await?;
        Ok((Up { pod, container }, UpTimes { run, create, start }))
    }

    /// Takes a pod down as the kubelet does: its container asked to end, then everything removed.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn down(&self, up: Up) -> Result<DownTimes, Status> {
        let mut runtime = self.runtime();
        let request = StopContainerRequest { container_id: up.container.clone(), timeout: 30 };
        let (_, stop_container) = timed(runtime.stop_container(request)).await?;
        let (_, stop) =
            timed(runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: up.pod.clone() })).await?;
        let (_, remove_container) =
            timed(runtime.remove_container(RemoveContainerRequest { container_id: up.container })).await?;
        let (_, remove) = timed(runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: up.pod })).await?;
        Ok(DownTimes { stop_container, stop, remove_container, remove })
    }

    /// One `true` in the container.
    ///
    /// # Errors
    /// The runtime's, and an exit status that is not zero.
    pub async fn exec_true(&self, container: &str) -> Result<Duration, Status> {
        let request = ExecSyncRequest { container_id: container.into(), cmd: vec!["true".into()], timeout: 30 };
        let (answer, time) = timed(self.runtime().exec_sync(request)).await?;
        match answer.into_inner().exit_code {
            0 => Ok(time),
            code => Err(Status::internal(format!("true exited with {code}"))),
        }
    }

    /// A pod's whole life, with each call's time under its name.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn life(&self, samples: &mut Samples) -> Result<(), Status> {
        let (up, times) = self.up(&["/pause", WORKLOAD]).await?;
        let mut runtime = self.runtime();
        let mut add = |figure: &str, time| samples.add_time(figure, &self.name, time);
        add("pod up", times.run + times.create + times.start);
        let request = ContainerStatusRequest { container_id: up.container.clone(), verbose: false };
        let (_, status) = timed(runtime.container_status(request)).await?;
        let request = PodSandboxStatusRequest { pod_sandbox_id: up.pod.clone(), verbose: false };
        let (_, sandbox_status) = timed(runtime.pod_sandbox_status(request)).await?;
        let (_, list) = timed(runtime.list_containers(ListContainersRequest::default())).await?;
        let (_, list_pods) = timed(runtime.list_pod_sandbox(ListPodSandboxRequest::default())).await?;
        let exec = self.exec_true(&up.container).await?;
        let down = self.down(up).await?;
        add("pod down", down.stop_container + down.stop + down.remove_container + down.remove);
        add("ExecSync of true", exec);
        add("RunPodSandbox", times.run);
        add("CreateContainer", times.create);
        add("StartContainer", times.start);
        add("ContainerStatus", status);
        add("PodSandboxStatus", sandbox_status);
        add("ListContainers", list);
        add("ListPodSandbox", list_pods);
        add("StopContainer", down.stop_container);
        add("StopPodSandbox", down.stop);
        add("RemoveContainer", down.remove_container);
        add("RemovePodSandbox", down.remove);
        Ok(())
    }

    /// `count` pods up and down again by `workers` at once; gives pods per second for each way.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn rate(&self, workers: usize, count: usize) -> Result<(f64, f64), Status> {
        let begun = Instant::now();
        let lanes = (0..workers).map(|lane| async move {
            let mut made = Vec::new();
            for _ in (lane..count).step_by(workers) {
                made.push(self.up(&["/pause", WORKLOAD]).await?.0);
            }
            Ok::<_, Status>(made)
        });
        let lanes = try_join_all(lanes).await?;
        let up = count as f64 / begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let lanes = lanes.into_iter().map(|made| async move {
            for pod in made {
                self.down(pod).await?;
            }
            Ok::<_, Status>(())
        });
        try_join_all(lanes).await?;
        Ok((up, count as f64 / begun.elapsed().as_secs_f64()))
    }
}
