//! The `bridge` plugin: see `berth_cni_plugins::bridge`.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_cni_plugins::skel::main(&berth_cni_plugins::bridge::Bridge)
}
