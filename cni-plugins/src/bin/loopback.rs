//! The `loopback` plugin: see `berth_cni_plugins::loopback`.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_cni_plugins::skel::main(&berth_cni_plugins::loopback::Loopback)
}
