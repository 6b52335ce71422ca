//! The root file system of sandbox containers: one program, and the places that a runtime mounts over. It is a directory
//! of the run root that they all share and none can write to; the mounting is the shims'.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::host::selinux::label_file;

/// Below the run root.
const DIRECTORY: &str = "pause";

/// Path of the program inside.
pub(crate) const PROGRAM: &str = "/pause";

/// Where it is read-only, a runtime can make none of what it mounts over.
const PLACES: &[&str] = &["dev", "etc", "proc", "sys"];
const RESOLV_CONF: &str = "etc/resolv.conf";

/// Where it is, below the run root.
pub(crate) fn root_filesystem(run: &Path) -> PathBuf {
    run.join(DIRECTORY)
}

/// Makes it, with the program `binary` as it is now. Those that run have what they were started with. `label` is SELinux's
/// for what every pod's may read and execute.
///
/// # Errors
/// The binary cannot be read, or the directory not be written; with the path.
pub(crate) fn make_root_filesystem(run: &Path, binary: &Path, label: Option<&str>) -> Result<(), (PathBuf, io::Error)> {
    let root = root_filesystem(run);
    let of = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    for directory in PLACES {
        let path = root.join(directory);
        fs::create_dir_all(&path).map_err(of(&path))?;
    }
    let program = fs::read(binary).map_err(of(binary))?;
    for (name, content, mode) in [(RESOLV_CONF, &[][..], 0o444), (&PROGRAM[1..], &program, 0o555)] {
        let path = root.join(name);
        if fs::read(&path).is_ok_and(|there| there == content) {
            continue;
        }
        // Whole or not at all, and whoever executes the old one keeps it. Beside the directory until then.
        let new = run.join(format!("{DIRECTORY}.new"));
        let made = fs::write(&new, content)
            .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(mode)))
            .and_then(|()| fs::rename(&new, &path));
        made.map_err(of(&path))?;
    }
    if let Some(label) = label {
        for name in PLACES.iter().chain(&[".", RESOLV_CONF, &PROGRAM[1..]]) {
            let path = root.join(name);
            label_file(&path, label).map_err(of(&path))?;
        }
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o555)).map_err(of(&root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_program_as_it_is_now_and_nothing_else() {
        let run = tempfile::tempdir().expect("a directory");
        let binary = run.path().join("berth-pause");
        let root = root_filesystem(run.path());
        for content in ["old", "new", "new"] {
            fs::write(&binary, content).expect("write");
            make_root_filesystem(run.path(), &binary, None).expect("make it");
            let there = root.join("pause");
            assert_eq!(fs::read_to_string(&there).expect("read"), content);
            assert_eq!(fs::metadata(&there).expect("stat").permissions().mode() & 0o777, 0o555);
        }
        let mut names: Vec<_> = fs::read_dir(&root).expect("list").flatten().map(|e| e.file_name()).collect();
        names.sort();
        assert_eq!(names, ["dev", "etc", "pause", "proc", "sys"]);
        let (path, _) = make_root_filesystem(run.path(), Path::new("/no/such/program"), None).expect_err("no program");
        assert_eq!(path, Path::new("/no/such/program"));
    }
}
