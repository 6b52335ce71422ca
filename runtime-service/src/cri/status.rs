//! The one place where this crate's errors become gRPC statuses.

use tonic::{Code, Status};

use crate::pod::{self, chain};
use crate::pods::{LookupError, RunError};
use crate::spec::Invalid;
use crate::task;

impl From<LookupError> for Status {
    fn from(error: LookupError) -> Self {
        let code = match &error {
            LookupError::None { .. } => Code::NotFound,
            LookupError::Ambiguous { .. } | LookupError::Empty(_) => Code::InvalidArgument,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Invalid> for Status {
    fn from(error: Invalid) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<RunError> for Status {
    fn from(error: RunError) -> Self {
        let code = match &error {
            RunError::Exists { .. } => Code::AlreadyExists,
            RunError::Random(_) => Code::Internal,
            RunError::Invalid(_) => Code::InvalidArgument,
            RunError::Network(error) => network(error),
            RunError::Pod { source, .. } => code(source),
        };
        Self::new(code, chain(&error))
    }
}

/// A pod's error, said of the call that met it.
pub(super) fn of_pod(error: &pod::Error) -> Status {
    Status::new(code(error), chain(error))
}

/// A shim's error outside a pod's task: exec and log.
pub(super) fn of_task(what: &str, error: &task::Error) -> Status {
    Status::new(of_shim(error), format!("{what}: {}", chain(error)))
}

fn code(error: &pod::Error) -> Code {
    use pod::Error::*;
    match error {
        Invalid(_) => Code::InvalidArgument,
        ImageVolume { problem } if full(problem) == Code::ResourceExhausted => Code::ResourceExhausted,
        ImageVolume { .. } => Code::FailedPrecondition,
        Ended(_) | NoContainer(_) | NoImage(_) | NoVolumeImage { .. } => Code::NotFound,
        NotReady { .. } | Kept { .. } | Refused { .. } | NoRecursiveReadOnly { .. } => Code::FailedPrecondition,
        Exists { .. } => Code::AlreadyExists,
        Image { source, .. } => image(source),
        Network(error) => network(error),
        Sandbox(crate::sandbox::Error::Deadline(_)) | WontDie(_) => Code::DeadlineExceeded,
        // A sysctl that this kernel does not have, or a value that it does not take.
        Sandbox(crate::sandbox::Error::Keeper { step, .. }) if step == "sysctl" => Code::InvalidArgument,
        Sandbox(crate::sandbox::Error::Keeper { message, .. }) => full(message),
        Sandbox(_) | AppArmor(_) | Systemd(_) | Panicked | Broken(_) => Code::Internal,
        Shim { source, .. } | Features(source) => of_shim(source),
        StartFailed { code, .. } => of_ttrpc(*code),
        Ledger { source, .. } | Io { source, .. } => io(source),
        Teardown(errors) => errors.first().map_or(Code::Internal, self::code),
    }
}

fn network(error: &crate::network::Error) -> Code {
    use crate::network::Error::*;
    match error {
        NoPortMapping { .. } => Code::InvalidArgument,
        None { .. } | Broken(_) | NoPlugin { .. } => Code::FailedPrecondition,
        Plugin { problem, .. } if problem.is_port_taken() || problem.is_invalid() => Code::FailedPrecondition,
        BuiltIn(_) | Plugin { .. } => Code::Internal,
    }
}

fn image(error: &berth_image_service::Error) -> Code {
    use berth_image_service::Error::*;
    match error {
        Reference { .. } | Ambiguous { .. } | Request { .. } | NotFound { .. } => Code::InvalidArgument,
        File { .. } => Code::FailedPrecondition,
        Io { source, .. } => io(source),
        _ => Code::Internal,
    }
}

fn of_shim(error: &task::Error) -> Code {
    match error {
        task::Error::NoBinary(_) => Code::FailedPrecondition,
        task::Error::Deadline { .. } | task::Error::ExecTimeout(_) => Code::DeadlineExceeded,
        task::Error::ExecAbandoned => Code::Cancelled,
        task::Error::Ending => Code::Unavailable,
        task::Error::Gone { .. } => Code::Unavailable,
        task::Error::Refused { code, message } => match of_ttrpc(*code) {
            Code::Unknown | Code::Internal => full(message),
            code => code,
        },
        task::Error::Spawn { source, .. } | task::Error::Connect { source, .. } | task::Error::Io { source, .. } => {
            io(source)
        }
        task::Error::Start(message) => full(message),
        task::Error::Features(_) => Code::Internal,
    }
}

/// What the shim refuses is refused to the client for the same reason. A thing that the request names and that is not
/// there is a bad request: NotFound would say that the container itself is unknown.
fn of_ttrpc(code: ttrpc::Code) -> Code {
    match code {
        ttrpc::Code::INVALID_ARGUMENT | ttrpc::Code::NOT_FOUND | ttrpc::Code::PERMISSION_DENIED => {
            Code::InvalidArgument
        }
        ttrpc::Code::FAILED_PRECONDITION => Code::FailedPrecondition,
        ttrpc::Code::ALREADY_EXISTS => Code::AlreadyExists,
        ttrpc::Code::RESOURCE_EXHAUSTED => Code::ResourceExhausted,
        ttrpc::Code::DEADLINE_EXCEEDED => Code::DeadlineExceeded,
        ttrpc::Code::UNIMPLEMENTED => Code::Unimplemented,
        ttrpc::Code::UNAVAILABLE => Code::Unavailable,
        ttrpc::Code::INTERNAL => Code::Internal,
        _ => Code::Unknown,
    }
}

fn io(error: &std::io::Error) -> Code {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

/// Another process told us in words that a disk is full.
fn full(message: &str) -> Code {
    if message.to_ascii_lowercase().contains("no space left on device") {
        Code::ResourceExhausted
    } else {
        Code::Internal
    }
}
