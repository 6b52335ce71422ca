//! What the child of a clone tells its parent: one record through a pipe that exec closes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Error;

/// The end of set-up and exec, told by the process itself.
#[derive(Debug)]
pub struct ExecReport {
    pipe: OwnedFd,
}

impl AsFd for ExecReport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl ExecReport {
    /// Call it when the descriptor is readable (it blocks until then): `Ok` when exec has succeeded.
    ///
    /// # Errors
    /// The step that failed; `Error::Exec` with the program's path for exec itself. The process exits with 128 by
    /// itself and is to be reaped like any other.
    pub fn outcome(self) -> Result<(), Error> {
        Err(Error::refused("exec", "not built yet"))
    }
}
