//! FIFOs in a bundle, between a process in a shim and this daemon.

use std::io;
use std::path::{Path, PathBuf};

use berth_api::shim::TIED_FIFO_SCHEME;
use nix::sys::stat::Mode;
use tokio::net::unix::pipe;

use super::{Error, Shim};
use crate::host::selinux::label_file;

/// In a bundle: the SELinux label of the container's files, if they have one.
pub(crate) const LABEL_FILE: &str = "label";

/// A FIFO's name, gone from the directory when this is dropped, unless it has to stay.
pub(super) struct Fifo {
    path: PathBuf,
    stays: bool,
}

impl Fifo {
    /// Makes one called after `owner` and `which` of its streams it is.
    pub(super) fn make(bundle: &Path, owner: &str, which: &str) -> Result<Self, Error> {
        let path = bundle.join(format!("x-{owner}-{which}"));
        let fifo = Self { path, stays: false };
        nix::unistd::mkfifo(&fifo.path, Mode::from_bits_truncate(0o600)).map_err(|e| fifo.fail("make", e.into()))?;
        // What is executed has its end, and would not be let near what is labelled as ours.
        match std::fs::read_to_string(bundle.join(LABEL_FILE)) {
            Ok(label) => label_file(&fifo.path, &label).map_err(|e| fifo.fail("label", e))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fifo.fail("read the label for", error)),
        }
        Ok(fifo)
    }

    /// One to read from.
    pub(super) fn readable(bundle: &Path, owner: &str, which: &str) -> Result<(Self, pipe::Receiver), Error> {
        let fifo = Self::make(bundle, owner, which)?;
        let reader = pipe::OpenOptions::new().open_receiver(&fifo.path).map_err(|e| fifo.fail("open", e))?;
        Ok((fifo, reader))
    }

    /// Opens it to write to; `None` when nobody reads.
    pub(super) fn writer(&self) -> Result<Option<pipe::Sender>, Error> {
        match pipe::OpenOptions::new().open_sender(&self.path) {
            Ok(sender) => Ok(Some(sender)),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => Ok(None),
            Err(error) => Err(self.fail("open", error)),
        }
    }

    /// Opens it to write to before anybody reads. While this is open, so is a reader: nobody's death is seen by it.
    pub(super) fn early_writer(&self) -> Result<pipe::Sender, Error> {
        pipe::OpenOptions::new().read_write(true).open_sender(&self.path).map_err(|e| self.fail("open", e))
    }

    /// Its owner is asked for: from now on it is there until it is removed. It tells the next daemon of a process that
    /// outlives this one, which none of berth's own shim does.
    pub(super) fn stay(&mut self, shim: &Shim) {
        self.stays = shim.is_of_another();
    }

    /// Its owner is no more.
    pub(super) fn remove(mut self) {
        self.stays = false;
    }

    /// Those that an earlier daemon left in the bundle of this shim's container, each with its owner.
    pub(super) fn left(bundle: &Path, shim: &Shim) -> Vec<(String, Self)> {
        let entries = std::fs::read_dir(bundle).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (owner, which) = name.strip_prefix("x-")?.rsplit_once('-')?;
            matches!(which, "i" | "o" | "e").then(|| {
                let mut fifo = Self { path: entry.path(), stays: false };
                fifo.stay(shim);
                (owner.to_owned(), fifo)
            })
        });
        named.collect()
    }

    fn fail(&self, deed: &str, source: io::Error) -> Error {
        Error::Io { deed: format!("{deed} the FIFO {}", self.path.display()), source }
    }

    /// For a stream whose process dies with its reader. Of the tie only berth's shim knows: another one's process
    /// outlives a daemon that dies.
    pub(super) fn tied_uri(&self, shim: &Shim) -> String {
        match shim.is_of_another() {
            true => self.path(),
            false => format!("{TIED_FIFO_SCHEME}://{}", self.path.display()),
        }
    }

    pub(super) fn path(&self) -> String {
        self.path.display().to_string()
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        if !self.stays {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
