//! The program of a sandbox container. See `pause`.

fn main() {
    std::process::exit(berth_shim::pause::run());
}
