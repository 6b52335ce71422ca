//! Leases on disk: one file per address, locked, whole or absent at every instant.
//!
//! ```text
//! DATA_DIR/NETWORK/
//!   lock                 flock'ed by whoever reads or writes; its content is the address given last, one line a set
//!   10.88.0.5            a lease: container id, interface, boot id, namespace; a line each
//!   owners/CID,IFNAME    link whose text is the addresses of one interface, "10.88.0.5,fd00::5"
//! ```
//!
//! The owner's link is made before its leases and removed after them, so a repetition finds what a killed call began.
//! A lease of another boot is nobody's: its pod did not survive. A file that cannot be read as a lease was torn by a
//! power cut, which is a reboot too. One with two lines is of the reference plugin, and respected.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use berth_api::cni::config::Attachment;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use crate::error::Error;

const LOCK: &str = "lock";
const OWNERS: &str = "owners";
/// A lease on its way; written under the lock, so one name is enough.
const NEW: &str = "new";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The leases of one network, locked.
pub(crate) struct Store {
    dir: PathBuf,
    lock: Flock<File>,
    boot_id: String,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    /// Nobody, or a pod that a reboot ended.
    Free,
    /// An interface of a pod.
    Held(Attachment),
}

impl Store {
    /// Waits for the lock of the network, and makes its directory if there is none.
    pub(crate) fn open(data_dir: &Path, network: &str) -> Result<Self, Error> {
        let dir = data_dir.join(network);
        let file = match open_lock(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let owners = dir.join(OWNERS);
                fs::create_dir_all(&owners).map_err(Error::file("create", &owners))?;
                open_lock(&dir)
            }
            result => result,
        };
        Store::locked(dir.clone(), file.map_err(Error::file("open", &dir.join(LOCK)))?)
    }

    /// As `open`; `None` if the network never had a lease.
    pub(crate) fn open_if_there(data_dir: &Path, network: &str) -> Result<Option<Self>, Error> {
        let dir = data_dir.join(network);
        match open_lock(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            result => Store::locked(dir.clone(), result.map_err(Error::file("open", &dir.join(LOCK)))?).map(Some),
        }
    }

    fn locked(dir: PathBuf, file: File) -> Result<Self, Error> {
        let lock = Flock::lock(file, FlockArg::LockExclusive);
        let lock = lock.map_err(|(_, errno)| Error::file("lock", &dir.join(LOCK))(errno.into()))?;
        let boot_id = fs::read_to_string(BOOT_ID).map_err(Error::file("read", Path::new(BOOT_ID)))?;
        Ok(Store { dir, lock, boot_id: boot_id.trim().into() })
    }

    /// The addresses that an interface holds or was about to hold; `None` if it has nothing to do with this network.
    pub(crate) fn of(&self, owner: &Attachment) -> Result<Option<Vec<IpAddr>>, Error> {
        let link = self.owner_link(owner);
        match fs::read_link(&link) {
            Ok(text) => Ok(Some(text.to_string_lossy().split(',').filter_map(|ip| ip.parse().ok()).collect())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file("read", &link)(e)),
        }
    }

    /// Who has the address; what a reboot left is cleared away.
    pub(crate) fn lease(&self, ip: IpAddr) -> Result<Lease, Error> {
        let path = self.lease_path(ip);
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Lease::Free),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => String::new(),
            result => result.map_err(Error::file("read", &path))?,
        };
        let (owner, boot_id) = parse(&text);
        if let Some(owner) = owner.clone().filter(|_| boot_id.is_none_or(|id| id == self.boot_id)) {
            return Ok(Lease::Held(owner));
        }
        if let Some(owner) = owner
            && self.of(&owner)?.is_some_and(|ips| ips.contains(&ip))
        {
            remove(&self.owner_link(&owner))?;
        }
        remove(&path)?;
        Ok(Lease::Free)
    }

    /// Says that the interface is about to hold these addresses.
    pub(crate) fn promise(&self, owner: &Attachment, ips: &[IpAddr]) -> Result<(), Error> {
        let text = ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
        let link = self.owner_link(owner);
        let made = match step!("ipam_add::owner", symlink(&text, &link)) {
            // The directory is the reference plugin's, or whoever made it was killed before it was whole.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let owners = self.dir.join(OWNERS);
                fs::create_dir_all(&owners).map_err(Error::file("create", &owners))?;
                symlink(&text, &link)
            }
            made => made,
        };
        made.map_err(Error::file("create", &link))
    }

    /// Writes the lease of an address that is free or the owner's already.
    pub(crate) fn take(&self, ip: IpAddr, owner: &Attachment, netns: &Path) -> Result<(), Error> {
        let (new, path) = (self.dir.join(NEW), self.lease_path(ip));
        let text = format!("{}\n{}\n{}\n{}\n", owner.container_id, owner.ifname, self.boot_id, netns.display());
        step!("ipam_add::write", fs::write(&new, text)).map_err(Error::file("write", &new))?;
        // Never replaces: whatever the lock is worth on this file system, an address has one lease.
        match step!("ipam_add::lease", renameat2(AT_FDCWD, &new, AT_FDCWD, &path, RenameFlags::RENAME_NOREPLACE)) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) if self.lease(ip)? == Lease::Held(owner.clone()) => remove(&new),
            Err(errno) => Err(Error::file("create", &path)(errno.into())),
        }
    }

    /// Removes the interface's leases, then its link. What is not there, or another's, is passed over.
    pub(crate) fn free(&self, owner: &Attachment) -> Result<(), Error> {
        let Some(ips) = self.of(owner)? else { return Ok(()) };
        for ip in ips {
            if self.lease(ip)? == Lease::Held(owner.clone()) {
                step!("ipam_del::lease", remove(&self.lease_path(ip)))?;
            }
        }
        // A killed ADD may have left it, and perhaps nobody comes after us.
        remove(&self.dir.join(NEW))?;
        step!("ipam_del::owner", remove(&self.owner_link(owner)))
    }

    /// Every lease there is.
    pub(crate) fn all(&self) -> Result<Vec<(Attachment, IpAddr)>, Error> {
        let mut all = Vec::new();
        for name in names(&self.dir)? {
            let Ok(ip) = name.parse() else { continue };
            if let Lease::Held(owner) = self.lease(ip)? {
                all.push((owner, ip));
            }
        }
        Ok(all)
    }

    /// Every interface that holds or was about to hold an address.
    pub(crate) fn owners(&self) -> Result<Vec<Attachment>, Error> {
        let names = names(&self.dir.join(OWNERS))?;
        let owners = names.iter().filter_map(|name| name.split_once(','));
        Ok(owners.map(|(id, ifname)| Attachment { container_id: id.into(), ifname: ifname.into() }).collect())
    }

    /// Removes the lease of an address, whosever it is. For GC of what has no owner's link.
    pub(crate) fn clear(&self, ip: IpAddr) -> Result<(), Error> {
        remove(&self.lease_path(ip))
    }

    /// The address given last, of each set.
    pub(crate) fn last(&mut self) -> Result<Vec<Option<IpAddr>>, Error> {
        let mut text = String::new();
        let read = self.lock.rewind().and_then(|()| self.lock.read_to_string(&mut text));
        match read {
            // The reference plugin leaves it empty; only the order of addresses depends on it.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(Vec::new()),
            read => {
                read.map_err(Error::file("read", &self.dir.join(LOCK)))?;
                Ok(text.lines().map(|line| line.parse().ok()).collect())
            }
        }
    }

    /// Remembers the addresses given last. One short write, so that it is whole or not there after a kill.
    pub(crate) fn set_last(&mut self, last: &[Option<IpAddr>]) -> Result<(), Error> {
        let line = |ip: &Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default() + "\n";
        let text: String = last.iter().map(line).collect();
        let write = |lock: &mut File| {
            lock.rewind()?;
            lock.write_all(text.as_bytes())?;
            lock.set_len(text.len() as u64)
        };
        step!("ipam_add::last", write(&mut self.lock)).map_err(Error::file("write", &self.dir.join(LOCK)))
    }

    fn lease_path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }

    fn owner_link(&self, owner: &Attachment) -> PathBuf {
        // A container id has no comma.
        self.dir.join(OWNERS).join(format!("{},{}", owner.container_id, owner.ifname))
    }
}

