//! Mount options as words, sorted into what the kernel takes: attributes of the mount, its propagation, parameters of
//! the file system. No IO.

use std::os::fd::OwnedFd;

use super::Error;
use super::idmap::Mapping;
use super::selinux;
use crate::sys::MountAttr;

/// What the options of one mount mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `bind` or `rbind` was among them.
    pub(super) bind: bool,
    /// `rbind`: with what is mounted below.
    pub(super) recursive: bool,
    /// Attributes of the mount itself.
    pub(super) attr: MountAttr,
    /// Attributes of the mount and of every mount below it (`rro`, `rnosuid`, …).
    pub(super) recursive_attr: MountAttr,
    /// The propagation was given with an `r`: also for the mounts below.
    pub(super) recursive_propagation: bool,
    /// Of what is mounted only this directory, as mount(8) has `X-mount.subdir`.
    pub(super) subdir: Option<String>,
    /// Mappings of ids as containerd writes them, for the layers of an overlay or what is bound.
    pub(super) uidmap: Option<String>,
    pub(super) gidmap: Option<String>,
    /// Parameters of the file system, in order: `size=1m` or a bare word.
    pub(super) parameters: Vec<(String, Option<String>)>,
}

/// Name, bit of `MOUNT_ATTR_…`, and whether the word clears it. Source: mount(8), include/uapi/linux/mount.h.
const ATTRIBUTES: &[(&str, u64, bool)] = &[
    ("ro", libc::MOUNT_ATTR_RDONLY, false),
    ("rw", libc::MOUNT_ATTR_RDONLY, true),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, false),
    ("suid", libc::MOUNT_ATTR_NOSUID, true),
    ("nodev", libc::MOUNT_ATTR_NODEV, false),
    ("dev", libc::MOUNT_ATTR_NODEV, true),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, false),
    ("exec", libc::MOUNT_ATTR_NOEXEC, true),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, false),
    ("diratime", libc::MOUNT_ATTR_NODIRATIME, true),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, false),
    ("symfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, true),
];

/// Name and value of the access time field: it is one number, not bits.
const ACCESS_TIME: &[(&str, u64)] = &[
    ("relatime", libc::MOUNT_ATTR_RELATIME),
    ("norelatime", libc::MOUNT_ATTR_STRICTATIME),
    ("noatime", libc::MOUNT_ATTR_NOATIME),
    ("atime", libc::MOUNT_ATTR_RELATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME),
];

/// Words that ask for what is so anyway.
const NOTHING: &[&str] =
    &["defaults", "async", "nolazytime", "nomand", "noiversion", "loud", "nodirsync", "noauto", "nofail", "_netdev"];

/// Words of OCI or of other runtimes that are not done here.
const UNSUPPORTED: &[&str] = &["tmpcopyup", "idmap", "ridmap", "remount", "move", "copy-symlink"];

const SUBDIR: &str = "X-mount.subdir=";

impl Options {
    /// Sorts the words. `field` is where they come from, for the message.
    ///
    /// # Errors
    /// A word that is not supported.
    pub(super) fn parse(field: &str, words: &[String]) -> Result<Options, Error> {
        let mut options = Options::default();
        for word in words {
            options.take(field, word)?;
        }
        Ok(options)
    }

    /// A user namespace with the mappings among them. `None` if there are none.
    ///
    /// # Errors
    /// Mappings that are none; what the kernel answers.
    pub(super) fn users(&self, field: &str) -> Result<Option<OwnedFd>, Error> {
        let mapping = Mapping::of_options(field, self.uidmap.as_deref(), self.gidmap.as_deref())?;
        let made = mapping.map(|mapping| mapping.namespace()).transpose();
        made.map_err(|e| Error::step(format!("make a user namespace for the mappings of {field}"), e))
    }

    /// Mappings of ids are among them.
    pub(super) fn has_users(&self) -> bool {
        self.uidmap.is_some() || self.gidmap.is_some()
    }

    /// A propagation is among them that is not what every mount has.
    pub(super) fn propagates(&self) -> bool {
        !matches!(self.attr.propagation, 0 | libc::MS_PRIVATE)
    }

    /// # Errors
    /// A parameter of a file system, for a mount that makes none.
    pub(super) fn no_parameters(&self, field: &str) -> Result<(), Error> {
        match self.parameters.first() {
            None => Ok(()),
            Some((key, _)) => Err(Error::refused(field, format!("option {key:?} is not for a bind mount"))),
        }
    }

