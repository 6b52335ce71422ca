//! Reads a log to its end, or follows it while the container runs, across rotation: when another file stands at the
//! path, the old one is read to its end first. The runtime writes to the new one only after it has left the old.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::printer::Printer;
use super::tail;
use crate::error::Error;
use crate::log::Stream;

/// Longest pause before a quiet log is looked at again.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// First pause; a program that ends at once should not be waited for.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// Whether and how long to go on at the end of the file.
pub(crate) trait Follow {
    /// Asked at each end of the file. After `false` the file is read once more.
    async fn goes_on(&mut self) -> Result<bool, Error>;
}

/// Read what is there.
impl Follow for () {
    async fn goes_on(&mut self) -> Result<bool, Error> {
        Ok(false)
    }
}

/// Prints the log at `path`, from its last `last` lines if that is given.
///
/// # Errors
/// `Read` with the path, `Print`, or what `follow` answers.
pub(crate) async fn read(
    path: &Path,
    last: Option<(u64, Option<Stream>)>,
    printer: &mut Printer<'_>,
    follow: &mut impl Follow,
) -> Result<(), Error> {
    let failed = |source| Error::Read { path: path.into(), source };
    let mut file = File::open(path).map_err(failed)?;
    if let Some((lines, stream)) = last {
        let start = tail::start(&file, lines, stream).map_err(failed)?;
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
    }
    let mut reader = Reader { file, rest: Vec::new() };
    let mut pause = PAUSE_MIN;
    let mut last_round = false;
    while !printer.is_full() {
        let mut progress = reader.drain(printer).map_err(|error| error.at(path))?;
        if let Some(next) = reader.successor(path).map_err(failed)? {
            reader.drain(printer).map_err(|error| error.at(path))?;
            reader = Reader { file: next, rest: Vec::new() };
            progress = true;
        }
        printer.flush()?;
        if progress {
            pause = PAUSE_MIN;
            continue;
        }
        if last_round {
            break;
        }
        last_round = !follow.goes_on().await?;
        if !last_round {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
    Ok(())
}

struct Reader {
    file: File,
    /// The beginning of a line whose end has not been written yet.
    rest: Vec<u8>,
}

/// A failure of the file or of the place its content goes to.
enum Broken {
    File(io::Error),
    Print(Error),
}

impl Broken {
    fn at(self, path: &Path) -> Error {
        match self {
            Self::File(source) => Error::Read { path: path.into(), source },
            Self::Print(error) => error,
        }
    }
}

impl Reader {
    /// Prints every complete line there is. True when there was anything new.
    fn drain(&mut self, printer: &mut Printer<'_>) -> Result<bool, Broken> {
        self.rewind_if_truncated().map_err(Broken::File)?;
        let mut chunk = vec![0; 64 << 10];
        let mut progress = false;
        while !printer.is_full() {
            let size = self.file.read(&mut chunk).map_err(Broken::File)?;
            if size == 0 {
                break;
            }
            progress = true;
            for piece in chunk[..size].split_inclusive(|byte| *byte == b'\n') {
                self.rest.extend_from_slice(piece);
                if let Some(line) = self.rest.strip_suffix(b"\n") {
                    printer.line(line).map_err(Broken::Print)?;
                    self.rest.clear();
                }
            }
        }
        Ok(progress)
    }

    /// A file that became shorter was emptied in place: it is read from its beginning.
    fn rewind_if_truncated(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() < self.file.stream_position()? {
            self.rest.clear();
            self.file.rewind()?;
        }
        Ok(())
    }

    /// The file at `path`, if it is another than ours. Between rename and reopen there is none for a moment.
    fn successor(&self, path: &Path) -> io::Result<Option<File>> {
        let next = match File::open(path) {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (ours, theirs) = (self.file.metadata()?, next.metadata()?);
        Ok(((ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino())).then_some(next))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;
    use crate::log::Options;

    const fn line(text: &'static str) -> (&'static str, bool) {
        (text, true)
    }

    /// Acts on the file each time its end is reached; the container "runs" until the script is over.
    struct Script<'a> {
        steps: Vec<Box<dyn FnMut() + 'a>>,
    }

    impl Follow for Script<'_> {
        async fn goes_on(&mut self) -> Result<bool, Error> {
            if self.steps.is_empty() {
                return Ok(false);
            }
            self.steps.remove(0)();
            Ok(true)
        }
    }

    fn append(path: &Path, (text, whole): (&str, bool)) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        let end = if whole { "\n" } else { "" };
        write!(file, "2024-05-01T12:00:00Z stdout F {text}{end}").unwrap();
    }

    async fn printed(path: &Path, last: Option<u64>, mut follow: impl Follow) -> String {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(Options::default(), &mut out, &mut err);
        read(path, last.map(|lines| (lines, None)), &mut printer, &mut follow).await.unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn without_following_what_is_there_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        ["a", "b", "c"].iter().for_each(|text| append(&path, line(text)));
        assert_eq!(printed(&path, None, ()).await, "a\nb\nc\n");
        assert_eq!(printed(&path, Some(2), ()).await, "b\nc\n");
    }

    #[tokio::test]
    async fn following_goes_across_rotation_without_loss() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        append(&path, line("a"));
        let script = Script {
            steps: vec![
                Box::new(|| append(&path, line("b"))),
                // Renamed, and still written to until the runtime is told.
                Box::new(|| {
                    fs::rename(&path, &old).unwrap();
                    append(&old, line("c"));
                }),
                Box::new(|| {
                    append(&old, line("d"));
                    append(&path, line("e"));
                }),
                Box::new(|| append(&path, line("f"))),
            ],
        };
        assert_eq!(printed(&path, None, script).await, "a\nb\nc\nd\ne\nf\n");
    }

    #[tokio::test]
    async fn what_is_written_as_the_container_ends_is_read() {
        struct Ends<'a>(&'a Path);
        impl Follow for Ends<'_> {
            async fn goes_on(&mut self) -> Result<bool, Error> {
                append(self.0, line("last words"));
                Ok(false)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, line("a"));
        assert_eq!(printed(&path, None, Ends(&path)).await, "a\nlast words\n");
    }

    #[tokio::test]
    async fn a_line_in_the_making_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, ("ha", false));
        let finish = || fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"lf\n").unwrap();
        let script = Script { steps: vec![Box::new(finish)] };
        assert_eq!(printed(&path, None, script).await, "half\n");
    }

    #[tokio::test]
    async fn a_log_emptied_in_place_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        ["a", "b"].iter().for_each(|text| append(&path, line(text)));
        let script = Script {
            steps: vec![Box::new(|| {
                fs::File::create(&path).unwrap();
                append(&path, line("c"));
            })],
        };
        assert_eq!(printed(&path, None, script).await, "a\nb\nc\n");
    }

    #[tokio::test]
    async fn a_missing_log_is_named() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(Options::default(), &mut out, &mut err);
        let error = read(Path::new("/nowhere/0.log"), None, &mut printer, &mut ()).await.unwrap_err();
        assert_eq!(error.to_string(), "read /nowhere/0.log");
    }
}
