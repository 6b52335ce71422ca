//! Reads container logs in CRI's form from their files, as the runtime names them in a container's status.

mod follow;
#[cfg(test)]
mod fuzzing;
mod line;
mod printer;
mod tail;

pub(crate) use follow::{Follow, read};
pub(crate) use line::Stream;
pub(crate) use printer::{Options, Printer};
