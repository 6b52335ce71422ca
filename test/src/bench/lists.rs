//! Lists of a full node: many containers, most of which have ended, and the time of each list.

use std::time::Instant;

use berth_api::cri::{
    ContainerState, ContainerStateValue, CreateContainerRequest, ListContainerStatsRequest, ListContainersRequest,
    ListPodSandboxRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
    StreamContainerStatsRequest, StreamContainersRequest, StreamPodSandboxesRequest,
};
use futures::future::try_join_all;
use tonic::{Response, Status, Streaming};

use super::samples::Samples;
use super::{POD_IMAGE, Target, WORKLOAD};

/// Pods that the containers are spread over.
const PODS: usize = 20;
/// Pods that are filled at once.
const LANES: usize = 4;
/// One container in so many runs; the others have ended, as on a node whose kubelet keeps them for their logs.
const RUNNING: usize = 10;

impl Target {
    /// `count` containers over some pods; gives the pods' ids.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn fill(&self, count: usize) -> Result<Vec<String>, Status> {
        let lanes = (0..LANES).map(|lane| async move {
            let mut pods = Vec::new();
            for pod in (lane..PODS).step_by(LANES) {
                pods.push(self.fill_pod(count / PODS + usize::from(pod < count % PODS)).await?);
            }
            Ok::<_, Status>(pods)
        });
        let pods = try_join_all(lanes).await?.concat();
        while self.running().await? > count.div_ceil(RUNNING) + PODS {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(pods)
    }

    async fn fill_pod(&self, count: usize) -> Result<String, Status> {
        let config = self.pod_config();
        std::fs::create_dir_all(&config.log_directory)?;
        let mut runtime = self.runtime();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let pod = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        for number in 0..count {
            let command: &[&str] = if number % RUNNING == 0 { &["/pause", WORKLOAD] } else { &["true"] };
            let mut container = crate::container(&format!("c{number}"), command.iter().copied());
            container.image.get_or_insert_default().image = POD_IMAGE.into();
            // What a kubelet has on each.
            for key in ["io.kubernetes.container.name", "io.kubernetes.pod.name", "io.kubernetes.pod.namespace"] {
                container.labels.insert(key.into(), format!("name-{number}"));
            }
            for key in ["io.kubernetes.container.hash", "io.kubernetes.container.restartCount"] {
                container.annotations.insert(key.into(), format!("{number}"));
            }
            let request = CreateContainerRequest {
                pod_sandbox_id: pod.clone(),
                config: Some(container),
                sandbox_config: Some(config.clone()),
            };
            let container_id = runtime.create_container(request).await?.into_inner().container_id;
            runtime.start_container(StartContainerRequest { container_id }).await?;
        }
        Ok(pod)
    }

    async fn running(&self) -> Result<usize, Status> {
        let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() });
        let filter = Some(berth_api::cri::ContainerFilter { state, ..Default::default() });
        let listed = self.runtime().list_containers(ListContainersRequest { filter }).await?;
        Ok(listed.into_inner().containers.len())
    }

    /// Takes down what `fill` made.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn empty(&self, pods: Vec<String>) -> Result<(), Status> {
        let mut runtime = self.runtime();
        for pod_sandbox_id in pods {
            runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
            runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
        }
        Ok(())
    }

    /// One of each list, in milliseconds under its name. A streamed form counts until its end.
    ///
    /// # Errors
    /// The runtime's; one that has no streamed form is not asked for it again.
    pub async fn lists(&self, samples: &mut Samples, streamed: &mut bool) -> Result<(), Status> {
        let mut runtime = self.runtime();
        let mut add = |figure: &str, begun: Instant| samples.add_time(figure, &self.name, begun.elapsed());
        let begun = Instant::now();
        runtime.list_containers(ListContainersRequest::default()).await?;
        add("ListContainers", begun);
        let begun = Instant::now();
        runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?;
        add("ListPodSandbox", begun);
        let begun = Instant::now();
        runtime.list_container_stats(ListContainerStatsRequest::default()).await?;
        add("ListContainerStats", begun);
        if !*streamed {
            return Ok(());
        }
        let begun = Instant::now();
        match to_the_end(runtime.stream_containers(StreamContainersRequest::default()).await).await {
            Err(status) if status.code() == tonic::Code::Unimplemented => {
                *streamed = false;
                return Ok(());
            }
            other => other?,
        }
        add("StreamContainers", begun);
        let begun = Instant::now();
        to_the_end(runtime.stream_pod_sandboxes(StreamPodSandboxesRequest::default()).await).await?;
        add("StreamPodSandboxes", begun);
        let begun = Instant::now();
        to_the_end(runtime.stream_container_stats(StreamContainerStatsRequest::default()).await).await?;
        add("StreamContainerStats", begun);
        Ok(())
    }
}

async fn to_the_end<R>(answer: Result<Response<Streaming<R>>, Status>) -> Result<(), Status> {
    let mut stream = answer?.into_inner();
    while stream.message().await?.is_some() {}
    Ok(())
}
