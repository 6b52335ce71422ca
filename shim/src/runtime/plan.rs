//! What the child of a clone has to do, prepared whole by its parent: a list of deeds done in order, then exec.
//! The child allocates nothing and locks nothing; a deed that fails is told by its number through the report pipe.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::mount_deeds::MountDeed;
use super::process_deeds::ProcessDeed;
use super::report::{self, Detail, Record};
use crate::sys::{self, BpfInstruction, Strings};

/// The end of the child's life as ours: what is executed.
#[derive(Debug)]
pub(super) struct Program {
    /// Installed last, right before exec.
    pub(super) seccomp: Option<Seccomp>,
    /// Where the program may be, in the order of PATH.
    pub(super) candidates: Vec<CString>,
    pub(super) argv: Strings,
    pub(super) envp: Strings,
}

/// A compiled filter.
#[derive(Clone, Debug)]
pub(super) struct Seccomp {
    pub(super) program: std::sync::Arc<[BpfInstruction]>,
    pub(super) flags: u32,
}

/// One deed. The number of a deed in its plan is its name in the report.
#[derive(Debug)]
pub(super) enum Deed {
    Mount(MountDeed),
    Process(ProcessDeed),
}

/// What deeds leave for later deeds.
#[derive(Debug, Default)]
pub(super) struct State<'plan> {
    /// The container's root, after it was attached.
    pub(super) root: Option<Root<'plan>>,
    /// The container's /dev.
    pub(super) dev: Option<OwnedFd>,
    /// An own instance of procfs, over which nothing is mounted.
    pub(super) proc: Option<OwnedFd>,
    /// The working directory could not be entered before the user was changed.
    pub(super) directory_pending: bool,
}

/// Descriptor of the container's root.
#[derive(Debug)]
pub(super) enum Root<'plan> {
    Planned(BorrowedFd<'plan>),
    Opened(OwnedFd),
}

impl State<'_> {
    /// The container's root; `EBADF` before it is attached.
    pub(super) fn root(&self) -> Result<BorrowedFd<'_>, Failure> {
        match &self.root {
            Some(Root::Planned(fd)) => Ok(*fd),
            Some(Root::Opened(fd)) => Ok(fd.as_fd()),
            None => Err(Errno::BADF.into()),
        }
    }
}

/// Why a deed failed: the kernel's number, which of the deed's objects, and what the number alone does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) errno: Errno,
    pub(super) item: u32,
    pub(super) detail: Detail,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure { errno, item: 0, detail: Detail::None }
    }
}

impl Failure {
    pub(super) fn because(errno: Errno, detail: Detail) -> Self {
        Failure { errno, item: 0, detail }
    }

    pub(super) fn of_item(self, item: usize) -> Self {
        Failure { item: u32::try_from(item).unwrap_or(u32::MAX), ..self }
    }
}

impl Deed {
    fn run<'plan>(&'plan self, state: &mut State<'plan>) -> Result<(), Failure> {
        match self {
            Deed::Mount(deed) => deed.run(state),
            Deed::Process(deed) => deed.run(state),
        }
    }

    /// What the deed is about, for messages: called by the parent with the item that failed.
    pub(super) fn describe(&self, item: u32) -> String {
        match self {
            Deed::Mount(deed) => deed.describe(item),
            Deed::Process(deed) => deed.describe(item),
        }
    }
}

/// Status of a child that could not come as far as exec. Source: runc and `docs/models.md` of CRI: StartError is 128.
const EXIT_SETUP_FAILED: i32 = 128;

/// The whole life of the child until exec. `gate` is waited for (one byte) between the last deed and exec; end of
/// file there means that nobody wants the process any more.
pub(super) fn run_child(deeds: &[Deed], program: &Program, report: &OwnedFd, gate: Option<&OwnedFd>) -> ! {
    let mut state = State::default();
    for (number, deed) in deeds.iter().enumerate() {
        if let Err(failure) = deed.run(&mut state) {
            fail(report, Record::deed(number, failure));
        }
    }
    drop(state);
    keep_only(report, gate);
    if let Some(gate) = gate {
        report::write(report, Record::ready());
        if !wait_at(gate) {
            sys::exit_now(EXIT_SETUP_FAILED);
        }
    }
    fail(report, program.start())
}

/// Closes whatever else is open: nothing of the shim's may be kept alive, or reached, by a process that is parked.
fn keep_only(report: &OwnedFd, gate: Option<&OwnedFd>) {
    match gate.map(AsRawFd::as_raw_fd) {
        None => sys::close_all_but(&[report.as_raw_fd()]),
        Some(gate) => {
            let report = report.as_raw_fd();
            sys::close_all_but(&[report.min(gate), report.max(gate)]);
        }
    }
}

fn wait_at(gate: &OwnedFd) -> bool {
    let mut byte = [0_u8];
    loop {
        match rustix::io::read(gate, &mut byte) {
            Ok(read) => return read == 1,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn fail(report: &OwnedFd, record: Record) -> ! {
    report::write(report, record);
    sys::exit_now(EXIT_SETUP_FAILED)
}

impl Program {
    /// Installs the filter and executes; returns only with what went wrong.
    fn start(&self) -> Record {
        if let Some(seccomp) = &self.seccomp
            && let Err(errno) = sys::seccomp_filter(&seccomp.program, seccomp.flags)
        {
            return Record::seccomp(errno);
        }
        let mut told = Errno::NOENT;
        let mut interpreter = false;
        for candidate in &self.candidates {
            match sys::execve(candidate, &self.argv, &self.envp) {
                Errno::NOENT => {
                    // The file is there: what is missing is the interpreter it names.
                    interpreter |=
                        told == Errno::NOENT && rustix::fs::access(candidate, rustix::fs::Access::EXISTS).is_ok();
                }
                Errno::NOTDIR => {}
                Errno::ACCESS => told = Errno::ACCESS,
                other => return Record::exec(other, Detail::None),
            }
        }
        match interpreter && told == Errno::NOENT {
            true => Record::exec(told, Detail::Interpreter),
            false => Record::exec(told, Detail::None),
        }
    }
}
