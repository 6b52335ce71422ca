//! A directory tree as a list of lines that can be compared, and GNU tar as the judge of what a tree should be.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use super::image::digest;

/// Everything about every file below `root`, by path. Times of the directories in `untimed` are left out.
pub fn describe(root: &Path, untimed: &[&str]) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut names: HashMap<(u64, u64), Vec<String>> = HashMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = escape(path.strip_prefix(root).unwrap().as_os_str().as_bytes());
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "dir".to_owned()
        } else if kind.is_symlink() {
            format!("link to {}", escape(fs::read_link(&path).unwrap().as_os_str().as_bytes()))
        } else if kind.is_file() {
            format!("file {} {}", meta.len(), digest(&fs::read(&path).unwrap()))
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {} {:x}", if kind.is_char_device() { "c" } else { "b" }, meta.rdev())
        };
        if !kind.is_dir() && meta.nlink() > 1 {
            names.entry((meta.dev(), meta.ino())).or_default().push(name.clone());
        }
        let timed = !(kind.is_dir() && untimed.contains(&name.as_str()));
        let time = if timed { format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()) } else { String::new() };
        let line = format!("{what} {:o} {}:{} {time} {}", meta.mode(), meta.uid(), meta.gid(), xattrs(&path));
        lines.insert(name, line);
    }
    for mut names in names.into_values() {
        names.sort();
        for name in &names {
            *lines.get_mut(name).unwrap() += &format!(" = {}", names.join(" = "));
        }
    }
    lines
}

fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn xattrs(path: &Path) -> String {
    let mut names = vec![0u8; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut shown: Vec<String> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0u8; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            format!("{}={}", escape(name), escape(&value[..length]))
        })
        .collect();
    shown.sort();
    shown.join(",")
}

/// What GNU tar makes of layers put on one another, whiteouts obeyed by hand since tar knows none.
pub fn by_gnu_tar(layers: &[Vec<u8>], target: &Path) {
    for (at, layer) in layers.iter().enumerate() {
        let archive = target.with_extension(format!("{at}.tar"));
        fs::write(&archive, layer).unwrap();
        let list = Command::new("tar").args(["--quoting-style=literal", "-tf"]).arg(&archive).output().unwrap();
        assert!(list.status.success());
        for name in String::from_utf8_lossy(&list.stdout).lines() {
            let path = target.join(name.trim_start_matches('/'));
            let Some(base) = path.file_name().and_then(|base| base.to_str()) else { continue };
            if base == ".wh..wh..opq" {
                for child in fs::read_dir(path.parent().unwrap()).into_iter().flatten() {
                    remove(&child.unwrap().path());
                }
            } else if let Some(hidden) = base.strip_prefix(".wh.") {
                remove(&path.with_file_name(hidden));
            }
        }
        let done = Command::new("tar")
            .args(["--extract", "--preserve-permissions", "--same-owner", "--numeric-owner", "--xattrs"])
            .args(["--xattrs-include=*", "--delay-directory-restore", "--exclude=.wh.*", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(target)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(done.status.success(), "layer {at}: {}", String::from_utf8_lossy(&done.stderr));
        fs::remove_file(archive).unwrap();
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Fails with the lines that differ.
pub fn assert_same(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) {
    let mut different = Vec::new();
    for name in ours.keys().chain(theirs.keys()) {
        let (ours, theirs) = (ours.get(name), theirs.get(name));
        if ours != theirs {
            different.push(format!("{name}:\n  ours   {ours:?}\n  theirs {theirs:?}"));
        }
    }
    different.dedup();
    assert!(different.is_empty(), "{}", different.join("\n"));
}
