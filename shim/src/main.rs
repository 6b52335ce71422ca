//! `containerd-shim-berth-v1`: see `berth_shim::command`.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_shim::command::run(std::env::args().skip(1))
}
