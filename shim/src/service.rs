//! containerd's Task service and `berth.shim.v1.Shim`: one line per RPC, and the only place that knows ttrpc codes.
//!
//! Not served: Checkpoint. It answers UNIMPLEMENTED.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use berth_api::shim::OOM_SCORE_ADJ_ANNOTATION;
use berth_api::shim::messages::{self, AttachRequest, AttachResponse, ReopenLogRequest, ReopenLogResponse};
use berth_api::shim::service as private;
use containerd_shim_protos::api;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::shim_async::Task;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{EnumOrUnknown, MessageField};
use serde::de::DeserializeOwned;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, get_status};

use crate::container::{ExecRequest, Request, Shim, State};
use crate::error::{Error, text};
use crate::events::{Events, task};
use crate::io::{self, Names};
use crate::lifecycle::{Ask, End, Phase, Refused};
use crate::process::Asked;
use crate::record;
use crate::runtime::{Kind, MountSpec};

type Reply<T> = ttrpc::Result<T>;

/// Both services of one shim.
#[derive(Clone)]
pub(crate) struct Service {
    shim: Arc<Shim>,
    events: Events,
}

/// Every service by its name. Version 2 of Task is version 3 under another name.
pub(crate) fn services(shim: Arc<Shim>, events: Events) -> HashMap<String, ttrpc::r#async::Service> {
    let service = Arc::new(Service { shim, events });
    let mut all = containerd_shim_protos::shim_async::create_task(service.clone());
    let v2 = containerd_shim_protos::shim_async::create_task(service.clone());
    all.extend(v2.into_values().map(|task| ("containerd.task.v2.Task".to_owned(), task)));
    all.extend(private::create_shim(service));
    all
}

