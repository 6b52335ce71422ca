//! The Task service of one shim, by either of its names, and berth's own beside it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_api::shim::messages::{self, AttachRequest, AttachResponse, ReopenLogRequest, ReopenLogResponse};
use berth_api::shim::{LOGGER_SOCKET_FILE, OOM_SCORE_ADJ_ANNOTATION};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::mount::Mount;
use containerd_shim_protos::types::task::Status;
use serde_json::Value;
use ttrpc::asynchronous::{Client, transport::Socket};
use ttrpc::context::{self, Context};

use super::Error;
use super::attached::Detached;
use super::spawn::dial;

/// Names of the Task service by version of the shim's answer to `start`.
pub(super) const TASK_V2: &str = "containerd.task.v2.Task";
pub(super) const TASK_V3: &str = "containerd.task.v3.Task";
const OWN: &str = "berth.shim.v1.Shim";

/// A connection to one shim; clones share it.
#[derive(Clone)]
pub(crate) struct Shim {
    client: Client,
    task: &'static str,
    timeout: Duration,
    /// Of a shim that is not berth's: where the container's logger listens.
    logger: Option<Arc<Path>>,
}

/// A container's root file system, as image-service describes it.
pub(crate) struct Rootfs {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// What Task's `Create` and `Exec` are told of a process's streams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams {
    pub(crate) terminal: bool,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// How a process ended, by the shim's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    /// Nanoseconds since the epoch.
    pub(crate) at_ns: i64,
}

/// What the shim says of its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Created { pid: u32 },
    Running { pid: u32 },
    Stopped,
}

impl Shim {
    pub(super) fn new(client: Client, task: &'static str, timeout: Duration) -> Self {
        Self { client, task, timeout, logger: None }
    }

    /// It is another runtime's, of this bundle.
    pub(super) fn of_another(self, bundle: &Path) -> Self {
        Self { logger: Some(bundle.join(LOGGER_SOCKET_FILE).into()), ..self }
    }

    /// It is not berth's own, and knows nothing but Task.
    pub(crate) fn is_of_another(&self) -> bool {
        self.logger.is_some()
    }

    pub(crate) async fn create(
        &self,
        id: &str,
        bundle: &str,
        rootfs: Vec<Rootfs>,
        streams: Streams,
        options: Option<Any>,
    ) -> Result<u32, Error> {
        let mount = |m: Rootfs| Mount { type_: m.kind, source: m.source, options: m.options, ..Default::default() };
        let request = api::CreateTaskRequest {
            id: id.into(),
            bundle: bundle.into(),
            rootfs: rootfs.into_iter().map(mount).collect(),
            terminal: streams.terminal,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            options: options.into(),
            ..Default::default()
        };
        let answer: api::CreateTaskResponse = self.call("Create", &request).await?;
        Ok(answer.pid)
    }

    pub(crate) async fn start(&self, id: &str, exec: &str) -> Result<u32, Error> {
        let request = api::StartRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        let answer: api::StartResponse = self.call("Start", &request).await?;
        Ok(answer.pid)
    }

    /// Process id of the shim itself.
    pub(crate) async fn own_pid(&self, id: &str) -> Result<u32, Error> {
        let request = api::ConnectRequest { id: id.into(), ..Default::default() };
        let answer: api::ConnectResponse = self.call("Connect", &request).await?;
        Ok(answer.shim_pid)
    }

    /// Waits for as long as it takes.
    pub(crate) async fn wait(&self, id: &str, exec: &str) -> Result<Exit, Error> {
        let request = api::WaitRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        let answer: api::WaitResponse = self.call_for(None, self.task, "Wait", &request).await?;
        Ok(Exit { status: answer.exit_status, at_ns: nanos(answer.exited_at.as_ref()) })
    }

    pub(crate) async fn state(&self, id: &str) -> Result<State, Error> {
        self.state_within(id, self.timeout).await
    }

    pub(crate) async fn state_within(&self, id: &str, limit: Duration) -> Result<State, Error> {
        let request = api::StateRequest { id: id.into(), ..Default::default() };
        let answer: api::StateResponse = self.call_for(Some(limit), self.task, "State", &request).await?;
        match answer.status.enum_value() {
            Ok(Status::CREATED) => Ok(State::Created { pid: answer.pid }),
            Ok(Status::RUNNING | Status::PAUSED | Status::PAUSING) => Ok(State::Running { pid: answer.pid }),
            Ok(Status::STOPPED) => Ok(State::Stopped),
            other => {
                Err(Error::Refused { code: ttrpc::Code::UNKNOWN, message: format!("the shim's state is {other:?}") })
            }
        }
    }

    /// Waits until it answers anything, for as long as it takes; false when it is gone.
    pub(super) async fn speaks(&self, id: &str) -> bool {
        let request = api::StateRequest { id: id.into(), ..Default::default() };
        let answer: Result<api::StateResponse, Error> = self.call_for(None, self.task, "State", &request).await;
        !matches!(answer, Err(Error::Gone { .. }))
    }

    /// Signals the init (`exec` empty) or an exec; `all` means every process of the container.
    pub(crate) async fn kill(&self, id: &str, exec: &str, signal: i32, all: bool) -> Result<(), Error> {
        let signal = u32::try_from(signal).unwrap_or(0);
        let request = api::KillRequest { id: id.into(), exec_id: exec.into(), signal, all, ..Default::default() };
        self.call::<_, api::Empty>("Kill", &request).await.map(drop)
    }

    pub(crate) async fn exec(&self, id: &str, exec: &str, process: Vec<u8>, streams: Streams) -> Result<(), Error> {
        let spec = Any {
            // The name containerd gives a JSON-encoded OCI process.
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: process,
            ..Default::default()
        };
        let request = api::ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            terminal: streams.terminal,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.call::<_, api::Empty>("Exec", &request).await.map(drop)
    }