    fn take(&mut self, field: &str, word: &str) -> Result<(), Error> {
        if word.is_empty() || NOTHING.contains(&word) {
            return Ok(());
        }
        if UNSUPPORTED.contains(&word.split('=').next().unwrap_or(word)) {
            return Err(Error::refused(field, format!("option {word:?} is not supported")));
        }
        match word {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            _ if self.take_propagation(word) => {}
            _ if word.starts_with("uidmap=") => self.uidmap = Some(word["uidmap=".len()..].to_owned()),
            _ if word.starts_with("gidmap=") => self.gidmap = Some(word["gidmap=".len()..].to_owned()),
            _ if word.starts_with(SUBDIR) => self.subdir = Some(word[SUBDIR.len()..].to_owned()),
            _ if take_attribute(&mut self.attr, word) => {}
            _ if word.strip_prefix('r').is_some_and(|plain| take_attribute(&mut self.recursive_attr, plain)) => {}
            _ => self.parameters.push(match word.split_once('=') {
                Some((key, value)) => (key.into(), Some(selinux::unquoted(key, value).into())),
                None => (word.into(), None),
            }),
        }
        Ok(())
    }

    fn take_propagation(&mut self, word: &str) -> bool {
        let (plain, recursive) = match word {
            "rprivate" | "rslave" | "rshared" | "runbindable" => (&word[1..], true),
            _ => (word, false),
        };
        let propagation = match plain {
            "private" => libc::MS_PRIVATE,
            "slave" => libc::MS_SLAVE,
            "shared" => libc::MS_SHARED,
            "unbindable" => libc::MS_UNBINDABLE,
            _ => return false,
        };
        self.attr.propagation = propagation;
        self.recursive_propagation = recursive;
        true
    }
}

fn take_attribute(attr: &mut MountAttr, word: &str) -> bool {
    if let Some(&(_, value)) = ACCESS_TIME.iter().find(|(name, _)| *name == word) {
        attr.set = attr.set & !libc::MOUNT_ATTR__ATIME | value;
        attr.clear |= libc::MOUNT_ATTR__ATIME;
        return true;
    }
    let Some(&(_, bit, clears)) = ATTRIBUTES.iter().find(|(name, ..)| *name == word) else {
        return false;
    };
    // The last word wins.
    if clears {
        attr.set &= !bit;
        attr.clear |= bit;
    } else {
        attr.set |= bit;
        attr.clear &= !bit;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Options {
        let words: Vec<String> = words.split(',').map(String::from).collect();
        Options::parse("mounts[0].options", &words).expect("supported options")
    }

    #[test]
    fn attributes_of_the_mount_are_told_from_parameters_of_the_file_system() {
        let options = parse("nosuid,strictatime,mode=755,size=65536k");
        assert_eq!(options.attr.set, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(options.attr.clear, libc::MOUNT_ATTR__ATIME);
        assert_eq!(options.parameters, [("mode".into(), Some("755".into())), ("size".into(), Some("65536k".into()))]);
        assert!(!options.bind);
    }

    #[test]
    fn the_last_word_wins() {
        assert_eq!(parse("ro,rw").attr, MountAttr { set: 0, clear: libc::MOUNT_ATTR_RDONLY, propagation: 0 });
        assert_eq!(parse("rw,ro").attr, MountAttr { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0 });
        assert_eq!(parse("noatime,relatime").attr.set, 0);
    }

    #[test]
    fn a_leading_r_means_the_mounts_below_too() {
        let options = parse("rbind,rro,rslave");
        assert!(options.bind && options.recursive && options.recursive_propagation);
        assert_eq!(options.attr, MountAttr { set: 0, clear: 0, propagation: libc::MS_SLAVE });
        assert_eq!(options.recursive_attr.set, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn words_we_cannot_keep_are_refused_with_their_place() {
        let error = Options::parse("mounts[3].options", &["tmpcopyup".into()]).expect_err("unsupported");
        assert_eq!(error.to_string(), r#"mounts[3].options: option "tmpcopyup" is not supported"#);
        Options::parse("m", &["idmap=uids=0-0-1".into()]).expect_err("unsupported");
    }

    #[test]
    fn a_subdirectory_is_no_parameter() {
        let options = parse("ro,X-mount.subdir=a/b=c");
        assert_eq!((options.subdir.as_deref(), options.parameters.len()), (Some("a/b=c"), 0));
    }

    #[test]
    fn a_bare_unknown_word_goes_to_the_file_system() {
        assert_eq!(parse("newinstance,gid=5").parameters[0], ("newinstance".into(), None));
    }
}
