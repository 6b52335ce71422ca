//! A pod's namespaces and files: what exists before the network and the containers do.

mod files;
mod keeper;
mod pause;

use std::path::PathBuf;

use serde::Deserialize;

pub(crate) use files::{Files, write as write_files};
pub(crate) use keeper::{Order, run as run_keeper, watch as watch_keeper};
pub(crate) use pause::{
    PROGRAM as PAUSE_PROGRAM, make_root_filesystem as make_pause_root, root_filesystem as pause_root,
};

/// What every pod gets.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size of /dev/shm, in bytes. Source: 64 MiB, the custom since Docker.
    pub shm_size_bytes: u64,
    /// Sets `net.ipv4.ip_unprivileged_port_start=0` in the pod's network namespace.
    pub unprivileged_ports: bool,
    /// Sets `net.ipv4.ping_group_range=0 2147483647` there.
    pub unprivileged_icmp: bool,
    /// cgroup for containers of pods without `cgroup_parent`; `auto` is `/berth-TAG`, or `berth-TAG.slice` with systemd's
    /// driver.
    pub cgroup_root: String,
    /// Who makes the cgroups that containers' own are in.
    pub cgroup_driver: DriverChoice,
}

/// `[sandbox] cgroup_driver`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverChoice {
    /// systemd where it is init and cgroups are version 2 alone, as the kubelet's documentation advises; else berth.
    #[default]
    Auto,
    /// berth, directory by directory.
    Cgroupfs,
    /// systemd, over D-Bus.
    Systemd,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            shm_size_bytes: 64 << 20,
            unprivileged_ports: true,
            unprivileged_icmp: true,
            cgroup_root: "auto".into(),
            cgroup_driver: DriverChoice::Auto,
        }
    }
}

/// Why a pod's namespaces or files could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("read {path} for the pod's resolv.conf")]
    Resolv { path: PathBuf, source: std::io::Error },
    #[error("run the namespace keeper {path}")]
    Spawn { path: PathBuf, source: std::io::Error },
    #[error("the namespace keeper did not answer within {0} s and was killed")]
    Deadline(u64),
    #[error("the namespace keeper ended without an answer: {0}")]
    NoAnswer(String),
    #[error("namespace keeper, step {step}: {message}")]
    Keeper { step: String, message: String },
}
