//! The `host-local` plugin: see `berth_cni_plugins::host_local`.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_cni_plugins::skel::main(&berth_cni_plugins::host_local::HostLocal)
}
