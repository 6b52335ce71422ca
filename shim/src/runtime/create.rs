//! `create`: from a bundle to a parked init.

use super::{CreateRequest, Error, Parked};

/// Makes the container and parks its init before exec.
///
/// Blocks for about a millisecond. The init is a child of the calling process; if this fails, it has been reaped and
/// everything made for it is taken back.
///
/// # Errors
/// The step and the object that failed; see [`Error`].
pub fn create(request: CreateRequest<'_>) -> Result<Parked, Error> {
    Err(Error::refused(
        "create",
        format!("{}: not built yet", request.id),
    ))
}