#[async_trait]
impl Task for Service {
    async fn create(&self, _: &TtrpcContext, request: api::CreateTaskRequest) -> Reply<api::CreateTaskResponse> {
        let created = self.events.wanted().then(|| created(&request));
        let pid = creation(request).and_then(|request| self.shim.create(request)).map_err(status)? as u32;
        if let Some(created) = created {
            let (id, bundle) = (created.container_id.clone(), PathBuf::from(&created.bundle));
            let end = self.shim.end(&id, "");
            self.events.tell(|| task::TaskCreate { pid, ..created });
            self.tell_end(id, String::new(), pid, end, Some(bundle));
        }
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> Reply<api::StartResponse> {
        let told = self.clone();
        let started = to_the_end(async move {
            let (shim, events) = (&told.shim, &told.events);
            let starting = events.starting(&request.exec_id);
            let api::StartRequest { id: container_id, exec_id, .. } = request;
            if exec_id.is_empty() {
                let pid = shim.start(&container_id).await?;
                events.tell(|| task::TaskStart { container_id, pid: pid as u32, ..Default::default() });
                return Ok(pid);
            }
            // Asked for before it could have ended and be deleted.
            let end = starting.is_some().then(|| shim.end(&container_id, &exec_id));
            let pid = shim.start_exec(&container_id, &exec_id).await?;
            if let Some(end) = end {
                told.tell_end(container_id.clone(), exec_id.clone(), pid as u32, end, None);
            }
            events.tell(|| task::TaskExecStarted { container_id, exec_id, pid: pid as u32, ..Default::default() });
            Ok(pid)
        });
        answer(started.await, |pid| api::StartResponse { pid: pid as u32, ..Default::default() })
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> Reply<Empty> {
        let (container_id, exec_id) = (request.id.clone(), request.exec_id.clone());
        if self.shim.is_paused(&container_id).map_err(status)? {
            let message = format!("container {container_id:?} is paused");
            return Err(ttrpc::Error::RpcStatus(get_status(Code::FAILED_PRECONDITION, message)));
        }
        execution(request).and_then(|request| self.shim.exec(&container_id, request)).map_err(status)?;
        self.events.tell(|| task::TaskExecAdded { container_id, exec_id, ..Default::default() });
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> Reply<api::WaitResponse> {
        let end = self.shim.end(&request.id, &request.exec_id).map_err(status)?.await;
        Ok(api::WaitResponse { exit_status: end.status, exited_at: timestamp(end.at), ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> Reply<api::StateResponse> {
        let paused = self.shim.is_paused(&request.id).unwrap_or(false);
        answer(self.shim.state(&request.id, &request.exec_id), |state| state_response(request, state, paused))
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> Reply<Empty> {
        empty(self.shim.kill(&request.id, &request.exec_id, request.signal as i32, request.all))
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> Reply<api::DeleteResponse> {
        let told = self.clone();
        let deleted = to_the_end(async move {
            let api::DeleteRequest { id: container_id, exec_id, .. } = request;
            let (pid, end) = match &*exec_id {
                "" => told.shim.delete(&container_id).await?,
                exec_id => told.shim.delete_exec(&container_id, exec_id).await?,
            };
            told.events.settled(&exec_id).await;
            told.events.tell(|| task::TaskDelete {
                container_id,
                id: exec_id,
                pid: pid as u32,
                exit_status: end.status,
                exited_at: timestamp(end.at),
                ..Default::default()
            });
            Ok((pid, end))
        });
        answer(deleted.await, |(pid, end)| delete_response(pid, end))
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> Reply<api::PidsResponse> {
        answer(self.shim.pids(&request.id), |pids| {
            let info = |pid| api::ProcessInfo { pid: pid as u32, ..Default::default() };
            api::PidsResponse { processes: pids.into_iter().map(info).collect(), ..Default::default() }
        })
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> Reply<Empty> {
        let size = |value: u32| value.min(u16::MAX.into()) as u16;
        empty(self.shim.resize(&request.id, &request.exec_id, size(request.width), size(request.height)))
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> Reply<Empty> {
        match request.stdin {
            true => empty(self.shim.close_stdin(&request.id, &request.exec_id)),
            false => Ok(Empty::new()),
        }
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> Reply<Empty> {
        let resources = json("resources", request.resources.as_ref());
        let score = oom_score_adj(&request.annotations);
        empty(resources.and_then(|resources| self.shim.update(&request.id, &resources, score?)))
    }

    async fn connect(&self, _: &TtrpcContext, request: api::ConnectRequest) -> Reply<api::ConnectResponse> {
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.shim.connect(&request.id) as u32,
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> Reply<Empty> {
        let shim = self.shim.clone();
        to_the_end(async move { Ok(shim.shutdown(request.now).await) })
            .await
            .map_or_else(|e| Err(status(e)), |_| Ok(Empty::new()))
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> Reply<Empty> {
        let told = self.clone();
        // Else a client without patience would leave it half way, with nobody to resume it.
        let paused = to_the_end(async move {
            told.shim.pause(&request.id).await?;
            told.events.tell(|| task::TaskPaused { container_id: request.id, ..Default::default() });
            Ok(())
        });
        empty(paused.await)
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> Reply<Empty> {
        self.shim.resume(&request.id).map_err(status)?;
        self.events.tell(|| task::TaskResumed { container_id: request.id, ..Default::default() });
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> Reply<Empty> {
        unimplemented("Checkpoint")
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> Reply<api::StatsResponse> {
        let response = |stats| api::StatsResponse { stats: MessageField::some(stats), ..Default::default() };
        answer(self.shim.stats(&request.id), response)
    }
}

#[async_trait]
impl private::Shim for Service {
    async fn reopen_log(&self, _: &TtrpcContext, request: ReopenLogRequest) -> Reply<ReopenLogResponse> {
        answer(self.shim.reopen_log(&request.id).await, |dropped| ReopenLogResponse {
            dropped_lines: dropped,
            ..Default::default()
        })
    }

    // Not to its end: a client that hangs up is detached.
    async fn attach(&self, _: &TtrpcContext, request: AttachRequest) -> Reply<AttachResponse> {
        let names = Names { terminal: false, stdin: &request.stdin, stdout: &request.stdout, stderr: &request.stderr };
        answer(self.shim.attach(&request.id, &names).await, |end| AttachResponse {
            end: EnumOrUnknown::new(match end {
                io::End::ContainerEnded => messages::End::CONTAINER_ENDED,
                io::End::ClientGone => messages::End::CLIENT_GONE,
                io::End::FellBehind => messages::End::FELL_BEHIND,
            }),
            ..Default::default()
        })
    }
}

impl Service {
    /// Tells containerd of an end when it comes, and before it that memory was the reason.
    fn tell_end(
        &self,
        container_id: String,
        exec_id: String,
        pid: u32,
        end: Result<impl Future<Output = End> + Send + 'static, Error>,
        bundle: Option<PathBuf>,
    ) {
        let Ok(end) = end else { return };
        let events = self.events.clone();
        self.events.at_the_end(&exec_id.clone(), end, move |end| {
            // Of our own format.
            let record = bundle.and_then(|bundle| record::read_exit(&bundle).ok().flatten());
            if record.is_some_and(|record| record.oom_killed) {
                events.tell(|| task::TaskOOM { container_id: container_id.clone(), ..Default::default() });
            }
            let id = if exec_id.is_empty() { container_id.clone() } else { exec_id };
            events.tell(|| task::TaskExit {
                container_id,
                id,
                pid,
                exit_status: end.status,
                exited_at: timestamp(end.at),
                ..Default::default()
            });
        });
    }
}

/// A handler is dropped when its client hangs up; what it began goes on.
async fn to_the_end<T: Send + 'static>(
    deed: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(deed).await {
        Ok(result) => result,
        Err(error) => Err(Error::failed("run the request to its end", std::io::Error::other(error))),
    }
}

/// Without the number of the init, which is not known yet.
fn created(request: &api::CreateTaskRequest) -> task::TaskCreate {
    task::TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(task::TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn creation(request: api::CreateTaskRequest) -> Result<Request, Error> {
    if !request.checkpoint.is_empty() {
        return Err(Error::Invalid { field: "checkpoint", reason: "restoring is not supported".into() });
    }
    let mount = |mount: api::Mount| MountSpec { kind: mount.type_, source: mount.source, options: mount.options };
    Ok(Request {
        id: request.id,
        bundle: request.bundle.into(),
        rootfs: request.rootfs.into_iter().map(mount).collect(),
        asked: asked(request.terminal, request.stdin, request.stdout, request.stderr),
    })
}

fn execution(request: api::ExecProcessRequest) -> Result<ExecRequest, Error> {
    if request.exec_id.is_empty() {
        return Err(Error::Invalid { field: "exec_id", reason: "is empty".into() });
    }
    Ok(ExecRequest {
        exec_id: request.exec_id,
        spec: Box::new(json("spec", request.spec.as_ref())?),
        asked: asked(request.terminal, request.stdin, request.stdout, request.stderr),
    })
}

fn asked(terminal: bool, stdin: String, stdout: String, stderr: String) -> Asked {
    Asked { terminal, stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() }
}

/// OCI types travel as JSON in an Any, whatever its type URL.
fn json<T: DeserializeOwned>(field: &'static str, any: Option<&Any>) -> Result<T, Error> {
    let Some(any) = any else {
        return Err(Error::Invalid { field, reason: "is missing".into() });
    };
    serde_json::from_slice(&any.value).map_err(|error| Error::Invalid { field, reason: error.to_string() })
}

/// The OCI resources have no place for it.
fn oom_score_adj(annotations: &HashMap<String, String>) -> Result<Option<i32>, Error> {
    let Some(text) = annotations.get(OOM_SCORE_ADJ_ANNOTATION) else { return Ok(None) };
    match text.parse() {
        Ok(score @ -1000..=1000) => Ok(Some(score)),
        _ => Err(Error::Invalid {
            field: OOM_SCORE_ADJ_ANNOTATION,
            reason: format!("{text:?} is not between -1000 and 1000"),
        }),
    }
}

fn state_response(request: api::StateRequest, state: State, paused: bool) -> api::StateResponse {
    let (status, end) = match state.phase {
        Phase::Created | Phase::Starting => (api::Status::CREATED, None),
        Phase::Running if paused => (api::Status::PAUSED, None),
        Phase::Running | Phase::Ending(_) => (api::Status::RUNNING, None),
        Phase::Ended(end) => (api::Status::STOPPED, Some(end)),
    };
    api::StateResponse {
        id: request.id,
        exec_id: request.exec_id,
        bundle: state.bundle.to_string_lossy().into_owned(),
        pid: state.pid as u32,
        status: EnumOrUnknown::new(status),
        terminal: state.asked.terminal,
        stdin: state.asked.stdin.into(),
        stdout: state.asked.stdout.into(),
        stderr: state.asked.stderr.into(),
        exit_status: end.map_or(0, |end| end.status),
        exited_at: end.map_or_else(MessageField::none, |end| timestamp(end.at)),
        ..Default::default()
    }
}

/// Also what `containerd-shim-berth-v1 delete` prints.
pub(crate) fn delete_response(pid: i32, end: End) -> api::DeleteResponse {
    api::DeleteResponse { pid: pid as u32, exit_status: end.status, exited_at: timestamp(end.at), ..Default::default() }
}

pub(crate) fn timestamp(at: i64) -> MessageField<Timestamp> {
    const NANOS: i64 = 1_000_000_000; // in a second
    MessageField::some(Timestamp {
        seconds: at.div_euclid(NANOS),
        nanos: at.rem_euclid(NANOS) as i32,
        ..Default::default()
    })
}

fn answer<T, R>(result: Result<T, Error>, response: impl FnOnce(T) -> R) -> Reply<R> {
    result.map(response).map_err(status)
}

fn empty(result: Result<(), Error>) -> Reply<Empty> {
    answer(result, |()| Empty::new())
}

fn unimplemented<T>(method: &str) -> Reply<T> {
    Err(ttrpc::Error::RpcStatus(get_status(Code::UNIMPLEMENTED, format!("{method} is not supported"))))
}

fn status(error: Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code(&error), text(&error)))
}

fn code(error: &Error) -> Code {
    use std::io::ErrorKind as Io;
    match error {
        Error::UnknownContainer(_) | Error::UnknownExec(_) => Code::NOT_FOUND,
        Error::ContainerExists(_) | Error::ExecExists(_) => Code::ALREADY_EXISTS,
        Error::ShuttingDown => Code::UNAVAILABLE,
        // As containerd's shims answer: there is no such process any more.
        Error::Refused { ask: Ask::Signal, refused: Refused::Ended, .. } => Code::NOT_FOUND,
        Error::Refused { .. } | Error::NoTerminal { .. } => Code::FAILED_PRECONDITION,
        Error::Invalid { .. } | Error::Streams(crate::io::Error::Target { .. }) => Code::INVALID_ARGUMENT,
        Error::Streams(crate::io::Error::Open { source, .. }) => match source.kind() {
            Io::StorageFull | Io::QuotaExceeded => Code::RESOURCE_EXHAUSTED,
            _ => Code::FAILED_PRECONDITION,
        },
        Error::Streams(crate::io::Error::Make { .. }) | Error::Failed { .. } => Code::INTERNAL,
        Error::Runtime(error) => match error.kind() {
            Kind::InvalidArgument => Code::INVALID_ARGUMENT,
            Kind::NotFound => Code::NOT_FOUND,
            Kind::PermissionDenied => Code::PERMISSION_DENIED,
            Kind::NotRunning | Kind::Busy => Code::FAILED_PRECONDITION,
            Kind::Internal => Code::INTERNAL,
        },
    }
}
