//! The same deed for several objects: all are tried, every failure is told.

use crate::error::Error;

/// Does `deed` for each id in turn.
///
/// # Errors
/// Every failure, after all ids were tried.
pub(super) async fn each(ids: &[String], mut deed: impl AsyncFnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
    let mut errors = Vec::new();
    for id in ids {
        match deed(id).await {
            Ok(()) => {}
            // Nobody reads on: the others must be done all the same, but there is nothing to print to.
            Err(error) => errors.push(error),
        }
    }
    Error::all(errors)
}

/// The ids that were named, or with `--all` those that exist. Neither or both is a wrong command line.
pub(super) async fn named_or_all(
    ids: Vec<String>,
    all: bool,
    list: impl AsyncFnOnce() -> Result<Vec<String>, Error>,
) -> Result<Vec<String>, Error> {
    match (ids.is_empty(), all) {
        (true, true) => list().await,
        (false, false) => Ok(ids),
        (false, true) => Err(Error::usage("name ids or give --all, not both")),
        (true, false) => Err(Error::usage("name at least one id, or give --all")),
    }
}
