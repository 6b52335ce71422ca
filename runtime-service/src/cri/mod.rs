//! CRI's RuntimeService: a line an RPC. Decoding and encoding are in the rooms beside this one, errors in `status`.

mod batches;
mod bounds;
mod container;
mod enums;
mod events;
mod exec;
#[cfg(test)]
mod fields_test;
mod node;
mod pod_metrics;
mod pod_stats;
mod refuse;
mod sandbox;
mod stats;
mod status;
mod streams;
#[macro_use]
mod unimplemented;

use berth_api::cri::runtime_service_server::RuntimeService;
use berth_api::cri::*;
use berth_api::encoded::Encoded;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::pods::Pods;
use crate::stats::Stats;
use crate::streaming::Server;

pub(crate) use node::NodeStatus;

/// The service; everything it knows is in the directory of pods.
pub(crate) struct Service {
    pub(crate) pods: Pods,
    pub(crate) node: NodeStatus,
    pub(crate) stats: Stats,
    pub(crate) streaming: Server,
}

type Answer<T> = Result<Response<T>, Status>;

// What is not here answers UNIMPLEMENTED; the list is runtime-service/unimplemented.txt.
#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(node::version()))
    }
    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        self.node.status(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        Ok(Response::new(node::runtime_config(self.pods.shared().cgroup_driver)))
    }
    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        node::update_runtime_config(request.into_inner()).map(Response::new)
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        sandbox::run(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        sandbox::stop(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        sandbox::remove(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        sandbox::status(&self.pods, request.into_inner()).map(Response::new)
    }
    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        sandbox::list(&self.pods, request.into_inner()).map(Response::new)
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        container::create(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        container::start(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        container::stop(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        container::remove(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<Encoded<ListContainersResponse>> {
        container::list(&self.pods, request.into_inner()).map(Response::new)
    }
    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        container::status(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        container::update(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        sandbox::update(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        container::reopen_log(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        exec::sync(&self.pods, request.into_inner()).await.map(Response::new)
    }
    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        streams::exec(&self.pods, &self.streaming, request.into_inner()).map(Response::new)
    }
    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        streams::attach(&self.pods, &self.streaming, request.into_inner()).map(Response::new)
    }
    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        streams::port_forward(&self.pods, &self.streaming, request.into_inner()).map(Response::new)
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        stats::container(&self.pods, &self.stats, request.into_inner()).await.map(Response::new)
    }
    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        stats::list_containers(&self.pods, &self.stats, request.into_inner()).await.map(Response::new)
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        pod_stats::pod(&self.pods, &self.stats, request.into_inner()).await.map(Response::new)
    }
    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        pod_stats::list(&self.pods, &self.stats, request.into_inner()).await.map(Response::new)
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(pod_metrics::list_descriptors()))
    }
    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        pod_metrics::list(&self.pods, &self.stats).await.map(Response::new)
    }

    type StreamPodSandboxesStream = BoxStream<StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        sandbox::stream(&self.pods, request.into_inner()).map(Response::new)
    }
    type StreamContainersStream = BoxStream<Encoded<StreamContainersResponse>>;
    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        container::stream(&self.pods, request.into_inner()).map(Response::new)
    }
    type StreamContainerStatsStream = BoxStream<StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        Ok(Response::new(stats::stream_containers(&self.pods, &self.stats, request.into_inner())))
    }
    type StreamPodSandboxStatsStream = BoxStream<StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        Ok(Response::new(pod_stats::stream(&self.pods, &self.stats, request.into_inner())))
    }
    type StreamPodSandboxMetricsStream = BoxStream<StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Ok(Response::new(pod_metrics::stream(&self.pods, &self.stats)))
    }
    type GetContainerEventsStream = BoxStream<ContainerEventResponse>;
    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        events::subscribe(&self.pods).map(Response::new)
    }
    unimplemented_rpc!(checkpoint_container, CheckpointContainerRequest, CheckpointContainerResponse);
    unimplemented_rpc!(checkpoint_pod, CheckpointPodRequest, CheckpointPodResponse);
    unimplemented_rpc!(restore_pod, RestorePodRequest, RestorePodResponse);
}