    /// New limits (OCI `linux.resources`) and `oom_score_adj`, all or none of the limits.
    pub(crate) async fn update(&self, id: &str, resources: &Value, oom_score_adj: i64) -> Result<(), Error> {
        let resources = Any {
            // The name containerd gives JSON-encoded OCI resources.
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        };
        let request = api::UpdateTaskRequest {
            id: id.into(),
            resources: Some(resources).into(),
            annotations: [(OOM_SCORE_ADJ_ANNOTATION.to_owned(), oom_score_adj.to_string())].into(),
            ..Default::default()
        };
        self.call::<_, api::Empty>("Update", &request).await.map(drop)
    }

    pub(crate) async fn delete(&self, id: &str, exec: &str) -> Result<Exit, Error> {
        let request = api::DeleteRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        let answer: api::DeleteResponse = self.call("Delete", &request).await?;
        Ok(Exit { status: answer.exit_status, at_ns: nanos(answer.exited_at.as_ref()) })
    }

    /// Tells a terminal its size, in characters.
    pub(crate) async fn resize(&self, id: &str, exec: &str, width: u16, height: u16) -> Result<(), Error> {
        let request = api::ResizePtyRequest {
            id: id.into(),
            exec_id: exec.into(),
            width: width.into(),
            height: height.into(),
            ..Default::default()
        };
        self.call::<_, api::Empty>("ResizePty", &request).await.map(drop)
    }

    /// Lets go of the shim's own hold on a process's stdin: its end is now ours alone.
    pub(crate) async fn close_stdin(&self, id: &str, exec: &str) -> Result<(), Error> {
        let request = api::CloseIORequest { id: id.into(), exec_id: exec.into(), stdin: true, ..Default::default() };
        self.call::<_, api::Empty>("CloseIO", &request).await.map(drop)
    }

    /// Ends the shim; that it goes without an answer is an answer.
    pub(crate) async fn shutdown(&self, id: &str) -> Result<(), Error> {
        let request = api::ShutdownRequest { id: id.into(), now: true, ..Default::default() };
        match self.call::<_, api::Empty>("Shutdown", &request).await {
            Err(Error::Gone { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<u64, Error> {
        let request = ReopenLogRequest { id: id.into(), ..Default::default() };
        if let Some(logger) = &self.logger {
            let dialled = dial(logger).await;
            let stream = dialled.map_err(|source| Error::Connect { address: logger.display().to_string(), source })?;
            let logger = Self { client: Client::new(Socket::new(stream)), logger: None, ..self.clone() };
            let answer: ReopenLogResponse = logger.call_for(Some(self.timeout), OWN, "ReopenLog", &request).await?;
            return Ok(answer.dropped_lines);
        }
        let answer: ReopenLogResponse = self.call_for(Some(self.timeout), OWN, "ReopenLog", &request).await?;
        Ok(answer.dropped_lines)
    }

    /// Attaches a client by its FIFOs (stdin, stdout, stderr) for as long as it takes.
    pub(crate) async fn attach(&self, id: &str, [stdin, stdout, stderr]: [String; 3]) -> Result<Detached, Error> {
        let request = AttachRequest { id: id.into(), stdin, stdout, stderr, ..Default::default() };
        let answer: AttachResponse = self.call_for(None, OWN, "Attach", &request).await?;
        Ok(match answer.end.enum_value() {
            Ok(messages::End::CONTAINER_ENDED) | Err(_) => Detached::ContainerEnded,
            Ok(messages::End::CLIENT_GONE) => Detached::ClientGone,
            Ok(messages::End::FELL_BEHIND) => Detached::FellBehind,
        })
    }

    async fn call<Q: Message, A: Message + Default>(&self, method: &'static str, request: &Q) -> Result<A, Error> {
        self.call_for(Some(self.timeout), self.task, method, request).await
    }

    async fn call_for<Q: Message, A: Message + Default>(
        &self,
        within: Option<Duration>,
        service: &str,
        method: &'static str,
        request: &Q,
    ) -> Result<A, Error> {
        let call = Call { client: &self.client };
        let call = call.send(service, method, request);
        let answer = match within {
            None => call.await,
            Some(limit) => match tokio::time::timeout(limit, call).await {
                Ok(answer) => answer,
                Err(_) => return Err(Error::Deadline { method, seconds: limit.as_secs() }),
            },
        };
        answer.map_err(|error| match error {
            // Within a service's name its methods only become more, and a shim is as old as its container.
            ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::UNIMPLEMENTED && service == OWN => {
                let message = format!("its shim is of an earlier berth and knows no {method}; a new container's does");
                Error::Refused { code: status.code(), message }
            }
            ttrpc::Error::RpcStatus(status) if status.code() != ttrpc::Code::UNAVAILABLE => {
                Error::Refused { code: status.code(), message: status.message().to_owned() }
            }
            other => Error::Gone { method, cause: other.to_string() },
        })
    }
}

/// The generated client knows one service name; ours is chosen at run time.
struct Call<'a> {
    client: &'a Client,
}

impl Call<'_> {
    async fn send<Q: Message, A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
    ) -> ttrpc::Result<A> {
        let context: Context = context::with_metadata(HashMap::new());
        let mut answer = A::default();
        ttrpc::async_client_request!(self, context, request, service, method, answer);
    }
}

pub(super) fn nanos(time: Option<&containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp>) -> i64 {
    time.map_or(0, |t| t.seconds.saturating_mul(1_000_000_000).saturating_add(t.nanos.into()))
}
