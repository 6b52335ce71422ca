//! The `bridge` plugin: see `berth_cni_plugins::bridge`.

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if let (Some("forwarding"), Some(bridge)) = (args.next().as_deref(), args.next()) {
        return match berth_cni_plugins::bridge::forwarding(&bridge) {
            Ok(lines) => {
                print!("{lines}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!(
                    "{}",
                    [Some(&error as &dyn Error), error.source()]
                        .into_iter()
                        .flatten()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(": ")
                );
                ExitCode::FAILURE
            }
        };
    }
    berth_cni_plugins::skel::main(&berth_cni_plugins::bridge::Bridge)
}