fn open_lock(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(LOCK))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(Error::file("remove", path)),
    }
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::file("list", dir))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(Error::file("list", dir))
}

/// Owner and boot of a lease; no owner if the text is torn, no boot if it is of the reference plugin.
pub(crate) fn parse(text: &str) -> (Option<Attachment>, Option<&str>) {
    let mut lines = text.lines().map(str::trim);
    let owner = match (lines.next(), lines.next()) {
        (Some(id), Some(ifname)) if !id.is_empty() && !ifname.is_empty() => {
            Some(Attachment { container_id: id.into(), ifname: ifname.into() })
        }
        _ => None,
    };
    (owner, lines.next().filter(|id| !id.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(id: &str) -> Attachment {
        Attachment { container_id: id.into(), ifname: "eth0".into() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    struct Fixture {
        root: tempfile::TempDir,
        store: Store,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path(), "n").unwrap();
        Fixture { root, store }
    }

    fn lease(f: &Fixture, id: &str, ips: &[&str]) {
        let ips: Vec<IpAddr> = ips.iter().map(|text| ip(text)).collect();
        f.store.promise(&owner(id), &ips).unwrap();
        ips.iter().for_each(|ip| f.store.take(*ip, &owner(id), Path::new("/n")).unwrap());
    }

    fn files(f: &Fixture) -> Vec<String> {
        let mut all = names(&f.root.path().join("n")).unwrap();
        all.extend(names(&f.root.path().join("n").join(OWNERS)).unwrap().iter().map(|o| format!("owners/{o}")));
        all.retain(|name| name != LOCK && name != OWNERS);
        all.sort();
        all
    }

    #[test]
    fn a_lease_says_whose_it_is_and_goes_without_a_trace() {
        let f = fixture();
        lease(&f, "a", &["10.0.0.2", "fd00::2"]);
        assert_eq!(files(&f), ["10.0.0.2", "fd00::2", "owners/a,eth0"]);
        assert_eq!(f.store.lease(ip("fd00::2")).unwrap(), Lease::Held(owner("a")));
        assert_eq!(f.store.of(&owner("a")).unwrap().unwrap(), [ip("10.0.0.2"), ip("fd00::2")]);
        let text = fs::read_to_string(f.root.path().join("n/10.0.0.2")).unwrap();
        let boot_id = fs::read_to_string(BOOT_ID).unwrap();
        assert_eq!(text, format!("a\neth0\n{boot_id}/n\n"));
        f.store.free(&owner("a")).unwrap();
        f.store.free(&owner("a")).unwrap();
        assert_eq!(files(&f), Vec::<String>::new());
    }

    #[test]
    fn a_directory_that_is_not_whole_is_completed() {
        let f = fixture();
        fs::remove_dir(f.root.path().join("n").join(OWNERS)).unwrap();
        lease(&f, "a", &["10.0.0.2"]);
        assert_eq!(files(&f), ["10.0.0.2", "owners/a,eth0"]);
    }

    #[test]
    fn a_lease_is_never_replaced() {
        let f = fixture();
        lease(&f, "a", &["10.0.0.2"]);
        f.store.take(ip("10.0.0.2"), &owner("a"), Path::new("/n")).unwrap();
        assert!(f.store.take(ip("10.0.0.2"), &owner("b"), Path::new("/n")).is_err());
        assert_eq!(f.store.lease(ip("10.0.0.2")).unwrap(), Lease::Held(owner("a")));
    }

    #[test]
    fn another_interface_s_lease_is_not_freed() {
        let f = fixture();
        lease(&f, "a", &["10.0.0.2"]);
        f.store.promise(&owner("b"), &[ip("10.0.0.2")]).unwrap();
        f.store.free(&owner("b")).unwrap();
        assert_eq!(files(&f), ["10.0.0.2", "owners/a,eth0"]);
    }

    #[test]
    fn a_lease_of_another_boot_is_nobody_s() {
        let mut f = fixture();
        lease(&f, "a", &["10.0.0.2"]);
        f.store.boot_id = "another".into();
        assert_eq!(f.store.lease(ip("10.0.0.2")).unwrap(), Lease::Free);
        assert_eq!(files(&f), Vec::<String>::new());
    }

    #[test]
    fn a_torn_lease_is_nobody_s_and_the_reference_plugin_s_is_respected() {
        let f = fixture();
        let write = |text: &[u8]| fs::write(f.root.path().join("n/10.0.0.2"), text).unwrap();
        for torn in [&b""[..], b"a", b"a\n", b"\xff\xfe"] {
            write(torn);
            assert_eq!(f.store.lease(ip("10.0.0.2")).unwrap(), Lease::Free, "{torn:?}");
        }
        write(b"a\r\neth0");
        assert_eq!(f.store.lease(ip("10.0.0.2")).unwrap(), Lease::Held(owner("a")));
    }

    #[test]
    fn the_last_addresses_are_remembered_in_any_length() {
        let mut f = fixture();
        assert_eq!(f.store.last().unwrap(), []);
        for last in [vec![Some(ip("10.0.0.200")), None, Some(ip("fd00::2"))], vec![Some(ip("10.0.0.2"))]] {
            f.store.set_last(&last).unwrap();
            assert_eq!(f.store.last().unwrap(), last);
        }
    }

    #[test]
    fn the_lock_waits_for_its_holder() {
        let f = fixture();
        let root = f.root.path().to_path_buf();
        let second = std::thread::spawn(move || Store::open(&root, "n").unwrap().of(&owner("a")).unwrap().unwrap());
        lease(&f, "a", &["10.0.0.2"]);
        drop(f.store);
        assert_eq!(second.join().unwrap(), [ip("10.0.0.2")]);
    }
}
