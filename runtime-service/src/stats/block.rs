//! What went to and from block devices on a cgroup's account, and what the devices are called.
//!
//! Read here: cgroups-rs takes a line of `io.stat` with fewer fields than it knows for the end of the program.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::directory::{Directory, Version};
use crate::host::Cgroups;

/// By device number, major and minor.
pub(crate) type Devices = BTreeMap<(u32, u32), Operations>;

/// By the kernel's word for it: `Read`, `Write`, `Discard` …
pub(crate) type Operations = BTreeMap<String, Transfer>;

/// What one kind of operation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) bytes: u64,
    pub(crate) count: u64,
}

/// Of a cgroup with all that is below; empty where the kernel does not account for it.
pub(super) fn read_devices(cgroups: &Cgroups, path: &str) -> Devices {
    let Some((directory, version)) = Directory::of(cgroups, "blkio", path) else { return Devices::new() };
    let file = |name: &str| directory.read(name).unwrap_or_default();
    match version {
        Version::One => {
            parse_v1(&file("blkio.throttle.io_service_bytes_recursive"), &file("blkio.throttle.io_serviced_recursive"))
        }
        Version::Two => parse_v2(&file("io.stat")),
    }
}

/// `MAJOR:MINOR Operation NUMBER` in each of two files, with sums of all devices and all operations between.
pub(super) fn parse_v1(bytes: &str, counts: &str) -> Devices {
    let mut devices = Devices::new();
    let mut add = |text: &str, set: fn(&mut Transfer, u64)| {
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let [device, operation, number] = words[..] else { continue };
            // What is read and written is also synchronous or not: the same bytes a second time.
            if matches!(operation, "Total" | "Sync" | "Async") {
                continue;
            }
            let (Some(device), Ok(number)) = (device_number(device), number.parse()) else { continue };
            set(devices.entry(device).or_default().entry(operation.to_owned()).or_default(), number);
        }
    };
    add(bytes, |transfer, number| transfer.bytes = number);
    add(counts, |transfer, number| transfer.count = number);
    devices
}

/// `MAJOR:MINOR rbytes=N wbytes=N rios=N …`; a device that was only touched may have no numbers.
pub(super) fn parse_v2(text: &str) -> Devices {
    let mut devices = Devices::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(device) = words.next().and_then(device_number) else { continue };
        for (key, number) in words.filter_map(|word| word.split_once('=')) {
            let operation = match key.as_bytes().first() {
                Some(b'r') => "Read",
                Some(b'w') => "Write",
                Some(b'd') => "Discard",
                _ => continue,
            };
            let Ok(number) = number.parse() else { continue };
            let transfer = devices.entry(device).or_default().entry(operation.to_owned()).or_default();
            match &key[1..] {
                "bytes" => transfer.bytes = number,
                "ios" => transfer.count = number,
                _ => {}
            }
        }
    }
    devices
}

fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `/dev/NAME`; empty for a number that is no block device's (a file system of many devices, or of none).
pub(crate) fn device_name((major, minor): (u32, u32)) -> String {
    let uevent = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(String::new, |name| format!("/dev/{name}"))
}

/// The file system that a directory is on.
#[derive(Clone, Debug)]
pub(crate) struct Filesystem {
    /// As `device_name` tells it.
    pub(crate) device: String,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

impl Filesystem {
    /// Of this directory.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let device = fs::metadata(path)?.dev();
        let stat = nix::sys::statvfs::statvfs(path)?;
        Ok(Self {
            device: device_name((rustix::fs::major(device), rustix::fs::minor(device))),
            size: stat.blocks() * stat.fragment_size(),
            inodes: stat.files(),
            inodes_free: stat.files_free(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_tells_bytes_and_counts_in_two_files() {
        let bytes = "254:0 Read 4096\n254:0 Write 100\n254:0 Sync 4196\n254:0 Async 0\n254:0 Total 4196\nTotal 4196\n";
        let counts = "254:0 Read 2\n254:0 Write 1\nTotal 3\n";
        let devices = parse_v1(bytes, counts);
        let operations = &devices[&(254, 0)];
        assert_eq!(operations["Read"], Transfer { bytes: 4096, count: 2 });
        assert_eq!(operations["Write"], Transfer { bytes: 100, count: 1 });
        assert_eq!((devices.len(), operations.len()), (1, 2));
    }

    #[test]
    fn version_2_tells_all_in_one_line_or_nothing_of_a_device() {
        let text = "254:0 rbytes=4096 wbytes=0 rios=2 wios=0 dbytes=7 dios=1 cost.usage=3\n8:16 \n7:0 rbytes\n";
        let devices = parse_v2(text);
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[&(254, 0)]["Read"], Transfer { bytes: 4096, count: 2 });
        assert_eq!(devices[&(254, 0)]["Discard"], Transfer { bytes: 7, count: 1 });
    }
}
